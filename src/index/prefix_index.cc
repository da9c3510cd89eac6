#include "llmd/index/prefix_index.h"

#include <algorithm>
#include <utility>

#include "src/index/prefix_index_impl.h"

namespace llmd::index {

NodeRef PrefixIndex::Impl::Resolve(std::uint16_t slot, EngineKey key) const {
  const HolderState& holder = trie.holders()[slot];
  if (!holder.foreign.empty()) {
    if (const auto it = holder.foreign.find(key); it != holder.foreign.end()) return it->second;
  }
  // Events of one request follow each other: the parent is mostly the last block stored.
  if (const NodeRef last = holder.last_node; last && holder.last_key == key) {
    const Body* body = trie.body(last.run);
    if (body != nullptr && last.offset < trie.length(last.run) && body->engine()[last.offset] == key &&
        trie.meta(last.run).key_space == holder.key_space && !trie.meta(last.run).unowned_keys) {
      return last;
    }
  }
  return trie.FindOwner(holder.key_space, key);
}

NodeRef PrefixIndex::Impl::ResolveWith(std::uint16_t slot, EngineKey key,
                                       std::span<const HolderId> peers) const {
  if (const NodeRef node = Resolve(slot, key)) return node;
  for (const HolderId peer : peers) {
    if (!registry.Valid(peer)) continue;
    const HolderState& holder = trie.holders()[peer.slot];
    if (const auto it = holder.foreign.find(key); it != holder.foreign.end()) return it->second;
  }
  return {};
}

NodeRef PrefixIndex::Impl::ResolveHeld(std::uint16_t slot, EngineKey key) const {
  const HolderState& holder = trie.holders()[slot];
  if (!holder.foreign.empty()) {
    if (const auto it = holder.foreign.find(key); it != holder.foreign.end()) return it->second;
  }
  const NodeRef node = trie.FindOwner(holder.key_space, key);
  if (!node || !trie.Holds(slot, node) || trie.ForeignKey(slot, node).has_value()) return {};
  return node;
}

void PrefixIndex::Impl::Bind(std::uint16_t slot, EngineKey key, NodeRef node, bool fresh) {
  const HolderState& holder = trie.holders()[slot];
  NodeRef bound;
  if (const auto it = holder.foreign.find(key); it != holder.foreign.end()) {
    bound = it->second;
    if (bound == node) return;
  } else {
    bound = trie.FindOwner(holder.key_space, key);
    if (bound == node) {
      trie.ClearForeignKey(slot, node);
      return;
    }
  }
  if (bound) {
    if (ResolveHeld(slot, key) == bound) {
      trie.Uncover(slot, bound);
      ++trie.stats().rebound_keys;
    }
  }
  if (fresh && !trie.Own(node, holder.key_space, key)) return;
  trie.SetForeignKey(slot, node, key);
}

void PrefixIndex::Impl::CoverAndBind(std::uint16_t slot, NodeRef node, EngineKey key, bool fresh,
                                     StoreResult& result) {
  const Trie::CoverCount count = trie.Cover(slot, node.run, node.offset, node.offset + 1);
  result.added += count.added;
  result.duplicates += count.duplicates;
  Bind(slot, key, node, fresh);
}

std::uint32_t PrefixIndex::Impl::StoreExisting(std::uint16_t slot, Trie::Cursor at,
                                               std::span<const StoredBlock> blocks, StoreResult& result) {
  const HolderState& holder = trie.holders()[slot];
  const Body* body = trie.body(at.run);
  const std::uint32_t end = std::min<std::uint32_t>(trie.length(at.run), at.offset + blocks.size());
  const bool plain_run = trie.meta(at.run).key_space == holder.key_space && !trie.meta(at.run).unowned_keys &&
                         holder.foreign.empty();
  std::uint32_t offset = at.offset;
  while (offset < end && body->content()[offset] == blocks[offset - at.offset].content && plain_run &&
         body->engine()[offset] == blocks[offset - at.offset].engine) {
    ++offset;
  }
  if (offset > at.offset) {
    const Trie::CoverCount count = trie.Cover(slot, at.run, at.offset, offset);
    result.added += count.added;
    result.duplicates += count.duplicates;
    return offset - at.offset;
  }
  // One block whose key is not plainly its own.
  if (offset == end || body->content()[offset] != blocks[0].content) return 0;
  CoverAndBind(slot, {at.run, offset}, blocks[0].engine, false, result);
  return 1;
}

Trie::Cursor PrefixIndex::Impl::StoreNew(std::uint16_t slot, const NamespaceId& ns, Trie::Cursor at,
                                         bool append, std::span<const StoredBlock> blocks,
                                         StoreResult& result) {
  HolderState& holder = trie.holders()[slot];
  if (!holder.storing_new) {
    for (const StoredBlock& block : blocks)
      trie.PrefetchIdentity(IdentityHash(holder.key_space, block.engine));
  }
  content.clear();
  engine.clear();
  for (const StoredBlock& block : blocks) {
    content.push_back(block.content);
    engine.push_back(block.engine);
  }
  RunId run = at.run;
  std::uint32_t first = at.offset;
  if (append) {
    trie.Append(run, content, engine);
  } else {
    run = trie.AddRun(ns, holder.key_space, at, content, engine);
    first = 0;
  }
  const auto count = static_cast<std::uint32_t>(blocks.size());
  result.added += trie.Cover(slot, run, first, first + count).added;
  for (std::uint32_t i = 0; i < count; ++i) {
    const NodeRef node{run, first + i};
    if (holder.foreign.empty() && !trie.Own(node, holder.key_space, engine[i])) continue;
    trie.meta(run).unowned_keys = true;
    Bind(slot, engine[i], node, true);
  }
  return {run, first + count};
}

StoreResult PrefixIndex::Impl::Store(std::uint16_t slot, const NamespaceId& ns,
                                     std::optional<EngineKey> parent, std::span<const StoredBlock> blocks,
                                     std::span<const HolderId> peers) {
  StoreResult result;
  HolderState& holder = trie.holders()[slot];
  // A holder that stored unknown blocks goes on to do so more often than not: ask for their places early.
  if (holder.storing_new) {
    for (const StoredBlock& block : blocks)
      trie.PrefetchIdentity(IdentityHash(holder.key_space, block.engine));
  }
  Trie::Cursor at;
  if (parent.has_value()) {
    const NodeRef node = ResolveWith(slot, *parent, peers);
    if (!node) {
      ++trie.stats().unknown_parents;
      result.outcome = StoreOutcome::kUnknownParent;
      return result;
    }
    if (!(trie.body(node.run)->ns == ns)) {
      ++trie.stats().namespace_mismatches;
      result.outcome = StoreOutcome::kOtherNamespace;
      return result;
    }
    at = {node.run, node.offset + 1};
  }
  const std::uint64_t nodes_before = trie.stats().nodes;
  for (std::size_t done = 0; done < blocks.size();) {
    const std::span<const StoredBlock> rest = blocks.subspan(done);
    if (at.run != kRoot) {
      if (const std::uint32_t stored = StoreExisting(slot, at, rest, result); stored > 0) {
        at.offset += stored;
        done += stored;
        continue;
      }
    }
    const bool may_have_children = at.run == kRoot || trie.meta(at.run).first_child != 0;
    if (may_have_children) {
      if (const RunId child = trie.FindChild(ns, at, rest[0].content); child != 0) {
        at = {child, 0};
        continue;
      }
    }
    const bool append = at.run != kRoot && at.offset == trie.length(at.run) && at.offset < kMaxRunLength &&
                        trie.meta(at.run).key_space == holder.key_space;
    const std::size_t room = append ? kMaxRunLength - at.offset : kMaxRunLength;
    const std::span<const StoredBlock> fresh = rest.first(std::min(rest.size(), room));
    at = StoreNew(slot, ns, at, append, fresh, result);
    done += fresh.size();
  }
  holder.storing_new = nodes_before != trie.stats().nodes;
  holder.last_key = blocks.back().engine;
  holder.last_node = {at.run, at.offset - 1};
  return result;
}

PrefixIndex::PrefixIndex(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
PrefixIndex::~PrefixIndex() = default;

absl::StatusOr<std::unique_ptr<PrefixIndex>> PrefixIndex::Create(const PrefixIndexOptions& options) {
  if (absl::Status status = CheckIndexLimits(options.max_bytes, options.max_holders); !status.ok())
    return status;
  return std::unique_ptr<PrefixIndex>(new PrefixIndex(std::make_unique<Impl>(options)));
}

absl::StatusOr<HolderId> PrefixIndex::AddHolder(const HolderOptions& options) {
  return impl_->registry.Add(options);
}

std::optional<HolderId> PrefixIndex::FindHolder(std::string_view endpoint,
                                                std::optional<std::uint32_t> dp_rank,
                                                std::string_view tier) const {
  return impl_->registry.Find(endpoint, dp_rank, tier);
}

const HolderOptions* PrefixIndex::GetHolder(HolderId holder) const { return impl_->registry.Get(holder); }

void PrefixIndex::ForEachHolder(const std::function<void(HolderId, const HolderOptions&)>& visit) const {
  impl_->registry.ForEach(visit);
}

StoreResult PrefixIndex::Store(HolderId holder, const NamespaceId& ns, std::optional<EngineKey> parent,
                               std::span<const StoredBlock> blocks, std::span<const HolderId> peers) {
  IndexStats& stats = impl_->trie.stats();
  if (!impl_->registry.Valid(holder)) {
    ++stats.stale_holder_calls;
    return {StoreOutcome::kStaleHolder, 0, 0};
  }
  if (blocks.empty()) return {};
  impl_->trie.ReserveRuns(1 + blocks.size() / kMaxRunLength + 1);
  const StoreResult result = impl_->Store(holder.slot, ns, parent, blocks, peers);
  stats.stored_blocks += result.added;
  stats.duplicate_blocks += result.duplicates;
  impl_->AfterWrite();
  return result;
}

std::size_t PrefixIndex::StoreKnown(HolderId holder, std::span<const EngineKey> keys,
                                    std::span<const HolderId> peers) {
  IndexStats& stats = impl_->trie.stats();
  if (!impl_->registry.Valid(holder)) {
    ++stats.stale_holder_calls;
    return 0;
  }
  StoreResult result;
  std::size_t known = 0;
  for (const EngineKey key : keys) {
    const NodeRef node = impl_->ResolveWith(holder.slot, key, peers);
    if (!node) continue;
    ++known;
    impl_->CoverAndBind(holder.slot, node, key, false, result);
  }
  stats.stored_blocks += result.added;
  stats.duplicate_blocks += result.duplicates;
  impl_->AfterWrite();
  return known;
}

std::size_t PrefixIndex::Remove(HolderId holder, std::span<const EngineKey> keys) {
  IndexStats& stats = impl_->trie.stats();
  if (!impl_->registry.Valid(holder)) {
    ++stats.stale_holder_calls;
    return 0;
  }
  std::size_t known = 0;
  for (const EngineKey key : keys) {
    const NodeRef node = impl_->ResolveHeld(holder.slot, key);
    if (!node) {
      ++stats.unknown_removes;
      continue;
    }
    ++known;
    if (impl_->trie.Release(holder.slot, node)) ++stats.removed_blocks;
  }
  impl_->AfterWrite();
  return known;
}

bool PrefixIndex::Clear(HolderId holder) {
  if (!impl_->registry.Valid(holder)) {
    ++impl_->trie.stats().stale_holder_calls;
    return false;
  }
  impl_->trie.DropHolder(holder.slot);
  return true;
}

bool PrefixIndex::Retire(HolderId holder) {
  if (!Clear(holder)) return false;
  impl_->registry.Retire(holder);
  return true;
}

void PrefixIndex::Compact() { impl_->trie.Compact(); }

MemoryUsage PrefixIndex::memory_usage() const { return impl_->trie.memory_usage(); }

IndexStats PrefixIndex::stats() const {
  IndexStats stats = impl_->trie.stats();
  stats.holders = impl_->registry.size();
  return stats;
}

struct PrefixIndex::Reader::State {
  explicit State(const Trie& index_trie)
      : trie(index_trie), line(index_trie.epochs().Register()), scratch(index_trie.options().max_holders) {}
  ~State() { EpochManager::Unregister(line); }

  const Trie& trie;
  EpochManager::Line* line;
  MatchScratch scratch;
};

PrefixIndex::Reader::Reader(const PrefixIndex& index) : Reader(index.impl_->trie) {}
PrefixIndex::Reader::Reader(const Trie& trie) : state_(std::make_unique<State>(trie)) {}
PrefixIndex::Reader::~Reader() = default;

void PrefixIndex::Reader::Match(const NamespaceId& ns, BlockKeySpan chain, MatchResult& result) {
  state_->trie.epochs().Enter(state_->line);
  state_->trie.Match(ns, chain, state_->scratch, result);
  EpochManager::Leave(state_->line);
}

}  // namespace llmd::index
