// Which block holds the KV of a given prefix: (block hash, group) -> block.
//
// Two requests that computed the same prefix at the same time each keep their own block, because the block
// table of a running request never changes. So a key may have several blocks; they form a ring through
// Block::prev_same/next_same, and the first inserted stands for all of them in the table.
//
// Open addressing with linear probing and backward-shift deletion over 8-byte slots; the key itself is in the
// block. The table is made for the pool's number of blocks and never grows or allocates. Not thread safe;
// does not own the blocks.
#ifndef LLMD_WORKER_CACHED_MAP_H_
#define LLMD_WORKER_CACHED_MAP_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "llmd/worker/block.h"

namespace llmd::worker {

class CachedMap {
 public:
  // For as many blocks as given. `blocks` must stay where it is while the map lives.
  explicit CachedMap(std::span<Block> blocks);

  // The first inserted of the blocks that are here under this key; kNoBlock when there is none. O(1).
  BlockId Find(const hash::Digest& hash, std::uint32_t group_id) const;

  // Files block `id`, which must not be cached, under the key, and writes the key into it. True when the key
  // is new. O(1).
  bool Insert(BlockId id, const hash::Digest& hash, std::uint32_t group_id);

  // Takes the cached block `id` out and clears its hash. True when it was the key's last block. O(1).
  bool Remove(BlockId id);

  void Clear();

  // Hints that load the part of the table which Find() or Insert() of this key, or Remove() of this cached
  // block, will need. Cache misses in the table are most of the cost of a large pool.
  void Prefetch(const hash::Digest& hash, std::uint32_t group_id) const;
  void PrefetchRemove(BlockId id) const { __builtin_prefetch(&slots_[blocks_[id].map_tag & mask_]); }

  std::size_t num_keys() const { return num_keys_; }
  std::size_t num_blocks() const { return num_blocks_; }  // duplicates included
  std::size_t bytes() const { return slots_.capacity() * sizeof(Slot); }

 private:
  struct Slot {
    std::uint32_t tag = 0;
    BlockId block = kNoBlock;  // kNoBlock: empty
  };

  // The slot with this key, or the empty slot where it belongs.
  std::size_t FindSlot(std::uint32_t tag, const hash::Digest& hash, std::uint32_t group_id) const;
  std::size_t SlotOf(BlockId id) const;
  void EraseSlot(std::size_t hole);

  Block* blocks_;
  std::size_t mask_;
  std::vector<Slot> slots_;
  std::size_t num_keys_ = 0;
  std::size_t num_blocks_ = 0;
};

}  // namespace llmd::worker

#endif  // LLMD_WORKER_CACHED_MAP_H_
