#include "src/index/identity_map.h"

#include <algorithm>
#include <cstring>

namespace llmd::index {

static_assert(20 + kRunIdBits + 16 == 64);

IdentityMap::IdentityMap(Arena& arena, int shard_bits)
    : arena_(arena), shard_bits_(shard_bits), shards_(std::size_t{1} << shard_bits) {}

void IdentityMap::Rebuild(Shard& shard) {
  const std::uint32_t live = shard.used - shard.gone;
  // Grown to be 68 to 80 % full, not the same for all: shards that grew in step would need all their new
  // memory at once.
  const auto index = static_cast<std::uint64_t>(&shard - shards_.data());
  const std::uint64_t grown_fill = 68 + (index * 7 + live) % 13;
  const std::uint64_t wanted = std::max<std::uint64_t>((std::uint64_t{live} + 1) * 100 / grown_fill, 1);
  const auto lines = static_cast<std::uint32_t>((wanted + kLineSlots - 1) / kLineSlots);
  const std::size_t new_bytes = std::size_t{lines} * kLineSlots * sizeof(std::uint64_t);
  auto* slots = static_cast<std::uint64_t*>(arena_.Allocate(new_bytes));
  std::memset(slots, 0, new_bytes);
  const Shard old = shard;
  shard = {slots, lines, 0, 0};
  for (std::size_t i = 0; i < std::size_t{old.lines} * kLineSlots; ++i) {
    const std::uint64_t slot = old.slots[i];
    if (slot == kEmpty || slot == kGone) continue;
    for (std::uint64_t at = LineOf(shard, slot >> (64 - kTagBits)) * kLineSlots;;) {
      if (slots[at] == kEmpty) {
        slots[at] = slot;
        break;
      }
      if (++at == std::size_t{lines} * kLineSlots) at = 0;
    }
  }
  shard.used = live;
  bytes_ += new_bytes - std::size_t{old.lines} * kLineSlots * sizeof(std::uint64_t);
  arena_.Free(old.slots);
}

bool IdentityMap::Erase(std::uint64_t hash, NodeRef node) {
  Shard& shard = shards_[hash >> (64 - shard_bits_)];
  if (shard.lines == 0) return false;
  const std::uint64_t tag = TagOf(hash);
  const std::uint64_t made = MakeSlot(tag, node);
  for (std::uint64_t line = LineOf(shard, tag);; line = line + 1 == shard.lines ? 0 : line + 1) {
    std::uint64_t* slots = shard.slots + line * kLineSlots;
    std::uint64_t* found = nullptr;
    bool any_empty = false;
    for (std::size_t i = 0; i < kLineSlots; ++i) {
      if (slots[i] == kEmpty) any_empty = true;
      if (slots[i] == made) found = &slots[i];
    }
    if (found != nullptr) {
      // A line with room never sent an entry further, so nothing looks past it.
      *found = any_empty ? kEmpty : kGone;
      if (any_empty) {
        --shard.used;
      } else {
        ++shard.gone;
      }
      --size_;
      // Give memory back when three quarters are empty.
      const std::uint32_t live = shard.used - shard.gone;
      if (shard.lines > 4 && std::uint64_t{live} * 4 < std::uint64_t{shard.lines} * kLineSlots)
        Rebuild(shard);
      return true;
    }
    if (any_empty) return false;
  }
}

}  // namespace llmd::index
