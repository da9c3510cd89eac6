// Flow control once more, literally: one list of queued requests, searched from end to end for everything.
// What the differential test and the fuzz target hold the real controller against.
#ifndef TESTS_SCHED_FLOW_MODEL_H_
#define TESTS_SCHED_FLOW_MODEL_H_

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "llmd/sched/flow_control.h"

namespace llmd::sched {

// Policies by type, the same for all bands.
struct FlowModelConfig {
  std::string fairness = "global-strict-fairness-policy";
  std::string ordering = "fcfs-ordering-policy";
  std::string usage_limit = "static-usage-limit-policy";
  double holdback_min = 0.25;
  bool holdback_by_value = false;
  FlowControlConfig flow;
  FlowControllerOptions options;
};

class FlowModel {
 public:
  explicit FlowModel(const FlowModelConfig& config);

  bool Enqueue(const FlowItem& item, absl::Time time, std::vector<FlowOutcome>& outcomes);
  bool Cancel(std::uint64_t id, absl::Time time, std::vector<FlowOutcome>& outcomes);
  void Tick(absl::Time time, bool pool_is_empty, std::vector<FlowOutcome>& outcomes);
  std::size_t Dispatch(absl::Time time, bool pool_is_empty, double saturation, std::size_t max,
                       std::vector<FlowOutcome>& outcomes);
  bool OnFinished(std::uint64_t id, absl::Time time, const std::optional<TokenUsage>& usage);
  void Shutdown(absl::Time time, std::vector<FlowOutcome>& outcomes);

  std::uint64_t queued() const { return queue_.size(); }
  std::uint64_t bytes() const;
  std::uint64_t running() const { return running_.size(); }
  std::uint64_t flows() const { return flows_.size(); }
  std::uint64_t bands() const { return bands_.size(); }

 private:
  using Kind = FlowOutcome::Kind;

  struct Queued {
    std::uint64_t id;
    std::string flow;
    std::int32_t priority;
    std::uint64_t bytes;
    absl::Time enqueued;
    absl::Duration ttl;
    std::pair<absl::Time, absl::Time> key;
  };
  struct ModelBand {
    bool dynamic = false;
    absl::Time empty_since = absl::InfinitePast();
    std::optional<std::string> last = {};  // of round robin
  };
  struct Running {
    std::uint64_t id;
    std::string flow;
    std::int32_t priority;
    absl::Time dispatched;
    bool ordered = false;
    std::optional<absl::Time> unconfirmed = {};  // since
  };
  struct Program {
    double service = 0;
    absl::Time at;
    absl::Time used;
  };
  using FlowKey = std::pair<std::int32_t, std::string>;

  absl::Time Advance(absl::Time time) { return now_ = std::max(now_, time); }
  const PriorityBandConfig& BandConfig(std::int32_t priority) const;
  bool Fits(const FlowItem& item) const;
  bool Known(std::uint64_t id) const;
  std::size_t CountOf(std::int32_t priority) const;
  bool HasQueued(const FlowKey& key) const;
  // Takes the i-th of the queue out.
  Queued Take(std::size_t i);
  void Finish(std::size_t i, Kind kind, std::vector<FlowOutcome>& outcomes);
  absl::Time Expiry(const Queued& item) const;
  std::vector<double> Ceilings(double saturation);
  std::size_t Pick(std::int32_t priority);
  std::size_t HeadOf(const FlowKey& key) const;
  double Service(const std::string& program) const;
  std::optional<std::size_t> Victim() const;
  void EvictRunning(std::size_t first, double saturation, const std::vector<double>& ceilings,
                    std::vector<FlowOutcome>& outcomes);
  std::vector<std::int32_t> Priorities() const;

  FlowModelConfig config_;
  std::vector<Queued> queue_;  // in order of arrival
  std::map<std::int32_t, ModelBand> bands_;
  std::map<FlowKey, absl::Time> flows_;  // and since when they are idle; of others no matter
  std::vector<Running> running_;         // in order of dispatch
  std::map<std::string, Program> programs_;
  absl::Time now_ = absl::InfinitePast();
  absl::Time next_sweep_ = absl::InfinitePast();
  absl::Time next_program_sweep_ = absl::InfinitePast();
  absl::Time pool_changed_ = absl::InfinitePast();
  absl::Time grace_until_ = absl::InfinitePast();
  bool pool_is_empty_ = true;
  bool shut_down_ = false;
  std::uint64_t soft_calls_ = 0;
};

}  // namespace llmd::sched

#endif  // TESTS_SCHED_FLOW_MODEL_H_
