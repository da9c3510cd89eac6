// The plan of a step made on the host, from the same functions as the kernel's (plan.h): what tests compare
// the kernel's plan with, and examine for any number of multiprocessors.
#ifndef LLMD_CUDA_ATTENTION_HOST_PLAN_H_
#define LLMD_CUDA_ATTENTION_HOST_PLAN_H_

#include <cstdint>
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
  int grid = 1;
};

struct HostPlan {
  std::vector<PieceStart> starts;     // [grid + 1]
  std::vector<std::int64_t> units;    // [batch + 1]
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
  for (int b = 0; b < batch; ++b) {
    const int rows = in.rows.empty() ? 1 : in.rows[b];
    const RequestWork work = WorkOf(in.mode, in.lengths[b], rows, in.group, in.window, in.unit_keys);
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
  std::vector<std::int64_t> places;
  for (int c = 0; c < plan.shares; ++c) {
    PieceStart start = StartAt(c * UnitCount::Cost(count) / plan.shares, plan.units.data(), batch, in.heads);
    start.length = in.lengths[start.request];
    const std::int64_t place = PlaceOf(start, plan.units.data(), in.heads);
    if (!places.empty() && places.back() == place) continue;
    places.push_back(place);
    plan.starts.push_back(start);
  }
  plan.blocks = static_cast<int>(places.size());
  for (int i = 0; i < plan.blocks; ++i) {
    FindEnds(plan.starts[i], places.data(), i, plan.blocks, in.window, in.unit_keys);
  }
  PieceStart end{};
  end.request = batch;
  plan.starts.resize(in.grid + 1, end);
  return plan;
}

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_HOST_PLAN_H_
