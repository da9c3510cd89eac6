// (parent run, offset, content key) -> child run: the table that readers probe once per run of a match.
//
// Open addressing over 8-byte slots: 36 hash bits and the child's id. The reader checks the child's own
// header, so a wrong guess costs a miss and never an answer. One writer; growth publishes a new table and
// retires the old one.
#ifndef SRC_INDEX_EDGE_TABLE_H_
#define SRC_INDEX_EDGE_TABLE_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "llmd/base/types.h"
#include "llmd/index/types.h"
#include "src/index/arena.h"
#include "src/index/epoch.h"
#include "src/index/run.h"

namespace llmd::index {

// Hash of an edge. Edges from the root are separated by namespace; below it the parent run implies the
// namespace.
inline std::uint64_t EdgeHash(const NamespaceId& ns, RunId parent, std::uint32_t offset, BlockKey key) {
  std::uint64_t h = key * 0x9E3779B97F4A7C15u;
  h ^= parent == kRoot ? ns.lo ^ (ns.hi * 0xC2B2AE3D27D4EB4Fu) : std::uint64_t{parent} << 32 | offset;
  h = (h ^ (h >> 32)) * 0xD6E8FEB86659FD93u;
  h = (h ^ (h >> 29)) * 0xD6E8FEB86659FD93u;
  return h ^ (h >> 32);
}

class EdgeTable {
 public:
  EdgeTable(Arena& arena, RetiredBlocks& retired) : arena_(arena), retired_(retired) {}
  EdgeTable(const EdgeTable&) = delete;
  EdgeTable& operator=(const EdgeTable&) = delete;

  // Any thread, inside an epoch. The child with this hash for which `matches(RunId)` holds, or 0.
  template <typename Matches>
  RunId Find(std::uint64_t hash, Matches matches) const {
    const Table* table = shards_[ShardOf(hash)].table.load(std::memory_order_acquire);
    if (table == nullptr) return 0;
    const std::uint64_t tag = hash >> kRunIdBits;
    for (std::uint64_t at = tag & table->mask;; at = (at + 1) & table->mask) {
      const std::uint64_t slot = table->slots()[at].load(std::memory_order_acquire);
      if (slot == kEmpty) return 0;
      if (slot >> kRunIdBits == tag && (slot & kIdMask) != kGoneId) {
        const auto run = static_cast<RunId>(slot & kIdMask);
        if (matches(run)) return run;
      }
    }
  }

  // Writer. The edge must be absent.
  void Insert(std::uint64_t hash, RunId run);
  void Erase(std::uint64_t hash, RunId run);

  std::size_t bytes() const { return bytes_; }

 private:
  static constexpr int kShardBits = 8;
  static constexpr std::uint64_t kEmpty = 0;
  static constexpr std::uint64_t kIdMask = (std::uint64_t{1} << kRunIdBits) - 1;
  static constexpr std::uint64_t kGoneId = kIdMask;

  struct Table {
    std::uint64_t mask;
    std::uint64_t padding[7];
    std::atomic<std::uint64_t>* slots() { return reinterpret_cast<std::atomic<std::uint64_t>*>(this + 1); }
    const std::atomic<std::uint64_t>* slots() const { return const_cast<Table*>(this)->slots(); }
  };
  struct Shard {
    std::atomic<Table*> table{nullptr};
    std::uint32_t used = 0;  // slots that are not empty, gone ones included
    std::uint32_t live = 0;
  };

  // The low bits choose the shard, the tag's low bits the place in it: a slot alone says where it belongs.
  static std::size_t ShardOf(std::uint64_t hash) { return hash & ((1u << kShardBits) - 1); }
  static void Place(Table* table, std::uint64_t slot);
  void Rebuild(Shard& shard);

  Arena& arena_;
  RetiredBlocks& retired_;
  std::array<Shard, 1 << kShardBits> shards_;
  std::size_t bytes_ = 0;
};

}  // namespace llmd::index

#endif  // SRC_INDEX_EDGE_TABLE_H_
