// What the status page shows, as plain values, and how to fill them from the host's parts.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_HOST_STATE_H_
#define EXAMPLES_GATEWAY_SCHEDULER_HOST_STATE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "llmd/base/memory_usage.h"
#include "llmd/index/prefix_index.h"
#include "llmd/sched/endpoint_pool.h"
#include "llmd/sched/flow_control.h"
#include "llmd/sched/scheduler.h"

namespace llmd::host {

struct HostState {
  struct Endpoint {
    std::string id = {};  // namespace/name
    std::string address = {};
    std::string role = {};                   // "decode", "prefill, decode"; "none"
    bool healthy = false;                    // its metrics are fresh
    std::optional<double> metrics_age = {};  // seconds; absent: never read
    std::optional<double> kv_usage = {};     // 0..1
    std::optional<std::int64_t> waiting = {};
    std::optional<std::int64_t> running = {};
    std::uint64_t decisions = 0;      // since it joined, see Activity
    std::uint64_t cached_blocks = 0;  // of their prompts, at the time of the decision
    std::uint64_t total_blocks = 0;
  };
  struct MemoryCause {
    std::string name = {};
    std::uint64_t bytes = 0;
  };
  struct Index {
    std::string name = {};  // "exact", "approximate"
    std::uint64_t holders = 0;
    std::uint64_t holder_blocks = 0;  // pairs of holder and block
    std::uint64_t evicted_blocks = 0;
    std::uint64_t bytes = 0;
    std::uint64_t budget_bytes = 0;  // 0: no limit, or not known
    std::vector<MemoryCause> causes = {};
  };
  struct Outcome {
    std::string name = {};
    std::uint64_t count = 0;
  };
  struct FlowControl {
    std::uint64_t queued = 0;
    std::uint64_t queued_bytes = 0;
    std::uint64_t running = 0;
    double saturation = 0;
    std::vector<Outcome> outcomes = {};  // that have occurred
  };
  struct Quantiles {  // seconds; absent: nothing was measured
    std::optional<double> p50 = {}, p95 = {}, p99 = {};
  };
  // Of the last minute, but for the totals.
  struct Traffic {
    std::vector<std::uint32_t> decided_per_second = {};  // oldest first
    double decided_rate = 0, refused_rate = 0, failed_rate = 0;
    std::uint64_t decided = 0, refused = 0, failed = 0;
    std::int64_t running = 0;
    std::optional<double> hit_ratio = {};
    Quantiles deciding = {}, ttft = {}, duration = {};
  };
  struct Listener {
    std::string name = {};
    std::uint16_t port = 0;
  };

  absl::Time now = absl::InfinitePast();
  absl::Time started = absl::InfinitePast();
  std::string version = {};
  std::string pool = {};
  std::string condition = {};  // "ready", "draining", "waiting for endpoints"
  std::vector<Listener> listeners = {};
  Traffic traffic = {};
  std::vector<Endpoint> endpoints = {};
  std::vector<Index> indexes = {};
  std::optional<FlowControl> flow_control = {};
  std::string config = {};  // as PrintConfig() gives it
  std::vector<std::string> warnings = {};
};

// `staleness`: metrics that are older make an endpoint unhealthy.
void FillEndpoints(const sched::EndpointPool& pool, absl::Time now, absl::Duration staleness,
                   HostState& state);
HostState::Index DescribeIndex(std::string name, const index::IndexStats& stats, const MemoryUsage& memory);
HostState::FlowControl DescribeFlowControl(const sched::FlowControlStats& stats);
// Configuration in force and its warnings.
void FillConfiguration(const sched::Scheduler& scheduler, HostState& state);

// One JSON object on one line; without the configuration's text, but with a number that changes with it.
std::string ToJson(const HostState& state);
std::string ConfigurationJson(const HostState& state);

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_HOST_STATE_H_
