#include "src/index/edge_table.h"

#include <bit>
#include <new>

namespace llmd::index {

void EdgeTable::Place(const Table& table, std::uint64_t hash, const Body* body) {
  std::uint64_t at = PlaceOf(hash) & table.mask;
  while (table.slots[at].load(std::memory_order_relaxed) != kEmpty) at = (at + 1) & table.mask;
  table.slots[at].store(MakeSlot(hash, body), std::memory_order_release);
}

void EdgeTable::Rebuild(Shard& shard) {
  const std::uint64_t size = std::bit_ceil(std::uint64_t{shard.live + 1} * 2);
  const std::size_t table_bytes = size * sizeof(Slot);
  auto* slots = static_cast<Slot*>(arena_.Allocate(table_bytes));
  for (std::uint64_t i = 0; i < size; ++i) new (&slots[i]) Slot(kEmpty);
  const std::uint64_t word =
      reinterpret_cast<std::uintptr_t>(slots) | static_cast<std::uint64_t>(std::countr_zero(size));
  const Table table(word);
  const Table old(shard.table.load(std::memory_order_relaxed));
  if (old.slots != nullptr) {
    for (std::uint64_t i = 0; i <= old.mask; ++i) {
      const std::uint64_t slot = old.slots[i].load(std::memory_order_relaxed);
      if (slot == kEmpty || slot == kGone) continue;
      const auto* body = reinterpret_cast<const Body*>(slot & kAddressMask);
      Place(table, EdgeHashOf(*body), body);
    }
  }
  shard.used = shard.live;
  shard.table.store(word, std::memory_order_release);
  bytes_ += table_bytes;
  if (old.slots != nullptr) {
    bytes_ -= (old.mask + 1) * sizeof(Slot);
    retired_.Retire(old.slots);
  }
}

void EdgeTable::Insert(std::uint64_t hash, const Body* body) {
  Shard& shard = shards_[ShardOf(hash)];
  const Table table(shard.table.load(std::memory_order_relaxed));
  if (table.slots == nullptr || std::uint64_t{shard.used + 1} * 3 > (table.mask + 1) * 2) Rebuild(shard);
  Place(Table(shard.table.load(std::memory_order_relaxed)), hash, body);
  ++shard.used;
  ++shard.live;
}

EdgeTable::Slot* EdgeTable::FindSlot(std::uint64_t hash, const Body* body) const {
  const Table table(shards_[ShardOf(hash)].table.load(std::memory_order_relaxed));
  const std::uint64_t wanted = MakeSlot(hash, body);
  std::uint64_t at = PlaceOf(hash) & table.mask;
  while (table.slots[at].load(std::memory_order_relaxed) != wanted) at = (at + 1) & table.mask;
  return &table.slots[at];
}

void EdgeTable::Replace(std::uint64_t hash, const Body* old, const Body* fresh) {
  FindSlot(hash, old)->store(MakeSlot(hash, fresh), std::memory_order_release);
}

void EdgeTable::Erase(std::uint64_t hash, const Body* body) {
  FindSlot(hash, body)->store(kGone, std::memory_order_release);
  --shards_[ShardOf(hash)].live;
}

void EdgeTable::Compact() {
  for (Shard& shard : shards_) {
    const Table table(shard.table.load(std::memory_order_relaxed));
    if (table.slots == nullptr || std::uint64_t{shard.live} * 4 > table.mask) continue;
    if (shard.live > 0) {
      Rebuild(shard);
      continue;
    }
    shard.table.store(0, std::memory_order_release);
    shard.used = 0;
    bytes_ -= (table.mask + 1) * sizeof(Slot);
    retired_.Retire(table.slots);
  }
}

}  // namespace llmd::index
