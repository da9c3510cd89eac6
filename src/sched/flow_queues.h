// The queues of flow control: priority bands, their flows, the queued items, and the order in which items
// expire. Private to the component.
//
// An item is a node of two heaps at once, its flow's and that of expiry, so queueing it takes no other
// memory. Item numbers are stable from Add() to Remove().
#ifndef SRC_SCHED_FLOW_QUEUES_H_
#define SRC_SCHED_FLOW_QUEUES_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "llmd/sched/config.h"
#include "llmd/sched/flow_policy.h"
#include "src/sched/pairing_heap.h"

namespace llmd::sched {

// How a band queues: the configuration with the policies looked up.
struct BandRules {
  std::uint64_t max_requests = 0;
  std::uint64_t max_bytes = 0;
  FairnessState* fairness = nullptr;
  const OrderingPolicy* ordering = nullptr;
};

struct QueueRules {
  std::uint64_t max_requests = 0;  // 0: no limit
  std::uint64_t max_bytes = 0;
  absl::Duration ttl = absl::InfiniteDuration();
  absl::Duration no_endpoint_ttl = absl::InfiniteDuration();
  std::vector<std::pair<std::int32_t, BandRules>> bands = {};
  BandRules default_band = {};
  BandRules default_negative_band = {};
  absl::Duration flow_idle_timeout = absl::Minutes(5);
  absl::Duration band_idle_timeout = absl::Minutes(10);
  std::size_t max_idle_flows = 10000;
  std::size_t max_dynamic_bands = 256;
};

struct QueuedFlow {
  std::string id;
  std::uint32_t first = kNoNode;  // root of the heap of its items
  bool idle = false;              // in the band's list of such, the one idle for longest first
  absl::Time idle_since = absl::InfinitePast();
  std::uint32_t idle_prev = kNoNode;
  std::uint32_t idle_next = kNoNode;
};

struct Band {
  std::int32_t priority = 0;
  bool dynamic = false;
  BandRules rules;
  std::unique_ptr<FlowSelector> selector;
  std::deque<QueuedFlow> flows;  // addresses are stable
  std::vector<std::uint32_t> free_flows;
  absl::flat_hash_map<absl::string_view, std::uint32_t> by_id;
  std::uint32_t idle_oldest = kNoNode;
  std::uint32_t idle_newest = kNoNode;
  std::uint64_t requests = 0;
  std::uint64_t bytes = 0;
  absl::Time empty_since = absl::InfinitePast();
};

struct QueuedItem {
  std::uint64_t id = 0;
  std::uint64_t sequence = 0;
  std::uint64_t bytes = 0;
  Band* band = nullptr;  // null: the node is free
  std::uint32_t flow = 0;
  OrderKey key;
  absl::Time enqueued = absl::UnixEpoch();
  absl::Duration ttl = absl::InfiniteDuration();  // while there are endpoints
  absl::Time expires = absl::InfiniteFuture();
  HeapLinks in_flow;
  HeapLinks in_expiry;
};

class FlowQueues {
 public:
  explicit FlowQueues(const QueueRules& rules);
  FlowQueues(const FlowQueues&) = delete;
  FlowQueues& operator=(const FlowQueues&) = delete;

  // Nothing when a limit is reached.
  std::optional<std::uint32_t> Add(const FlowItem& item, absl::Time now);
  void Remove(std::uint32_t item, absl::Time now);
  const QueuedItem& operator[](std::uint32_t item) const { return items_[item]; }

  std::span<const std::unique_ptr<Band>> bands() const { return bands_; }   // highest priority first
  std::span<const std::int32_t> priorities() const { return priorities_; }  // of `bands`
  // The item that the band dispatches next.
  std::optional<std::uint32_t> Pick(const Band& band, absl::Time now);
  // Every item, in order of arrival.
  std::vector<std::uint32_t> All() const;

  bool pool_is_empty() const { return pool_is_empty_; }
  // Changes every item's expiry when it is news.
  void SetPoolIsEmpty(bool empty, absl::Time now);
  // The item that expires first, if it has by `now`.
  std::optional<std::uint32_t> NextExpired(absl::Time now) const;
  absl::Time FirstExpiry() const;

  // Forgets what has been idle for too long.
  void Collect(absl::Time now);
  // When Collect() has something to do.
  absl::Time NextCollection() const;

  std::uint64_t requests() const { return requests_; }
  std::uint64_t bytes() const { return bytes_; }
  std::size_t flow_count() const { return flow_count_; }
  std::size_t MemoryBytes() const;

 private:
  struct FlowAccess {
    FlowQueues& queues;
    HeapLinks& links(std::uint32_t i) const { return queues.items_[i].in_flow; }
    bool less(std::uint32_t a, std::uint32_t b) const;
  };
  struct ExpiryAccess {
    FlowQueues& queues;
    HeapLinks& links(std::uint32_t i) const { return queues.items_[i].in_expiry; }
    bool less(std::uint32_t a, std::uint32_t b) const;
  };

  Band* FindBand(std::int32_t priority);
  const BandRules& RulesFor(std::int32_t priority) const;
  Band* AddBand(std::int32_t priority, const BandRules& rules, bool dynamic);
  std::uint32_t FindOrAddFlow(Band& band, std::string_view id);
  void RemoveFlow(Band& band, std::uint32_t flow);
  void LinkIdle(Band& band, std::uint32_t flow, absl::Time now);
  void UnlinkIdle(Band& band, std::uint32_t flow);
  void CollectOldestIdleFlow();
  void Announce(Band& band, std::uint32_t flow, absl::Time now);
  absl::Time Expiry(const QueuedItem& item) const;

  QueueRules rules_;
  std::vector<std::unique_ptr<Band>> bands_;
  std::vector<std::int32_t> priorities_;
  std::size_t dynamic_bands_ = 0;
  std::vector<QueuedItem> items_;
  std::vector<std::uint32_t> free_items_;
  std::uint32_t first_expiry_ = kNoNode;
  FlowAccess flow_access_{*this};
  ExpiryAccess expiry_access_{*this};
  std::uint64_t next_sequence_ = 0;
  std::uint64_t requests_ = 0;
  std::uint64_t bytes_ = 0;
  std::size_t flow_count_ = 0;
  std::size_t idle_flows_ = 0;
  bool pool_is_empty_ = true;
  absl::Time pool_changed_ = absl::InfinitePast();
  std::string abbreviated_;
};

}  // namespace llmd::sched

#endif  // SRC_SCHED_FLOW_QUEUES_H_
