#include "llmd/worker/kv_cache_manager.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "absl/strings/str_cat.h"

namespace llmd::worker {
namespace {

std::uint64_t CeilDiv(std::uint64_t a, std::uint64_t b) { return (a + b - 1) / b; }

absl::Status UnknownRequest(RequestId id) {
  return absl::NotFoundError(absl::StrCat("request ", id, " holds no blocks"));
}

}  // namespace

absl::StatusOr<KvCacheManager> KvCacheManager::Create(const KvCacheManagerOptions& options) {
  if (options.max_model_len == 0) return absl::InvalidArgumentError("max_model_len is 0, must be at least 1");
  if (!(options.watermark >= 0 && options.watermark <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat("watermark is ", options.watermark, ", must be 0 to 1"));
  }
  absl::StatusOr<BlockPool> pool = BlockPool::Create(options.pool);
  if (!pool.ok()) return pool.status();
  return KvCacheManager(options, *std::move(pool));
}

KvCacheManager::KvCacheManager(const KvCacheManagerOptions& options, BlockPool pool)
    : options_(options),
      watermark_blocks_(static_cast<std::uint32_t>(options.watermark * options.pool.num_blocks)),
      pool_(std::move(pool)) {}

KvCacheManager::Held* KvCacheManager::Lookup(RequestId id) {
  const auto it = index_.find(id);
  return it == index_.end() ? nullptr : &held_[it->second];
}

KvCacheManager::Held& KvCacheManager::Insert(RequestId id) {
  if (unused_held_.empty()) {
    unused_held_.push_back(static_cast<std::uint32_t>(held_.size()));
    held_.emplace_back();
  }
  const std::uint32_t slot = unused_held_.back();
  unused_held_.pop_back();
  index_.emplace(id, slot);
  return held_[slot];
}

PrefixHit KvCacheManager::GetComputedBlocks(const Request& request) {
  hit_blocks_.clear();
  if (!pool_.caching_enabled() || request.skip_reading_prefix_cache || request.tokens.empty()) return {};
  const std::size_t max_tokens = std::min<std::size_t>(request.tokens.size() - 1, options_.max_model_len);
  const std::size_t max_blocks = std::min(max_tokens / pool_.block_size(), request.block_hashes.size());
  for (std::size_t i = 0; i < max_blocks; ++i) {
    const BlockId id = pool_.Find(request.block_hashes[i], options_.group_id);
    if (id == kNoBlock) break;
    hit_blocks_.push_back(id);
  }
  return {.blocks = hit_blocks_,
          .num_tokens = static_cast<std::uint32_t>(hit_blocks_.size() * pool_.block_size())};
}

absl::Status KvCacheManager::Validate(const Request& request, const SlotRequest& slots,
                                      const Held* held) const {
  if (slots.num_new_tokens == 0 && slots.num_external_computed_tokens == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("request ", request.id, ": num_new_tokens and num_external_computed_tokens are both 0"));
  }
  const std::size_t num_held = held == nullptr ? 0 : held->blocks.size();
  if (request.num_computed_tokens > num_held * pool_.block_size()) {
    return absl::FailedPreconditionError(
        absl::StrCat("request ", request.id, ": num_computed_tokens is ", request.num_computed_tokens,
                     ", but it holds ", num_held, " blocks of ", pool_.block_size(), " tokens"));
  }
  const PrefixHit& hit = slots.hit;
  if (hit.num_tokens != hit.blocks.size() * pool_.block_size()) {
    return absl::InvalidArgumentError(absl::StrCat("request ", request.id, ": hit.num_tokens is ",
                                                   hit.num_tokens, " for ", hit.blocks.size(), " blocks of ",
                                                   pool_.block_size(), " tokens"));
  }
  if (hit.blocks.empty()) return absl::OkStatus();
  if (held != nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(
        "request ", request.id, ": a prefix hit is given, but it holds ", num_held, " blocks already"));
  }
  if (hit.blocks.size() > request.block_hashes.size() || hit.num_tokens > options_.max_model_len) {
    return absl::InvalidArgumentError(
        absl::StrCat("request ", request.id, ": a hit of ", hit.blocks.size(), " blocks is longer than its ",
                     request.block_hashes.size(), " block_hashes or max_model_len ", options_.max_model_len));
  }
  for (std::size_t i = 0; i < hit.blocks.size(); ++i) {
    const BlockId id = hit.blocks[i];
    if (id < pool_.num_blocks()) {
      const Block& block = pool_.block(id);
      if (block.cached() && block.hash == request.block_hashes[i] && block.group_id == options_.group_id)
        continue;
    }
    return absl::FailedPreconditionError(
        absl::StrCat("request ", request.id, ": hit.blocks[", i, "] is block ", id,
                     ", which does not hold block_hashes[", i, "] (any more)"));
  }
  return absl::OkStatus();
}

