// Flow control: requests wait here, by priority and flow, until the endpoints have room.
//
//   auto control = *FlowController::Create(*scheduler);          // feature gate flowControl is on
//   std::vector<FlowOutcome> outcomes;                            // the host's, reused
//   control->Enqueue(MakeFlowItem(id, request, *scheduler), now, outcomes);
//   control->Dispatch(now, pool, /*max=*/1, outcomes);            // on arrivals, changes, and NextWakeup()
//   for (const FlowOutcome& outcome : outcomes) ...               // schedule it, or answer ToStatus(outcome)
//   control->OnFinished(id, now, usage);                          // of every dispatched request
//
// Meaning. Every accepted Enqueue() is answered by exactly one *terminal* outcome: dispatched, rejected
// (never queued) or evicted (queued, then dropped). A dispatched request may later get one kEvictRunning, the
// order to stop it, when eviction is on. A cycle dispatches at most one request: the saturation of the
// endpoints is compared with a ceiling for each priority, highest first; the first band at or above its
// ceiling ends the cycle, whether or not it has requests (head-of-line blocking). (spec: scheduling.md 2.7)
//
// A deterministic state machine: no thread, no clock, no I/O. Time is an argument; one that lies before an
// earlier one counts as that one. Calls come from one thread at a time. The scheduler must outlive the
// controller. Memory is bounded by the limits of the configuration and the options, and once warm no call
// allocates for a request unless the host's vector grows; a fairness id longer than kMaxFlowIdBytes is
// abbreviated.
//
// Cost. With n requests queued, f flows and b priorities: Enqueue, Cancel and a cycle O(b + log n + log f)
// amortized, plus one saturation, O(endpoints), for each Dispatch(). program-aware-fairness is O(f). A change
// between an empty and a filled pool is O(n log n).
//
// Reload. A new scheduler needs a new controller. Enqueue to the new one, and let the old one drain first:
// call its Dispatch() until queued_requests is 0, and OnFinished() of both.
#ifndef LLMD_SCHED_FLOW_CONTROL_H_
#define LLMD_SCHED_FLOW_CONTROL_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "llmd/sched/decision.h"
#include "llmd/sched/endpoint_pool.h"
#include "llmd/sched/flow_policy.h"
#include "llmd/sched/scheduler.h"

namespace llmd::sched {

struct FlowOutcome {
  enum class Kind : std::uint8_t {
    kDispatched,            // send it to an endpoint
    kRejectedCapacity,      // a limit is reached
    kRejectedNoEndpoints,   // a limit is reached while there is no endpoint
    kRejectedShuttingDown,  // came after Shutdown()
    kEvictedTtl,            // waited too long
    kEvictedNoEndpoints,    // waited too long while there is no endpoint
    kEvictedCancelled,      // Cancel()
    kEvictedShuttingDown,   // was queued at Shutdown()
    kEvictRunning,          // stop this dispatched request; then report OnFinished()
  };
  static constexpr std::size_t kKinds = 9;

