// The pool of KV blocks with prefix caching: who holds which block, what each free block still remembers, and
// what to tell the routers about it. Behaves like vLLM V1's block pool (vllm: vllm/v1/core/block_pool.py).
//
//   auto pool = *BlockPool::Create({.num_blocks = 1000, .block_size = 16, .enable_events = true});
//   std::vector<BlockId> table;
//   CHECK_OK(pool.GetNewBlocks(4, table));                     // ref_cnt 1 each
//   CHECK_OK(pool.CacheFullBlocks(request, table, 0, 3));      // blocks 0..2 are full: findable from now on
//   CHECK_OK(pool.FreeBlocks(reversed(table)));                // still findable until the slots are needed
//   BlockId hit = pool.Find(request.block_hashes[0]);
//
// Eviction is lazy: a free block keeps its hash, and can be hit, until GetNewBlocks hands it out. There is no
// separate cache capacity, so usage() counts cached free blocks as free: an idle pool reports 0 however full
// its cache is.
//
// KvCacheManager (kv_cache_manager.h) keeps block tables per request on top of this. Use the pool directly to
// pin blocks or to report invalid ones. No I/O, no clock, no threads: one thread at a time. Wrong arguments
// return a status and change nothing, unless said otherwise. Nothing allocates after warm-up.
#ifndef LLMD_WORKER_BLOCK_POOL_H_
#define LLMD_WORKER_BLOCK_POOL_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llmd/base/memory_usage.h"
#include "llmd/worker/block.h"
#include "llmd/worker/block_events.h"
#include "llmd/worker/cached_map.h"
#include "llmd/worker/free_queue.h"
#include "llmd/worker/request.h"

namespace llmd::worker {

struct BlockPoolOptions {
  std::uint32_t num_blocks = 0;   // null block included; 2 .. 2^28
  std::uint32_t block_size = 16;  // tokens, >= 1
  bool enable_caching = true;
  bool enable_events = false;  // needs enable_caching

  // The host takes the events every step. If it does not and they exceed this, they are replaced by one
  // "cleared" event: readers then believe less than is true, never more.
  std::size_t max_event_bytes = std::size_t{256} << 20;
};

// Counters since creation.
struct BlockPoolStats {
  std::uint64_t blocks_allocated = 0;
  std::uint64_t blocks_cached = 0;   // committed under a hash
  std::uint64_t blocks_evicted = 0;  // lost their hash because the slot was needed or by EvictBlocks
  std::uint64_t events_dropped = 0;  // see max_event_bytes
};

class BlockPool {
 public:
  static absl::StatusOr<BlockPool> Create(const BlockPoolOptions& options);

  BlockPool(BlockPool&&) = default;
  BlockPool& operator=(BlockPool&&) = default;

  // The block that holds this prefix, or kNoBlock. No side effects: Touch() it before allocating anything
  // else.
  BlockId Find(const hash::Digest& hash, std::uint32_t group_id = 0) const {
    return map_.Find(hash, group_id);
  }

  // Appends `n` blocks to `out`, each with ref_cnt 1, taken from the front of the free list. A block that was
  // cached is evicted (event "removed" if no duplicate is left). ResourceExhausted when n > num_free().
  absl::Status GetNewBlocks(std::size_t n, std::vector<BlockId>& out);

  // Adds one holder to each block; a free one leaves the free list. The null block is skipped.
  absl::Status Touch(std::span<const BlockId> blocks);

  // Takes one holder from each block. Those that nobody holds any more become free: cached ones join the back
  // of the free list, others the front (they can never be hit), each in the given order; so list first what
  // is to be evicted first. The null block is skipped. An id that is out of range or not held is skipped as
  // well, and reported.
  absl::Status FreeBlocks(std::span<const BlockId> blocks);

  // Makes blocks [num_cached, num_full) of the request's block table findable under request.block_hashes, and
  // queues one "stored" event for each contiguous run of newly filed blocks. Null blocks are passed over, and
  // so are blocks that are cached already (their hash must be the expected one). No effect with caching off.
  absl::Status CacheFullBlocks(const Request& request, std::span<const BlockId> table, std::size_t num_cached,
                               std::size_t num_full, std::uint32_t group_id = 0);

  // Whether CacheFullBlocks() would accept this. `table` may end before `num_full`: blocks yet to be
  // allocated.
  absl::Status CheckCacheable(const Request& request, std::span<const BlockId> table, std::size_t num_cached,
                              std::size_t num_full, std::uint32_t group_id = 0) const;

  // Forgets the hashes of these blocks (events "removed"); holders keep them. For KV found to be invalid.
  absl::Status EvictBlocks(std::span<const BlockId> blocks);

  // Forgets everything cached (event "cleared"). False, and no change, while any block is held.
  bool Reset();

  // num_held() / (num_blocks() - 1), that is 1 - free / usable: the share of blocks that requests hold now.
  // See the note above.
  double usage() const;

  // Moves the queued events to `out`, whose old contents are dropped and whose memory the pool uses next.
  void TakeEvents(BlockEvents& out);

  std::uint32_t num_blocks() const { return options_.num_blocks; }  // null block included
  std::uint32_t block_size() const { return options_.block_size; }
  std::uint32_t num_free() const { return free_.size(); }
  std::uint32_t num_held() const { return options_.num_blocks - 1 - free_.size(); }
  std::size_t num_cached_blocks() const { return map_.num_blocks(); }
  std::size_t num_cached_keys() const { return map_.num_keys(); }  // without duplicates
  bool caching_enabled() const { return options_.enable_caching; }
  const BlockPoolStats& stats() const { return stats_; }
  MemoryUsage memory_usage() const;

  // For inspection: the state of a block (id < num_blocks()) and the free list.
  const Block& block(BlockId id) const { return blocks_[id]; }
  const FreeQueue& free_queue() const { return free_; }

 private:
  explicit BlockPool(const BlockPoolOptions& options);

  void Evict(BlockId id);
  void BoundEvents();

  BlockPoolOptions options_;
  std::vector<Block> blocks_;  // one more than num_blocks: the free queue's sentinel
  FreeQueue free_;
  CachedMap map_;
  BlockEvents events_;
  BlockPoolStats stats_;
};

}  // namespace llmd::worker

#endif  // LLMD_WORKER_BLOCK_POOL_H_
