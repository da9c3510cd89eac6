// Sizes of the prefill kernel, its shared memory, and the item that a block works on.
#ifndef LLMD_CUDA_ATTENTION_PREFILL_TRAITS_CUH_
#define LLMD_CUDA_ATTENTION_PREFILL_TRAITS_CUH_

#include <cstddef>
#include <type_traits>

#include "cuda/attention/prefill_params.h"
#include "cuda/attention/prefill_plan.h"
#include "cuda/attention/ptx.cuh"

namespace llmd::cuda {

inline constexpr int kPrefillThreads = 128;
inline constexpr int kNoted = 4;  // steps whose keys' places are known

// What a block does next: steps begin to `end`, or to the item's end, of a tile and KV head. A cut item has
// several parts. Its first is the last thing that its block does, and has slot grid + block in the workspace;
// the others are what their blocks begin with, and have slot block.
struct PrefillWork {
  int tile;  // -1: nothing
  int head;
  int begin, end;
  int first_block, parts;

  __device__ int Slot(int part, int grid) const { return part > 0 ? first_block + part : grid + first_block; }

  __device__ void Begin(const PrefillParams& params) {
    const Workspace& w = params.common.workspace;
    if (w.header->prefill_shares == 0) return TakeItem(params);
    if (blockIdx.x >= w.header->prefill_shares) {
      tile = -1;
      return;
    }
    const PieceStart start = w.prefill_starts[blockIdx.x];
    tile = start.request;
    head = start.head;
    begin = start.unit;
    first_block = start.first_block;
    parts = start.last_block - start.first_block + 1;
    SetEnd(w.prefill_starts[blockIdx.x + 1]);
  }

  __device__ void Next(const PrefillParams& params) {
    const Workspace& w = params.common.workspace;
    if (w.header->prefill_shares == 0) return TakeItem(params);
    const PieceStart end_of_share = w.prefill_starts[blockIdx.x + 1];
    if (tile == end_of_share.request && head == end_of_share.head) {
      tile = -1;
      return;
    }
    begin = 0;
    if (++head == params.kv_heads) {
      head = 0;
      ++tile;
    }
    SetEnd(end_of_share);
  }

 private:
  static constexpr int kToItemEnd = 0x7FFFFFFF;

  // From the counter, whole; later tiles of a request see more keys.
  __device__ void TakeItem(const PrefillParams& params) {
    PlanHeader* header = params.common.workspace.header;
    const int item = atomicAdd(&header->prefill_next, 1);
    tile = header->prefill_tiles - 1 - item / params.kv_heads;
    head = item % params.kv_heads;
    begin = 0;
    end = kToItemEnd;
    first_block = blockIdx.x;
    parts = 1;
    if (tile < 0) tile = -1;
  }

  __device__ void SetEnd(const PieceStart& end_of_share) {
    end = kToItemEnd;
    const bool last = tile == end_of_share.request && head == end_of_share.head;
    if (last) end = end_of_share.unit;
    if (begin > 0) return;
    first_block = blockIdx.x;
    parts = last ? end_of_share.last_block - first_block + 1 : 1;
    if (last && end == 0) tile = -1;
  }
};

// 128 rows of a request and a KV head. Row r is a token and a query head: token r / G, head r % G of the
// group.
struct alignas(16) PrefillItem {
  struct alignas(16) Keys {
    int begin;         // keys begin + 64 * step
    int first, count;  // those that exist and that some row sees
    int unused;
  } keys;
  const std::int32_t* pages;
  const char* k;  // the KV head's first element
  const char* v;
  float scale;  // of scores, to base 2
  int kv_head, request, first_row, first_token, rows, steps;
  int before;  // keys before the first token's; negative for tokens without keys

  // A part's steps are counted from its own first one.
  __device__ void Locate(const PrefillParams& params, const PrefillWork& work) {
    const DecodeParams& p = params.common;
    kv_head = work.head;
    request = LastAtOrBefore(p.workspace.prefill, 0, p.batch, work.tile);
    first_row = (work.tile - p.workspace.prefill[request]) * kPrefillRows;
    first_token = p.q_start[request];
    const int tokens = p.q_start[request + 1] - first_token;
    rows = min(kPrefillRows, tokens * p.group - first_row);
    const int length = p.workspace.lengths[request];
    before = length - tokens;
    const int first = Position(params, 0), last = Position(params, rows - 1);
    const int all = TileSteps(first, last, p.window), begin = FirstTileKey(first, p.window);
    steps = min(work.end, all) - work.begin;
    keys.begin = begin + work.begin * kPrefillKeys;
    keys.first = p.window > 0 ? max(begin, first - p.window + 1) : 0;
    keys.count = max(0, min(length - begin, all * kPrefillKeys) + begin - keys.first);
    pages = PagesOf(p.pages, request);
    scale = p.scale_log2 * (p.k_scale != nullptr ? __ldg(p.k_scale + kv_head * p.scale_stride) : 1);
    k = p.k + kv_head * p.k_strides.head;
    v = p.v + kv_head * p.v_strides.head;
  }

