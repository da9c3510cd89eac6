#include "src/index/edge_table.h"

#include <bit>
#include <new>

namespace llmd::index {

void EdgeTable::Place(Table* table, std::uint64_t slot) {
  std::uint64_t at = (slot >> kRunIdBits) & table->mask;
  while (table->slots()[at].load(std::memory_order_relaxed) != kEmpty) at = (at + 1) & table->mask;
  table->slots()[at].store(slot, std::memory_order_release);
}

void EdgeTable::Rebuild(Shard& shard) {
  const std::uint64_t slots = std::bit_ceil(std::uint64_t{shard.live + 1} * 2);
  const std::size_t table_bytes = sizeof(Table) + slots * sizeof(std::uint64_t);
  void* memory = arena_.Allocate(table_bytes);
  auto* table = new (memory) Table{slots - 1, {}};
  for (std::uint64_t i = 0; i < slots; ++i) new (&table->slots()[i]) std::atomic<std::uint64_t>(kEmpty);
  bytes_ += table_bytes;
  Table* old = shard.table.load(std::memory_order_relaxed);
  if (old != nullptr) {
    for (std::uint64_t i = 0; i <= old->mask; ++i) {
      const std::uint64_t slot = old->slots()[i].load(std::memory_order_relaxed);
      if (slot != kEmpty && (slot & kIdMask) != kGoneId) Place(table, slot);
    }
  }
  shard.used = shard.live;
  shard.table.store(table, std::memory_order_release);
  if (old != nullptr) {
    bytes_ -= sizeof(Table) + (old->mask + 1) * sizeof(std::uint64_t);
    retired_.Retire(old);
  }
}

void EdgeTable::Insert(std::uint64_t hash, RunId run) {
  Shard& shard = shards_[ShardOf(hash)];
  const Table* table = shard.table.load(std::memory_order_relaxed);
  if (table == nullptr || std::uint64_t{shard.used + 1} * 3 > (table->mask + 1) * 2) {
    Rebuild(shard);
  }
  Place(shard.table.load(std::memory_order_relaxed), (hash & ~kIdMask) | run);
  ++shard.used;
  ++shard.live;
}

void EdgeTable::Erase(std::uint64_t hash, RunId run) {
  Shard& shard = shards_[ShardOf(hash)];
  Table* table = shard.table.load(std::memory_order_relaxed);
  if (table == nullptr) return;
  const std::uint64_t wanted = (hash & ~kIdMask) | run;
  for (std::uint64_t at = (hash >> kRunIdBits) & table->mask;; at = (at + 1) & table->mask) {
    const std::uint64_t slot = table->slots()[at].load(std::memory_order_relaxed);
    if (slot == kEmpty) return;
    if (slot == wanted) {
      table->slots()[at].store((hash & ~kIdMask) | kGoneId, std::memory_order_release);
      --shard.live;
      return;
    }
  }
}

}  // namespace llmd::index
