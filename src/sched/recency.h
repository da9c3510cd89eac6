// Which endpoints were used, and in which order: an LRU list whose ranks are read without a lock. Private to
// the component.
//
// A use gives the endpoint the next number of a counter; older uses have smaller ones. The memory holds the
// `capacity` endpoints used last, those that have left the pool since included. Any thread may call anything.
#ifndef SRC_SCHED_RECENCY_H_
#define SRC_SCHED_RECENCY_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>

#include "llmd/sched/endpoint.h"
#include "src/sched/per_endpoint.h"

namespace llmd::sched {

class Recency {
 public:
  static constexpr std::size_t kMaxCapacity = 262'144;

  // Forgets the oldest when there are more. Clamped to 1 .. kMaxCapacity.
  void SetCapacity(std::size_t capacity);
  // The endpoint is the one used last.
  void Use(EndpointHandle endpoint);

  // The number of the endpoint's last use; 0 when it is not remembered.
  std::uint64_t LastUse(EndpointHandle endpoint) const {
    const Mark* mark = marks_.Find(endpoint.slot);
    if (mark == nullptr || mark->generation.load(std::memory_order_acquire) != endpoint.generation) return 0;
    const std::uint64_t use = mark->use.load(std::memory_order_acquire);
    return mark->generation.load(std::memory_order_relaxed) == endpoint.generation ? use : 0;
  }
  // Calls `visit` with the last use of everything remembered, in no order.
  template <typename Visit>
  void ForEachUse(const Visit& visit) const {
    const std::uint32_t count = node_count_.load(std::memory_order_acquire);
    for (std::uint32_t i = 1; i <= count; ++i) {
      const std::uint64_t use = nodes_.Find(i)->use.load(std::memory_order_relaxed);
      if (use != 0) visit(use);
    }
  }

 private:
  // Of a slot of the pool.
  struct Mark {
    std::atomic<std::uint32_t> generation{0};
    std::atomic<std::uint64_t> use{0};
    std::uint32_t node = 0;  // writers only; 0: none
  };
  // A remembered endpoint. Linked from the oldest to the newest; node 0 is both ends.
  struct Node {
    std::atomic<std::uint64_t> use{0};
    EndpointHandle endpoint;
    std::uint32_t older = 0;
    std::uint32_t newer = 0;
  };

  Node& node(std::uint32_t id) { return id == 0 ? ends_ : *nodes_.Find(id); }
  void Unlink(std::uint32_t id);
  void Forget(std::uint32_t id);
  std::uint32_t NewNode();

  PerEndpoint<Mark> marks_;  // by slot
  PerEndpoint<Node> nodes_;  // by id, from 1
  std::atomic<std::uint32_t> node_count_{0};
  Node ends_;
  std::uint32_t free_ = 0;  // list of free nodes, by `older`
  std::size_t capacity_ = 1024;
  std::size_t size_ = 0;
  std::uint64_t last_use_ = 0;
  std::mutex mutex_;  // writers
};

}  // namespace llmd::sched

#endif  // SRC_SCHED_RECENCY_H_
