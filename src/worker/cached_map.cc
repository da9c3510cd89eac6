#include "llmd/worker/cached_map.h"

#include <bit>
#include <cassert>
#include <cstring>

namespace llmd::worker {
namespace {

// 32 well-mixed bits of the key. Digests of a cryptographic hash need no mixing, but 64-bit keys from
// elsewhere do.
std::uint32_t TagOf(const hash::Digest& hash, std::uint32_t group_id) {
  std::uint64_t words[4];
  static_assert(sizeof(words) == sizeof(hash.bytes));
  std::memcpy(words, hash.bytes.data(), sizeof(words));
  std::uint64_t x = words[0] * 0x9E3779B97F4A7C15u ^ words[1] * 0xC2B2AE3D27D4EB4Fu ^
                    words[2] * 0x165667B19E3779F9u ^ words[3] * 0x27D4EB2F165667C5u ^
                    (std::uint64_t{group_id} + hash.size) * 0x85EBCA77C2B2AE63u;
  x = (x ^ (x >> 32)) * 0xD6E8FEB86659FD93u;
  return static_cast<std::uint32_t>(x >> 32);
}

// All 32 bytes, unused ones are zero: a comparison of fixed length is much the faster.
bool SameDigest(const hash::Digest& a, const hash::Digest& b) {
  return a.size == b.size && std::memcmp(a.bytes.data(), b.bytes.data(), sizeof(a.bytes)) == 0;
}

}  // namespace

// At most half full: probes stay short and an empty slot always ends them.
CachedMap::CachedMap(std::span<Block> blocks)
    : blocks_(blocks.data()), mask_(std::bit_ceil(blocks.size() * 2) - 1), slots_(mask_ + 1) {}

std::size_t CachedMap::FindSlot(std::uint32_t tag, const hash::Digest& hash, std::uint32_t group_id) const {
  std::size_t i = tag & mask_;
  for (; slots_[i].block != kNoBlock; i = (i + 1) & mask_) {
    if (slots_[i].tag != tag) continue;
    const Block& block = blocks_[slots_[i].block];
    if (block.group_id == group_id && SameDigest(block.hash, hash)) break;
  }
  return i;
}

std::size_t CachedMap::SlotOf(BlockId id) const {
  std::size_t i = blocks_[id].map_tag & mask_;
  while (slots_[i].block != id) {
    assert(slots_[i].block != kNoBlock);
    i = (i + 1) & mask_;
  }
  return i;
}

BlockId CachedMap::Find(const hash::Digest& hash, std::uint32_t group_id) const {
  return slots_[FindSlot(TagOf(hash, group_id), hash, group_id)].block;
}

void CachedMap::Prefetch(const hash::Digest& hash, std::uint32_t group_id) const {
  __builtin_prefetch(&slots_[TagOf(hash, group_id) & mask_]);
}

bool CachedMap::Insert(BlockId id, const hash::Digest& hash, std::uint32_t group_id) {
  Block& block = blocks_[id];
  assert(!block.cached() && hash.size != 0);
  block.hash = hash;
  block.group_id = group_id;
  block.map_tag = TagOf(hash, group_id);
  ++num_blocks_;

  Slot& slot = slots_[FindSlot(block.map_tag, hash, group_id)];
  if (slot.block == kNoBlock) {
    slot = {.tag = block.map_tag, .block = id};
    block.is_first = true;
    block.prev_same = block.next_same = id;
    ++num_keys_;
    return true;
  }
  // At the end of the ring, so that the first inserted stays first.
  Block& first = blocks_[slot.block];
  block.is_first = false;
  block.next_same = slot.block;
  block.prev_same = first.prev_same;
  blocks_[first.prev_same].next_same = id;
  first.prev_same = id;
  return false;
}

bool CachedMap::Remove(BlockId id) {
  Block& block = blocks_[id];
  assert(block.cached());
  const bool last = block.next_same == id;
  if (last) {
    EraseSlot(SlotOf(id));
    --num_keys_;
  } else {
    if (block.is_first) {
      slots_[SlotOf(id)].block = block.next_same;
      blocks_[block.next_same].is_first = true;
    }
    blocks_[block.prev_same].next_same = block.next_same;
    blocks_[block.next_same].prev_same = block.prev_same;
  }
  block.hash.size = 0;
  block.is_first = false;
  block.prev_same = block.next_same = kNoBlock;
  --num_blocks_;
  return last;
}

// Moves later entries of the probe run back into the hole, unless that would put them before their home slot.
void CachedMap::EraseSlot(std::size_t hole) {
  for (std::size_t i = (hole + 1) & mask_; slots_[i].block != kNoBlock; i = (i + 1) & mask_) {
    const std::size_t home = slots_[i].tag & mask_;
    if (((i - home) & mask_) < ((i - hole) & mask_)) continue;
    slots_[hole] = slots_[i];
    hole = i;
  }
  slots_[hole] = {};
}

void CachedMap::Clear() {
  for (Slot& slot : slots_) {
    if (slot.block == kNoBlock) continue;
    for (BlockId id = slot.block; blocks_[id].cached();) {
      Block& block = blocks_[id];
      id = block.next_same;
      block.hash.size = 0;
      block.is_first = false;
      block.prev_same = block.next_same = kNoBlock;
    }
    slot = {};
  }
  num_keys_ = num_blocks_ = 0;
}

}  // namespace llmd::worker
