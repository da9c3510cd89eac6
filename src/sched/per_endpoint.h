// Values by endpoint slot that grow while others read: segments that never move. Private to the component.
//
// Find() takes no lock. Grow() calls are serialized by the owner. An entry is zero-initialized and is its
// owner's to synchronize; it should hold the generation of the handle that it is about.
#ifndef SRC_SCHED_PER_ENDPOINT_H_
#define SRC_SCHED_PER_ENDPOINT_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace llmd::sched {

template <typename Entry>
class PerEndpoint {
 public:
  PerEndpoint() = default;
  ~PerEndpoint() {
    for (const std::atomic<Segment*>& segment : segments_) delete segment.load(std::memory_order_relaxed);
  }
  PerEndpoint(const PerEndpoint&) = delete;
  PerEndpoint& operator=(const PerEndpoint&) = delete;

  // Null when the slot was never grown to.
  Entry* Find(std::uint32_t slot) const {
    if (slot >= kSegments * kPerSegment) return nullptr;
    Segment* segment = segments_[slot / kPerSegment].load(std::memory_order_acquire);
    return segment == nullptr ? nullptr : &(*segment)[slot % kPerSegment];
  }
  // Null beyond the limit of slots.
  Entry* Grow(std::uint32_t slot) {
    if (slot >= kSegments * kPerSegment) return nullptr;
    std::atomic<Segment*>& segment = segments_[slot / kPerSegment];
    if (segment.load(std::memory_order_relaxed) == nullptr) {
      segment.store(new Segment(), std::memory_order_release);
    }
    return Find(slot);
  }

 private:
  static constexpr std::uint32_t kPerSegment = 256;
  static constexpr std::uint32_t kSegments = 1024;  // 262,144 endpoints
  using Segment = std::array<Entry, kPerSegment>;

  std::array<std::atomic<Segment*>, kSegments> segments_{};
};

}  // namespace llmd::sched

#endif  // SRC_SCHED_PER_ENDPOINT_H_
