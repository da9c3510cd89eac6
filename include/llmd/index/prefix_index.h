// The exact prefix index: which endpoints hold how many leading blocks of a prompt.
//
//   auto index = *PrefixIndex::Create({});
//   HolderId pod = *index->AddHolder({.endpoint = "10.0.0.7:8000"});
//   index->Store(pod, ns, std::nullopt, blocks);        // BlockStored
//   PrefixIndex::Reader reader(*index);                 // one per thread
//   MatchResult result;
//   reader.Match(ns, chain, result);                    // {{pod.slot, depth}, ...}
//
// Meaning. The index holds a trie of blocks; a node is a chain of content keys inside a namespace. Store()
// adds a holder to nodes, Remove() takes it away, Match() reports for each holder how many leading nodes of a
// chain it holds; a hole stops the count. Answers are exact: what a literal map of sets would give (spec:
// prefix-index.md 1).
//
// Engine keys. A node is created by a Store(), whose engine key becomes the node's own in the holder's key
// space unless another live node has it already. A holder that publishes another engine key for a known node,
// or a known engine key for another node (foreign seeds, hash twins), keeps a binding of its own. A key that
// one holder binds to a new node leaves the old one: the newer announcement wins. A node, and its engine key,
// lives while a holder has it or any of its descendants; so a parent that is a hole can still be named.
//
// Threads. One thread at a time uses PrefixIndex itself, const members included; any number of threads match,
// each with its own Reader, at any time. A reader takes no lock, waits for nobody and writes to no memory
// that others read often; a match that runs beside writes sees each run of blocks as it was at some moment of
// the match. A Reader must not outlive its index.
//
// Memory. Bounded by `max_bytes`; over it, the runs of blocks that were stored to least recently are dropped
// (segmented LRU) and counted. Nothing is freed by readers. Writes do not allocate per block.
#ifndef LLMD_INDEX_PREFIX_INDEX_H_
#define LLMD_INDEX_PREFIX_INDEX_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llmd/base/memory_usage.h"
#include "llmd/base/types.h"
#include "llmd/index/types.h"

namespace llmd::index {

class ApproxIndex;
class Trie;

struct PrefixIndexOptions {
  std::size_t max_bytes = std::size_t{4} << 30;  // at least 1 MiB
  std::size_t max_holders = 4096;                // 1 .. 65535
};

// What became of a Store(). Nothing was changed unless `applied`.
enum class StoreOutcome {
  kApplied,
  kUnknownParent,   // no live node has this engine key for this holder; park the event or drop it
  kStaleHolder,     // the holder was retired
  kOtherNamespace,  // the parent lives in another namespace
};

struct StoreResult {
  StoreOutcome outcome = StoreOutcome::kApplied;
  std::uint32_t added = 0;       // blocks the holder did not have
  std::uint32_t duplicates = 0;  // blocks it had already
};

// Counters since creation. All are of the writer's side.
struct IndexStats {
  std::uint64_t stored_blocks = 0;
  std::uint64_t duplicate_blocks = 0;
  std::uint64_t removed_blocks = 0;
  std::uint64_t unknown_removes = 0;
  std::uint64_t unknown_parents = 0;
  std::uint64_t stale_holder_calls = 0;
  std::uint64_t namespace_mismatches = 0;
  std::uint64_t rebound_keys = 0;  // engine keys that moved to another node
  std::uint64_t evicted_runs = 0;
  std::uint64_t evicted_holder_blocks = 0;
  // Present state.
  std::uint64_t holders = 0;
  std::uint64_t nodes = 0;  // live or waiting for compaction
  std::uint64_t runs = 0;
  std::uint64_t holder_blocks = 0;  // pairs (holder, block)
  std::uint64_t foreign_keys = 0;   // bindings kept per holder
};

class PrefixIndex {
 public:
  // InvalidArgument names the option, its value and the limit.
  static absl::StatusOr<std::unique_ptr<PrefixIndex>> Create(const PrefixIndexOptions& options);
  ~PrefixIndex();
  PrefixIndex(const PrefixIndex&) = delete;
  PrefixIndex& operator=(const PrefixIndex&) = delete;

  // ResourceExhausted when `max_holders` are in use; AlreadyExists for a live (endpoint, dp_rank, tier).
  absl::StatusOr<HolderId> AddHolder(const HolderOptions& options);
  std::optional<HolderId> FindHolder(std::string_view endpoint, std::optional<std::uint32_t> dp_rank,
                                     std::string_view tier) const;
  // Null when the holder is retired.
  const HolderOptions* GetHolder(HolderId holder) const;

  // Calls `visit` for each live holder, in order of slots; it must not write to the index.
  void ForEachHolder(const std::function<void(HolderId, const HolderOptions&)>& visit) const;

  // The holder has `blocks`, in order, below `parent` (nullopt: from the root of `ns`). `peers`: holders of
  // the same engine in other tiers; a key that the holder cannot resolve may be a binding of theirs.
  StoreResult Store(HolderId holder, const NamespaceId& ns, std::optional<EngineKey> parent,
                    std::span<const StoredBlock> blocks, std::span<const HolderId> peers = {});
  // The holder has the blocks that other holders of its key space published under `keys` (a tier update,
  // which carries no tokens). Returns how many were known.
  std::size_t StoreKnown(HolderId holder, std::span<const EngineKey> keys,
                         std::span<const HolderId> peers = {});
  // The holder no longer has these blocks. Returns how many it had.
  std::size_t Remove(HolderId holder, std::span<const EngineKey> keys);
  // The holder has nothing any more (cache reset). False for a retired holder.
  bool Clear(HolderId holder);
  // As Clear(), and the handle becomes invalid for good (endpoint gone).
  bool Retire(HolderId holder);

  // Gives memory of dead nodes back; Store() and Remove() do it by themselves in small steps.
  void Compact();

  MemoryUsage memory_usage() const;
  IndexStats stats() const;

  // Writes the whole index, holders included, to `sink` in pieces: versioned, little-endian, with a checksum.
  // `sink` returning an error stops it, and the error is returned.
  using Sink = std::function<absl::Status(std::span<const std::byte>)>;
  absl::Status Snapshot(const Sink& sink) const;
  // Reads a snapshot into an empty index made with `options`. DataLoss for a damaged or truncated one,
  // FailedPrecondition for another major version, ResourceExhausted when it does not fit the options.
  static absl::StatusOr<std::unique_ptr<PrefixIndex>> Restore(std::span<const std::byte> snapshot,
                                                              const PrefixIndexOptions& options);

  // Matches chains. One object per thread; cheap to keep, not to make in a loop. At most 1024 exist per index
  // at a time; a further one aborts the process.
  class Reader {
   public:
    explicit Reader(const PrefixIndex& index);
    ~Reader();
    Reader(const Reader&) = delete;
    Reader& operator=(const Reader&) = delete;

    // Replaces `result` with one row per holder that has at least the first block of `chain` (content keys in
    // order). The order of rows is the same for the same history of writes. Does not allocate once `result`
    // and the reader are warm.
    void Match(const NamespaceId& ns, BlockKeySpan chain, MatchResult& result);

   private:
    friend class ApproxIndex;
    explicit Reader(const Trie& trie);
    struct State;
    std::unique_ptr<State> state_;
  };

 private:
  struct Impl;
  explicit PrefixIndex(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace llmd::index

#endif  // LLMD_INDEX_PREFIX_INDEX_H_
