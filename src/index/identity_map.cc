#include "src/index/identity_map.h"

#include <algorithm>
#include <cstring>

namespace llmd::index {

static_assert(20 + kRunIdBits + 16 == 64);

IdentityMap::IdentityMap(Arena& arena, int shard_bits)
    : arena_(arena), shard_bits_(shard_bits), shards_(std::size_t{1} << shard_bits) {}

// Sizes the shard for its live entries, and enters them anew.
void IdentityMap::Rebuild(Shard& shard) {
  scratch_.clear();
  for (const std::uint64_t* page : shard.pages) {
    for (std::size_t i = 0; i < kPageLines * kLineSlots; ++i) {
      if (page[i] != kEmpty && page[i] != kGone) scratch_.push_back(page[i]);
    }
  }
  constexpr std::size_t kPageSlots = kPageLines * kLineSlots;
  const std::size_t pages = (scratch_.size() + 1) * 100 / kGrownFill / kPageSlots + 1;
  while (shard.pages.size() > pages) {
    arena_.Free(shard.pages.back());
    shard.pages.pop_back();
  }
  while (shard.pages.size() < pages) {
    shard.pages.push_back(static_cast<std::uint64_t*>(arena_.Allocate(kPageSlots * sizeof(std::uint64_t))));
  }
  for (std::uint64_t* page : shard.pages) std::memset(page, 0, kPageSlots * sizeof(std::uint64_t));
  bytes_ += (pages * kPageLines - shard.lines) * kLineSlots * sizeof(std::uint64_t);
  shard.lines = static_cast<std::uint32_t>(pages * kPageLines);
  for (const std::uint64_t slot : scratch_) {
    std::uint64_t line = LineOf(shard, slot >> (64 - kTagBits));
    for (std::uint64_t* at = Line(shard, line);;) {
      std::uint64_t* const free_slot = std::find(at, at + kLineSlots, kEmpty);
      if (free_slot != at + kLineSlots) {
        *free_slot = slot;
        break;
      }
      line = line + 1 == shard.lines ? 0 : line + 1;
      at = Line(shard, line);
    }
  }
  shard.used = static_cast<std::uint32_t>(scratch_.size());
  shard.gone = 0;
}

bool IdentityMap::Erase(std::uint64_t hash, NodeRef node) {
  Shard& shard = shards_[hash >> (64 - shard_bits_)];
  if (shard.lines == 0) return false;
  const std::uint64_t tag = TagOf(hash);
  const std::uint64_t made = MakeSlot(tag, node);
  for (std::uint64_t line = LineOf(shard, tag);; line = line + 1 == shard.lines ? 0 : line + 1) {
    std::uint64_t* slots = Line(shard, line);
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
      if (shard.lines > kPageLines && std::uint64_t{live} * 4 < std::uint64_t{shard.lines} * kLineSlots)
        Rebuild(shard);
      return true;
    }
    if (any_empty) return false;
  }
}

void IdentityMap::Compact() {
  for (Shard& shard : shards_) {
    if (shard.used != shard.gone || shard.lines == 0) continue;
    for (std::uint64_t* page : shard.pages) arena_.Free(page);
    bytes_ -= shard.lines * kLineSlots * sizeof(std::uint64_t);
    shard = Shard();
  }
}

}  // namespace llmd::index
