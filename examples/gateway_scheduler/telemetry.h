// The host's Prometheus metrics, by llm-d's names. (spec: gateway.md 3)
//
//   Telemetry telemetry({.pool_name = "llm-d", .names = names}, pool);
//   telemetry.SetScheduler(*scheduler);                // again after each reload, before its first decision
//   telemetry.SetSources({.flow_control = ...});       // before the first scrape
//   observers.push_back(&telemetry);
//   std::string text = telemetry.Expose();             // GET /metrics
//
// What requests do is counted as it happens, by the calls of Observer: a handful of atomic additions, with
// series found under shared locks. What the pool, flow control, indexes and event feeds hold is read when a
// scrape asks. Series of endpoints that have left the pool are not exported.
//
// Threads: any thread may call anything.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_TELEMETRY_H_
#define EXAMPLES_GATEWAY_SCHEDULER_TELEMETRY_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "examples/gateway_scheduler/label_limits.h"
#include "examples/gateway_scheduler/metric_names.h"
#include "examples/gateway_scheduler/observer.h"
#include "examples/gateway_scheduler/pool_store.h"
#include "llmd/sched/flow_control.h"
#include "llmd/sched/plugin_states.h"

namespace llmd::host {

struct TelemetryOptions {
  std::string pool_name = "default";
  MetricNames names = {};
  bool demo_metrics = false;    // epp_* (spec: deployment.md 9)
  bool stream_metrics = false;  // of gRPC streams (--enable-grpc-stream-metrics)
  std::string commit = "unknown";
  std::string build_ref = "unknown";
  LabelLimits limits = {};
  absl::Duration metrics_staleness = absl::Seconds(2);  // an endpoint whose metrics are older is unhealthy
  std::function<absl::Time()> clock = [] { return absl::Now(); };
};

// Of the exact index and its feed of KV events. (spec: gateway.md 3.4)
struct KvIndexCounts {
  struct Skipped {
    std::string cache_kind = {};
    std::string reason = {};
    std::uint64_t count = 0;
  };
  struct Errors {
    std::string operation = {};
    std::uint64_t count = 0;
  };
  struct Publisher {
    std::string pod = {};
    std::uint64_t messages = 0;
    std::uint64_t reconnections = 0;
    std::vector<Errors> errors = {};
  };

  std::uint64_t admissions = 0;                           // blocks
  std::uint64_t evictions = 0;                            // blocks: dropped by the index for room
  std::optional<std::uint64_t> removals_suppressed = {};  // announced twice
  std::optional<std::uint64_t> removals_forwarded = {};
  std::vector<Skipped> stores_skipped = {};
  std::vector<Skipped> removals_skipped = {};
  std::uint64_t active_subscribers = 0;
  std::vector<Publisher> publishers = {};
  std::optional<std::uint64_t> queue_depth = {};
  std::optional<std::uint64_t> queue_capacity = {};
};

struct DataLayerErrors {
  struct Poll {
    std::string source_type = {};  // "metrics-data-source"
    std::uint64_t count = 0;
  };
  struct Extract {
    std::string source_type = {};
    std::string extractor_type = {};  // "core-metrics-extractor"
    std::uint64_t count = 0;
  };
  std::vector<Poll> polls = {};
  std::vector<Extract> extracts = {};
};

// Asked by the thread that scrapes; each may be empty.
struct TelemetrySources {
  std::function<std::optional<sched::FlowControlStats>()> flow_control = {};
  std::function<std::optional<KvIndexCounts>()> kv_index = {};
  std::function<DataLayerErrors()> data_layer = {};
  std::function<std::uint64_t()> prefix_index_size = {};  // entries of the index that decisions read
  std::shared_ptr<sched::PluginStates> states = {};       // with the tables of requests in flight
};

class Telemetry final : public Observer {
 public:
  // `pool` must outlive this.
  Telemetry(const TelemetryOptions& options, const PoolStore& pool);
  ~Telemetry() override;

  // What its plugins are called; the scheduler itself is not kept.
  void SetScheduler(const sched::Scheduler& scheduler);
  void SetSources(TelemetrySources sources);

  void OnDecision(const DecisionReport& report) override;
  void OnResponseChunk(const RequestInfo& request, absl::Duration since_last) override;
  void OnFinished(const FinishReport& report) override;

  // Of the gRPC server; nothing happens unless `stream_metrics`. `code`: "OK", "Canceled", ...
  void OnStreamStarted() override;
  void OnStreamEnded(std::string_view code, absl::Duration open) override;
  // One cycle of flow control.
  void OnDispatchCycle(absl::Duration duration) override;

  // Text format 0.0.4.
  std::string Expose() const;
  static constexpr char kContentType[] = "text/plain; version=0.0.4; charset=utf-8";

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_TELEMETRY_H_
