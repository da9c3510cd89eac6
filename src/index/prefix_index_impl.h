// The exact index: holders by name over the trie.
#ifndef SRC_INDEX_PREFIX_INDEX_IMPL_H_
#define SRC_INDEX_PREFIX_INDEX_IMPL_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "llmd/index/prefix_index.h"
#include "src/index/epoch.h"
#include "src/index/trie.h"

namespace llmd::index {

// Holder names, slots and generations. A freed slot is reused when no reader can still report its former
// holder.
class HolderRegistry {
 public:
  explicit HolderRegistry(Trie& trie) : trie_(trie), options_(trie.holders().size()) {}

  absl::StatusOr<HolderId> Add(const HolderOptions& options);
  // Restoring a snapshot: as Add(), into a given slot and generation; and a slot that was used and is free.
  absl::Status AddAt(std::uint16_t slot, std::uint32_t generation, const HolderOptions& options);
  absl::Status AddFree(std::uint16_t slot, std::uint32_t generation);
  bool EverySlotIsKnown() const { return by_name_.size() + free_slots_.size() == next_slot_ - 1; }
  std::vector<HolderId> FreeSlots() const;  // in the order of their reuse
  std::optional<HolderId> Find(std::string_view endpoint, std::optional<std::uint32_t> dp_rank,
                               std::string_view tier) const;
  const HolderOptions* Get(HolderId holder) const;
  bool Valid(HolderId holder) const {
    return holder.slot != 0 && holder.slot < trie_.holders().size() && trie_.holders()[holder.slot].live &&
           trie_.holders()[holder.slot].generation == holder.generation;
  }
  void ForEach(const std::function<void(HolderId, const HolderOptions&)>& visit) const;
  void Retire(HolderId holder);
  std::size_t size() const { return by_name_.size(); }

 private:
  static std::string NameOf(std::string_view endpoint, std::optional<std::uint32_t> dp_rank,
                            std::string_view tier);
  void Occupy(std::uint16_t slot, std::uint32_t generation, const HolderOptions& options);

  Trie& trie_;
  std::vector<HolderOptions> options_;
  absl::flat_hash_map<std::string, std::uint16_t> by_name_;
  std::uint32_t next_slot_ = 1;
  struct FreeSlot {
    std::uint16_t slot;
    std::uint64_t stamp;  // when its holder was retired
  };
  std::deque<FreeSlot> free_slots_;  // reused in the order of retirement
};

absl::Status CheckIndexLimits(std::size_t max_bytes, std::size_t max_holders);

struct PrefixIndex::Impl {
  explicit Impl(const PrefixIndexOptions& options)
      : trie({options.max_bytes, options.max_holders, true}), registry(trie) {}

  // The live node that the engine key names for the holder.
  NodeRef Resolve(std::uint16_t slot, EngineKey key) const;
  // As Resolve(), or else the node to which a peer binds the key.
  NodeRef ResolveWith(std::uint16_t slot, EngineKey key, std::span<const HolderId> peers) const;
  // As Resolve(), but only where the holder has the block under this very key.
  NodeRef ResolveHeld(std::uint16_t slot, EngineKey key) const;
  // The holder, which has `node`, has it under `key` from now on, and nothing else under it. `fresh`: the
  // node was created by this store and owns no key yet.
  void Bind(std::uint16_t slot, EngineKey key, NodeRef node, bool fresh);
  void CoverAndBind(std::uint16_t slot, NodeRef node, EngineKey key, bool fresh, StoreResult& result);
  // Covers as many blocks of `blocks` as stand in the run from `offset` on; returns how many.
  std::uint32_t StoreExisting(std::uint16_t slot, Trie::Cursor at, std::span<const StoredBlock> blocks,
                              StoreResult& result);
  // Creates `blocks` as nodes behind `at` (one run's worth at most) and returns the cursor behind them.
  Trie::Cursor StoreNew(std::uint16_t slot, const NamespaceId& ns, Trie::Cursor at, bool append,
                        std::span<const StoredBlock> blocks, StoreResult& result);
  StoreResult Store(std::uint16_t slot, const NamespaceId& ns, std::optional<EngineKey> parent,
                    std::span<const StoredBlock> blocks, std::span<const HolderId> peers);
  void AfterWrite() {
    if ((++writes & 1) == 0) trie.Maintain();
    trie.EnforceBudget();
  }

  Trie trie;
  HolderRegistry registry;
  std::uint64_t writes = 0;
  std::vector<BlockKey> content;  // scratch of StoreNew()
  std::vector<EngineKey> engine;
};

}  // namespace llmd::index

#endif  // SRC_INDEX_PREFIX_INDEX_IMPL_H_
