// How the work of prefill is shared out. An item is a tile of 128 packed rows (row = token * G + head of the
// group) of one KV head; its keys are gone through in steps of 64.
//
// Many items: blocks take them from a counter, those with most keys first. Few: all steps in a row, tile
// after tile and in it head after head, are one line, as in decode (plan.h), that the blocks share evenly.
// The request of a PieceStart is then a tile and its unit a step. A block so begins and ends within an item
// at most once each: two partial results a block bound the workspace, whatever the lengths. With a fixed
// split nothing is cut: then a row's result depends on its own request alone.
#ifndef LLMD_CUDA_ATTENTION_PREFILL_PLAN_H_
#define LLMD_CUDA_ATTENTION_PREFILL_PLAN_H_

#include "cuda/attention/plan.h"

namespace llmd::cuda {

inline constexpr int kMaxLineTiles = 1024;  // a thread of the planner each
inline constexpr int kItemsForCounter = 4;  // a block: as many even themselves out

// The first key of a tile whose first row is at position `first`.
LLMD_HD inline int FirstTileKey(int first, int window) {
  return window > 0 && first >= window ? (first - window + 1) / kGroupKeys * kGroupKeys : 0;
}
// Steps of a tile with rows at positions first to last, which are negative for tokens without a key.
LLMD_HD inline int TileSteps(int first, int last, int window) {
  return last < 0 ? 0 : CeilDivide(last + 1 - FirstTileKey(first, window), kPrefillKeys);
}
// The same of tile `tile` of a request; as a share of the line a tile without keys is work too.
LLMD_HD inline int TileUnits(int length, int tokens, int tile, int group, int window) {
  const int first_row = tile * kPrefillRows;
  const std::int64_t rows = std::min<std::int64_t>(kPrefillRows, std::int64_t{tokens} * group - first_row);
  const int before = length - tokens;
  const int last_row = first_row + static_cast<int>(rows) - 1;
  return std::max(1, TileSteps(before + first_row / group, before + last_row / group, window));
}

// The line takes up to so many tiles.
LLMD_HD inline int MostLineTiles(int heads, bool fixed_split, int grid) {
  const int tiles = (kItemsForCounter * grid - 1) / heads;
  return fixed_split ? 0 : tiles < kMaxLineTiles ? tiles : kMaxLineTiles;
}

// Blocks that share the line; `longest` is the greatest number of steps of an item. Merging a part costs as
// much as half a step, so an item of n steps is best cut into some sqrt(2 n) parts, of sqrt(n / 2) steps.
// Items of about one length are all cut into equally many parts, or none, if they can be: tiles of a head
// then go through the same keys at the same time, and find them in the L2 cache.
LLMD_HD inline Shares PrefillShares(std::int64_t count, int longest, int grid) {
  const std::int64_t units = UnitCount::Units(count), items = UnitCount::Items(count);
  int least = 1;
  while (2 * least * least < longest) ++least;
  const std::int64_t wanted = std::max(items, units / least);
  const int most = static_cast<int>(std::min<std::int64_t>(wanted, grid));
  const int even = 16 * longest * items <= 17 * units ? EvenShares(items, most) : 0;
  return even > 0 ? Shares::OfItems(items, even) : Shares(count, most);
}

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_PREFILL_PLAN_H_
