// The run-compressed trie under both indexes: runs, who covers them, and what is given back when nobody does.
//
// Nodes are addressed as (run, offset) and stay put while they live. The trie keeps each run's length at its
// last live block: a block lives while a holder has it or anything behind it. In a trie with engine keys, a
// living block that owns its key has exactly one entry in the identity map.
#ifndef SRC_INDEX_TRIE_H_
#define SRC_INDEX_TRIE_H_

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "llmd/base/memory_usage.h"
#include "llmd/index/prefix_index.h"
#include "llmd/index/types.h"
#include "src/index/arena.h"
#include "src/index/edge_table.h"
#include "src/index/epoch.h"
#include "src/index/identity_map.h"
#include "src/index/run.h"
#include "src/index/system_array.h"

namespace llmd::index {

// What the writer keeps per holder slot.
struct HolderState {
  std::uint32_t generation = 0;
  bool live = false;
  bool refcount = false;
  std::uint32_t key_space = 0;
  std::uint64_t blocks = 0;
  std::uint32_t live_runs = 0;
  std::vector<RunId> runs;  // every run that it has a word in; also stale ids, pruned when they prevail
  absl::flat_hash_map<EngineKey, NodeRef> foreign;
  bool storing_new = false;  // its last store made new nodes
  // Its last stored block, the likely parent of the next.
  EngineKey last_key = 0;
  NodeRef last_node;
};

// What a reader keeps between matches.
struct MatchScratch {
  explicit MatchScratch(std::size_t max_holders) : row_of_slot(max_holders + 1) {}
  std::vector<std::uint32_t> row_of_slot;  // a hint, checked against the row
};

class Trie {
 public:
  struct Options {
    std::size_t max_bytes;
    std::size_t max_holders;
    bool engine_keys;
  };

  // A place for the next block: behind the run's first `offset` blocks, or at the root.
  struct Cursor {
    RunId run = kRoot;
    std::uint32_t offset = 0;
  };
  struct CoverCount {
    std::uint32_t added = 0;
    std::uint32_t duplicates = 0;
  };

  explicit Trie(const Options& options);

  // --- Readers: any thread inside an epoch.

  void Match(const NamespaceId& ns, BlockKeySpan chain, MatchScratch& scratch, MatchResult& result) const;
  EpochManager& epochs() const { return epochs_; }

  // --- The writer's view.

  const Options& options() const { return options_; }
  std::vector<HolderState>& holders() { return holders_; }  // indexed by slot; slot 0 is unused
  const std::vector<HolderState>& holders() const { return holders_; }
  IndexStats& stats() { return stats_; }
  const IndexStats& stats() const { return stats_; }

  Body* body(RunId run) const { return metas_[run].body; }  // null for an id not in use
  RunMeta& meta(RunId run) { return metas_[run]; }
  const RunMeta& meta(RunId run) const { return metas_[run]; }
  RunId run_limit() const { return next_run_; }  // ids are below
  std::uint32_t length(RunId run) const { return body(run)->length.load(std::memory_order_relaxed); }
  RunId FindChild(const NamespaceId& ns, Cursor at, BlockKey key) const;

  // The block that owns the engine key, if any.
  NodeRef FindOwner(std::uint32_t key_space, EngineKey key) const;
  bool OwnsKey(NodeRef node) const;

  // Makes sure that `count` runs can be added, by eviction if ids run out before bytes do; waits for readers
  // that still see evicted runs.
  void ReserveRuns(std::size_t count);
  bool HasRoomForRun() const;
  // The soft limit leaves room for holes between blocks and for what waits for readers; the hard one is
  // max_bytes.
  bool over_budget() const { return live_bytes() > soft_limit_ || total_bytes() > options_.max_bytes; }
  // A new run with these blocks (at least one, at most kMaxRunLength), covered by nobody yet: cover it before
  // anything else. `engine` is empty in a trie without engine keys, else parallel to `content`; the keys are
  // not bound.
  RunId AddRun(const NamespaceId& ns, std::uint32_t key_space, Cursor parent, BlockKeySpan content,
               std::span<const EngineKey> engine);
  // Appends to a run whose end has no child with the first key. As above.
  void Append(RunId run, BlockKeySpan content, std::span<const EngineKey> engine);
  // Makes the block the owner of its engine key unless another block is: that one is returned then.
  NodeRef Own(NodeRef node, std::uint32_t key_space, EngineKey key);
  [[gnu::always_inline]] void PrefetchIdentity(std::uint64_t identity_hash) const {
    identity_.Prefetch(identity_hash);
  }

  // The holder has blocks [from, to) of the run.
  CoverCount Cover(std::uint16_t slot, RunId run, std::uint32_t from, std::uint32_t to);
  bool Holds(std::uint16_t slot, NodeRef node) const;
  // The holder, which has the block, gives one reference up; true when it was the last and the block is gone
  // for it.
  bool Release(std::uint16_t slot, NodeRef node);
  // The holder, which has the block, has it no more, however many references it had.
  void Uncover(std::uint16_t slot, NodeRef node);
  // The holder's first `lead` blocks of the run stay, the rest go. For holders without holes.
  void TruncateCover(std::uint16_t slot, RunId run, std::uint32_t lead);
  // The holder has nothing any more.
  void DropHolder(std::uint16_t slot);

