// The last decisions with their explanations, for the status page.
//
// Explaining costs time for every endpoint and scorer, so explanations are asked for a bounded number of
// times a second; at higher rates the history is a sample. Any thread.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_DECISION_HISTORY_H_
#define EXAMPLES_GATEWAY_SCHEDULER_DECISION_HISTORY_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "examples/gateway_scheduler/observer.h"

namespace llmd::host {

// A decision as plain values: endpoints by id, everything else of the time of the decision.
struct DecisionEntry {
  struct Scorer {
    std::string name = {};
    double weight = 0;
  };
  struct Row {
    std::string endpoint = {};
    double total = 0;
    std::size_t rank = 0;               // 1: the profile's choice; 0: not picked
    std::vector<double> raw = {};       // by scorer; NaN: no opinion
    std::vector<double> weighted = {};  // by scorer
  };
  struct Drop {
    std::string endpoint = {};
    std::string filter = {};
    std::string reason = {};
  };
  struct Profile {
    std::string name = {};
    std::string state = {};        // "done", "failed", "skipped"
    std::string skip_reason = {};  // of a skipped one
    std::vector<Scorer> scorers = {};
    std::vector<Row> rows = {};  // best first
    std::vector<Drop> drops = {};
    std::size_t more_rows = 0, more_drops = 0;  // left out
  };

  std::uint64_t sequence = 0;  // counts all that were kept, from 1
  absl::Time time = absl::InfinitePast();
  std::string request_id = {}, model = {}, target_model = {}, fairness_id = {}, path = {};
  std::int32_t priority = 0;
  std::string error = {};  // empty: decided
  std::string endpoint = {}, prefill_endpoint = {};
  std::string refused_by = {};  // an admitter
  std::size_t prompt_tokens = 0;
  std::uint32_t cached_blocks = 0, total_blocks = 0;
  absl::Duration tokenizing = absl::ZeroDuration(), queued = absl::ZeroDuration(),
                 deciding = absl::ZeroDuration();
  std::uint64_t seed = 0;
  std::size_t candidates = 0;
  std::vector<Profile> profiles = {};
};

struct DecisionHistoryOptions {
  std::size_t size = 50;
  double per_second = 10;      // kept at most, in the long run
  std::size_t max_rows = 100;  // endpoints and drops of a profile
};

class DecisionHistory final : public Observer {
 public:
  using Entry = std::shared_ptr<const DecisionEntry>;

  explicit DecisionHistory(const DecisionHistoryOptions& options = {});

  bool wants_explanations() const override;
  void OnDecision(const DecisionReport& report) override;

  std::vector<Entry> Recent() const;         // newest first
  Entry Find(std::uint64_t sequence) const;  // null when it is not kept (any more)
  std::uint64_t seen() const { return seen_.load(std::memory_order_relaxed); }  // decisions, kept or not

 private:
  bool Take();

  const DecisionHistoryOptions options_;
  const std::int64_t interval_nanos_, burst_nanos_;
  std::atomic<std::uint64_t> seen_ = 0;
  std::atomic<std::int64_t> next_nanos_ = 0;
  mutable std::mutex mutex_;
  std::uint64_t sequence_ = 0;
  std::deque<Entry> entries_;  // oldest first
};

// One JSON object on one line: what a list shows of it, or everything.
std::string SummaryJson(const DecisionEntry& entry);
std::string DetailJson(const DecisionEntry& entry);

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_DECISION_HISTORY_H_
