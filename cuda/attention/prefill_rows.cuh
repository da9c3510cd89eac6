// A warp's part of prefill: scores, softmax and output of 32 rows.
#ifndef LLMD_CUDA_ATTENTION_PREFILL_ROWS_CUH_
#define LLMD_CUDA_ATTENTION_PREFILL_ROWS_CUH_

#include "cuda/attention/prefill_traits.cuh"

namespace llmd::cuda {

// A lane has four rows: r = lane / 4 and r + 8 of two tiles of 16.
template <typename Traits>
struct WarpRows {
  using Matrix = typename Traits::Matrix;
  static constexpr int kColumns = Traits::kColumns;

  float o[2][kColumns][4];
  float max[2][2], sum[2][2];         // max: of unscaled scores; sum: this lane's keys only
  float scale[Traits::kFp8 ? 4 : 1];  // of scores, to base 2; not negative
  bool negative;                      // scores change their sign first

  // In shared memory there are, for fp8, the scales of the rows.
  __device__ void Begin(const DecodeParams& p, const PrefillItem& item,
                        const typename Traits::Shared& shared) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) o[m][i][e] = 0;
      }
      max[m][0] = max[m][1] = -INFINITY;
      sum[m][0] = sum[m][1] = 0;
    }
    constexpr float kLeast = 1e-30f;  // a masked score, minus infinity, stays that
    float all = p.scale_log2;
    if (Traits::kFp8 && p.k_scale != nullptr) all *= __ldg(p.k_scale + item.kv_head * p.scale_stride);
    negative = all < 0;
    if constexpr (Traits::kFp8) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scale[i] = fmaxf(fabsf(all) * shared.q_scale[Row(i / 2, i % 2)], kLeast);
    } else {
      scale[0] = fmaxf(fabsf(all), kLeast);
    }
  }

  __device__ static int Row(int m, int half) {
    return threadIdx.x / 32 * 32 + 16 * m + 8 * half + threadIdx.x % 32 / 4;
  }
  __device__ float Scale(int m, int half) const { return scale[Traits::kFp8 ? 2 * m + half : 0]; }

  // S = Q K^T, before scaling.
  __device__ void Scores(std::uint32_t q, std::uint32_t k, float (&s)[2][8][4]) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) s[m][n][e] = 0;
      }
    }
    const int q_row = threadIdx.x / 32 * 32 + (lane & 15), k_row = (lane & 7) + (lane >> 4) * 8;
#pragma unroll
    for (int i = 0; i < Traits::D / 16; ++i) {
      std::uint32_t a[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) LoadMatrix4(a[m], q + Traits::Offset(q_row + 16 * m, 2 * i + (lane >> 4)));
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        std::uint32_t b[4];
        LoadMatrix4(b, k + Traits::Offset(k_row + 16 * n, 2 * i + (lane >> 3 & 1)));
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          MatrixMultiplyAdd<Matrix>(s[m][2 * n], a[m], b[0], b[1]);
          MatrixMultiplyAdd<Matrix>(s[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
    if (negative) {
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int n = 0; n < 8; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) s[m][n][e] = -s[m][n][e];
        }
      }
    }
  }

  // Masks what a row does not see. `live`: a bit a key of the step; keys begin at first_key.
  __device__ static void Mask(const PrefillItem& item, int window, int first_key, std::uint64_t live,
                              float (&s)[2][8][4]) {
    const int j = threadIdx.x % 4;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int last = item.Position(Row(m, half)) - first_key;  // the last visible key
        std::uint64_t seen = last < 0 ? 0 : last >= 63 ? live : live & ((2ull << last) - 1);
        if (window > 0 && last >= window) seen &= last - window >= 63 ? 0 : ~0ull << (last - window + 1);
        seen >>= 2 * j;
        const std::uint32_t words[2] = {static_cast<std::uint32_t>(seen),
                                        static_cast<std::uint32_t>(seen >> 32)};
#pragma unroll
        for (int n = 0; n < 8; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            if (!(words[n / 4] & 1u << (8 * (n % 4) + e))) s[m][n][2 * half + e] = -INFINITY;
          }
        }
      }
    }
  }

  // Scores to probabilities; rescales what was summed before.
  __device__ void Softmax(float (&s)[2][8][4]) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int e = 2 * half;
        float greatest = -INFINITY;
#pragma unroll
        for (int n = 0; n < 8; ++n) greatest = fmaxf(greatest, fmaxf(s[m][n][e], s[m][n][e + 1]));
        greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, 1));
        greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, 2));
        if (__any_sync(~0u, greatest > max[m][half])) {
          const float updated = fmaxf(max[m][half], greatest);
          const float factor = updated == -INFINITY ? 1 : Exp2((max[m][half] - updated) * Scale(m, half));
          max[m][half] = updated;
          sum[m][half] *= factor;
#pragma unroll
          for (int i = 0; i < kColumns; ++i) {
            o[m][i][e] *= factor;
            o[m][i][e + 1] *= factor;
          }
        }
        const float shift = max[m][half] == -INFINITY ? 0 : -max[m][half] * Scale(m, half);
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          s[m][n][e] = Exp2(fmaf(s[m][n][e], Scale(m, half), shift));
          s[m][n][e + 1] = Exp2(fmaf(s[m][n][e + 1], Scale(m, half), shift));
          sum[m][half] += s[m][n][e] + s[m][n][e + 1];
        }
      }
    }
  }

  // O += P V.
  __device__ void Output(std::uint32_t v, const float (&s)[2][8][4]) {
    const int lane = threadIdx.x % 32, row = lane & 15;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      std::uint32_t a[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        a[m][0] = Pack<Matrix>(s[m][2 * i][0], s[m][2 * i][1]);
        a[m][1] = Pack<Matrix>(s[m][2 * i][2], s[m][2 * i][3]);
        a[m][2] = Pack<Matrix>(s[m][2 * i + 1][0], s[m][2 * i + 1][1]);
        a[m][3] = Pack<Matrix>(s[m][2 * i + 1][2], s[m][2 * i + 1][3]);
      }
#pragma unroll
      for (int n = 0; n < kColumns / 2; ++n) {
        std::uint32_t b[4];
        LoadMatrix4Transposed(b, v + Traits::Offset(row + 16 * i, 2 * n + (lane >> 4)));
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          MatrixMultiplyAdd<Matrix>(o[m][2 * n], a[m], b[0], b[1]);
          MatrixMultiplyAdd<Matrix>(o[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  // The row's sum over all lanes, and its LSE to base 2.
  __device__ float Lse(int m, int half, float* all) const {
    float total = sum[m][half];
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    *all = total;
    return total > 0 ? max[m][half] * Scale(m, half) + Log2(total) : -INFINITY;
  }
};

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_PREFILL_ROWS_CUH_