  std::uint64_t id = 0;
  Kind kind = Kind::kDispatched;
  std::int32_t priority = 0;
  absl::Duration waited = absl::ZeroDuration();  // in the queue; of kEvictRunning: since dispatch
};

// "dispatched", "rejected-capacity" and so on, for metrics.
std::string_view ToString(FlowOutcome::Kind kind);
// For header x-llm-d-request-dropped-reason.
DroppedReason GetDroppedReason(FlowOutcome::Kind kind);
// OK for kDispatched; otherwise ResourceExhausted (HTTP 429) or Unavailable (503), with the dropped reason.
absl::Status ToStatus(const FlowOutcome& outcome);

// The item of a request: flow by Scheduler::FairnessId(), wanted time to first token by the headers
// x-llm-d-slo-ttft-ms or x-slo-ttft-ms. Views of the request's.
FlowItem MakeFlowItem(std::uint64_t id, const Request& request, const Scheduler& scheduler,
                      std::optional<absl::Time> received = {});

inline constexpr std::size_t kMaxFlowIdBytes = 256;

struct FlowControllerOptions {
  absl::Duration ttl_sweep_interval = absl::Seconds(1);
  // NextWakeup() asks for a cycle this often while requests are queued. Infinite for a host that calls
  // Dispatch() whenever metrics or in-flight counts change.
  absl::Duration poll_interval = absl::Milliseconds(1);
  absl::Duration flow_idle_timeout = absl::Minutes(5);
  absl::Duration band_idle_timeout = absl::Minutes(10);  // of priorities that are not configured
  std::size_t max_idle_flows = 10000;                    // beyond, the one idle for longest goes early
  std::size_t max_dynamic_bands = 256;                   // beyond, requests of new priorities are rejected
  // Running requests that are remembered, when eviction or a fairness policy needs that; others can neither
  // be evicted nor charged.
  std::size_t max_running = 1000000;
  // Between a confirmed eviction and the next decision: how long until the freed capacity can be seen.
  // Absent: 10 ms with concurrency-detector, otherwise the sum of the two below and 250 ms.
  std::optional<absl::Duration> eviction_grace = {};
  absl::Duration metrics_refresh_interval = absl::Milliseconds(50);
  absl::Duration metrics_staleness_threshold = absl::Seconds(2);
  absl::Duration eviction_timeout = absl::Seconds(10);  // an unconfirmed eviction counts as confirmed then
};

struct FlowControlStats {
  std::uint64_t queued_requests = 0;
  std::uint64_t queued_bytes = 0;
  std::uint64_t running = 0;  // of those remembered
  std::uint64_t flows = 0;    // idle ones included
  std::uint64_t bands = 0;
  std::uint64_t unconfirmed_evictions = 0;                       // released by eviction_timeout
  double saturation = 0;                                         // at the last cycle
  std::array<std::uint64_t, FlowOutcome::kKinds> outcomes = {};  // by kind
};

class FlowController {
 public:
  // FailedPrecondition when the scheduler's feature gate flowControl is off; InvalidArgument for options out
  // of range.
  static absl::StatusOr<std::unique_ptr<FlowController>> Create(const Scheduler& scheduler,
                                                                const FlowControllerOptions& options = {});
  ~FlowController();
  FlowController(const FlowController&) = delete;
  FlowController& operator=(const FlowController&) = delete;

  // All calls append to `outcomes`.

  // Queues the item, or appends its rejection. AlreadyExists, and no outcome, for an id that is queued or
  // remembered as running. Whether there are endpoints is as of the last Tick() or Dispatch().
  absl::Status Enqueue(const FlowItem& item, absl::Time now, std::vector<FlowOutcome>& outcomes);
  // The client went away. True when the request was queued; one that was dispatched is the host's to end.
  bool Cancel(std::uint64_t id, absl::Time now, std::vector<FlowOutcome>& outcomes);
  // Takes note of the pool, evicts what waited too long and forgets what is idle.
  void Tick(absl::Time now, const EndpointPool& pool, std::vector<FlowOutcome>& outcomes);
  // Tick(), then up to `max` cycles; returns how many requests were dispatched. Within one call the
  // saturation is that of the beginning: with a detector that counts running requests, carry out one decision
  // before asking for the next (`max` 1).
  std::size_t Dispatch(absl::Time now, const EndpointPool& pool, std::size_t max,
                       std::vector<FlowOutcome>& outcomes);
  // One cycle.
  bool Step(absl::Time now, const EndpointPool& pool, std::vector<FlowOutcome>& outcomes) {
    return Dispatch(now, pool, 1, outcomes) == 1;
  }
  // A dispatched request is through: answered, failed, aborted or evicted. False when it is not remembered.
  bool OnFinished(std::uint64_t id, absl::Time now, const std::optional<TokenUsage>& usage = {});
  // Evicts everything queued and rejects whatever comes. Running requests go on.
  void Shutdown(absl::Time now, std::vector<FlowOutcome>& outcomes);

  // When to call Tick() or Dispatch() at the latest, if nothing happens before. Infinite when there is
  // nothing to wait for.
  absl::Time NextWakeup(absl::Time now) const;

  FlowControlStats stats() const;
  // What the controller holds in memory, counted from its containers.
  std::size_t MemoryBytes() const;

 private:
  struct Impl;
  explicit FlowController(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace llmd::sched

#endif  // LLMD_SCHED_FLOW_CONTROL_H_
