#include "src/index/trie.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <new>
#include <utility>

namespace llmd::index {

namespace {

// How many blocks a run makes room for when it has `length`: half as much again, since most growing runs grow
// on; the slack of those that stop is given back by Maintain().
std::uint32_t GrownCapacity(std::uint32_t length) {
  return std::min<std::uint32_t>(kMaxRunLength, (length + length / 2 + 7) & ~7u);
}

std::size_t RunLimit(std::size_t max_bytes) {
  return std::clamp<std::size_t>(max_bytes / 160, 1024, (std::size_t{1} << 25) - 1) + 1;
}

int ShardBits(std::size_t max_bytes) {
  return std::clamp(static_cast<int>(std::bit_width(max_bytes >> 22)), 2, 10);
}

std::size_t PoolBytes(std::size_t max_bytes) {
  return std::clamp<std::size_t>(max_bytes / 32, std::size_t{32} << 10, std::size_t{32} << 20);
}

}  // namespace

Trie::Trie(const Options& options)
    : options_(options),
      soft_limit_(options.max_bytes / 8 * 7 - 2 * PoolBytes(options.max_bytes)),
      arena_(PoolBytes(options.max_bytes)),
      retired_(arena_, epochs_, options.max_bytes / 64),
      retired_runs_(epochs_, options.max_bytes),
      edges_(arena_, retired_),
      identity_(arena_, ShardBits(options.max_bytes)),
      metas_(RunLimit(options.max_bytes)),
      holders_(options.max_holders + 1) {}

// --- Structure

const Body* Trie::FindChildBody(const NamespaceId& ns, Cursor at, BlockKeySpan chain) const {
  return edges_.Find(EdgeHash(ns, at.run, at.offset, chain[0]), [&](const Body* body) {
    // Header, coverage and keys lie in a row: ask for what the chain can reach at once instead of after the
    // header.
    const std::size_t ahead = std::min<std::size_t>(chain.size() * sizeof(BlockKey), 768);
    for (std::size_t byte = 0; byte <= ahead; byte += 64) {
      __builtin_prefetch(reinterpret_cast<const char*>(body) + byte);
    }
    return body->parent == at.run && body->parent_offset == at.offset && body->content()[0] == chain[0] &&
           body->ns == ns;
  });
}

RunId Trie::FindChild(const NamespaceId& ns, Cursor at, BlockKey key) const {
  const Body* body = FindChildBody(ns, at, {&key, 1});
  return body == nullptr ? 0 : body->id;
}

NodeRef Trie::FindOwner(std::uint32_t key_space, EngineKey key) const {
  return identity_.Find(IdentityHash(key_space, key), [&](NodeRef node) {
    return metas_[node.run].key_space == key_space && body(node.run)->engine()[node.offset] == key;
  });
}

NodeRef Trie::Own(NodeRef node, std::uint32_t key_space, EngineKey key) {
  return identity_.FindOrInsert(IdentityHash(key_space, key), node, [&](NodeRef other) {
    return metas_[other.run].key_space == key_space && body(other.run)->engine()[other.offset] == key;
  });
}

bool Trie::OwnsKey(NodeRef node) const {
  const RunMeta& meta = metas_[node.run];
  if (!meta.unowned_keys) return true;
  const EngineKey key = body(node.run)->engine()[node.offset];
  return FindOwner(meta.key_space, key) == node;
}

Body* Trie::NewBody(std::uint32_t holder_capacity, std::uint32_t capacity) {
  Body* body = new (arena_.Allocate(Body::Bytes(holder_capacity, capacity, options_.engine_keys))) Body;
  body->holder_capacity = static_cast<std::uint16_t>(holder_capacity);
  body->capacity = capacity;
  return body;
}

// A copy of the run's body with its first `keep` blocks, published in place of the old one.
Body* Trie::Rebody(RunId run, std::uint32_t keep, std::uint32_t capacity, std::uint32_t holder_capacity) {
  Body* old = body(run);
  Body* fresh = NewBody(holder_capacity, capacity);
  std::uint32_t holders = 0;
  for (std::uint32_t i = 0; i < old->holders.load(std::memory_order_relaxed); ++i) {
    const Coverage word = old->coverage()[i].load(std::memory_order_relaxed);
    if (word != 0) new (&fresh->coverage()[holders++]) std::atomic<Coverage>(word);
  }
  std::memcpy(fresh->content(), old->content(), keep * sizeof(BlockKey));
  if (options_.engine_keys) std::memcpy(fresh->engine(), old->engine(), keep * sizeof(EngineKey));
  fresh->length.store(keep, std::memory_order_relaxed);
  fresh->published = keep;
  fresh->holders.store(holders, std::memory_order_relaxed);
  fresh->children.store(old->children.load(std::memory_order_relaxed), std::memory_order_relaxed);
  fresh->moves.store(old->moves.load(std::memory_order_relaxed), std::memory_order_relaxed);
  fresh->id = run;
  fresh->parent = old->parent;
  fresh->parent_offset = old->parent_offset;
  fresh->ns = old->ns;
  metas_[run].body = fresh;
  edges_.Replace(EdgeHashOf(*fresh), old, fresh);
  retired_.Retire(old);
  return fresh;
}

void Trie::ReserveRuns(std::size_t count) {
  const std::size_t limit = RunLimit(options_.max_bytes);
  while (limit - next_run_ + free_runs_.size() < count) {
    EvictRun();
    FlushRetired();
  }
}

bool Trie::HasRoomForRun() const { return !free_runs_.empty() || next_run_ < RunLimit(options_.max_bytes); }

void Trie::FlushRetired() {
  retired_.Flush();
  retired_runs_.Flush([this](RunId id) { free_runs_.push_back(id); });
}

RunId Trie::AddRun(const NamespaceId& ns, std::uint32_t key_space, Cursor parent, BlockKeySpan content,
                   std::span<const EngineKey> engine) {
  RunId run;
  if (!free_runs_.empty()) {
    run = free_runs_.back();
    free_runs_.pop_back();
  } else {
    run = next_run_++;
  }
  const auto count = static_cast<std::uint32_t>(content.size());
  Body* body = NewBody(2, (count + 7) & ~7u);
  std::memcpy(body->content(), content.data(), content.size_bytes());
  if (options_.engine_keys) std::memcpy(body->engine(), engine.data(), engine.size_bytes());
  body->length.store(count, std::memory_order_relaxed);
  body->published = count;
  body->id = run;
  body->parent = parent.run;
  body->parent_offset = static_cast<std::uint16_t>(parent.offset);
  body->ns = ns;
  RunMeta& meta = metas_[run];
  meta = RunMeta{};
  meta.body = body;
  meta.key_space = key_space;
  meta.growing = true;
  if (parent.run != kRoot) {
    RunMeta& above = metas_[parent.run];
    Body* parent_body = this->body(parent.run);
    meta.next_sibling = above.first_child;
    if (above.first_child != 0) metas_[above.first_child].previous_sibling = run;
    above.first_child = run;
    above.last_child_offset = std::max<std::uint16_t>(above.last_child_offset, parent.offset);
    parent_body->children.store(parent_body->children.load(std::memory_order_relaxed) + 1,
                                std::memory_order_release);
  }
  edges_.Insert(EdgeHashOf(*body), body);
  Enqueue(probation_, run);
  ++stats_.runs;
  stats_.nodes += count;
  return run;
}

void Trie::Append(RunId run, BlockKeySpan content, std::span<const EngineKey> engine) {
  Body* body = this->body(run);
  const std::uint32_t length = body->length.load(std::memory_order_relaxed);
  const auto count = static_cast<std::uint32_t>(content.size());
  // Published keys are fixed: they come back to life as they are, or a new body replaces them.
  std::uint32_t fixed = std::min(body->published - length, count);
  if (!std::equal(content.begin(), content.begin() + fixed, body->content() + length) ||
      length + count > body->capacity) {
    body =
        Rebody(run, length, std::max(body->capacity, GrownCapacity(length + count)), body->holder_capacity);
    fixed = 0;
  }
  std::copy(content.begin() + fixed, content.end(), body->content() + length + fixed);
  if (options_.engine_keys) std::copy(engine.begin(), engine.end(), body->engine() + length);
  body->published = std::max(body->published, length + count);
  body->length.store(length + count, std::memory_order_release);
  metas_[run].growing = true;
  stats_.nodes += count;
}

}  // namespace llmd::index
