// Literal references for the two prefix indexes: maps of sets, one thread, no cleverness.
//
// They say what the answers mean, so they must be readable at a glance: a node is an entry of a map, a holder
// of a node is an entry of the node's map, and every rule of the header essay is one `if`. Nothing here is
// meant to be fast. Both are plain values: a copy goes its own way.
#ifndef LLMD_TESTS_INDEX_ORACLE_H_
#define LLMD_TESTS_INDEX_ORACLE_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "llmd/base/types.h"
#include "llmd/index/prefix_index.h"
#include "llmd/index/types.h"

namespace llmd::index {

using Slot = std::uint32_t;
using OracleMatch = std::map<Slot, std::uint32_t>;  // slot -> depth

class OraclePrefixIndex {
 public:
  bool Live(HolderId id) const {
    auto holder = holders_.find(id.slot);
    return holder != holders_.end() && holder->second.generation == id.generation;
  }

  bool LiveName(const HolderOptions& options) const {
    return std::any_of(holders_.begin(), holders_.end(), [&](const auto& entry) {
      const HolderOptions& other = entry.second.options;
      return other.endpoint == options.endpoint && other.dp_rank == options.dp_rank &&
             other.tier == options.tier;
    });
  }

  // Handles come from the index under test.
  void AddHolder(HolderId id, const HolderOptions& options) { holders_[id.slot] = {options, id.generation}; }

  StoreResult Store(HolderId id, const NamespaceId& ns, std::optional<EngineKey> parent,
                    std::span<const StoredBlock> blocks) {
    if (!Call(id)) return {StoreOutcome::kStaleHolder};
    if (blocks.empty()) return {};
    NodeId cursor = Root(ns);
    if (parent) {
      const std::optional<NodeId> found = Resolve(id.slot, *parent);
      if (!found) {
        ++stats_.unknown_parents;
        return {StoreOutcome::kUnknownParent};
      }
      if (nodes_.at(*found).ns != Name(ns)) {
        ++stats_.namespace_mismatches;
        return {StoreOutcome::kOtherNamespace};
      }
      cursor = *found;
    }
    StoreResult result;
    for (const StoredBlock& block : blocks) {
      const bool created = !children_.contains({cursor, block.content});
      const NodeId node = created ? Create(ns, cursor, block.content) : children_.at({cursor, block.content});
      ++(Add(id.slot, node) ? result.added : result.duplicates);
      Bind(id.slot, block.engine, node, created);
      cursor = node;
    }
    stats_.stored_blocks += result.added;
    stats_.duplicate_blocks += result.duplicates;
    return result;
  }

  std::size_t StoreKnown(HolderId id, std::span<const EngineKey> keys) {
    if (!Call(id)) return 0;
    std::size_t known = 0;
    for (EngineKey key : keys) {
      const std::optional<NodeId> node = Resolve(id.slot, key);
      if (!node) continue;
      ++known;
      ++(Add(id.slot, *node) ? stats_.stored_blocks : stats_.duplicate_blocks);
      Bind(id.slot, key, *node, /*created=*/false);
    }
    return known;
  }

  std::size_t Remove(HolderId id, std::span<const EngineKey> keys) {
    if (!Call(id)) return 0;
    std::size_t known = 0;
    for (EngineKey key : keys) {
      const std::optional<NodeId> node = Resolve(id.slot, key);
      if (!node || !HasUnder(id.slot, key, *node)) {
        ++stats_.unknown_removes;
        continue;
      }
      ++known;
      Held& held = nodes_.at(*node).holders.at(id.slot);
      if (--held.count == 0) Drop(id.slot, *node);
    }
    return known;
  }

  bool Clear(HolderId id) {
    if (!Call(id)) return false;
    std::vector<NodeId> held;
    for (const auto& [node, body] : nodes_) {
      if (body.holders.contains(id.slot)) held.push_back(node);
    }
    for (NodeId node : held) Drop(id.slot, node);
    return true;
  }

  bool Retire(HolderId id) {
    if (!Clear(id)) return false;
    holders_.erase(id.slot);
    return true;
  }

  // By slot, bit i: the holder has block i of the chain (at most 64 blocks).
  std::map<Slot, std::uint64_t> HeldMasks(const NamespaceId& ns, BlockKeySpan chain) const {
    std::map<Slot, std::uint64_t> masks;
    std::uint64_t bit = 1;
    for (NodeId node : Path(ns, chain)) {
      for (const auto& [slot, held] : nodes_.at(node).holders) masks[slot] |= bit;
      bit <<= 1;
    }
    return masks;
  }

