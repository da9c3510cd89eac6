// Sizes of the prefill kernel, its shared memory, and the item that a block works on.
#ifndef LLMD_CUDA_ATTENTION_PREFILL_TRAITS_CUH_
#define LLMD_CUDA_ATTENTION_PREFILL_TRAITS_CUH_

#include <type_traits>

#include "cuda/attention/prefill_params.h"
#include "cuda/attention/prefill_plan.h"
#include "cuda/attention/ptx.cuh"

namespace llmd::cuda {

inline constexpr int kPrefillThreads = 128;
inline constexpr int kPlaces = 3;  // steps whose keys' places are known

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

// Cache is __nv_bfloat16, __half or __nv_fp8_e4m3; fp8 is multiplied as halves.
template <typename Cache, int D_>
struct PrefillTraits {
  static constexpr int D = D_;
  static constexpr bool kFp8 = sizeof(Cache) == 1;
  using Matrix = std::conditional_t<kFp8, __half, Cache>;
  static constexpr int kColumns = D / 8;  // 8-wide column tiles of the output
  static constexpr int kCacheRowBytes = D * sizeof(Cache);
  static constexpr int kCacheTileBytes = kPrefillKeys * kCacheRowBytes;
  static constexpr int kRowBytes = 2 * D;  // of what is multiplied
  static constexpr int kTileBytes = kPrefillKeys * kRowBytes;

  struct Shared {
    alignas(128) char q[kPrefillRows * kRowBytes];
    char k[2][kCacheTileBytes];
    char v[2][kCacheTileBytes];
    char halves[kFp8 ? 2 * kTileBytes : 16];       // K and V of a step, from fp8
    std::int64_t k_offset[kPlaces][kPrefillKeys];  // bytes from the head's first element
    std::int64_t v_offset[kPlaces][kPrefillKeys];
    std::uint32_t live[kPlaces][2];          // a bit a key: may be read
    float q_scale[kFp8 ? kPrefillRows : 1];  // what a row of q was divided by
    PrefillWork work;
    bool arrived_last;
  };

  // Rows of 16-bit elements are stored so that the lanes of a matrix load meet in no bank.
  __device__ static int Offset(int row, int chunk) { return row * kRowBytes + ((chunk ^ (row & 7)) << 4); }

  // What the matrix loads of a step read.
  __device__ static std::uint32_t K(const Shared& shared, int step) {
    return SharedAddress(kFp8 ? shared.halves : shared.k[step & 1]);
  }
  __device__ static std::uint32_t V(const Shared& shared, int step) {
    return SharedAddress(kFp8 ? shared.halves + kTileBytes : shared.v[step & 1]);
  }
};

// 128 rows of a request and a KV head. Row r is a token and a query head: token r / G, head r % G of the
// group.
struct PrefillItem {
  int kv_head, request, first_row, first_token, tokens, rows, length;
  int begin, steps;  // keys begin + 64 * step

  __device__ PrefillItem(const PrefillParams& params, int tile, int kv_head_)
      : kv_head(kv_head_), group_(params.group) {
    const DecodeParams& p = params.common;
    const int low = LastAtOrBefore(p.workspace.prefill, 0, p.batch, tile);
    request = low;
    first_row = (tile - p.workspace.prefill[low]) * kPrefillRows;
    first_token = p.q_start[low];
    tokens = p.q_start[low + 1] - first_token;
    rows = min(kPrefillRows, tokens * p.group - first_row);
    length = p.workspace.lengths[low];
    begin = FirstTileKey(Position(0), p.window);
    steps = TileSteps(Position(0), Position(rows - 1), p.window);
  }

  __device__ int Token(int row) const { return group_.Divide(first_row + row); }  // of the request
  __device__ int Head(int row) const { return (kv_head - Token(row)) * group_.divisor() + first_row + row; }
  __device__ int Position(int row) const { return length - tokens + Token(row); }

 private:
  const FastDivide& group_;
};

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_PREFILL_TRAITS_CUH_
