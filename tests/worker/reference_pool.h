// The block pool and the KV cache manager, literally: lists, maps and sets, one rule of the specification at
// a time. Too slow and too plain to be wrong in the same way as the real ones.
#ifndef TESTS_WORKER_REFERENCE_POOL_H_
#define TESTS_WORKER_REFERENCE_POOL_H_

#include <algorithm>
#include <cstdint>
#include <list>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "llmd/worker/kv_cache_manager.h"

namespace llmd::worker {

using HashBytes = std::string;

inline HashBytes BytesOf(const hash::Digest& digest) {
  return HashBytes(reinterpret_cast<const char*>(digest.bytes.data()), digest.size);
}

struct ReferenceEvent {
  BlockEvent::Kind kind;
  std::vector<HashBytes> hashes;
  std::optional<HashBytes> parent;
  std::vector<TokenId> tokens;
  friend bool operator==(const ReferenceEvent&, const ReferenceEvent&) = default;
};

class ReferencePool {
 public:
  ReferencePool(std::uint32_t num_blocks, std::uint32_t block_size, bool caching)
      : num_blocks_(num_blocks), block_size_(block_size), caching_(caching) {
    for (BlockId id = 1; id < num_blocks; ++id) free.push_back(id);
  }

  std::vector<BlockId> Allocate(std::size_t n) {
    std::vector<BlockId> ids;
    for (std::size_t i = 0; i < n; ++i) {
      ids.push_back(free.front());
      free.pop_front();
      Evict(ids.back());
      ref[ids.back()] = 1;
    }
    return ids;
  }

  void Touch(const std::vector<BlockId>& ids) {
    for (const BlockId id : ids) {
      if (ref[id]++ == 0) free.remove(id);
    }
  }

  void Free(const std::vector<BlockId>& ids) {
    std::vector<BlockId> unhashed, hashed;
    for (const BlockId id : ids) {
      if (--ref[id] == 0) (hash.contains(id) ? hashed : unhashed).push_back(id);
    }
    free.insert(free.begin(), unhashed.begin(), unhashed.end());
    free.insert(free.end(), hashed.begin(), hashed.end());
  }

  void Evict(BlockId id) {
    if (!hash.contains(id)) return;
    const HashBytes key = hash[id];
    std::erase(cached[key], id);
    hash.erase(id);
    if (!cached[key].empty()) return;
    cached.erase(key);
    events.push_back({BlockEvent::Kind::kRemoved, {key}, {}, {}});
  }

  void Cache(const Request& request, const std::vector<BlockId>& table, std::size_t from, std::size_t to) {
    if (!caching_ || from >= to) return;
    ReferenceEvent event{BlockEvent::Kind::kStored, {}, {}, {}};
    if (from > 0) event.parent = BytesOf(request.block_hashes[from - 1]);
    for (std::size_t i = from; i < to; ++i) {
      const HashBytes key = BytesOf(request.block_hashes[i]);
      hash[table[i]] = key;
      cached[key].push_back(table[i]);
      event.hashes.push_back(key);
      for (std::size_t j = i * block_size_; j < (i + 1) * block_size_; ++j)
        event.tokens.push_back(request.tokens[j]);
    }
    events.push_back(event);
  }

  bool Reset() {
    if (free.size() + 1 != num_blocks_) return false;
    hash.clear();
    cached.clear();
    if (caching_) events.push_back({BlockEvent::Kind::kCleared, {}, {}, {}});
    return true;
  }

  std::list<BlockId> free;
  std::map<BlockId, int> ref;
  std::map<BlockId, HashBytes> hash;                 // cached blocks
  std::map<HashBytes, std::vector<BlockId>> cached;  // by insertion
  std::vector<ReferenceEvent> events;

 private:
  std::uint32_t num_blocks_, block_size_;
  bool caching_;
};

class ReferenceManager {
 public:
  explicit ReferenceManager(const KvCacheManagerOptions& options)
      : options_(options),
        pool(options.pool.num_blocks, options.pool.block_size, options.pool.enable_caching) {}

