// A run: a maximal stretch of the trie without recorded branching, stored once however many holders cover it.
//
// The reader's part is one block of memory, the body: a header, one word per holder, and the content keys in
// order, so that a match reads it front to back. Content keys of a body never change once published; a change
// that is not an append makes a new body and retires the old one, which stays a true picture of the past for
// readers inside it. Children hang at any offset: a child at offset d follows the run's first d blocks.
#ifndef SRC_INDEX_RUN_H_
#define SRC_INDEX_RUN_H_

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "llmd/base/types.h"
#include "llmd/index/types.h"

namespace llmd::index {

using RunId = std::uint32_t;
inline constexpr RunId kRoot = 0;  // parent of the first run of every chain; no run has this id
inline constexpr int kRunIdBits = 28;
inline constexpr std::uint32_t kMaxRunLength = 65535;

// A holder's word in a run: slot in the upper half, in the lower half how many blocks it has from the run's
// start without a hole. Zero marks an unused word (slots start at 1).
using Coverage = std::uint32_t;
inline Coverage MakeCoverage(std::uint32_t slot, std::uint32_t lead) { return slot << 16 | lead; }
inline std::uint32_t SlotOf(Coverage word) { return word >> 16; }
inline std::uint32_t LeadOf(Coverage word) { return word & 0xFFFF; }

struct Body {
  std::atomic<std::uint32_t> length{0};   // blocks of the run
  std::atomic<std::uint32_t> holders{0};  // coverage words in use, unused ones among them
  std::atomic<std::uint32_t> children{0};
  RunId id = 0;
  RunId parent = kRoot;
  std::uint16_t parent_offset = 0;
  std::uint16_t holder_capacity = 0;
  std::uint32_t capacity = 0;   // blocks
  std::uint32_t published = 0;  // the longest `length` ever; content keys below it are fixed. Writer only.
  NamespaceId ns;
  // Counts words that were added: a holder that went and came back may be met twice in one pass over the
  // words.
  std::atomic<std::uint32_t> moves{0};

  std::atomic<Coverage>* coverage() { return reinterpret_cast<std::atomic<Coverage>*>(this + 1); }
  const std::atomic<Coverage>* coverage() const { return const_cast<Body*>(this)->coverage(); }
  BlockKey* content() { return reinterpret_cast<BlockKey*>(coverage() + RoundedHolders(holder_capacity)); }
  const BlockKey* content() const { return const_cast<Body*>(this)->content(); }
  // Present only in a trie with engine keys. Writer only.
  EngineKey* engine() { return content() + capacity; }
  const EngineKey* engine() const { return content() + capacity; }

  static std::size_t Bytes(std::uint32_t holder_capacity, std::uint32_t capacity, bool with_engine_keys) {
    return sizeof(Body) + RoundedHolders(holder_capacity) * sizeof(Coverage) +
           std::size_t{capacity} * (with_engine_keys ? 16 : 8);
  }

 private:
  static std::size_t RoundedHolders(std::uint32_t capacity) { return (capacity + 1) & ~std::size_t{1}; }
};
static_assert(sizeof(Body) == 56 && sizeof(std::atomic<Coverage>) == 4);

// What the writer keeps about one holder in one run beyond its coverage word; absent in the common case,
// where the holder has exactly the first `lead` blocks, once each, under the blocks' own engine keys.
struct Detail {
  std::vector<std::uint64_t> held;   // bit per block; empty: exactly the first `lead`
  std::vector<std::uint8_t> counts;  // references per block; empty: one each
  std::vector<std::uint64_t>
      is_foreign;  // bit per block: held under `foreign_keys` instead of the block's own key
  std::vector<EngineKey> foreign_keys;

  static bool Bit(const std::vector<std::uint64_t>& bits, std::uint32_t i) {
    return i / 64 < bits.size() && (bits[i / 64] >> (i % 64) & 1) != 0;
  }
  static void SetBit(std::vector<std::uint64_t>& bits, std::uint32_t i) {
    if (i / 64 >= bits.size()) bits.resize(i / 64 + 1);
    bits[i / 64] |= std::uint64_t{1} << (i % 64);
  }
  static void ClearBit(std::vector<std::uint64_t>& bits, std::uint32_t i) {
    if (i / 64 < bits.size()) bits[i / 64] &= ~(std::uint64_t{1} << (i % 64));
  }
  // One past the last block held, given the leading ones.
  std::uint32_t EndOfHeld(std::uint32_t lead) const {
    for (std::size_t i = held.size(); i-- > 0;) {
      if (held[i] != 0) return static_cast<std::uint32_t>(i * 64 + std::bit_width(held[i]));
    }
    return lead;
  }
  // How many blocks are held, given the leading ones.
  std::uint32_t CountHeld(std::uint32_t lead) const {
    if (held.empty()) return lead;
    std::uint32_t count = 0;
    for (const std::uint64_t bits : held) count += std::popcount(bits);
    return count;
  }
  std::size_t bytes() const {
    return sizeof(Detail) + held.capacity() * 8 + counts.capacity() + is_foreign.capacity() * 8 +
           foreign_keys.capacity() * 8;
  }
};

// The writer's part of a run.
struct RunMeta {
  Body* body = nullptr;  // null: the id is not in use
  std::uint32_t key_space = 0;
  RunId first_child = 0;
  RunId next_sibling = 0;
  RunId previous_sibling = 0;
  RunId next_in_queue = 0;
  RunId previous_in_queue = 0;
  std::uint16_t last_child_offset = 0;  // the deepest offset with a child; 0 for none
  std::uint16_t live_holders = 0;       // coverage words that are not unused
  bool unowned_keys = false;  // some block may lack a primary binding although its engine key is recorded
  bool touched = false;       // stored to since the eviction queue last looked
  bool growing = false;       // appended to since housekeeping last looked
  bool is_protected = false;  // in the queue's second segment
  bool has_details = false;
};

}  // namespace llmd::index

#endif  // SRC_INDEX_RUN_H_
