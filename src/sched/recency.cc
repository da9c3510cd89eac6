#include "src/sched/recency.h"

#include <algorithm>

namespace llmd::sched {

void Recency::Unlink(std::uint32_t id) {
  const Node& at = node(id);
  node(at.older).newer = at.newer;
  node(at.newer).older = at.older;
}

void Recency::Forget(std::uint32_t id) {
  Unlink(id);
  Node& at = node(id);
  at.use.store(0, std::memory_order_relaxed);
  Mark* mark = marks_.Find(at.endpoint.slot);
  if (mark != nullptr && mark->node == id) {
    mark->use.store(0, std::memory_order_release);
    mark->node = 0;
  }
  at.older = free_;
  free_ = id;
  --size_;
}

std::uint32_t Recency::NewNode() {
  if (free_ != 0) {
    const std::uint32_t id = free_;
    free_ = node(id).older;
    return id;
  }
  const std::uint32_t id = node_count_.load(std::memory_order_relaxed) + 1;
  if (nodes_.Grow(id) == nullptr) return 0;
  node_count_.store(id, std::memory_order_release);
  return id;
}

void Recency::SetCapacity(std::size_t capacity) {
  const std::lock_guard<std::mutex> lock(mutex_);
  capacity_ = std::clamp<std::size_t>(capacity, 1, kMaxCapacity - 1);
  while (size_ > capacity_) Forget(ends_.newer);
}

void Recency::Use(EndpointHandle endpoint) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Mark* mark = marks_.Grow(endpoint.slot);
  if (mark == nullptr || endpoint.generation == 0) return;
  const std::uint32_t known = mark->generation.load(std::memory_order_relaxed);
  if (known != endpoint.generation) {
    // Generations of a slot grow: a late use of a former endpoint must not displace its successor. What is
    // remembered of the former one stays in the list.
    if (known != 0 && static_cast<std::int32_t>(endpoint.generation - known) < 0) return;
    mark->generation.store(0, std::memory_order_release);
    mark->use.store(0, std::memory_order_release);
    mark->node = 0;
    mark->generation.store(endpoint.generation, std::memory_order_release);
  }
  if (mark->node != 0) {
    Unlink(mark->node);
  } else {
    if (size_ == capacity_) Forget(ends_.newer);
    mark->node = NewNode();
    if (mark->node == 0) return;
    node(mark->node).endpoint = endpoint;
    ++size_;
  }
  Node& at = node(mark->node);
  at.older = ends_.older;
  at.newer = 0;
  node(ends_.older).newer = mark->node;
  ends_.older = mark->node;
  ++last_use_;
  at.use.store(last_use_, std::memory_order_relaxed);
  mark->use.store(last_use_, std::memory_order_release);
}

}  // namespace llmd::sched
