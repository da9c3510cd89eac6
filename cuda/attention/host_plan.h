// The plan of a step made on the host, from the same functions as the kernel's (plan.h): what tests compare
// the kernel's plan with, and examine for any number of multiprocessors.
#ifndef LLMD_CUDA_ATTENTION_HOST_PLAN_H_
#define LLMD_CUDA_ATTENTION_HOST_PLAN_H_

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "cuda/attention/prefill_plan.h"

namespace llmd::cuda {

struct PlanInput {
  llmd_attention_mode mode = LLMD_DECODE;
  std::span<const std::int32_t> lengths;  // valid ones
  std::span<const std::int32_t> rows;     // new tokens of each request; empty: one each
  int heads = 1;                          // items of a request: WorkspaceLayout::item_heads
  int group = 1;
  int window = 0;
  int unit_keys = kUnitKeys;
  bool fixed_split = false;
  std::int64_t most_units = std::numeric_limits<std::int64_t>::max();  // with a fixed split: of all items
  int grid = 1;
};

struct HostPlan {
  std::vector<PieceStart> starts;     // [grid + 1]
  std::vector<std::int64_t> units;    // [batch + 1]
  std::vector<std::int32_t> lengths;  // 0 for requests that find no room
  std::vector<std::int32_t> empty;    // rows to zero
  std::vector<std::int32_t> prefill;  // [batch + 1]
  int shares = 0;                     // of the line
  bool even = false;                  // equally many a share, or shares an item
  int blocks = 0;                     // those that are left when equal starts are one
  std::int32_t tokens = 0;
};

// Starts of the shares of a line of items, [grid + 1]; `blocks`: those that are left when equal ones are one.
// `lengths`: of the requests; empty: not noted.
inline std::vector<PieceStart> MakeStarts(const std::vector<std::int64_t>& units, int heads,
                                          const Shares& shares, int grid,
                                          std::span<const std::int32_t> lengths, int* blocks) {
  const int count = static_cast<int>(units.size()) - 1;
  std::vector<Start> distinct;
  std::vector<int> block_of;  // of each share
  for (int c = 0; c < shares.count(); ++c) {
    const Start start = StartOf(c, shares, units.data(), count, heads);
    if (distinct.empty() || distinct.back().place != start.place) distinct.push_back(start);
    block_of.push_back(static_cast<int>(distinct.size()) - 1);
  }
  *blocks = static_cast<int>(distinct.size());
  std::vector<PieceStart> starts;
  for (Start& start : distinct) {
    if (!lengths.empty()) start.piece.length = lengths[start.piece.request];
    if (start.piece.unit > 0) {
      start.piece.first_block = block_of[start.first_share];
      start.piece.last_block = block_of[start.last_share];
    }
    starts.push_back(start.piece);
  }
  PieceStart end{};
  end.request = count;
  starts.resize(grid + 1, end);
  return starts;
}

inline HostPlan MakePlan(const PlanInput& in) {
  HostPlan plan;
  const int batch = static_cast<int>(in.lengths.size());
  std::int64_t count = 0, tiles = 0;
  int longest = 0;         // item, in units
  std::int64_t asked = 0;  // units, of those that found no room as well
  for (int b = 0; b < batch; ++b) {
    const int rows = in.rows.empty() ? 1 : in.rows[b];
    int length = in.lengths[b];
    RequestWork work = WorkOf(in.mode, length, rows, in.group, in.window, in.unit_keys);
    asked += std::int64_t{work.units} * in.heads;
    if (work.units > 0 && in.fixed_split && asked > in.most_units) {
      length = 0;
      work = WorkOf(in.mode, length, rows, in.group, in.window, in.unit_keys);
    }
    longest = std::max(longest, work.units);
    plan.lengths.push_back(length);
    plan.units.push_back(count);
    plan.prefill.push_back(static_cast<std::int32_t>(tiles));
    if (work.units > 0) count += UnitCount::Make(std::int64_t{work.units} * in.heads, in.heads);
    if (work.empty) plan.empty.push_back(plan.tokens);
    tiles += work.prefill_tiles;
    plan.tokens += rows;
  }
  plan.units.push_back(count);
  plan.prefill.push_back(static_cast<std::int32_t>(tiles));

  const Shares shares = SharesOf(count, longest, in.fixed_split, in.grid);
  plan.shares = shares.count();
  plan.even = shares.parts() > 0;
  plan.starts = MakeStarts(plan.units, in.heads, shares, in.grid, plan.lengths, &plan.blocks);
  return plan;
}

struct HostPrefillPlan {
  std::vector<std::int64_t> units;  // [tiles + 1]
  std::vector<PieceStart> starts;   // [grid + 1]
  int shares = 0;                   // 0: items come from the counter
  bool even = false;                // equally many items a share, or shares an item
  int blocks = 0;
};

// `plan` is that of `in`; `heads` are KV heads and `grid` the prefill kernel's.
inline HostPrefillPlan MakePrefillPlan(const PlanInput& in, const HostPlan& plan, int heads, int grid) {
  HostPrefillPlan prefill;
  const int batch = static_cast<int>(in.lengths.size()), tiles = plan.prefill[batch];
  if (tiles == 0 || tiles > MostLineTiles(heads, in.fixed_split, grid)) return prefill;
  std::int64_t count = 0;
  int longest = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    const int request = LastAtOrBefore(plan.prefill.data(), 0, batch, tile);
    const int steps =
        TileUnits(plan.lengths[request], in.rows[request], tile - plan.prefill[request], in.group, in.window);
    prefill.units.push_back(count);
    count += UnitCount::Make(std::int64_t{steps} * heads, heads);
    longest = std::max(longest, steps);
  }
  prefill.units.push_back(count);
  const Shares shares = PrefillShares(count, longest, grid);
  prefill.shares = shares.count();
  prefill.even = shares.parts() > 0;
  prefill.starts = MakeStarts(prefill.units, heads, shares, grid, {}, &prefill.blocks);
  return prefill;
}

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_HOST_PLAN_H_
