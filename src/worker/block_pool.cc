#include "llmd/worker/block_pool.h"

#include <cassert>
#include <utility>

#include "absl/strings/str_cat.h"

namespace llmd::worker {
namespace {

constexpr std::uint32_t kMaxBlocks = std::uint32_t{1} << 28;
constexpr std::size_t kAhead = 8;  // blocks between asking for a part of the table and using it

absl::Status BadBlockId(BlockId id, std::uint32_t num_blocks) {
  return absl::InvalidArgumentError(
      absl::StrCat("block id ", id, " is out of range; the pool has ", num_blocks, " blocks"));
}

}  // namespace

absl::StatusOr<BlockPool> BlockPool::Create(const BlockPoolOptions& options) {
  if (options.num_blocks < 2 || options.num_blocks > kMaxBlocks) {
    return absl::InvalidArgumentError(absl::StrCat("num_blocks is ", options.num_blocks, ", must be 2 to ",
                                                   kMaxBlocks, " (one of them is the null block)"));
  }
  if (options.block_size == 0) return absl::InvalidArgumentError("block_size is 0, must be at least 1");
  return BlockPool(options);
}

BlockPool::BlockPool(const BlockPoolOptions& options)
    : options_(options),
      blocks_(std::size_t{options.num_blocks} + 1),
      free_(blocks_),
      map_(std::span(blocks_).first(options.num_blocks)) {
  blocks_[kNullBlock].is_null = true;
  for (BlockId id = 1; id < options_.num_blocks; ++id) free_.PushBack(id);
}

void BlockPool::BoundEvents() {
  if (events_.bytes() <= options_.max_event_bytes) return;
  stats_.events_dropped += events_.size();
  events_ = BlockEvents();
  events_.AddCleared();
}

// The caller calls BoundEvents() after one or more.
void BlockPool::Evict(BlockId id) {
  const Block& block = blocks_[id];
  const hash::Digest hash = block.hash;
  ++stats_.blocks_evicted;
  if (map_.Remove(id) && options_.enable_events) events_.AddRemoved(hash, block.group_id);
}

absl::Status BlockPool::GetNewBlocks(std::size_t n, std::vector<BlockId>& out) {
  if (n > free_.size()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("n is ", n, " blocks, but only ", free_.size(), " are free"));
  }
  for (std::size_t i = 0; i < n; ++i) {
    const BlockId id = free_.PopFront();
    Block& block = blocks_[id];
    assert(block.ref_cnt == 0 && !block.is_null);
    if (block.cached()) map_.PrefetchRemove(id);
    block.ref_cnt = 1;
    out.push_back(id);
  }
  for (const BlockId id : std::span(out).last(n)) {
    if (blocks_[id].cached()) Evict(id);
  }
  stats_.blocks_allocated += n;
  BoundEvents();
  return absl::OkStatus();
}

absl::Status BlockPool::Touch(std::span<const BlockId> blocks) {
  for (const BlockId id : blocks) {
    if (id >= options_.num_blocks) return BadBlockId(id, options_.num_blocks);
  }
  for (const BlockId id : blocks) {
    Block& block = blocks_[id];
    if (block.is_null) continue;
    if (block.ref_cnt == 0) free_.Remove(id);
    ++block.ref_cnt;
  }
  return absl::OkStatus();
}

absl::Status BlockPool::FreeBlocks(std::span<const BlockId> blocks) {
  absl::Status status;
  BlockId last_at_front = kNoBlock;
  for (const BlockId id : blocks) {
    if (id >= options_.num_blocks) {
      status.Update(BadBlockId(id, options_.num_blocks));
      continue;
    }
    Block& block = blocks_[id];
    if (block.is_null) continue;
    if (block.ref_cnt == 0) {
      status.Update(
          absl::FailedPreconditionError(absl::StrCat("block ", id, " is freed but nobody holds it")));
      continue;
    }
    if (--block.ref_cnt != 0) continue;
    if (block.cached()) {
      free_.PushBack(id);
    } else {
      free_.PushAfter(last_at_front, id);
      last_at_front = id;
    }
  }
  return status;
}

