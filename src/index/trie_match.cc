#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "src/index/trie.h"

namespace llmd::index {

namespace {

// How many leading keys agree. Compares a cache line at a time without branching inside.
std::uint32_t CommonPrefix(const BlockKey* a, const BlockKey* b, std::uint32_t count) {
  constexpr std::uint32_t kAhead = 64;  // keys
  std::uint32_t i = 0;
  for (; i + 8 <= count; i += 8) {
    __builtin_prefetch(a + i + kAhead);
    std::uint64_t difference = 0;
    for (std::uint32_t j = 0; j < 8; ++j) difference |= a[i + j] ^ b[i + j];
    if (difference != 0) break;
  }
  while (i < count && a[i] == b[i]) ++i;
  return i;
}

// Keeps the later of two rows for one holder. Rare, so it need not be fast.
void DropRepeatedSlots(MatchResult& result) {
  std::size_t rows = 0;
  for (std::size_t i = 0; i < result.size(); ++i) {
    const auto same = [&](const HolderDepth& row) { return row.slot == result[i].slot; };
    if (std::none_of(result.begin() + static_cast<std::ptrdiff_t>(i) + 1, result.end(), same))
      result[rows++] = result[i];
  }
  result.resize(rows);
}

}  // namespace

void Trie::Match(const NamespaceId& ns, BlockKeySpan chain, MatchScratch& scratch,
                 MatchResult& result) const {
  result.clear();
  if (chain.empty()) return;
  std::uint32_t depth = 0;  // blocks of the chain before the present run
  Cursor at;
  while (true) {
    const Body* body = FindChildBody(ns, at, chain.subspan(depth));
    if (body == nullptr) return;
    const std::uint32_t moves = body->moves.load(std::memory_order_acquire);
    const std::uint32_t holders = body->holders.load(std::memory_order_acquire);
    const std::uint32_t length = body->length.load(std::memory_order_acquire);
    const auto wanted = static_cast<std::uint32_t>(std::min<std::size_t>(length, chain.size() - depth));
    const std::uint32_t matched = CommonPrefix(body->content(), chain.data() + depth, wanted);
    const std::atomic<Coverage>* words = body->coverage();
    bool reached_end = false;  // some holder has all that matched, so a child may add to it
    if (depth == 0) {
      result.resize(holders);
      std::size_t rows = 0;
      for (std::uint32_t i = 0; i < holders; ++i) {
        const Coverage word = words[i].load(std::memory_order_acquire);
        const std::uint32_t lead = std::min(LeadOf(word), matched);
        result[rows] = {SlotOf(word), lead};
        rows += lead != 0;
        reached_end |= lead == matched;
      }
      result.resize(rows);
      if (body->moves.load(std::memory_order_relaxed) != moves) DropRepeatedSlots(result);
      if (depth + matched < chain.size()) {
        for (std::size_t row = 0; row < result.size(); ++row) {
          scratch.row_of_slot[result[row].slot] = static_cast<std::uint32_t>(row);
        }
      }
    } else {
      for (std::uint32_t i = 0; i < holders; ++i) {
        const Coverage word = words[i].load(std::memory_order_acquire);
        const std::uint32_t slot = SlotOf(word);
        const std::uint32_t row = scratch.row_of_slot[slot];
        if (row >= result.size() || result[row].slot != slot || result[row].depth != depth) continue;
        const std::uint32_t lead = std::min(LeadOf(word), matched);
        result[row].depth += lead;
        reached_end |= lead == matched;
      }
    }
    depth += matched;
    if (!reached_end || matched == 0 || depth == chain.size() ||
        body->children.load(std::memory_order_acquire) == 0) {
      return;
    }
    at = {body->id, matched};
  }
}

}  // namespace llmd::index
