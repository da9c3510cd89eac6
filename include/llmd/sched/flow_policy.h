// The policies of flow control: who among queued requests is next, how much each priority may use, and which
// running requests may be stopped.
//
// A policy is a plugin (plugin.h) that derives from one of the kinds below and is named in the configuration
// (FlowControlConfig). It is a constant; what it remembers lives in a state object that a FlowController
// makes and owns, one per controller, so that two controllers do not mix and a replay starts blank. All calls
// to one controller's states come from the thread that drives the controller. Policies are deterministic,
// read no clock and take no lock; time is an argument and never runs backwards.
#ifndef LLMD_SCHED_FLOW_POLICY_H_
#define LLMD_SCHED_FLOW_POLICY_H_

#include <compare>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

#include "absl/time/time.h"
#include "llmd/sched/flight.h"

namespace llmd::sched {

// A request to be queued.
struct FlowItem {
  std::uint64_t id = 0;                     // the host's, unique among queued and running requests
  std::string_view flow = "default-flow";   // whose it is; see Scheduler::FairnessId(). Copied
  std::int32_t priority = 0;                // higher first; below 0: may be shed
  std::uint64_t bytes = 0;                  // of the body
  std::optional<absl::Duration> ttl = {};   // more than 0: instead of FlowControlConfig::default_request_ttl
  std::optional<absl::Time> received = {};  // by the host; the time of Enqueue() when absent
  std::optional<absl::Duration> slo_ttft = {};  // wanted time to first token; ignored below 0
};

// Place in a queue: lower is sooner. What is left equal goes by arrival.
struct OrderKey {
  std::int64_t first = 0;
  std::int64_t second = 0;
  friend auto operator<=>(const OrderKey&, const OrderKey&) = default;
};

// "Later than anything" in an OrderKey.
inline constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();

// Orders the requests of one flow, and heads of flows against each other.
class OrderingPolicy {
 public:
  virtual ~OrderingPolicy() = default;
  // Fixed when the request is queued. `ttl` is the one in force while there are endpoints; infinite for none.
  virtual OrderKey Key(const FlowItem& item, absl::Time enqueued, absl::Duration ttl) const = 0;
};

// The request that a flow would send next.
struct FlowHead {
  std::uint32_t flow = 0;      // number of the flow within its band, reused after Clear()
  std::string_view id = {};    // valid until Clear()
  OrderKey key = {};           // the request's, by the band's ordering policy
  std::uint64_t sequence = 0;  // the request's number in order of arrival
  absl::Time enqueued = absl::UnixEpoch();
};

// Chooses among the flows of one priority that have something queued.
class FlowSelector {
 public:
  virtual ~FlowSelector() = default;
  // The flow has a first request, or another one than before.
  virtual void Set(const FlowHead& head, absl::Time now) = 0;
  // The flow has nothing queued any more.
  virtual void Clear(std::uint32_t flow, absl::Time now) = 0;
  // The flow whose first request is dispatched now; nothing when no flow is set.
  virtual std::optional<std::uint32_t> Pick(absl::Time now) = 0;
  virtual std::size_t MemoryBytes() const = 0;
};

// A fairness policy's memory in one controller, shared by the bands that use it.
class FairnessState {
 public:
  virtual ~FairnessState() = default;
  // Must not outlive the state.
  virtual std::unique_ptr<FlowSelector> NewBand() = 0;
  // Whether OnFinished() matters, so that the controller must remember running requests.
  virtual bool NeedsUsage() const { return false; }
  // A dispatched request of `flow` is through.
  virtual void OnFinished(std::string_view flow, const TokenUsage& usage, absl::Time now);
  // Called often: forgets what is too old.
  virtual void Sweep(absl::Time now);
  virtual std::size_t MemoryBytes() const { return 0; }
};

class FairnessPolicy {
 public:
  virtual ~FairnessPolicy() = default;
  virtual std::unique_ptr<FairnessState> NewState() const = 0;
};

class UsageLimiter {
 public:
  virtual ~UsageLimiter() = default;
  // Called once for each cycle. `priorities` fall; ceilings[i], 1.0 at first, is the saturation at which
  // priorities[i] is held back.
  virtual void Limit(double saturation, std::span<const std::int32_t> priorities,
                     std::span<double> ceilings) = 0;
};

class UsageLimitPolicy {
 public:
  virtual ~UsageLimitPolicy() = default;
  virtual std::unique_ptr<UsageLimiter> NewLimiter() const = 0;
};

// A dispatched request that is not finished.
struct RunningRequest {
  std::uint64_t id = 0;
  std::int32_t priority = 0;
  absl::Time dispatched = absl::UnixEpoch();
};

class EvictionFilter {
 public:
  virtual ~EvictionFilter() = default;
  // Whether the request may be stopped for the sake of a higher priority.
  virtual bool MayEvict(const RunningRequest& request) const = 0;
};

class EvictionOrder {
 public:
  virtual ~EvictionOrder() = default;
  // Fixed at dispatch; lower goes first, among equals the one dispatched last.
  virtual OrderKey Key(const RunningRequest& request) const = 0;
};

inline void FairnessState::OnFinished(std::string_view, const TokenUsage&, absl::Time) {}
inline void FairnessState::Sweep(absl::Time) {}

// The value of header x-llm-d-slo-ttft-ms: whole milliseconds, blanks around them allowed. Nothing when it is
// no number, negative or beyond 292 years.
std::optional<absl::Duration> ParseSloMilliseconds(std::string_view value);

}  // namespace llmd::sched

#endif  // LLMD_SCHED_FLOW_POLICY_H_