  OracleMatch Match(const NamespaceId& ns, BlockKeySpan chain) const {
    const std::vector<NodeId> path = Path(ns, chain);
    OracleMatch result;
    for (const auto& [slot, holder] : holders_) {
      std::uint32_t depth = 0;
      while (depth < path.size() && nodes_.at(path[depth]).holders.contains(slot)) ++depth;
      if (depth > 0) result[slot] = depth;
    }
    return result;
  }

  // Counters of calls and the present state; nothing about runs and eviction, which the reference has not.
  IndexStats stats() const {
    IndexStats stats = stats_;
    stats.holders = holders_.size();
    stats.nodes = nodes_.size();
    stats.foreign_keys = foreign_.size();
    for (const auto& [id, node] : nodes_) stats.holder_blocks += node.holders.size();
    return stats;
  }

 private:
  using NodeId = std::uint64_t;
  using NamespaceName = std::pair<std::uint64_t, std::uint64_t>;
  static constexpr int kMostReferences = 255;

  struct Held {
    int count = 1;                     // references; stays 1 for RemovalPolicy::kSet
    std::optional<EngineKey> foreign;  // empty: the holder has the node under the node's own key
  };
  struct Node {
    NamespaceName ns;
    NodeId parent = 0;  // a root is no node
    BlockKey content = 0;
    std::size_t children = 0;
    std::map<Slot, Held> holders;
    std::optional<std::pair<std::uint32_t, EngineKey>> primary;  // (key space, engine key)
  };
  struct Holder {
    HolderOptions options;
    std::uint32_t generation = 0;
  };

  static NamespaceName Name(const NamespaceId& ns) { return {ns.hi, ns.lo}; }
  std::uint32_t KeySpace(Slot slot) const { return holders_.at(slot).options.key_space; }

  bool Call(HolderId id) {
    if (!Live(id)) ++stats_.stale_holder_calls;
    return Live(id);
  }

  NodeId Root(const NamespaceId& ns) {
    return roots_.contains(Name(ns)) ? roots_.at(Name(ns)) : roots_[Name(ns)] = next_node_++;
  }

  std::vector<NodeId> Path(const NamespaceId& ns, BlockKeySpan chain) const {
    std::vector<NodeId> path;
    if (!roots_.contains(Name(ns))) return path;
    NodeId cursor = roots_.at(Name(ns));
    for (BlockKey content : chain) {
      auto child = children_.find({cursor, content});
      if (child == children_.end()) break;
      path.push_back(cursor = child->second);
    }
    return path;
  }

  NodeId Create(const NamespaceId& ns, NodeId parent, BlockKey content) {
    const NodeId node = next_node_++;
    nodes_[node] = {.ns = Name(ns), .parent = parent, .content = content, .holders = {}, .primary = {}};
    children_[{parent, content}] = node;
    if (nodes_.contains(parent)) ++nodes_.at(parent).children;
    return node;
  }

  // The node that the holder means by the key.
  std::optional<NodeId> Resolve(Slot slot, EngineKey key) const {
    if (auto it = foreign_.find({slot, key}); it != foreign_.end()) return it->second;
    if (auto it = primary_.find({KeySpace(slot), key}); it != primary_.end()) return it->second;
    return std::nullopt;
  }

  // Whether the holder has the node, resolved from the key, under this key and no other.
  bool HasUnder(Slot slot, EngineKey key, NodeId node) const {
    auto held = nodes_.at(node).holders.find(slot);
    if (held == nodes_.at(node).holders.end()) return false;
    return foreign_.contains({slot, key}) || !held->second.foreign;
  }

  // True when the holder did not have the node.
  bool Add(Slot slot, NodeId node) {
    auto [held, added] = nodes_.at(node).holders.try_emplace(slot);
    const bool counts = holders_.at(slot).options.removal == RemovalPolicy::kRefcount;
    if (!added && counts) held->second.count = std::min(held->second.count + 1, kMostReferences);
    return added;
  }

  // The holder, which has `node`, has it under `key` from now on.
  void Bind(Slot slot, EngineKey key, NodeId node, bool created) {
    const std::optional<NodeId> bound = Resolve(slot, key);
    if (bound == node) {
      if (!foreign_.contains({slot, key})) EraseForeign(slot, node);
      return;
    }
    if (bound && HasUnder(slot, key, *bound)) {
      Drop(slot, *bound);
      ++stats_.rebound_keys;
    }
    const std::pair<std::uint32_t, EngineKey> own{KeySpace(slot), key};
    if (created && !primary_.contains(own)) {
      primary_[own] = node;
      nodes_.at(node).primary = own;
    } else {
      EraseForeign(slot, node);
      foreign_[{slot, key}] = node;
      nodes_.at(node).holders.at(slot).foreign = key;
    }
  }

