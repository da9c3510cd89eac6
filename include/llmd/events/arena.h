// Bump allocator for the arrays of one decoded batch.
//
// Allocations stay where they are until Reset(), which forgets them all and keeps the memory: when the last
// round needed several chunks they are replaced by one that would have held them all, so a steady load
// settles on one chunk and stops allocating. For trivially destructible types only. Threads: none; one owner.
#ifndef LLMD_EVENTS_ARENA_H_
#define LLMD_EVENTS_ARENA_H_

#include <cstddef>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

namespace llmd::events {

class Arena {
 public:
  Arena() = default;
  Arena(Arena&& other) noexcept { *this = std::move(other); }
  Arena& operator=(Arena&& other) noexcept;

  // Uninitialized room for `count` objects; nullptr when `count` is 0.
  template <typename T>
  T* Allocate(std::size_t count) {
    static_assert(std::is_trivially_destructible_v<T> && alignof(T) <= kAlignment);
    if (count == 0) return nullptr;
    const std::size_t bytes = (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    if (bytes > left_) AddChunk(bytes);
    std::byte* start = next_;
    next_ += bytes;
    left_ -= bytes;
    used_ += bytes;
    return reinterpret_cast<T*>(start);
  }

  void Reset();

  std::size_t used_bytes() const { return used_; }
  std::size_t capacity_bytes() const { return capacity_; }

 private:
  static constexpr std::size_t kAlignment = 8;
  static constexpr std::size_t kFirstChunk = 16 * 1024;

  void AddChunk(std::size_t at_least);

  std::vector<std::unique_ptr<std::byte[]>> chunks_;
  std::byte* next_ = nullptr;
  std::size_t left_ = 0;
  std::size_t used_ = 0;
  std::size_t capacity_ = 0;
};

}  // namespace llmd::events

#endif  // LLMD_EVENTS_ARENA_H_
