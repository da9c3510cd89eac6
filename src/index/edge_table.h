// (parent run, offset, content key) -> body of the child run: the table that readers probe once per run of a
// match.
//
// Open addressing over 8-byte slots: a body's address and 16 bits of the edge's hash. The reader checks the
// body's own header, so a wrong guess costs a miss and never an answer. One writer; growth publishes a new
// table and retires the old one.
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

// Hash of the edge that leads to a run.
inline std::uint64_t EdgeHashOf(const Body& body) {
  return EdgeHash(body.ns, body.parent, body.parent_offset, body.content()[0]);
}

class EdgeTable {
 public:
  EdgeTable(Arena& arena, RetiredBlocks& retired) : arena_(arena), retired_(retired) {}
  EdgeTable(const EdgeTable&) = delete;
  EdgeTable& operator=(const EdgeTable&) = delete;

  // Any thread, inside an epoch. The body with this hash for which `matches(const Body*)` holds, or null.
  template <typename Matches>
  const Body* Find(std::uint64_t hash, Matches matches) const {
    const Table table(shards_[ShardOf(hash)].table.load(std::memory_order_acquire));
    if (table.slots == nullptr) return nullptr;
    for (std::uint64_t at = PlaceOf(hash) & table.mask;; at = (at + 1) & table.mask) {
      const std::uint64_t slot = table.slots[at].load(std::memory_order_acquire);
      if (slot == kEmpty) return nullptr;
      if (slot >> kAddressBits == TagOf(hash) && slot != kGone) {
        const auto* body = reinterpret_cast<const Body*>(slot & kAddressMask);
        if (matches(body)) return body;
      }
    }
  }

  // Writer. The edge must be absent.
  void Insert(std::uint64_t hash, const Body* body);
  // `fresh` takes the place of `old`.
  void Replace(std::uint64_t hash, const Body* old, const Body* fresh);
  void Erase(std::uint64_t hash, const Body* body);
  // Gives back what the live edges do not need.
  void Compact();

  std::size_t bytes() const { return bytes_; }

 private:
  static constexpr int kShardBits = 8;
  static constexpr int kAddressBits = 48;
  static constexpr std::uint64_t kAddressMask = (std::uint64_t{1} << kAddressBits) - 1;
  static constexpr std::uint64_t kEmpty = 0;
  static constexpr std::uint64_t kGone = ~std::uint64_t{0};

  using Slot = std::atomic<std::uint64_t>;
  // A table as published: its address, and the logarithm of its size in the bits that alignment leaves free.
  struct Table {
    explicit Table(std::uint64_t word)
        : slots(reinterpret_cast<Slot*>(word & ~std::uint64_t{63})),
          mask((std::uint64_t{1} << (word & 63)) - 1) {}
    Slot* slots;
    std::uint64_t mask;
  };
  struct Shard {
    std::atomic<std::uint64_t> table{0};
    std::uint32_t used = 0;  // slots that are not empty, gone ones included
    std::uint32_t live = 0;
  };

  static std::size_t ShardOf(std::uint64_t hash) { return hash & ((1u << kShardBits) - 1); }
  static std::uint64_t PlaceOf(std::uint64_t hash) { return hash >> kShardBits; }
  static std::uint64_t TagOf(std::uint64_t hash) { return hash >> kAddressBits; }
  static std::uint64_t MakeSlot(std::uint64_t hash, const Body* body) {
    return TagOf(hash) << kAddressBits | reinterpret_cast<std::uintptr_t>(body);
  }
  static void Place(const Table& table, std::uint64_t hash, const Body* body);
  Slot* FindSlot(std::uint64_t hash, const Body* body) const;
  void Rebuild(Shard& shard);

  Arena& arena_;
  RetiredBlocks& retired_;
  std::array<Shard, 1 << kShardBits> shards_;
  std::size_t bytes_ = 0;
};

}  // namespace llmd::index

#endif  // SRC_INDEX_EDGE_TABLE_H_
