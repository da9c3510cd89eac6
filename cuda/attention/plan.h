// How the work of a decode step is cut, and where the parts of a workspace lie. Plain functions for host and
// device: the host's planner in tests and the kernel in plan.cu make the same plan.
//
// An item is (request, KV head, tile of at most 16 query heads), or as many neighbouring ones as a block has
// teams. Its visible keys, from a multiple of 16 on, are cut into units. All units in a row, item after item,
// form one line that `grid` blocks share evenly
// ("flat partition"), each item counting kItemCost units more for its start and end. A block so gets a tail
// of one item, whole items, and the head of another; at most its first and its last item are cut and leave
// partial results. With a fixed split a unit is that many keys, every unit of an item with several is a part,
// and no cut depends on other requests.
#ifndef LLMD_CUDA_ATTENTION_PLAN_H_
#define LLMD_CUDA_ATTENTION_PLAN_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cuda/common/divide.h"
#include "llmd/attention/attention.h"

namespace llmd::cuda {

inline constexpr int kDecodeWarps = 8;    // of a block
inline constexpr int kGroupKeys = 16;     // lie within one page if P % 16 == 0
inline constexpr int kUnitKeys = 64;      // where items may be cut
inline constexpr int kItemCost = 2;       // in units
inline constexpr int kEvenUnits = 192;    // a block
inline constexpr int kShortWindow = 512;  // keys
inline constexpr int kShortRowBytes = 128;
inline constexpr int kMaxStarts = 1023;   // that one block plans
inline constexpr int kRowTile = 16;       // query heads of an item, the height of a matrix instruction
inline constexpr int kPrefillRows = 128;  // packed rows (token, head of a group) of a prefill item
inline constexpr int kPrefillKeys = 64;   // of a step of prefill, the unit of its items

// Where a block's share begins; the next start is its end. Starts past the last share have request = batch.
// `first_block` and `last_block` are the blocks that hold the beginning and the end of the item that is cut
// here (unit > 0). Read as two pieces of 16 bytes: a workspace need not be aligned to more (32 would be read
// at once on sm_100).
struct alignas(16) PieceStart {
  std::int32_t request;
  std::int32_t head;  // KV head * row tiles + row tile
  std::int32_t unit;
  std::int32_t first_block;
  std::int32_t last_block;
  std::int32_t length;  // of the request
  std::int32_t unused[2];
};

struct PlanHeader {
  std::int32_t empty_rows;     // requests without a key, whose rows are zeroed
  std::int32_t prefill_tiles;  // row tiles of all requests
  std::int32_t
      prefill_shares;         // blocks that have a share of the line of tiles; 0: items come from the counter
  std::int32_t tokens;        // q_start[batch]
  std::int32_t prefill_next;  // work counter of the prefill kernel
  std::int32_t prefill_done;
  std::int32_t error_kind;  // llmd_data_error, written once
  std::int32_t error_request;
  std::int64_t error_value;
  std::int32_t error_index;
};

// Shape and device to sizes; everything a launch needs to know of a workspace.
struct WorkspaceLayout {
  int grid;        // decode blocks
  int row_tiles;   // of 16 query heads a KV head
  int heads;       // KV heads * row tiles
  int item_heads;  // heads / teams
  int unit_keys;
  std::int64_t slots;                                                           // parts of cut items
  std::size_t starts, units, lengths, empty, part_lse, part_o, prefill, bytes;  // offsets
  int prefill_grid;                                                             // blocks
  int prefill_rows;                                                             // of a partial result
  std::int64_t prefill_slots;                                                   // partial results
  std::size_t prefill_starts, prefill_counters, prefill_lse, prefill_partials;
};

LLMD_HD inline std::size_t RoundUp(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

// Teams of warps a block, each with a head of its own. Short rows of K and V: two, so that a token's
// neighbouring heads are read together, as memory likes. Short windows: a warp each, since an item is too
// short to be shared.
LLMD_HD inline int TeamsOf(const llmd_attention_shape& shape, int heads) {
  if (shape.window > 0 && shape.window <= kShortWindow && heads % kDecodeWarps == 0) return kDecodeWarps;
  const int row_bytes = shape.head_dim * (shape.kv_dtype == LLMD_E4M3 ? 1 : 2);
  return row_bytes <= kShortRowBytes && heads % 2 == 0 ? 2 : 1;
}

// Parts of a cut item are merged in groups of about the square root of their number, then the groups, where
// one block would have to read its threads' fill of parts more than once; the order is that of the parts.
LLMD_HD inline int MergeGroup(int parts, int rows) {
  if (parts * rows <= 64) return parts;
  int group = 4;
  while (group * group < parts) ++group;
  return group;
}
// The slot of group 0 of the item whose parts have places from `place` on. An item of n parts has at most
// (n - 1) / 2 groups, since a group has four parts or more, and the next item's places begin n - 1 further on
// or later: items share no slots.
LLMD_HD inline std::int64_t GroupPlace(std::int64_t place) { return place / 2; }
LLMD_HD inline std::int64_t GroupSlots(std::int64_t slots, int teams) { return slots / 2 + teams; }

LLMD_HD inline WorkspaceLayout LayoutOf(const llmd_attention_shape& shape, int grid) {
  WorkspaceLayout layout{};
  layout.grid = grid;
  layout.row_tiles = CeilDivide(shape.num_q_heads / shape.num_kv_heads, kRowTile);
  layout.heads = shape.num_kv_heads * layout.row_tiles;
  layout.item_heads = layout.heads / TeamsOf(shape, layout.heads);
  layout.unit_keys = shape.fixed_split > 0 ? shape.fixed_split : kUnitKeys;
  bool decode = shape.mode != LLMD_PREFILL;
  const int teams = layout.heads / layout.item_heads;
  layout.slots = !decode ? 0
                 : shape.fixed_split > 0
                     ? (shape.max_kv_tokens / shape.fixed_split + shape.max_batch) * layout.heads
                     : 2 * static_cast<std::int64_t>(grid) * teams;
  const std::int64_t all_slots = decode ? layout.slots + GroupSlots(layout.slots, teams) : 0;
  std::size_t at = RoundUp(sizeof(PlanHeader));
  auto take = [&at](std::size_t bytes) {
    std::size_t begin = at;
    at = RoundUp(at + bytes);
    return begin;
  };
  layout.starts = take((grid + 1) * sizeof(PieceStart));
  layout.units = take((shape.max_batch + 1) * sizeof(std::int64_t));
  layout.lengths = take(shape.max_batch * sizeof(std::int32_t));
  layout.empty = take(shape.max_batch * sizeof(std::int32_t));
  layout.part_lse = take(all_slots * kRowTile * sizeof(float));
  layout.part_o = take(all_slots * kRowTile * shape.head_dim * sizeof(float));
  if (shape.mode != LLMD_DECODE) {
    layout.prefill = take((shape.max_batch + 1) * sizeof(std::int32_t));
    layout.prefill_grid = std::min(2 * grid, kMaxStarts);
    layout.prefill_rows = static_cast<int>(std::min<std::int64_t>(
        kPrefillRows, static_cast<std::int64_t>(shape.max_tokens) * shape.num_q_heads / shape.num_kv_heads));
    layout.prefill_slots = shape.fixed_split > 0 ? 0 : 2 * layout.prefill_grid;
    layout.prefill_starts = take((layout.prefill_grid + 1) * sizeof(PieceStart));
    layout.prefill_counters = take(layout.prefill_grid * sizeof(std::int32_t));
    layout.prefill_lse = take(layout.prefill_slots * layout.prefill_rows * sizeof(float));
    layout.prefill_partials =
        take(layout.prefill_slots * layout.prefill_rows * shape.head_dim * sizeof(float));
  }
  layout.bytes = at;
  return layout;
}

// First key a decode row of length L looks at, rounded down to a tile.
LLMD_HD inline int FirstKey(int length, int window) {
  return window > 0 && length > window ? (length - window) / kGroupKeys * kGroupKeys : 0;
}
LLMD_HD inline int UnitsOf(int length, int window, int unit_keys) {
  return CeilDivide(length - FirstKey(length, window), unit_keys);
}

// Start `c` of `count` on the cost line. `units[b]` counts units of the requests before b times their heads,
// in two halves: the low 40 bits are units, the rest is items.
struct UnitCount {
  static constexpr int kShift = 40;
  static constexpr std::int64_t kMaxItems = std::int64_t{1} << (63 - kShift);
  LLMD_HD static std::int64_t Make(std::int64_t units, std::int64_t items) {
    return units | (items << kShift);
  }
  LLMD_HD static std::int64_t Units(std::int64_t count) { return count & ((std::int64_t{1} << kShift) - 1); }
  LLMD_HD static std::int64_t Items(std::int64_t count) { return count >> kShift; }
  LLMD_HD static std::int64_t Cost(std::int64_t count) { return Units(count) + kItemCost * Items(count); }
};

// The longest request that a plan takes: sums and offsets then stay within their types.
LLMD_HD inline int MostKeys(int max_batch, int heads, int unit_keys) {
  constexpr std::int64_t kMost = std::int64_t{1} << 30;
  const std::int64_t of_all =
      ((std::int64_t{1} << UnitCount::kShift) - 1) / (std::int64_t{max_batch} * heads);
  const std::int64_t of_one = ((std::int64_t{1} << 31) - 1) / heads - kItemCost;
  const std::int64_t units = of_all < of_one ? of_all : of_one;
  return static_cast<int>(units < kMost / unit_keys ? units * unit_keys : kMost);
}

// What a request asks for in a step. A request is decoded, prefilled, a row to zero, or nothing.
struct RequestWork {
  int units = 0;                   // of each decode item
  std::int64_t prefill_tiles = 0;  // of kPrefillRows packed rows
  bool empty = false;              // one row that sees nothing
};

LLMD_HD inline RequestWork WorkOf(llmd_attention_mode mode, int length, int rows, int group, int window,
                                  int unit_keys) {
  RequestWork work;
  if (rows > 0 && (mode == LLMD_PREFILL || (mode == LLMD_MIXED && rows > 1))) {
    work.prefill_tiles = CeilDivide(static_cast<std::int64_t>(rows) * group, kPrefillRows);
  } else if (rows == 1 && length > 0) {
    work.units = UnitsOf(length, window, unit_keys);
  } else if (rows == 1) {
    work.empty = true;
  }
  return work;
}

LLMD_HD inline int ItemUnits(const std::int64_t* units, int request, int heads) {
  return static_cast<int>(UnitCount::Units(units[request + 1]) - UnitCount::Units(units[request])) / heads;
}

// How a line of items is shared out: the cost line in even shares, of which one begins at
// floor(share * cost / shares); or, where items are alike, equally many whole items a share, or shares an
// item.
class Shares {
 public:
  // Of the cost line of `all`, a UnitCount.
  LLMD_HD Shares(std::int64_t all, int count) : count_(count) {
    const std::int64_t cost = UnitCount::Cost(all);
    if (count == 0) return;
    if (cost >> 31 == 0) {  // a 64-bit division costs the planner a tenth of a microsecond
      whole_ = static_cast<std::uint32_t>(cost) / static_cast<std::uint32_t>(count);
    } else {
      whole_ = cost / count;
    }
    rest_ = static_cast<int>(cost - whole_ * count);
  }
  // `count` is EvenShares(items, .).
  LLMD_HD static Shares OfItems(std::int64_t items, int count) {
    Shares shares(0, 0);
    shares.count_ = count;
    shares.parts_ = items < count ? count / static_cast<int>(items) : 1;
    shares.each_ = items < count ? 1 : static_cast<int>(items / count);
    return shares;
  }

  LLMD_HD int count() const { return count_; }
  LLMD_HD int parts() const { return parts_; }  // of each item; 0 on a cost line
  LLMD_HD int each() const { return each_; }    // items of a share
  LLMD_HD std::int64_t Begin(int share) const { return share * whole_ + share * rest_ / count_; }

  // The last share that begins at or before a point of the cost line. The estimate is at most one off: a few
  // floats' errors times 1,023 shares, and the line is longer than their number.
  LLMD_HD int At(std::int64_t point) const {
    const float width = static_cast<float>(whole_) + static_cast<float>(rest_) / static_cast<float>(count_);
    int share = static_cast<int>(static_cast<float>(point) / width);
    share = share < count_ ? share : count_ - 1;
    if (Begin(share) > point) return share - 1;
    return share + 1 < count_ && Begin(share + 1) <= point ? share + 1 : share;
  }

 private:
  int count_;
  int parts_ = 0, each_ = 0;
  std::int64_t whole_ = 0;
  int rest_ = 0;
};

// Where a share begins.
struct Start {
  PieceStart piece;
  std::int64_t place;           // on the line of units, which orders starts and finds equal ones
  int first_share, last_share;  // those that hold the beginning and the end of its item, where unit > 0
};

// The last request at which `of` is at or before `point`; it is not empty.
template <typename Of>
LLMD_HD inline int RequestAt(const std::int64_t* units, int batch, std::int64_t point, Of of) {
  int low = 0, high = batch;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (of(units[middle]) <= point)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// `units` may be in shared memory. Within a request 32 bits are enough (MostKeys).
LLMD_HD inline Start StartOf(int share, const Shares& shares, const std::int64_t* units, int batch,
                             int heads) {
  Start start{};
  PieceStart& piece = start.piece;
  int item_units;
  if (shares.parts() > 0) {
    const int item_of_all = share / shares.parts() * shares.each(), part = share % shares.parts();
    piece.request = RequestAt(units, batch, item_of_all, UnitCount::Items);
    item_units = ItemUnits(units, piece.request, heads);
    piece.head = item_of_all - static_cast<int>(UnitCount::Items(units[piece.request]));
    const int whole = item_units / shares.parts(), rest = item_units - whole * shares.parts();
    piece.unit = part * whole + part * rest / shares.parts();
    start.first_share = share - part;
    start.last_share = start.first_share + shares.parts() - 1;
  } else {
    const std::int64_t cost = shares.Begin(share);
    piece.request = RequestAt(units, batch, cost, UnitCount::Cost);
    item_units = ItemUnits(units, piece.request, heads);
    const int rest = static_cast<int>(cost - UnitCount::Cost(units[piece.request]));
    piece.head = rest / (item_units + kItemCost);
    const int inside = rest - piece.head * (item_units + kItemCost);
    if (inside > kItemCost) {  // within an item's fixed cost: at its beginning
      piece.unit = inside - kItemCost;
      start.first_share = shares.At(cost - piece.unit);
      start.last_share = shares.At(cost - piece.unit + item_units - 1);
    }
  }
  start.place = UnitCount::Units(units[piece.request]) + piece.head * item_units + piece.unit;
  return start;
}

// Blocks that are worth using: with less than two units, warps of a block have nothing to do.
LLMD_HD inline std::int64_t PiecesWanted(std::int64_t units, std::int64_t items, bool fixed_split) {
  return fixed_split ? units : std::max((units + 1) / 2, items);
}

// At most `shares`, and not less than 15/16 of them, of which each has equally many whole items, or each item
// equally many whole shares; 0 if there is no such number.
LLMD_HD inline int EvenShares(std::int64_t items, int shares) {
  if (items == 0) return 0;
  const std::int64_t each = (items + shares - 1) / shares;  // items a share
  if (each > 1 && items % each != 0) return 0;
  const int even = static_cast<int>(each > 1 ? items / each : shares / items * items);
  return 16 * even >= 15 * shares ? even : 0;
}

// The shares of all requests, `count` units and items, at most `grid`; `longest` is the greatest number of
// units of an item. Items of one length are cut evenly or not at all if they can be, so that no block has
// more pieces than another; unless they are so long that every multiprocessor counts for more.
LLMD_HD inline Shares SharesOf(std::int64_t count, int longest, bool fixed_split, int grid) {
  const std::int64_t units = UnitCount::Units(count), items = UnitCount::Items(count);
  const std::int64_t wanted = PiecesWanted(units, items, fixed_split);
  const int most = static_cast<int>(wanted < grid ? wanted : grid);
  const bool alike = units == items * longest && units <= std::int64_t{kEvenUnits} * most;
  const int even = alike && !fixed_split ? EvenShares(items, most) : 0;
  return even > 0 ? Shares::OfItems(items, even) : Shares(count, most);
}

// The last of places[low .. high - 1], which ascend, that is at or before `place`; `low` if none is.
template <typename T>
LLMD_HD int LastAtOrBefore(const T* places, int low, int high, std::int64_t place) {
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (places[middle] <= place)
      low = middle;
    else
      high = middle;
  }
  return low;
}

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_PLAN_H_