absl::StatusOr<SlotResult> KvCacheManager::AllocateSlots(const Request& request, const SlotRequest& slots) {
  Held* held = Lookup(request.id);
  if (absl::Status status = Validate(request, slots, held); !status.ok()) return status;

  const std::uint64_t block_size = pool_.block_size();
  const std::uint64_t max_len = options_.max_model_len;
  const std::uint64_t num_hits = slots.hit.blocks.size();
  const std::uint64_t local = std::uint64_t{request.num_computed_tokens} + slots.hit.num_tokens;
  const std::uint64_t total = std::min(local + slots.num_external_computed_tokens, max_len);
  const std::uint64_t need_slots =
      std::min(total + slots.num_new_tokens + slots.num_lookahead_tokens, max_len);

  // Drafts beyond the known tokens are not committed: they may be rejected.
  const bool commit = pool_.caching_enabled() && !slots.delay_cache_blocks;
  const std::uint64_t commit_tokens =
      std::min({total + slots.num_new_tokens, std::uint64_t{request.tokens.size()}, max_len});
  // Hits that nobody holds leave the free list when they are touched, so they use free blocks too.
  std::uint64_t free_hits = 0;
  for (const BlockId id : slots.hit.blocks) free_hits += pool_.block(id).ref_cnt == 0;
  const std::uint64_t have = num_hits + (held == nullptr ? 0 : held->blocks.size());
  const auto missing = [&](std::uint64_t tokens) {
    const std::uint64_t need = CeilDiv(tokens, block_size);
    return need > have ? need - have : 0;
  };

  const bool admission =
      request.status == RequestStatus::kWaiting || request.status == RequestStatus::kPreempted;
  const std::uint64_t watermark = slots.has_scheduled_requests && admission ? watermark_blocks_ : 0;
  const std::uint64_t num_free = pool_.num_free();
  if (slots.full_sequence_must_fit) {
    const std::uint64_t sequence = std::min<std::uint64_t>(request.tokens.size(), max_len);
    if (missing(sequence) + free_hits + watermark > num_free) return SlotResult{};
  }
  const std::uint64_t new_blocks = missing(need_slots);
  if (new_blocks + free_hits + watermark + slots.reserved_blocks > num_free) return SlotResult{};

  if (commit) {
    const std::span<const BlockId> table = held == nullptr ? std::span<const BlockId>() : held->blocks;
    const std::size_t from = held == nullptr ? num_hits : held->num_cached;
    absl::Status status =
        pool_.CheckCacheable(request, table, from, commit_tokens / block_size, options_.group_id);
    if (!status.ok()) return status;
  }

  // From here on nothing can fail.
  if (held == nullptr) {
    held = &Insert(request.id);
    if (pool_.caching_enabled() && !request.skip_reading_prefix_cache) Count(request, slots.hit.num_tokens);
  }
  absl::Status status = pool_.Touch(slots.hit.blocks);
  if (num_hits > 0) {
    held->blocks.assign(slots.hit.blocks.begin(), slots.hit.blocks.end());
    held->num_cached = static_cast<std::uint32_t>(num_hits);
  }
  const std::size_t before = held->blocks.size();
  status.Update(pool_.GetNewBlocks(new_blocks, held->blocks));
  if (commit) status.Update(Commit(request, *held, commit_tokens));
  assert(status.ok());
  if (!status.ok()) return status;
  return SlotResult{.fits = true, .new_blocks = std::span<const BlockId>(held->blocks).subspan(before)};
}

void KvCacheManager::Count(const Request& request, std::uint32_t hit_tokens) {
  const bool again = request.num_preemptions > 0;
  (again ? stats_.preempted_requests : stats_.requests) += 1;
  (again ? stats_.preempted_queries : stats_.queries) += request.tokens.size();
  (again ? stats_.preempted_hits : stats_.hits) += hit_tokens;
}

absl::Status KvCacheManager::Commit(const Request& request, Held& held, std::uint64_t num_tokens) {
  const std::uint64_t num_full = num_tokens / pool_.block_size();
  if (num_full <= held.num_cached) return absl::OkStatus();
  absl::Status status =
      pool_.CacheFullBlocks(request, held.blocks, held.num_cached, num_full, options_.group_id);
  if (status.ok()) held.num_cached = static_cast<std::uint32_t>(num_full);
  return status;
}

absl::Status KvCacheManager::CacheBlocks(const Request& request, std::uint32_t num_tokens) {
  Held* held = Lookup(request.id);
  if (held == nullptr) return UnknownRequest(request.id);
  return Commit(request, *held, num_tokens);
}

absl::StatusOr<std::uint32_t> KvCacheManager::CommitRemoteLoad(const Request& request,
                                                               std::uint32_t num_loaded_tokens) {
  Held* held = Lookup(request.id);
  if (held == nullptr) return UnknownRequest(request.id);
  const std::uint64_t capacity = held->blocks.size() * std::uint64_t{pool_.block_size()};
  std::uint64_t n =
      std::min({std::uint64_t{num_loaded_tokens}, capacity, std::uint64_t{request.tokens.size()}});
  if (n > 0 && n == request.tokens.size()) --n;
  if (absl::Status status = Commit(request, *held, n); !status.ok()) return status;
  return static_cast<std::uint32_t>(n);
}

absl::Status KvCacheManager::Free(RequestId id) {
  const auto it = index_.find(id);
  if (it == index_.end()) return UnknownRequest(id);
  Held& held = held_[it->second];
  std::reverse(held.blocks.begin(), held.blocks.end());
  absl::Status status = pool_.FreeBlocks(held.blocks);
  held.blocks.clear();
  held.num_cached = 0;
  unused_held_.push_back(it->second);
  index_.erase(it);
  return status;
}

absl::Status KvCacheManager::Preempt(Request& request) {
  if (request.status != RequestStatus::kRunning) {
    return absl::FailedPreconditionError(
        absl::StrCat("request ", request.id, ": only a running request can be preempted"));
  }
  if (absl::Status status = Free(request.id); !status.ok()) return status;
  request.num_computed_tokens = 0;
  request.status = RequestStatus::kPreempted;
  ++request.num_preemptions;
  return absl::OkStatus();
}

bool KvCacheManager::ResetPrefixCache() {
  if (!pool_.Reset()) return false;
  stats_.reset = true;
  return true;
}

std::span<const BlockId> KvCacheManager::BlockTable(RequestId id) const {
  const auto it = index_.find(id);
  if (it == index_.end()) return {};
  return held_[it->second].blocks;
}

PrefixCacheStats KvCacheManager::TakePrefixCacheStats() { return std::exchange(stats_, {}); }

}  // namespace llmd::worker