  // Not zero, so that a masked score, minus infinity, stays that.
  __device__ float AbsoluteScale(float factor = 1) const { return fmaxf(fabsf(scale) * factor, 1e-30f); }
  __device__ int Token(const PrefillParams& params, int row) const {  // of the request
    return params.group.Divide(first_row + row);
  }
  __device__ int Head(const PrefillParams& params, int row) const {
    return (kv_head - Token(params, row)) * params.group.divisor() + first_row + row;
  }
  __device__ int Position(const PrefillParams& params, int row) const { return before + Token(params, row); }
};

// The steps that concern a warp's rows, `count` from `first` on; but for the `open_count` from `open` on,
// some of their keys are hidden from some of the rows.
struct alignas(16) WarpSteps {
  int first, count, open, open_count;

  __device__ void Set(const PrefillParams& params, const PrefillItem& item, int warp) {
    const int window = params.common.window, row = 32 * warp;
    first = count = open = open_count = 0;
    if (row >= item.rows) return;
    const int lowest = item.Position(params, row) - item.keys.begin;
    const int highest = item.Position(params, min(row + 31, item.rows - 1)) - item.keys.begin;
    if (highest < 0) return;
    if (window > 0) {
      first = max(lowest - window + 1, 0) / kPrefillKeys;
      open = CeilDivide(max(highest - window + 1, 0), kPrefillKeys);
    }
    count = highest / kPrefillKeys + 1 - first;
    open_count = max((lowest + 1) / kPrefillKeys - open, 0);
  }
  __device__ bool Has(int step) const {
    return static_cast<unsigned>(step - first) < static_cast<unsigned>(count);
  }
  __device__ bool IsOpen(int step) const {
    return static_cast<unsigned>(step - open) < static_cast<unsigned>(open_count);
  }
};

// Cache is __nv_bfloat16, __half or __nv_fp8_e4m3; fp8 is multiplied as halves.
template <typename Cache, int D_>
struct PrefillTraits {
  static constexpr int D = D_;
  static constexpr bool kFp8 = sizeof(Cache) == 1;
  using Matrix = std::conditional_t<kFp8, __half, Cache>;
  static constexpr int kAhead = 2;        // groups of products that fragments are asked for ahead
  static constexpr int kColumns = D / 8;  // 8-wide column tiles of the output
  static constexpr int kCacheRowBytes = D * sizeof(Cache);
  static constexpr int kCacheTileBytes = kPrefillKeys * kCacheRowBytes;
  static constexpr int kRowBytes = 2 * D;  // of what is multiplied
  static constexpr int kTileBytes = kPrefillKeys * kRowBytes;

  // Matrix rows begin at multiples of 256 bytes, see WarpRows.
  struct alignas(256) Shared {
    char q[kPrefillRows * kRowBytes];
    char k[2][kCacheTileBytes];
    char v[2][kCacheTileBytes];
    char halves[kFp8 ? 2 * kTileBytes : 16];    // K and V of a step, from fp8
    const char* rows[kNoted][kPrefillKeys][2];  // where a key and its value are
    std::uint32_t live[kNoted][2];              // a bit a key: may be read
    float row_scale[kFp8 ? kPrefillRows : 1];   // with what a row of q was divided by
    WarpSteps steps[kPrefillThreads / 32];
    PrefillItem item;
    PrefillWork work;
    bool arrived_last;
  };

  // Rows of 16-bit elements are stored so that the lanes of a matrix load meet in no bank.
  __device__ static int Offset(int row, int chunk) { return row * kRowBytes + ((chunk ^ (row & 7)) << 4); }

  // Where that is which the loop reads, from the beginning of shared memory.
  static constexpr int kQ = offsetof(Shared, q), kItemKeys = offsetof(Shared, item.keys);
  __device__ static int CachedK(int step) { return offsetof(Shared, k) + (step & 1) * kCacheTileBytes; }
  __device__ static int CachedV(int step) { return offsetof(Shared, v) + (step & 1) * kCacheTileBytes; }
  __device__ static int K(int step) { return kFp8 ? offsetof(Shared, halves) : CachedK(step); }
  __device__ static int V(int step) { return kFp8 ? offsetof(Shared, halves) + kTileBytes : CachedV(step); }
  __device__ static int Rows(int step) {
    return offsetof(Shared, rows) + step % kNoted * static_cast<int>(sizeof(Shared::rows[0]));
  }
  __device__ static std::uint64_t Live(std::uint32_t base, int step) {
    std::uint32_t live[2];
    LoadShared8(live, base + offsetof(Shared, live) + step % kNoted * 8);
    return live[0] | static_cast<std::uint64_t>(live[1]) << 32;
  }
  __device__ static WarpSteps Steps(std::uint32_t base) {
    std::uint32_t words[4];
    LoadShared16(words, base + offsetof(Shared, steps) + threadIdx.x / 32 * sizeof(WarpSteps));
    return {static_cast<int>(words[0]), static_cast<int>(words[1]), static_cast<int>(words[2]),
            static_cast<int>(words[3])};
  }
};

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_PREFILL_TRAITS_CUH_
