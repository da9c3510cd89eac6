// Block tables of running requests over a block pool: what a batch scheduler calls in each step. Behaves like
// vLLM V1's KV cache manager with one full-attention group (vllm: vllm/v1/core/kv_cache_manager.py).
//
//   auto kv = *KvCacheManager::Create({.pool = {.num_blocks = 1000}});
//   PrefixHit hit = kv.GetComputedBlocks(request);                      // admission: what is cached already
//   auto slots = kv.AllocateSlots(request, {.num_new_tokens = n, .hit = hit});
//   if (!slots.ok()) ...;            // a wrong argument
//   if (!slots->fits) ...;           // not enough blocks now: wait, or preempt another request
//   request.num_computed_tokens = hit.num_tokens + n;                   // after the step
//   slots = kv.AllocateSlots(request, {.num_new_tokens = 1});           // decode
//   kv.Free(request.id);                                                // blocks stay cached
//
// Blocks are committed (hashed and announced) when their tokens are *scheduled*, before the device has
// written them. That is sound as long as the device writes the KV of all requests of a step before any
// attention of that step reads it.
//
// One thread at a time. Errors change nothing. Nothing allocates after warm-up.
#ifndef LLMD_WORKER_KV_CACHE_MANAGER_H_
#define LLMD_WORKER_KV_CACHE_MANAGER_H_

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llmd/worker/block_pool.h"
#include "llmd/worker/request.h"

namespace llmd::worker {

struct KvCacheManagerOptions {
  BlockPoolOptions pool;
  std::uint32_t group_id = 0;  // the KV cache group that the pool serves; part of keys and events
  std::uint32_t max_model_len = std::numeric_limits<std::uint32_t>::max();  // tokens, prompt + output; >= 1
  // Share of the pool, 0 .. 1, that admissions leave free while others run: room to grow without preemption.
  double watermark = 0;
};

// Leading blocks of a request that are cached already.
struct PrefixHit {
  std::span<const BlockId> blocks = {};  // valid until the next GetComputedBlocks()
  std::uint32_t num_tokens = 0;          // blocks.size() * block_size
};

// Input of AllocateSlots. The tokens of a request, left to right:
//   | computed | hit | external | new | lookahead |
struct SlotRequest {
  std::uint32_t num_new_tokens = 0;                // to be computed in this step
  PrefixHit hit = {};                              // only for a request that holds no blocks yet
  std::uint32_t num_external_computed_tokens = 0;  // KV that a connector will write into the new blocks
  std::uint32_t num_lookahead_tokens = 0;          // speculative: slots only, never committed here
  std::uint32_t reserved_blocks = 0;               // blocks promised to others
  bool delay_cache_blocks = false;                 // KV arrives later: commit with CommitRemoteLoad()
  bool full_sequence_must_fit = false;             // admission gate: the whole sequence, not just this chunk
  bool has_scheduled_requests = false;             // others run: admissions leave the watermark free
};

struct SlotResult {
  bool fits = false;                    // false: nothing was changed
  std::span<const BlockId> new_blocks;  // newly allocated, hits not included; valid until the next change
};

// Counters since they were last taken. Hit rate = hits / queries, in tokens. A request that was preempted
// before counts apart: reading one's own blocks again says nothing about prefix reuse.
struct PrefixCacheStats {
  std::uint64_t requests = 0;
  std::uint64_t queries = 0;  // tokens looked up
  std::uint64_t hits = 0;     // tokens found
  std::uint64_t preempted_requests = 0;
  std::uint64_t preempted_queries = 0;
  std::uint64_t preempted_hits = 0;
  bool reset = false;  // the cache was reset
};

class KvCacheManager {
 public:
  static absl::StatusOr<KvCacheManager> Create(const KvCacheManagerOptions& options);

  // The longest cached run of the request's leading blocks, at most num_tokens - 1 tokens: the last token
  // must be computed to get logits. Holds nothing: pass it to AllocateSlots() before allocating anything
  // else.
  PrefixHit GetComputedBlocks(const Request& request);

  // Makes room for the request's next tokens, commits the blocks that these complete, returns the new blocks.
  // `fits` is false when the pool cannot serve it now. The first success is counted in the statistics.
  absl::StatusOr<SlotResult> AllocateSlots(const Request& request, const SlotRequest& slots);

  // Commits the full blocks among the first `num_tokens` tokens that a delayed allocation left uncommitted.
  absl::Status CacheBlocks(const Request& request, std::uint32_t num_tokens);

  // A remote load ended and the first `num_loaded_tokens` tokens are valid (all: any value >= num_tokens).
  // Commits their full blocks and returns the request's new num_computed_tokens: at most num_tokens - 1, see
  // GetComputedBlocks(). On 0 nothing could be used; Free() the request to start over.
  absl::StatusOr<std::uint32_t> CommitRemoteLoad(const Request& request, std::uint32_t num_loaded_tokens);

  // Gives the request's blocks back, tail first, so that long shared prefixes survive longest. NotFound when
  // the manager does not know the request, e.g. because it never got any blocks.
  absl::Status Free(RequestId id);

  // Free(), and sets the request, which must be running, back to be computed again: num_computed_tokens 0,
  // status kPreempted, one more preemption.
  absl::Status Preempt(Request& request);

  // Forgets all cached blocks; false, and no change, while any block is held.
  bool ResetPrefixCache();

  // The request's block table; empty when unknown. Valid until the next change.
  std::span<const BlockId> BlockTable(RequestId id) const;
  std::size_t num_requests() const { return index_.size(); }  // that hold blocks

  // Returns the counters and starts them again.
  PrefixCacheStats TakePrefixCacheStats();

  double usage() const { return pool_.usage(); }
  void TakeEvents(BlockEvents& out) { pool_.TakeEvents(out); }
  BlockPool& pool() { return pool_; }
  const BlockPool& pool() const { return pool_; }

 private:
  struct Held {
    std::vector<BlockId> blocks;   // the block table
    std::uint32_t num_cached = 0;  // leading blocks that are committed
  };

  KvCacheManager(const KvCacheManagerOptions& options, BlockPool pool);

  Held* Lookup(RequestId id);
  Held& Insert(RequestId id);
  absl::Status Validate(const Request& request, const SlotRequest& slots, const Held* held) const;
  void Count(const Request& request, std::uint32_t hit_tokens);
  absl::Status Commit(const Request& request, Held& held, std::uint64_t num_tokens);

  KvCacheManagerOptions options_;
  std::uint32_t watermark_blocks_;
  BlockPool pool_;
  absl::flat_hash_map<RequestId, std::uint32_t> index_;  // into held_
  std::vector<Held> held_;
  std::vector<std::uint32_t> unused_held_;  // their vectors keep their memory
  std::vector<BlockId> hit_blocks_;
  PrefixCacheStats stats_;
};

}  // namespace llmd::worker

#endif  // LLMD_WORKER_KV_CACHE_MANAGER_H_
