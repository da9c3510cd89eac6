// When memory that readers may still look at can be reused.
//
// Each reader announces the epoch in which it entered; the writer stamps what it unlinks with the present
// epoch and frees it once every reader inside has entered later. Readers store only to their own cache line
// and never wait.
#ifndef SRC_INDEX_EPOCH_H_
#define SRC_INDEX_EPOCH_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "src/index/arena.h"

namespace llmd::index {

class EpochManager {
 public:
  static constexpr std::size_t kMaxReaders = 1024;

  // A reader's line. `epoch` is 0 while the reader is outside.
  struct alignas(64) Line {
    std::atomic<std::uint64_t> epoch{0};
    std::atomic<bool> taken{false};
  };

  Line* Register() {
    for (std::size_t i = 0; i < kMaxReaders; ++i) {
      bool expected = false;
      if (lines_[i].taken.compare_exchange_strong(expected, true)) {
        std::size_t seen = used_lines_.load();
        while (seen < i + 1 && !used_lines_.compare_exchange_weak(seen, i + 1)) {
        }
        return &lines_[i];
      }
    }
    std::fprintf(stderr, "llmd: more than %zu readers of one index\n", kMaxReaders);
    std::abort();
  }
  static void Unregister(Line* line) { line->taken.store(false); }

  // After Enter() every pointer that the reader loads stays valid until Leave(). The second load of the epoch
  // closes the race with a writer that advanced it before seeing the announcement.
  void Enter(Line* line) const {
    std::uint64_t now = epoch_.load();
    while (true) {
      line->epoch.exchange(now);
      const std::uint64_t again = epoch_.load();
      if (again == now) return;
      now = again;
    }
  }
  static void Leave(Line* line) { line->epoch.store(0, std::memory_order_release); }

  // The stamp of what was unlinked up to now.
  std::uint64_t Advance() { return epoch_.fetch_add(1); }
  // Returns when no reader can see what was unlinked before the stamp was taken: readers stay for one match.
  void WaitUntilLeft(std::uint64_t stamp) const {
    while (Oldest() <= stamp) std::this_thread::yield();
  }

 private:
  std::uint64_t Oldest() const {
    std::uint64_t oldest = epoch_.load();
    const std::size_t used = used_lines_.load();
    for (std::size_t i = 0; i < used; ++i) {
      const std::uint64_t entered = lines_[i].epoch.load();
      if (entered != 0 && entered < oldest) oldest = entered;
    }
    return oldest;
  }

  alignas(64) std::atomic<std::uint64_t> epoch_{1};
  std::atomic<std::size_t> used_lines_{0};
  std::array<Line, kMaxReaders> lines_;
};

// Things that wait for readers to leave before they are reused. Writer only.
//
// What happens when depends on what was retired and never on where readers are, so that equal writes leave
// equal structures: items are released in groups, each when the group behind it is full, and a reader that is
// still inside then (it has been there since some hundred writes) is waited for.
template <typename T>
class RetireQueue {
 public:
  RetireQueue(EpochManager& epochs, std::size_t max_group_weight)
      : epochs_(epochs), max_group_weight_(max_group_weight) {}

  // `release` is called for each item that no reader can see any more.
  template <typename Release>
  void Push(T item, std::size_t weight, Release release) {
    items_.push_back(item);
    weight_ += weight;
    if (items_.size() - closed_ >= kMaxGroup || weight_ >= max_group_weight_) CloseGroup(release);
  }

  // Releases everything.
  template <typename Release>
  void Flush(Release release) {
    CloseGroup(release);
    CloseGroup(release);
  }

 private:
  static constexpr std::size_t kMaxGroup = 64;

  template <typename Release>
  void CloseGroup(Release release) {
    epochs_.WaitUntilLeft(closed_stamp_);
    for (std::size_t i = 0; i < closed_; ++i) release(items_[i]);
    items_.erase(items_.begin(), items_.begin() + static_cast<std::ptrdiff_t>(closed_));
    closed_ = items_.size();
    closed_stamp_ = epochs_.Advance();
    weight_ = 0;
  }

  EpochManager& epochs_;
  std::size_t max_group_weight_;
  std::vector<T> items_;  // the closed group, then the open one
  std::size_t closed_ = 0;
  std::uint64_t closed_stamp_ = 0;
  std::size_t weight_ = 0;  // of the open group
};

// Blocks of an arena that readers may still look at.
class RetiredBlocks {
 public:
  RetiredBlocks(Arena& arena, EpochManager& epochs, std::size_t max_group_bytes)
      : arena_(arena), queue_(epochs, max_group_bytes) {}

  void Retire(void* memory) {
    const std::size_t bytes = Arena::UsableBytes(memory);
    bytes_ += bytes;
    queue_.Push(memory, bytes, [this](void* old) { Free(old); });
  }
  void Flush() {
    queue_.Flush([this](void* old) { Free(old); });
  }
  std::size_t bytes() const { return bytes_; }

 private:
  void Free(void* memory) {
    bytes_ -= Arena::UsableBytes(memory);
    arena_.Free(memory);
  }

  Arena& arena_;
  RetireQueue<void*> queue_;
  std::size_t bytes_ = 0;
};

}  // namespace llmd::index

#endif  // SRC_INDEX_EPOCH_H_
