// The plan of a step made on the host, from the same functions as the kernel's (plan.h): what tests compare
// the kernel's plan with, and examine for any number of multiprocessors.
#ifndef LLMD_CUDA_ATTENTION_HOST_PLAN_H_
#define LLMD_CUDA_ATTENTION_HOST_PLAN_H_

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "cuda/attention/plan.h"

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
  int shares = 0;                     // of the cost line
  int blocks = 0;                     // those that are left when equal starts are one
  std::int32_t tokens = 0;
};

inline HostPlan MakePlan(const PlanInput& in) {
  HostPlan plan;
  const int batch = static_cast<int>(in.lengths.size());
  std::int64_t count = 0, tiles = 0;
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

  plan.shares = SharesOf(count, in.fixed_split, in.grid);
  const Shares shares(UnitCount::Cost(count), plan.shares);
  std::vector<int> blocks;  // of each share
  std::vector<Start> starts;
  for (int c = 0; c < plan.shares; ++c) {
    Start start = StartAt(shares.Begin(c), plan.units.data(), batch, in.heads);
    if (starts.empty() || starts.back().place != start.place) starts.push_back(start);
    blocks.push_back(static_cast<int>(starts.size()) - 1);
  }
  plan.blocks = static_cast<int>(starts.size());
  for (Start& start : starts) {
    start.piece.length = plan.lengths[start.piece.request];
    if (start.piece.unit > 0) {
      start.piece.first_block = blocks[FirstShare(start, shares)];
      start.piece.last_block = blocks[LastShare(start, shares)];
    }
    plan.starts.push_back(start.piece);
  }
  PieceStart end{};
  end.request = batch;
  plan.starts.resize(in.grid + 1, end);
  return plan;
}

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_HOST_PLAN_H_
