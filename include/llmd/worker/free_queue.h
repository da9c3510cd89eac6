// The list of free blocks in the order in which they will be handed out (and so evicted).
//
// Doubly linked through Block::prev_free/next_free, closed into a ring by one sentinel, so no operation has
// an empty-list branch. Everything is O(1). The queue does not own the blocks. Not thread safe.
#ifndef LLMD_WORKER_FREE_QUEUE_H_
#define LLMD_WORKER_FREE_QUEUE_H_

#include <cassert>
#include <cstdint>
#include <span>

#include "llmd/worker/block.h"

namespace llmd::worker {

class FreeQueue {
 public:
  // `blocks` has one element more than there are blocks: the last is the sentinel. It must stay where it is
  // while the queue lives. Starts empty.
  explicit FreeQueue(std::span<Block> blocks)
      : blocks_(blocks.data()), sentinel_(static_cast<BlockId>(blocks.size() - 1)) {
    blocks_[sentinel_].prev_free = blocks_[sentinel_].next_free = sentinel_;
  }

  std::uint32_t size() const { return size_; }
  bool empty() const { return size_ == 0; }

  // The next block to be handed out; kNoBlock when empty.
  BlockId front() const { return After(sentinel_); }
  // The one after `id`; kNoBlock at the end.
  BlockId next(BlockId id) const { return After(id); }
  // The last one and the one before `id`; kNoBlock at the ends.
  BlockId back() const { return Before(sentinel_); }
  BlockId prev(BlockId id) const { return Before(id); }

  bool contains(BlockId id) const { return blocks_[id].next_free != kNoBlock; }

  // Takes the front block off. The queue must not be empty.
  BlockId PopFront() {
    assert(!empty());
    const BlockId id = blocks_[sentinel_].next_free;
    Remove(id);
    return id;
  }

  // Takes `id`, which must be in the queue, out of it.
  void Remove(BlockId id) {
    Block& block = blocks_[id];
    assert(block.prev_free != kNoBlock && block.next_free != kNoBlock);
    blocks_[block.prev_free].next_free = block.next_free;
    blocks_[block.next_free].prev_free = block.prev_free;
    block.prev_free = block.next_free = kNoBlock;
    --size_;
  }

  void PushBack(BlockId id) { Link(blocks_[sentinel_].prev_free, id, sentinel_); }

  // Puts `id` behind `position`, which must be in the queue; at the very front when `position` is kNoBlock.
  void PushAfter(BlockId position, BlockId id) {
    const BlockId before = position == kNoBlock ? sentinel_ : position;
    Link(before, id, blocks_[before].next_free);
  }

 private:
  BlockId After(BlockId id) const {
    const BlockId next = blocks_[id].next_free;
    return next == sentinel_ ? kNoBlock : next;
  }
  BlockId Before(BlockId id) const {
    const BlockId prev = blocks_[id].prev_free;
    return prev == sentinel_ ? kNoBlock : prev;
  }
  void Link(BlockId before, BlockId id, BlockId after) {
    Block& block = blocks_[id];
    assert(block.prev_free == kNoBlock && block.next_free == kNoBlock);
    block.prev_free = before;
    block.next_free = after;
    blocks_[before].next_free = id;
    blocks_[after].prev_free = id;
    ++size_;
  }

  Block* blocks_;
  BlockId sentinel_;
  std::uint32_t size_ = 0;
};

}  // namespace llmd::worker

#endif  // LLMD_WORKER_FREE_QUEUE_H_
