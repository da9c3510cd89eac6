// The planner: one block, once a step. See plan.h for what is planned.
#include "cuda/attention/launch.h"
#include "cuda/attention/prefill_plan.h"
#include "cuda/attention/workspace.h"
#include "cuda/common/launch.h"

namespace llmd::cuda {
namespace {

constexpr int kThreads = 1024;
static_assert(kMaxStarts < kThreads && kMaxLineTiles <= kThreads);
constexpr int kSharedRequests = 2048;  // prefix sums of larger batches are read from global memory

// Sum over the block's threads before this one; `total` of all.
__device__ std::int64_t ExclusiveSum(std::int64_t value, std::int64_t& total,
                                     std::int64_t* scratch /* [33] */) {
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  std::int64_t sum = value;
  for (int step = 1; step < 32; step *= 2) {
    std::int64_t other = __shfl_up_sync(~0u, sum, step);
    if (lane >= step) sum += other;
  }
  __syncthreads();  // scratch may still be read from the call before
  if (lane == 31) scratch[warp] = sum;
  __syncthreads();
  if (warp == 0) {
    std::int64_t part = scratch[lane];
    for (int step = 1; step < 32; step *= 2) {
      std::int64_t other = __shfl_up_sync(~0u, part, step);
      if (lane >= step) part += other;
    }
    scratch[lane] = part;
  }
  __syncthreads();
  total = scratch[31];
  return sum - value + (warp > 0 ? scratch[warp - 1] : 0);
}

struct PlanParams {
  Workspace workspace;
  llmd_page_list pages;
  const std::int32_t* q_start;
  int batch, max_tokens, page_size, window, unit_keys, heads, kv_heads, group, grid, prefill_grid;
  llmd_attention_mode mode;
  bool fixed_split;
};

// The request's length, or 0 and a report if it is more than its pages can hold.
__device__ int LengthOf(const PlanParams& p, int request) {
  std::int64_t length, limit;
  if (p.pages.indptr != nullptr) {
    int begin = p.pages.indptr[request], end = p.pages.indptr[request + 1];
    if (begin < 0 || end < begin || end > p.pages.max_pages) {
      ReportDataError(p.workspace.header, LLMD_BAD_LENGTH, request, 0, end);
      return 0;
    }
    limit = static_cast<std::int64_t>(end - begin) * p.page_size;
    length = end == begin ? 0 : limit - p.page_size + p.pages.last_page_len[request];
  } else {
    limit = static_cast<std::int64_t>(p.pages.max_pages) * p.page_size;
    length = p.pages.seq_lens[request];
  }
  if (length < 0 || length > limit) {
    ReportDataError(p.workspace.header, LLMD_BAD_LENGTH, request, 0, length);
    return 0;
  }
  return static_cast<int>(length);
}

// Starts of `shares` even shares of a line's cost; those that fall on one place are made one. The line is
// `count` times `heads` equal items, `units` [count + 1] what lies before. `lengths` may be null.
__device__ void PlanStarts(const std::int64_t* units, int count, int heads, int shares, int grid,
                           const std::int32_t* lengths, PieceStart* starts, std::int64_t* places,
                           std::int64_t* scratch) {
  const std::int64_t cost = UnitCount::Cost(units[count]);
  PieceStart start{};
  std::int64_t place = -1;
  const int c = threadIdx.x;
  if (c < shares) {
    start = StartAt(c * cost / shares, units, count, heads);
    if (lengths != nullptr) start.length = lengths[start.request];
    place = PlaceOf(start, units, heads);
  }
  places[c] = place;
  __syncthreads();
  const std::int64_t place_before = c > 0 ? places[c - 1] : -1;
  std::int64_t blocks;
  const bool first_of_place = c < shares && place != place_before;
  const std::int64_t index = ExclusiveSum(first_of_place, blocks, scratch);
  if (first_of_place) places[index] = place;
  __syncthreads();
  if (first_of_place) {
    FindEnds(start, places, static_cast<int>(index), static_cast<int>(blocks),
             ItemUnits(units, start.request, heads));
    starts[index] = start;
  }
  if (c >= blocks && c <= grid) {
    PieceStart end{};
    end.request = count;
    starts[c] = end;
  }
  __syncthreads();
}

// Puts prefill's tiles on a line, if they are few. `units`: shared, [kMaxLineTiles + 1].
__device__ void PlanPrefill(const PlanParams& p, int tiles, std::int64_t* units, std::int64_t* places,
                            std::int64_t* scratch) {
  __shared__ int longest;
  int shares = 0;
  if (tiles > 0 && TilesOnLine(tiles, p.kv_heads, p.fixed_split, p.prefill_grid)) {
    const int tile = threadIdx.x;
    int steps = 0;
    if (tile < tiles) {
      const std::int32_t* before = p.workspace.prefill;
      const int request = LastAtOrBefore(before, 0, p.batch, tile);
      steps = TileUnits(p.workspace.lengths[request], p.q_start[request + 1] - p.q_start[request],
                        tile - before[request], p.group, p.window);
    }
    if (tile == 0) longest = 0;
    std::int64_t total;
    const std::int64_t count =
        tile < tiles ? UnitCount::Make(static_cast<std::int64_t>(steps) * p.kv_heads, p.kv_heads) : 0;
    const std::int64_t sum = ExclusiveSum(count, total, scratch);
    if (tile < tiles) units[tile] = sum;
    if (tile == 0) units[tiles] = total;
    atomicMax(&longest, steps);
    __syncthreads();
    shares = PrefillShares(total, longest, p.prefill_grid);
    PlanStarts(units, tiles, p.kv_heads, shares, p.prefill_grid, nullptr, p.workspace.prefill_starts, places,
               scratch);
  }
  if (threadIdx.x == 0) p.workspace.header->prefill_shares = shares;
}

__global__ void __launch_bounds__(kThreads) PlanKernel(PlanParams p) {
  __shared__ std::int64_t shared_units[kSharedRequests + 1];
  __shared__ std::int64_t places[kThreads + 1];
  __shared__ std::int64_t scratch[33];
  const Workspace& w = p.workspace;
  const bool in_shared = p.batch <= kSharedRequests;
  const bool has_q = p.mode != LLMD_DECODE;

  // Prefix sums over requests: units and items of decode, rows to zero, row tiles of prefill.
  std::int64_t all_units = 0, all_empty = 0, all_tiles = 0;
  for (int first = 0; first < p.batch; first += kThreads) {
    int request = first + threadIdx.x;
    bool live = request < p.batch;
    int length = live ? LengthOf(p, request) : 0;
    int row = request, rows = 1;
    if (live && has_q) {
      row = p.q_start[request];
      rows = p.q_start[request + 1] - row;
      if (row < 0 || rows < 0 || row + rows > p.max_tokens) {
        ReportDataError(w.header, LLMD_BAD_LENGTH, request, 0, row + rows);
        rows = 0;
      }
    }
    bool prefill = live && rows > 0 && (p.mode == LLMD_PREFILL || (p.mode == LLMD_MIXED && rows > 1));
    bool decode = live && rows == 1 && !prefill && length > 0;
    bool empty = live && rows == 1 && !prefill && length == 0;
    int units = decode ? UnitsOf(length, p.window, p.unit_keys) : 0;
    std::int64_t count = decode ? UnitCount::Make(static_cast<std::int64_t>(units) * p.heads, p.heads) : 0;
    std::int64_t total;
    std::int64_t before = ExclusiveSum(count, total, scratch);
    if (live) {
      w.lengths[request] = length;
      w.units[request] = all_units + before;
      if (in_shared) shared_units[request] = all_units + before;
    }
    all_units += total;
    if (__syncthreads_or(empty)) {
      before = ExclusiveSum(empty, total, scratch);
      if (empty) w.empty[all_empty + before] = row;
      all_empty += total;
    }
    if (has_q) {
      before = ExclusiveSum(
          prefill ? (static_cast<std::int64_t>(rows) * p.group + kPrefillRows - 1) / kPrefillRows : 0, total,
          scratch);
      if (live) w.prefill[request] = static_cast<std::int32_t>(all_tiles + before);
      all_tiles += total;
    }
  }
  if (threadIdx.x == 0) {
    w.units[p.batch] = all_units;
    if (in_shared) shared_units[p.batch] = all_units;
    if (has_q) w.prefill[p.batch] = static_cast<std::int32_t>(all_tiles);
  }
  __syncthreads();

  const std::int64_t* units = in_shared ? shared_units : w.units;
  PlanStarts(units, p.batch, p.heads, SharesOf(all_units, p.fixed_split, p.grid), p.grid, w.lengths, w.starts,
             places, scratch);
  if (has_q) PlanPrefill(p, static_cast<int>(all_tiles), shared_units, places, scratch);
  if (threadIdx.x == 0) {
    w.header->empty_rows = static_cast<std::int32_t>(all_empty);
    w.header->prefill_tiles = static_cast<std::int32_t>(all_tiles);
    w.header->tokens = has_q ? p.q_start[p.batch] : p.batch;
  }
}

}  // namespace

llmd_code LaunchPlan(const llmd_plan_args& args, const WorkspaceLayout& layout, llmd_stream stream) {
  const llmd_attention_shape& shape = args.shape;
  PlanParams p{WorkspaceAt(args.workspace, layout),
               args.pages,
               args.q_start,
               args.batch,
               shape.max_tokens,
               shape.page_size,
               shape.window,
               layout.unit_keys,
               layout.item_heads,
               shape.num_kv_heads,
               shape.num_q_heads / shape.num_kv_heads,
               layout.grid,
               layout.prefill_grid,
               shape.mode,
               shape.fixed_split > 0};
  return LaunchKernel({.kernel = "plan", .grid = 1, .block = kThreads, .stream = stream}, PlanKernel, p);
}

}  // namespace llmd::cuda
