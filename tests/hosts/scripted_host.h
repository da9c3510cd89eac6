// A scripted host for the tests of what watches it: a pool, a scheduler and reports of made-up requests.
#ifndef TESTS_HOSTS_SCRIPTED_HOST_H_
#define TESTS_HOSTS_SCRIPTED_HOST_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "examples/gateway_scheduler/observer.h"
#include "examples/gateway_scheduler/pool_store.h"
#include "llmd/index/approx_index.h"
#include "llmd/index/prefix_index.h"
#include "llmd/sched/plugin_states.h"
#include "llmd/sched/scheduler.h"

namespace llmd::host {

inline const absl::Time kStart = absl::FromUnixSeconds(1000);

// What a request does, with the defaults of one that goes well.
struct Script {
  std::string id = "r-1";
  std::string model = "m";
  std::string target_model = "m-target";
  std::string fairness_id = "default-flow";
  std::int32_t priority = 0;
  std::size_t endpoint = 0;
  std::uint32_t cached_blocks = 3;
  std::uint32_t total_blocks = 4;
  std::optional<sched::FlowOutcome::Kind> flow = {};
  absl::Duration queued = absl::ZeroDuration();
  absl::Status status = absl::OkStatus();  // of the decision
  bool split = false;                      // has a prefill stage
  absl::Duration ttft = absl::Milliseconds(200);
  absl::Duration duration = absl::Seconds(2);
  bool streaming = true;
  bool broken_off = false;
  int http_status = 200;
  std::uint64_t completion_tokens = 10;
};

class ScriptedHost {
 public:
  // Endpoints pod-0, pod-1 ... at 10.0.0.1:8000 and so on; the configuration is read as a file's text, where
  // given, else the default one.
  explicit ScriptedHost(std::size_t endpoints, const std::string& yaml = "");

  void SetMetrics(std::size_t endpoint, std::int64_t waiting, std::int64_t running, double kv, absl::Time at);
  void SetEndpoints(const std::vector<std::string>& names);

  RequestInfo Info(const Script& script) const;
  void Decide(Observer& observer, const Script& script) const;
  // As Decide(), with the scheduler's own decision, explained if the observer wants it.
  void Schedule(Observer& observer, const Script& script) const;
  void Finish(Observer& observer, const Script& script) const;

  PoolStore pool;
  std::shared_ptr<sched::PluginStates> states = std::make_shared<sched::PluginStates>();
  std::unique_ptr<index::PrefixIndex> exact;
  std::unique_ptr<index::ApproxIndex> approx;
  std::unique_ptr<sched::Scheduler> scheduler;
};

}  // namespace llmd::host

#endif  // TESTS_HOSTS_SCRIPTED_HOST_H_