  // The foreign key under which the holder has the block.
  std::optional<EngineKey> ForeignKey(std::uint16_t slot, NodeRef node) const;
  // Binds or unbinds it, in both directions. The holder has the block.
  void SetForeignKey(std::uint16_t slot, NodeRef node, EngineKey key);
  void ClearForeignKey(std::uint16_t slot, NodeRef node);

  const Detail* FindDetail(std::uint16_t slot, RunId run) const;
  // Puts a holder that has no word there into the run as described: its first `lead` blocks, or what `detail`
  // says. Foreign keys of the detail must not be bound yet.
  void RestoreCover(std::uint16_t slot, RunId run, std::uint32_t lead, Detail detail);
  // Where the run's last live block ends: its length, unless something went wrong.
  std::uint32_t LiveEnd(RunId run) const;

  // Drops whole runs until the budget is met; call after each write. `observer` hears of every (slot, run)
  // that lost its coverage.
  void EnforceBudget() {
    if (over_budget()) EvictRuns();
  }
  void SetEvictionObserver(std::function<void(std::uint16_t, RunId)> observer) {
    on_evict_ = std::move(observer);
  }
  // One small step of housekeeping: gives the slack of a run that stopped growing back.
  void Maintain();
  void Compact();

  // Memory that the owner keeps beside the trie; counts towards the budget.
  void SetOtherBytes(std::size_t bytes) { other_bytes_ = bytes; }
  std::size_t live_bytes() const { return arena_.used_bytes() - retired_.bytes() + bytes_beside_arena(); }
  std::size_t total_bytes() const { return arena_.reserved_bytes() + bytes_beside_arena(); }
  MemoryUsage memory_usage() const;

 private:
  static constexpr std::size_t kNone = ~std::size_t{0};
  static constexpr std::uint8_t kMaxReferences = 255;

  // The child that `chain` (not empty) continues in.
  const Body* FindChildBody(const NamespaceId& ns, Cursor at, BlockKeySpan chain) const;
  Body* NewBody(std::uint32_t holder_capacity, std::uint32_t capacity);
  Body* Rebody(RunId run, std::uint32_t keep, std::uint32_t capacity, std::uint32_t holder_capacity);
  // Room for holders: two, then doubling.
  static std::uint32_t GrownHolderCapacity(std::uint32_t holders) {
    return holders <= 2 ? 2 : std::min<std::uint32_t>(65535, std::bit_ceil(holders));
  }
  static std::size_t FindWord(const Body& body, std::uint32_t slot);
  void AddWord(std::uint16_t slot, RunId run, std::uint32_t lead);
  void RemoveWord(RunId run, std::size_t index);
  // Takes a holder out of a run entirely; returns how many blocks it had. Settle() afterwards.
  std::uint32_t TakeOut(std::uint16_t slot, RunId run, std::size_t index);
  void AddReferences(std::uint16_t slot, RunId run, std::uint32_t from, std::uint32_t to, std::uint32_t lead);
  void FlushRetired();
  Detail* MutableDetail(std::uint16_t slot, RunId run);
  void DropTrivialDetail(std::uint16_t slot, RunId run);
  void EraseDetail(std::uint16_t slot, RunId run);
  void ForgetForeignKey(HolderState& holder, EngineKey key);
  // Brings the run's length back to its last live block; frees it, and so on upwards, when none is left.
  void Settle(RunId run);
  RunId FreeRun(RunId run);
  bool EvictRun();
  void EvictRuns();
  bool TrimSlack(RunId run);
  std::size_t bytes_beside_arena() const;

  struct Queue {
    RunId head = 0;
    RunId tail = 0;
    std::size_t size = 0;
  };
  void Enqueue(Queue& queue, RunId run);
  void Dequeue(RunId run);

  static std::uint64_t DetailKey(std::uint16_t slot, RunId run) { return std::uint64_t{run} << 16 | slot; }

  Options options_;
  std::size_t soft_limit_;
  Arena arena_;
  mutable EpochManager epochs_;
  RetiredBlocks retired_;
  RetireQueue<RunId> retired_runs_;
  EdgeTable edges_;
  IdentityMap identity_;
  SystemArray<RunMeta> metas_;
  RunId next_run_ = 1;
  std::vector<RunId> free_runs_;
  std::vector<HolderState> holders_;
  absl::flat_hash_map<std::uint64_t, std::unique_ptr<Detail>> details_;
  std::size_t detail_bytes_ = 0;
  std::size_t foreign_bytes_ = 0;
  std::size_t holder_list_bytes_ = 0;
  std::size_t other_bytes_ = 0;
  Queue probation_;
  Queue protected_;
  RunId trim_hand_ = 1;
  std::function<void(std::uint16_t, RunId)> on_evict_;
  IndexStats stats_;
};

}  // namespace llmd::index

#endif  // SRC_INDEX_TRIE_H_
