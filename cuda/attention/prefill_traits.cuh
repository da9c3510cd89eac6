// Sizes of the prefill kernel, its shared memory, and the item that a block works on.
#ifndef LLMD_CUDA_ATTENTION_PREFILL_TRAITS_CUH_
#define LLMD_CUDA_ATTENTION_PREFILL_TRAITS_CUH_

#include <type_traits>

#include "cuda/attention/prefill_params.h"
#include "cuda/attention/ptx.cuh"

namespace llmd::cuda {

inline constexpr int kPrefillThreads = 128;
inline constexpr int kPrefillKeys = 64;  // a step
inline constexpr int kPlaces = 3;        // steps whose keys' places are known

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
    int item;
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
    int low = 0, high = p.batch;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (p.workspace.prefill[middle] <= tile)
        low = middle;
      else
        high = middle;
    }
    request = low;
    first_row = (tile - p.workspace.prefill[low]) * kPrefillRows;
    first_token = p.q_start[low];
    tokens = p.q_start[low + 1] - first_token;
    rows = min(kPrefillRows, tokens * p.group - first_row);
    length = p.workspace.lengths[low];
    begin = p.window > 0 ? max(0, Position(0) - p.window + 1) / kGroupKeys * kGroupKeys : 0;
    steps = max(0, CeilDivide(Position(rows - 1) + 1 - begin, kPrefillKeys));
  }

  __device__ int Token(int row) const { return group_.Divide(first_row + row); }  // of the request
  __device__ int Head(int row) const { return (kv_head - Token(row)) * group_.divisor() + first_row + row; }
  __device__ int Position(int row) const { return length - tokens + Token(row); }

 private:
  const FastDivide& group_;
};

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_PREFILL_TRAITS_CUH_
