// Dispatched requests that are not finished, and the eviction of some of them for the sake of a higher
// priority. Private to the component.
//
// Eviction is stop-and-wait: after a decision no other is taken until each of its victims is confirmed
// (finished, or given up after a timeout) and then a grace has passed, in which the freed capacity becomes
// visible to the saturation detector. (spec: scheduling.md 2.7)
#ifndef SRC_SCHED_RUNNING_REQUESTS_H_
#define SRC_SCHED_RUNNING_REQUESTS_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "llmd/sched/flow_policy.h"
#include "src/sched/pairing_heap.h"

namespace llmd::sched {

struct EvictionRules {
  bool enabled = false;
  const EvictionFilter* filter = nullptr;
  const EvictionOrder* order = nullptr;
  absl::Duration grace = absl::ZeroDuration();
  absl::Duration timeout = absl::Seconds(10);
};

class RunningRequests {
 public:
  static constexpr std::size_t kMaxVictims = 2;  // of one decision

  struct Entry {
    RunningRequest request;
    std::uint64_t sequence = 0;
    FairnessState* fairness = nullptr;  // to be told of the usage; null: need not be told
    std::string flow;                   // set when `fairness` is
    OrderKey key;
    bool evictable = false;  // a node of the heap of victims
    bool unconfirmed = false;
    HeapLinks links;
  };

  explicit RunningRequests(const EvictionRules& rules) : rules_(rules) {}
  RunningRequests(const RunningRequests&) = delete;
  RunningRequests& operator=(const RunningRequests&) = delete;

  std::uint32_t Add(const RunningRequest& request, std::string_view flow, FairnessState* fairness);
  const Entry& operator[](std::uint32_t index) const { return entries_[index]; }
  // Confirms the eviction, if there was one.
  void Remove(std::uint32_t index, absl::Time now);
  std::size_t size() const { return entries_.size() - free_.size(); }

  // Gives up on confirmations that are late.
  void Expire(absl::Time now);
  // Whether a decision may be taken now, and there is a victim.
  bool CanEvict(absl::Time now) const;
  // Priority of the next victim. Only when CanEvict().
  std::int32_t VictimPriority() const { return entries_[first_victim_].request.priority; }
  // One decision, for a band of priority `demand` that is blocked at `saturation` by `ceiling`. Calls
  // `evict(index)` for each victim.
  template <typename Evict>
  void Decide(double saturation, double ceiling, std::int32_t demand, absl::Time now, const Evict& evict) {
    for (std::size_t n = VictimsNeeded(saturation, ceiling); n > 0; --n) {
      if (first_victim_ == kNoNode || VictimPriority() >= demand) return;
      const std::uint32_t victim = first_victim_;
      Order(victim, now);
      evict(victim);
    }
  }

  // When Expire() or a decision is due; infinite when nothing is under way.
  absl::Time NextChange() const;
  std::uint64_t given_up() const { return given_up_; }
  std::size_t MemoryBytes() const;

 private:
  struct Access {
    std::vector<Entry>& entries;
    HeapLinks& links(std::uint32_t i) const { return entries[i].links; }
    bool less(std::uint32_t a, std::uint32_t b) const;
  };
  struct Unconfirmed {
    std::uint32_t index;
    absl::Time ordered;
  };

  PairingHeap<Access> Victims() { return {access_, first_victim_}; }
  std::size_t VictimsNeeded(double saturation, double ceiling) const;
  void Order(std::uint32_t victim, absl::Time now);
  void Confirm(std::uint32_t index, absl::Time now);

  EvictionRules rules_;
  std::vector<Entry> entries_;
  std::vector<std::uint32_t> free_;
  std::uint32_t first_victim_ = kNoNode;
  Access access_{entries_};
  std::uint64_t next_sequence_ = 0;
  std::vector<Unconfirmed> unconfirmed_;  // at most kMaxVictims
  absl::Time closed_until_ = absl::InfinitePast();
  std::uint64_t given_up_ = 0;
};

}  // namespace llmd::sched

#endif  // SRC_SCHED_RUNNING_REQUESTS_H_
