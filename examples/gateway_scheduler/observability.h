// What people and machines see of the host: metrics, status page, decision log.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_OBSERVABILITY_H_
#define EXAMPLES_GATEWAY_SCHEDULER_OBSERVABILITY_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "examples/gateway_scheduler/gateway.h"
#include "examples/gateway_scheduler/kv_event_feed.h"
#include "examples/gateway_scheduler/metrics_scraper.h"
#include "examples/gateway_scheduler/options.h"

namespace llmd::host {

// Parts of the host that are looked at; null where there is none. They outlive this.
struct ObservedParts {
  Gateway* gateway = nullptr;
  const KvEventFeed* events = nullptr;
  const MetricsScraper* scraper = nullptr;
  std::function<std::string()> condition = {};  // "ready", "draining", "waiting for endpoints"
};

class Observability {
 public:
  // Adds its observers to the gateway, so before the first request. InvalidArgument for options.
  static absl::StatusOr<std::unique_ptr<Observability>> Create(const HostOptions& options, Gateway& gateway);
  virtual ~Observability() = default;  // as Stop()

  // Serves metrics and status page. Unavailable names the port that is taken.
  virtual absl::Status Listen(const ObservedParts& parts) = 0;
  virtual int metrics_port() const = 0;
  virtual int status_port() const = 0;  // 0: off
  // For the status page's list.
  virtual void AddListener(std::string name, int port) = 0;
  // After a reload.
  virtual void SetScheduler(const sched::Scheduler& scheduler) = 0;
  virtual void Stop() = 0;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_OBSERVABILITY_H_