absl::Status BlockPool::CheckCacheable(const Request& request, std::span<const BlockId> table,
                                       std::size_t num_cached, std::size_t num_full,
                                       std::uint32_t group_id) const {
  if (num_full > request.block_hashes.size() || num_full > request.tokens.size() / options_.block_size) {
    return absl::InvalidArgumentError(absl::StrCat("request ", request.id, ": cannot commit ", num_full,
                                                   " full blocks with ", request.block_hashes.size(),
                                                   " block_hashes and ", request.tokens.size(), " tokens"));
  }
  for (std::size_t i = num_cached; i < num_full; ++i) {
    const hash::Digest& hash = request.block_hashes[i];
    if (hash.size == 0 || hash.size > hash::Digest::kMaxSize) {
      return absl::InvalidArgumentError(absl::StrCat("request ", request.id, ": block_hashes[", i,
                                                     "].size is ", static_cast<int>(hash.size),
                                                     ", must be 1 to ", hash::Digest::kMaxSize));
    }
    if (i >= table.size()) continue;
    if (table[i] >= options_.num_blocks) return BadBlockId(table[i], options_.num_blocks);
    const Block& block = blocks_[table[i]];
    if (block.is_null) continue;
    if (block.ref_cnt == 0) {
      return absl::FailedPreconditionError(absl::StrCat("request ", request.id, ": block ", table[i],
                                                        " is to be committed but nobody holds it"));
    }
    if (block.cached() && !(block.hash == hash && block.group_id == group_id)) {
      return absl::FailedPreconditionError(absl::StrCat("request ", request.id, ": block ", table[i],
                                                        " is cached under another hash than block_hashes[", i,
                                                        "]"));
    }
  }
  return absl::OkStatus();
}

absl::Status BlockPool::CacheFullBlocks(const Request& request, std::span<const BlockId> table,
                                        std::size_t num_cached, std::size_t num_full,
                                        std::uint32_t group_id) {
  if (!options_.enable_caching) return absl::OkStatus();
  if (num_cached > num_full || num_full > table.size()) {
    return absl::InvalidArgumentError(absl::StrCat("request ", request.id, ": cannot commit blocks ",
                                                   num_cached, " to ", num_full, " of a table of ",
                                                   table.size()));
  }
  if (absl::Status status = CheckCacheable(request, table, num_cached, num_full, group_id); !status.ok())
    return status;

  std::size_t run = num_cached;  // start of the run of newly filed blocks
  for (std::size_t i = num_cached; i <= num_full; ++i) {
    const bool fresh = i < num_full && !blocks_[table[i]].is_null && !blocks_[table[i]].cached();
    if (fresh) {
      if (i + kAhead < num_full) map_.Prefetch(request.block_hashes[i + kAhead], group_id);
      map_.Insert(table[i], request.block_hashes[i], group_id);
      ++stats_.blocks_cached;
      continue;
    }
    if (options_.enable_events && i > run) {
      events_.AddStored(request, run, i - run, options_.block_size, group_id);
    }
    run = i + 1;
  }
  BoundEvents();
  return absl::OkStatus();
}

absl::Status BlockPool::EvictBlocks(std::span<const BlockId> blocks) {
  for (const BlockId id : blocks) {
    if (id >= options_.num_blocks) return BadBlockId(id, options_.num_blocks);
  }
  for (const BlockId id : blocks) {
    if (blocks_[id].cached()) Evict(id);
  }
  BoundEvents();
  return absl::OkStatus();
}

bool BlockPool::Reset() {
  if (num_held() != 0) return false;
  stats_.blocks_evicted += map_.num_blocks();
  map_.Clear();
  if (options_.enable_events && options_.enable_caching) events_.AddCleared();
  BoundEvents();
  return true;
}

double BlockPool::usage() const {
  return static_cast<double>(num_held()) / static_cast<double>(options_.num_blocks - 1);
}

void BlockPool::TakeEvents(BlockEvents& out) {
  out.Clear();
  std::swap(out, events_);
}

MemoryUsage BlockPool::memory_usage() const {
  MemoryUsage usage;
  usage.causes.push_back({.name = "blocks", .live_bytes = blocks_.capacity() * sizeof(Block)});
  usage.causes.push_back({.name = "cached map", .live_bytes = map_.bytes()});
  usage.causes.push_back({.name = "pending events",
                          .live_bytes = events_.bytes(),
                          .free_bytes = events_.capacity_bytes() - events_.bytes()});
  return usage;
}

}  // namespace llmd::worker