  void EraseForeign(Slot slot, NodeId node) {
    Held& held = nodes_.at(node).holders.at(slot);
    if (held.foreign) foreign_.erase({slot, *held.foreign});
    held.foreign.reset();
  }

  // The holder no longer has the node; what nobody needs dies, from here towards the root.
  void Drop(Slot slot, NodeId node) {
    EraseForeign(slot, node);
    nodes_.at(node).holders.erase(slot);
    while (nodes_.contains(node) && nodes_.at(node).holders.empty() && nodes_.at(node).children == 0) {
      const Node dead = nodes_.at(node);
      if (dead.primary) primary_.erase(*dead.primary);
      children_.erase({dead.parent, dead.content});
      nodes_.erase(node);
      if (nodes_.contains(dead.parent)) --nodes_.at(dead.parent).children;
      node = dead.parent;
    }
  }

  std::map<Slot, Holder> holders_;
  std::map<NodeId, Node> nodes_;
  std::map<NamespaceName, NodeId> roots_;
  std::map<std::pair<NodeId, BlockKey>, NodeId> children_;
  std::map<std::pair<std::uint32_t, EngineKey>, NodeId> primary_;  // (key space, engine key)
  std::map<std::pair<Slot, EngineKey>, NodeId> foreign_;
  NodeId next_node_ = 1;
  IndexStats stats_;
};

// One list of blocks per holder, most recently predicted first; a block is its whole path.
class OracleApproxIndex {
 public:
  explicit OracleApproxIndex(absl::Duration ttl) : ttl_(ttl) {}

  void AddHolder(HolderId id, std::size_t capacity) { holders_[id.slot] = {id.generation, capacity, {}}; }

  bool Resize(HolderId id, std::size_t capacity) {
    if (!Live(id)) return false;
    Holder& holder = holders_.at(id.slot);
    holder.capacity = capacity;
    while (holder.recent.size() > capacity) holder.recent.pop_back();
    return true;
  }

  bool Predict(HolderId id, const NamespaceId& ns, BlockKeySpan chain, absl::Time now) {
    if (!Live(id)) return false;
    Holder& holder = holders_.at(id.slot);
    for (std::size_t length = std::min(chain.size(), holder.capacity); length > 0; --length) {
      const Block block = MakeBlock(ns, chain.first(length));
      holder.recent.remove_if([&](const Entry& entry) { return entry.block == block; });
      holder.recent.push_front({block, now});
    }
    Forget(holder, now);
    while (holder.recent.size() > holder.capacity) holder.recent.pop_back();
    return true;
  }

  void Expire(absl::Time now) {
    for (auto& [slot, holder] : holders_) Forget(holder, now);
  }

  bool Clear(HolderId id) {
    if (Live(id)) holders_.at(id.slot).recent.clear();
    return Live(id);
  }

  bool Retire(HolderId id) { return Live(id) && holders_.erase(id.slot) == 1; }

  std::size_t size(HolderId id) const { return Live(id) ? holders_.at(id.slot).recent.size() : 0; }

  OracleMatch Match(const NamespaceId& ns, BlockKeySpan chain) const {
    OracleMatch result;
    for (const auto& [slot, holder] : holders_) {
      std::uint32_t depth = 0;
      while (depth < chain.size() && Has(holder, MakeBlock(ns, chain.first(depth + 1)))) ++depth;
      if (depth > 0) result[slot] = depth;
    }
    return result;
  }

 private:
  struct Block {
    NamespaceId ns;
    std::vector<BlockKey> path;
    friend bool operator==(const Block&, const Block&) = default;
  };
  struct Entry {
    Block block;
    absl::Time predicted;
  };
  struct Holder {
    std::uint32_t generation = 0;
    std::size_t capacity = 0;
    std::list<Entry> recent;
  };

  static Block MakeBlock(const NamespaceId& ns, BlockKeySpan path) {
    return {ns, {path.begin(), path.end()}};
  }

  static bool Has(const Holder& holder, const Block& block) {
    return std::any_of(holder.recent.begin(), holder.recent.end(),
                       [&](const Entry& entry) { return entry.block == block; });
  }

  bool Live(HolderId id) const {
    auto holder = holders_.find(id.slot);
    return holder != holders_.end() && holder->second.generation == id.generation;
  }

  void Forget(Holder& holder, absl::Time now) const {
    holder.recent.remove_if([&](const Entry& entry) { return entry.predicted + ttl_ <= now; });
  }

  absl::Duration ttl_;
  std::map<Slot, Holder> holders_;
};

}  // namespace llmd::index

#endif  // LLMD_TESTS_INDEX_ORACLE_H_
