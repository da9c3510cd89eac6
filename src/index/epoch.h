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
#include <deque>

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

  // The stamp of something that was just unlinked; it may be reused once Oldest() is greater.
  std::uint64_t Advance() { return epoch_.fetch_add(1); }
  std::uint64_t Oldest() const {
    std::uint64_t oldest = epoch_.load();
    const std::size_t used = used_lines_.load();
    for (std::size_t i = 0; i < used; ++i) {
      const std::uint64_t entered = lines_[i].epoch.load();
      if (entered != 0 && entered < oldest) oldest = entered;
    }
    return oldest;
  }

 private:
  alignas(64) std::atomic<std::uint64_t> epoch_{1};
  std::atomic<std::size_t> used_lines_{0};
  std::array<Line, kMaxReaders> lines_;
};

// Things that wait for readers to leave before they are reused. Writer only.
template <typename T>
class RetireQueue {
 public:
  explicit RetireQueue(EpochManager& epochs) : epochs_(epochs) {}

  void Push(T item) {
    entries_.push_back({0, item});
    ++unstamped_;
  }

  // True when a Reclaim() is worth its look at the readers: one epoch for a group keeps the shared counter
  // quiet.
  bool due() const { return unstamped_ >= 64; }

  // Calls release(item) for what no reader can see any more.
  template <typename Release>
  void Reclaim(Release release) {
    if (entries_.empty()) return;
    if (unstamped_ > 0) {
      const std::uint64_t stamp = epochs_.Advance();
      for (std::size_t i = entries_.size() - unstamped_; i < entries_.size(); ++i) entries_[i].epoch = stamp;
      unstamped_ = 0;
    }
    const std::uint64_t oldest = epochs_.Oldest();
    while (!entries_.empty() && entries_.front().epoch < oldest) {
      const T item = entries_.front().item;
      entries_.pop_front();
      release(item);
    }
  }

  std::size_t size() const { return entries_.size(); }

 private:
  struct Entry {
    std::uint64_t epoch;
    T item;
  };

  EpochManager& epochs_;
  std::deque<Entry> entries_;
  std::size_t unstamped_ = 0;
};

// Blocks of an arena that readers may still look at.
class RetiredBlocks {
 public:
  RetiredBlocks(Arena& arena, EpochManager& epochs) : arena_(arena), queue_(epochs) {}

  void Retire(void* memory) {
    bytes_ += Arena::UsableBytes(memory);
    queue_.Push(memory);
    if (queue_.due()) Reclaim();
  }
  void Reclaim() {
    queue_.Reclaim([this](void* memory) {
      bytes_ -= Arena::UsableBytes(memory);
      arena_.Free(memory);
    });
  }
  std::size_t bytes() const { return bytes_; }

 private:
  Arena& arena_;
  RetireQueue<void*> queue_;
  std::size_t bytes_ = 0;
};

}  // namespace llmd::index

#endif  // SRC_INDEX_EPOCH_H_
