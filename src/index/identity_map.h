// Engine key -> block, for the blocks whose own key it is: eight bytes an entry.
//
// The key itself is not stored; it stands in the run's engine column, and a slot carries 20 bits of its hash
// to make a wrong guess rare. The table is many small shards of whole pages that grow by a fifth at a time,
// so that it stays densely filled at any size and leaves no holes in memory behind. A shard is rebuilt from
// its slots alone, since the hash bits kept in a slot also say its place. Writer only.
#ifndef SRC_INDEX_IDENTITY_MAP_H_
#define SRC_INDEX_IDENTITY_MAP_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "llmd/index/types.h"
#include "src/index/arena.h"
#include "src/index/run.h"

namespace llmd::index {

struct NodeRef {
  RunId run = 0;  // 0: none
  std::uint32_t offset = 0;
  explicit operator bool() const { return run != 0; }
  friend bool operator==(const NodeRef&, const NodeRef&) = default;
};

// Well-mixed hash of an engine key in its key space.
inline std::uint64_t IdentityHash(std::uint32_t key_space, EngineKey key) {
  std::uint64_t h = key + (std::uint64_t{key_space} + 1) * 0x9E3779B97F4A7C15u;
  h = (h ^ (h >> 32)) * 0xD6E8FEB86659FD93u;
  h = (h ^ (h >> 32)) * 0xD6E8FEB86659FD93u;
  return h ^ (h >> 32);
}

class IdentityMap {
 public:
  // `shard_bits` in 2..10: more shards make rebuilds shorter.
  IdentityMap(Arena& arena, int shard_bits);
  IdentityMap(const IdentityMap&) = delete;
  IdentityMap& operator=(const IdentityMap&) = delete;

  // Inlined by force: GCC drops calls of a function that does nothing but prefetch.
  [[gnu::always_inline]] void Prefetch(std::uint64_t hash) const {
    const Shard& shard = ShardOf(hash);
    if (shard.lines != 0) __builtin_prefetch(Line(shard, LineOf(shard, TagOf(hash))));
  }

  // The entry with this hash for which `matches(NodeRef)` holds: the caller compares the key in the run.
  template <typename Matches>
  NodeRef Find(std::uint64_t hash, Matches matches) const {
    const Shard& shard = ShardOf(hash);
    if (shard.lines == 0) return {};
    const std::uint64_t tag = TagOf(hash);
    for (std::uint64_t line = LineOf(shard, tag);; line = line + 1 == shard.lines ? 0 : line + 1) {
      const std::uint64_t* slots = Line(shard, line);
      bool any_empty = false;
      for (std::size_t i = 0; i < kLineSlots; ++i) {
        if (slots[i] == kEmpty) any_empty = true;
        if (slots[i] >> (64 - kTagBits) == tag && slots[i] != kEmpty && slots[i] != kGone) {
          if (const NodeRef node = NodeOf(slots[i]); matches(node)) return node;
        }
      }
      if (any_empty) return {};
    }
  }

  // Enters the key for `node`, unless it has an entry already (`matches` as in Find()): that one is returned
  // then.
  template <typename Matches>
  NodeRef FindOrInsert(std::uint64_t hash, NodeRef node, Matches matches) {
    Shard& shard = shards_[hash >> (64 - shard_bits_)];
    if (std::uint64_t{shard.used + 1} * 100 > std::uint64_t{shard.lines} * kLineSlots * kMaxFill)
      Rebuild(shard);
    const std::uint64_t tag = TagOf(hash);
    std::uint64_t* place = nullptr;
    for (std::uint64_t line = LineOf(shard, tag);; line = line + 1 == shard.lines ? 0 : line + 1) {
      std::uint64_t* slots = Line(shard, line);
      bool any_empty = false;
      for (std::size_t i = 0; i < kLineSlots; ++i) {
        if (slots[i] == kEmpty || slots[i] == kGone) {
          any_empty |= slots[i] == kEmpty;
          if (place == nullptr) place = &slots[i];
        } else if (slots[i] >> (64 - kTagBits) == tag) {
          if (const NodeRef found = NodeOf(slots[i]); matches(found)) return found;
        }
      }
      if (any_empty) break;
    }
    if (*place == kGone) {
      --shard.gone;
    } else {
      ++shard.used;
    }
    *place = MakeSlot(tag, node);
    ++size_;
    return {};
  }
  // Removes the entry of this hash for exactly this block; false when there is none.
  bool Erase(std::uint64_t hash, NodeRef node);
  // Gives the pages of empty shards back.
  void Compact();

  std::size_t size() const { return size_; }
  std::size_t bytes() const { return bytes_; }  // reserved, empty slots included

 private:
  static constexpr int kTagBits = 20;
  static constexpr std::size_t kLineSlots = 8;
  static constexpr std::uint64_t kMaxFill = 86;    // percent of a shard's slots
  static constexpr std::uint64_t kGrownFill = 68;  // what a rebuild aims at
  static constexpr std::uint64_t kEmpty = 0;
  static constexpr std::uint64_t kGone = ~std::uint64_t{0};

  static constexpr std::uint32_t kPageLines = 64;

  struct Shard {
    std::vector<std::uint64_t*> pages;
    std::uint32_t lines = 0;
    std::uint32_t used = 0;  // slots that are not empty, gone ones included
    std::uint32_t gone = 0;
  };

  static std::uint64_t* Line(const Shard& shard, std::uint64_t line) {
    return shard.pages[line / kPageLines] + line % kPageLines * kLineSlots;
  }
  std::uint64_t TagOf(std::uint64_t hash) const { return (hash << shard_bits_) >> (64 - kTagBits); }
  static std::uint64_t LineOf(const Shard& shard, std::uint64_t tag) {
    return (tag * shard.lines) >> kTagBits;
  }
  const Shard& ShardOf(std::uint64_t hash) const { return shards_[hash >> (64 - shard_bits_)]; }
  static NodeRef NodeOf(std::uint64_t slot) {
    return {static_cast<RunId>(slot >> 16 & ((1u << kRunIdBits) - 1)),
            static_cast<std::uint32_t>(slot & 0xFFFF)};
  }
  static std::uint64_t MakeSlot(std::uint64_t tag, NodeRef node) {
    return tag << (64 - kTagBits) | std::uint64_t{node.run} << 16 | node.offset;
  }
  void Rebuild(Shard& shard);

  Arena& arena_;
  int shard_bits_;
  std::vector<Shard> shards_;
  std::vector<std::uint64_t> scratch_;  // of Rebuild()
  std::size_t size_ = 0;
  std::size_t bytes_ = 0;
};

}  // namespace llmd::index

#endif  // SRC_INDEX_IDENTITY_MAP_H_
