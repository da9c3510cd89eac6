// The planner: one block, once a step. See plan.h for what is planned.
#include <algorithm>

#include "cuda/attention/launch.h"
#include "cuda/attention/prefill_plan.h"
#include "cuda/attention/workspace.h"
#include "cuda/common/launch.h"
#include "cuda/common/math.cuh"

namespace llmd::cuda {
namespace {

constexpr int kMostThreads = 1024;
static_assert(kMaxStarts < kMostThreads && kMaxLineTiles <= kMostThreads);
constexpr int kSharedRequests = 2048;  // prefix sums of larger batches are read from global memory

struct PlanParams {
  Workspace workspace;
  llmd_page_list pages;
  const std::int32_t* q_start;
  int batch, max_tokens, page_size, max_keys, window, unit_keys, heads, kv_heads, group, grid, prefill_grid;
  std::int64_t most_units;  // with a fixed split, which has a slot for each
  llmd_attention_mode mode;
  bool fixed_split;
};

// The request's length, or 0 and a report if it is more than its pages can hold.
__device__ int LengthOf(const PlanParams& p, int request) {
  std::int64_t length, limit;
  if (p.pages.indptr != nullptr) {
    const int begin = p.pages.indptr[request], end = p.pages.indptr[request + 1];
    const int last = p.pages.last_page_len[request];  // read along with them
    if (begin < 0 || end < begin || end > p.pages.max_pages) {
      ReportDataError(p.workspace.header, LLMD_BAD_LENGTH, request, 0, end);
      return 0;
    }
    limit = static_cast<std::int64_t>(end - begin) * p.page_size;
    length = end == begin ? 0 : limit - p.page_size + last;
  } else {
    limit = static_cast<std::int64_t>(p.pages.max_pages) * p.page_size;
    length = p.pages.seq_lens[request];
  }
  if (length < 0 || length > limit || length > p.max_keys) {
    ReportDataError(p.workspace.header, LLMD_BAD_LENGTH, request, 0, length);
    return 0;
  }
  return static_cast<int>(length);
}

struct StartsShared {
  std::int64_t places[kMostThreads];     // of the shares' starts
  std::int32_t blocks_of[kMostThreads];  // shares that begin at one place are one block
  std::int64_t sums[32];
};

// Starts of even shares of a line; those that fall on one place are made one. The line is `count` times
// `heads` equal items, `units` [count + 1] what lies before. `lengths` may be null.
__device__ void PlanStarts(const std::int64_t* units, int count, int heads, const Shares& shares, int grid,
                           const std::int32_t* lengths, PieceStart* starts, StartsShared& shared) {
  const int c = threadIdx.x;
  const bool has_share = c < shares.count();
  Start start{};
  if (has_share) {
    start = StartOf(c, shares, units, count, heads);
    if (lengths != nullptr) start.piece.length = lengths[start.piece.request];
    shared.places[c] = start.place;
  }
  __syncthreads();
  const bool first_of_place = has_share && (c == 0 || start.place != shared.places[c - 1]);
  std::int64_t blocks = shares.count(), index = c;
  const bool merged = __syncthreads_or(has_share && !first_of_place);
  if (merged) {
    index = BlockExclusiveSum(static_cast<std::int64_t>(first_of_place), shared.sums, &blocks);
    if (has_share) shared.blocks_of[c] = static_cast<std::int32_t>(index + first_of_place - 1);
    __syncthreads();
  }
  if (first_of_place) {
    if (start.piece.unit > 0) {
      start.piece.first_block = merged ? shared.blocks_of[start.first_share] : start.first_share;
      start.piece.last_block = merged ? shared.blocks_of[start.last_share] : start.last_share;
    }
    starts[index] = start.piece;
  }
  if (c >= blocks && c <= grid) {
    PieceStart end{};
    end.request = count;
    starts[c] = end;
  }
}

// Puts prefill's tiles on a line, if they are few. `units`: shared, [kMaxLineTiles + 1].
__device__ void PlanPrefill(const PlanParams& p, int tiles, const std::int32_t* lengths, std::int64_t* units,
                            StartsShared& shared) {
  __shared__ int longest;
  int count = 0;  // of shares
  if (tiles > 0 && tiles <= MostLineTiles(p.kv_heads, p.fixed_split, p.prefill_grid)) {
    const int tile = threadIdx.x;
    int steps = 0;
    if (tile < tiles) {
      const std::int32_t* before = p.workspace.prefill;
      const int request = LastAtOrBefore(before, 0, p.batch, tile);
      steps = TileUnits(lengths[request], p.q_start[request + 1] - p.q_start[request], tile - before[request],
                        p.group, p.window);
    }
    if (tile == 0) longest = 0;
    const std::int64_t own =
        tile < tiles ? UnitCount::Make(static_cast<std::int64_t>(steps) * p.kv_heads, p.kv_heads) : 0;
    std::int64_t total;
    const std::int64_t sum = BlockExclusiveSum(own, shared.sums, &total);
    if (tile < tiles) units[tile] = sum;
    if (tile == 0) units[tiles] = total;
    atomicMax(&longest, steps);
    __syncthreads();
    const Shares shares = PrefillShares(total, longest, p.prefill_grid);
    count = shares.count();
    PlanStarts(units, tiles, p.kv_heads, shares, p.prefill_grid, nullptr, p.workspace.prefill_starts, shared);
  }
  if (threadIdx.x == 0) p.workspace.header->prefill_shares = count;
}

// A thread a request, then a thread a share. What is slow is the chain, not the work: loads from global
// memory are asked for at once, and what a thread wants of another's goes through shared memory.
__global__ void __launch_bounds__(kMostThreads, 1) PlanKernel(const __grid_constant__ PlanParams p) {
  __shared__ std::int64_t shared_units[kSharedRequests + 1];
  __shared__ std::int32_t shared_lengths[kSharedRequests];
  __shared__ StartsShared shared;
  __shared__ int longest;  // item, in units
  const Workspace& w = p.workspace;
  const bool in_shared = p.batch <= kSharedRequests;
  const bool has_q = p.mode != LLMD_DECODE;
  const int tokens = has_q ? p.q_start[p.batch] : p.batch;

  if (threadIdx.x == 0) longest = 0;
  // Prefix sums over requests: units and items of decode, rows to zero, row tiles of prefill.
  std::int64_t all_units = 0, all_empty = 0, all_tiles = 0;
  for (int first = 0; first < p.batch; first += blockDim.x) {
    const int request = first + threadIdx.x;
    const bool live = request < p.batch;
    int row = request, row_end = request + live;
    if (live && has_q) {
      row = p.q_start[request];
      row_end = p.q_start[request + 1];
    }
    int length = live ? LengthOf(p, request) : 0;
    if (live && has_q && (row < 0 || row_end < row || row_end > p.max_tokens)) {
      ReportDataError(w.header, LLMD_BAD_LENGTH, request, 0, row_end);
      row_end = row;
    }
    const int rows = row_end - row;
    RequestWork work = WorkOf(p.mode, length, rows, p.group, p.window, p.unit_keys);
    const auto count_of = [&] {
      return work.units == 0 ? 0 : UnitCount::Make(static_cast<std::int64_t>(work.units) * p.heads, p.heads);
    };
    std::int64_t total;
    std::int64_t before = BlockExclusiveSum(count_of(), shared.sums, &total);
    if (p.fixed_split) {  // requests that find no slots count as empty
      const bool refused = work.units > 0 && UnitCount::Units(all_units + before + count_of()) > p.most_units;
      if (__syncthreads_or(refused)) {
        if (refused) {
          ReportDataError(w.header, LLMD_BAD_LENGTH, request, 0, length);
          length = 0;
          work = WorkOf(p.mode, length, rows, p.group, p.window, p.unit_keys);
        }
        before = BlockExclusiveSum(count_of(), shared.sums, &total);
      }
    }
    const int longest_of_warp = WarpReduce(work.units, [](int a, int b) { return max(a, b); });
    if (threadIdx.x % 32 == 0) atomicMax(&longest, longest_of_warp);
    if (live) {
      w.lengths[request] = length;
      w.units[request] = all_units + before;
      if (in_shared) {
        shared_lengths[request] = length;
        shared_units[request] = all_units + before;
      }
    }
    all_units += total;
    if (__syncthreads_or(work.empty)) {
      before = BlockExclusiveSum(static_cast<std::int64_t>(work.empty), shared.sums, &total);
      if (work.empty) w.empty[all_empty + before] = row;
      all_empty += total;
    }
    if (has_q) {
      before = BlockExclusiveSum(work.prefill_tiles, shared.sums, &total);
      if (live) w.prefill[request] = static_cast<std::int32_t>(all_tiles + before);
      all_tiles += total;
    }
  }
  if (threadIdx.x == 0) {
    w.units[p.batch] = all_units;
    if (in_shared) shared_units[p.batch] = all_units;
    if (has_q) w.prefill[p.batch] = static_cast<std::int32_t>(all_tiles);
    w.header->empty_rows = static_cast<std::int32_t>(all_empty);
    w.header->prefill_tiles = static_cast<std::int32_t>(all_tiles);
    w.header->tokens = max(0, tokens);  // rows from here on may be zeroed
  }
  __syncthreads();

  const std::int64_t* units = in_shared ? shared_units : w.units;
  const std::int32_t* lengths = in_shared ? shared_lengths : w.lengths;
  const Shares shares = SharesOf(all_units, longest, p.fixed_split, p.grid);
  PlanStarts(units, p.batch, p.heads, shares, p.grid, lengths, w.starts, shared);
  if (has_q) PlanPrefill(p, static_cast<int>(all_tiles), lengths, shared_units, shared);
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
               MostKeys(shape.max_batch, std::max(layout.item_heads, shape.num_kv_heads), layout.unit_keys),
               shape.window,
               layout.unit_keys,
               layout.item_heads,
               shape.num_kv_heads,
               shape.num_q_heads / shape.num_kv_heads,
               layout.grid,
               layout.prefill_grid,
               layout.slots * layout.item_heads / std::max(layout.heads, 1),
               shape.mode,
               shape.fixed_split > 0};
  // No more warps than there is work for: they are waited for at every barrier.
  int threads = std::max(args.batch, layout.grid + 1);
  if (shape.mode != LLMD_DECODE) {
    threads = std::max({threads, layout.prefill_grid + 1,
                        MostLineTiles(shape.num_kv_heads, p.fixed_split, layout.prefill_grid)});
  }
  threads = std::min(CeilDivide(threads, 32) * 32, kMostThreads);
  return LaunchKernel(
      {.kernel = "plan", .grid = 1, .block = static_cast<unsigned>(threads), .stream = stream}, PlanKernel,
      p);
}

}  // namespace llmd::cuda
