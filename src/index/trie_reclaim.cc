// What is given back: blocks nobody has, runs over the budget, slack of runs that stopped growing.
#include <algorithm>

#include "src/index/trie.h"

namespace llmd::index {

std::uint32_t Trie::LiveEnd(RunId run) const {
  const Body* body = this->body(run);
  const RunMeta& meta = metas_[run];
  const std::uint32_t length = body->length.load(std::memory_order_relaxed);
  std::uint32_t end = meta.last_child_offset;
  const std::uint32_t holders = body->holders.load(std::memory_order_relaxed);
  for (std::uint32_t i = 0; i < holders && end < length; ++i) {
    const Coverage word = body->coverage()[i].load(std::memory_order_relaxed);
    if (word == 0) continue;
    const Detail* detail = FindDetail(static_cast<std::uint16_t>(SlotOf(word)), run);
    end = std::max(end, detail == nullptr ? LeadOf(word) : detail->EndOfHeld(LeadOf(word)));
  }
  return end;
}

void Trie::Settle(RunId run) {
  while (run != kRoot) {
    Body* body = this->body(run);
    const RunMeta& meta = metas_[run];
    const std::uint32_t length = body->length.load(std::memory_order_relaxed);
    const std::uint32_t end = LiveEnd(run);
    if (end >= length) return;
    if (options_.engine_keys) {
      for (std::uint32_t i = end; i < length; ++i) {
        identity_.Erase(IdentityHash(meta.key_space, body->engine()[i]), {run, i});
      }
    }
    body->length.store(end, std::memory_order_release);
    stats_.nodes -= length - end;
    if (end > 0) {
      if (body->capacity > 2 * end + 32) Rebody(run, end, (end + 7) & ~7u, body->holder_capacity);
      return;
    }
    run = FreeRun(run);
  }
}

// Unlinks a run without blocks; returns its parent.
RunId Trie::FreeRun(RunId run) {
  Body* body = this->body(run);
  RunMeta& meta = metas_[run];
  const RunId parent = body->parent;
  edges_.Erase(EdgeHashOf(*body), body);
  if (parent != kRoot) {
    RunMeta& above = metas_[parent];
    if (meta.previous_sibling != 0) {
      metas_[meta.previous_sibling].next_sibling = meta.next_sibling;
    } else {
      above.first_child = meta.next_sibling;
    }
    if (meta.next_sibling != 0) metas_[meta.next_sibling].previous_sibling = meta.previous_sibling;
    Body* parent_body = this->body(parent);
    parent_body->children.store(parent_body->children.load(std::memory_order_relaxed) - 1,
                                std::memory_order_release);
    if (above.last_child_offset == body->parent_offset) {
      std::uint32_t last = 0;
      for (RunId child = above.first_child; child != 0 && last < body->parent_offset;
           child = metas_[child].next_sibling) {
        last = std::max<std::uint32_t>(last, this->body(child)->parent_offset);
      }
      above.last_child_offset = static_cast<std::uint16_t>(last);
    }
  }
  Dequeue(run);
  meta.body = nullptr;
  retired_.Retire(body);
  retired_runs_.Push(run, 1, [this](RunId id) { free_runs_.push_back(id); });
  --stats_.runs;
  return parent;
}

void Trie::Enqueue(Queue& queue, RunId run) {
  RunMeta& meta = metas_[run];
  meta.is_protected = &queue == &protected_;
  meta.next_in_queue = 0;
  meta.previous_in_queue = queue.tail;
  if (queue.tail != 0) {
    metas_[queue.tail].next_in_queue = run;
  } else {
    queue.head = run;
  }
  queue.tail = run;
  ++queue.size;
}

void Trie::Dequeue(RunId run) {
  RunMeta& meta = metas_[run];
  Queue& queue = meta.is_protected ? protected_ : probation_;
  (meta.previous_in_queue != 0 ? metas_[meta.previous_in_queue].next_in_queue : queue.head) =
      meta.next_in_queue;
  (meta.next_in_queue != 0 ? metas_[meta.next_in_queue].previous_in_queue : queue.tail) =
      meta.previous_in_queue;
  --queue.size;
}

// Segmented LRU with one reference bit: a run that was stored to while on probation is protected, the
// protected segment keeps at most four fifths and hands its oldest back. Only runs without children go, so
// prefixes outlive their tails. False when there is no run.
bool Trie::EvictRun() {
  while (stats_.runs > 0) {
    Queue& queue = probation_.size > 0 ? probation_ : protected_;
    const RunId run = queue.head;
    RunMeta& meta = metas_[run];
    if (meta.touched || meta.first_child != 0) {
      meta.touched = false;
      Dequeue(run);
      Enqueue(protected_, run);
      if (protected_.size * 5 > (probation_.size + protected_.size) * 4) {
        const RunId oldest = protected_.head;
        Dequeue(oldest);
        Enqueue(probation_, oldest);
      }
      continue;
    }
    const Body* body = this->body(run);
    for (std::uint32_t i = 0; i < body->holders.load(std::memory_order_relaxed); ++i) {
      const Coverage word = body->coverage()[i].load(std::memory_order_relaxed);
      if (word == 0) continue;
      const auto slot = static_cast<std::uint16_t>(SlotOf(word));
      stats_.evicted_holder_blocks += TakeOut(slot, run, i);
      if (on_evict_) on_evict_(slot, run);
    }
    ++stats_.evicted_runs;
    Settle(run);
    return true;
  }
  return false;
}

void Trie::EvictRuns() {
  while (live_bytes() > soft_limit_ && EvictRun()) {
  }
  // Rare: holes between blocks, or what waits for readers, took more than the room left for them.
  while (total_bytes() > options_.max_bytes) {
    FlushRetired();
    if (total_bytes() > options_.max_bytes && !EvictRun()) return;
  }
}

bool Trie::TrimSlack(RunId run) {
  Body* body = this->body(run);
  const std::uint32_t length = body->length.load(std::memory_order_relaxed);
  const std::uint32_t capacity = (length + 3) & ~3u;
  const std::uint32_t holders = std::max<std::uint32_t>(metas_[run].live_holders, 1);
  if (capacity + length / 16 >= body->capacity && holders * 2 > body->holder_capacity) return false;
  Rebody(run, length, capacity, GrownHolderCapacity(holders));
  return true;
}

void Trie::Maintain() {
  if (++trim_hand_ >= next_run_) trim_hand_ = 1;
  const Body* body = trim_hand_ < next_run_ ? this->body(trim_hand_) : nullptr;
  if (body == nullptr) return;
  RunMeta& meta = metas_[trim_hand_];
  if (meta.growing) {
    meta.growing = false;
  } else {
    TrimSlack(trim_hand_);
  }
}

void Trie::Compact() {
  for (RunId run = 1; run < next_run_; ++run) {
    if (body(run) != nullptr) TrimSlack(run);
  }
  edges_.Compact();
  identity_.Compact();
  FlushRetired();
}

std::size_t Trie::bytes_beside_arena() const {
  return std::size_t{next_run_} * sizeof(RunMeta) +
         details_.capacity() * (sizeof(std::uint64_t) + sizeof(void*) + 1) + detail_bytes_ + foreign_bytes_ +
         holder_list_bytes_ + other_bytes_ + free_runs_.capacity() * sizeof(RunId);
}

MemoryUsage Trie::memory_usage() const {
  MemoryUsage usage;
  usage.budget_bytes = options_.max_bytes;
  const std::size_t tables = edges_.bytes() + identity_.bytes();
  const std::size_t bodies = arena_.used_bytes() - tables - retired_.bytes();
  std::size_t slack = 0;
  for (RunId run = 1; run < next_run_; ++run) {
    if (const Body* body = this->body(run); body != nullptr) {
      slack +=
          Arena::UsableBytes(body) - Body::Bytes(metas_[run].live_holders, length(run), options_.engine_keys);
    }
  }
  usage.causes = {
      {"run bodies", bodies - slack, retired_.bytes(), slack},
      {"edge table", edges_.bytes(), 0, 0},
      {"identity map", identity_.size() * 8, 0, identity_.bytes() - identity_.size() * 8},
      {"run table", stats_.runs * sizeof(RunMeta), 0,
       (next_run_ - stats_.runs) * sizeof(RunMeta) + free_runs_.capacity() * sizeof(RunId)},
      {"holes, references and foreign keys",
       detail_bytes_ + foreign_bytes_ + details_.capacity() * (sizeof(std::uint64_t) + sizeof(void*) + 1), 0,
       0},
      {"holder lists", holder_list_bytes_ + other_bytes_, 0, 0},
      {"pools", 0, 0, arena_.reserved_bytes() - arena_.used_bytes()},
  };
  return usage;
}

}  // namespace llmd::index
