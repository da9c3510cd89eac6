// One block of the KV pool, and its identity.
//
// A *block* is `block_size` tokens' worth of KV cache; its id is also the page number in the device's KV
// tensors. All blocks of a pool live in one array that never grows. A block is in one of three states,
// nothing else is legal:
//
//   fresh    ref_cnt == 0, in the free list, no hash
//   cached   ref_cnt == 0, in the free list, hash set: the next to be evicted or to be hit
//   in use   ref_cnt >= 1, not in the free list; hash set once its tokens are complete and committed
//
// Block 0 is the *null block*: it stands in block tables where no KV is needed and is in none of these
// states. Plain data; written by BlockPool alone.
#ifndef LLMD_WORKER_BLOCK_H_
#define LLMD_WORKER_BLOCK_H_

#include <cstdint>
#include <limits>

#include "llmd/hash/digest.h"

namespace llmd::worker {

using BlockId = std::uint32_t;

inline constexpr BlockId kNullBlock = 0;
inline constexpr BlockId kNoBlock = std::numeric_limits<BlockId>::max();  // "none", e.g. a miss

// Sized to one cache line: the hot paths touch a block once.
struct alignas(64) Block {
  hash::Digest hash;             // chained digest of the prefix ending here; size 0 while not cached
  bool is_null = false;          // the null block
  bool is_first = false;         // CachedMap: the block that stands for its duplicates
  std::uint32_t group_id = 0;    // KV cache group of `hash`
  std::uint32_t ref_cnt = 0;     // holders: requests and pins
  BlockId prev_free = kNoBlock;  // FreeQueue links
  BlockId next_free = kNoBlock;
  BlockId prev_same = kNoBlock;  // CachedMap: ring of blocks with the same hash and group
  BlockId next_same = kNoBlock;
  std::uint32_t map_tag = 0;  // CachedMap: mixed bits of (hash, group_id)

  bool cached() const { return hash.size != 0; }
};
static_assert(sizeof(Block) == 64);

}  // namespace llmd::worker

#endif  // LLMD_WORKER_BLOCK_H_