  std::vector<BlockId> Hits(const Request& request) const {
    std::vector<BlockId> hits;
    if (!options_.pool.enable_caching || request.skip_reading_prefix_cache) return hits;
    const std::uint64_t limit = std::min<std::uint64_t>(request.tokens.size() - 1, options_.max_model_len);
    for (std::uint64_t i = 0; (i + 1) * bs() <= limit; ++i) {
      const auto it = pool.cached.find(BytesOf(request.block_hashes[i]));
      if (it == pool.cached.end()) break;
      hits.push_back(it->second.front());
    }
    return hits;
  }

  // The new blocks, or nothing when they do not fit.
  std::optional<std::vector<BlockId>> Allocate(const Request& request, const SlotRequest& in,
                                               const std::vector<BlockId>& hits) {
    const std::int64_t max_len = options_.max_model_len;
    const std::int64_t local = request.num_computed_tokens + static_cast<std::int64_t>(hits.size()) * bs();
    const std::int64_t total = std::min(local + in.num_external_computed_tokens, max_len);
    const std::int64_t need = std::min(total + in.num_new_tokens + in.num_lookahead_tokens, max_len);
    const bool admission =
        request.status == RequestStatus::kWaiting || request.status == RequestStatus::kPreempted;
    const std::int64_t watermark =
        in.has_scheduled_requests && admission
            ? static_cast<std::int64_t>(options_.watermark * options_.pool.num_blocks)
            : 0;
    const std::int64_t num_free = pool.free.size();
    if (in.full_sequence_must_fit) {
      const std::int64_t all = std::min<std::int64_t>(request.tokens.size(), max_len);
      if (ToAllocate(request.id, all, hits) + watermark > num_free) return std::nullopt;
    }
    if (ToAllocate(request.id, need, hits) + watermark > num_free - std::int64_t{in.reserved_blocks}) {
      return std::nullopt;
    }
    pool.Touch(hits);
    std::vector<BlockId>& table = tables[request.id];
    if (!hits.empty()) {
      table = hits;
      num_cached[request.id] = hits.size();
    }
    const std::int64_t missing = (need + bs() - 1) / bs() - static_cast<std::int64_t>(table.size());
    const std::vector<BlockId> fresh = pool.Allocate(std::max<std::int64_t>(missing, 0));
    table.insert(table.end(), fresh.begin(), fresh.end());
    if (!in.delay_cache_blocks) {
      Commit(request, std::min({total + in.num_new_tokens, static_cast<std::int64_t>(request.tokens.size()),
                                max_len}));
    }
    return fresh;
  }

  void Commit(const Request& request, std::int64_t tokens) {
    const std::size_t full = tokens / bs();
    if (full <= num_cached[request.id]) return;
    pool.Cache(request, tables[request.id], num_cached[request.id], full);
    num_cached[request.id] = full;
  }

  void Free(RequestId id) {
    std::vector<BlockId> table = tables[id];
    std::reverse(table.begin(), table.end());
    pool.Free(table);
    tables.erase(id);
    num_cached.erase(id);
  }

 private:
  KvCacheManagerOptions options_;

 public:
  ReferencePool pool;
  std::map<RequestId, std::vector<BlockId>> tables;
  std::map<RequestId, std::size_t> num_cached;

 private:
  std::int64_t bs() const { return options_.pool.block_size; }

  std::int64_t ToAllocate(RequestId id, std::int64_t slots, const std::vector<BlockId>& hits) {
    const std::int64_t held = tables.contains(id) ? tables[id].size() : 0;
    std::int64_t n =
        std::max<std::int64_t>((slots + bs() - 1) / bs() - static_cast<std::int64_t>(hits.size()) - held, 0);
    for (const BlockId hit : hits) n += pool.ref[hit] == 0;
    return n;
  }
};

}  // namespace llmd::worker

#endif  // TESTS_WORKER_REFERENCE_POOL_H_
