// A warp's part of prefill: scores, softmax and output of 32 rows.
#ifndef LLMD_CUDA_ATTENTION_PREFILL_ROWS_CUH_
#define LLMD_CUDA_ATTENTION_PREFILL_ROWS_CUH_

#include "cuda/attention/prefill_traits.cuh"

namespace llmd::cuda {

// A lane has four rows: r = lane / 4 and r + 8 of two tiles of 16. Registers are what limits this code: sums
// take 128 of them, scores 64, so that whatever changes from item to item stays in shared memory.
template <typename Traits>
struct WarpRows {
  using Matrix = typename Traits::Matrix;
  static constexpr int kColumns = Traits::kColumns;
  static constexpr int kTile = 16 * Traits::kRowBytes;  // bytes of 16 rows

  float o[2][kColumns][4];
  float max[2][2], sum[2][2];  // max: of unscaled scores; sum: this lane's keys only

  __device__ void Begin() {
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
  }

  __device__ static int Row(int m, int half) {
    return threadIdx.x / 32 * 32 + 16 * m + 8 * half + threadIdx.x % 32 / 4;
  }
  // What makes scores of a row numbers to base 2; it is greater than 0.
  __device__ static float Scale(const typename Traits::Shared& shared, int m, int half) {
    return Traits::kFp8 ? shared.row_scale[Row(m, half)] : shared.item.AbsoluteScale();
  }

  // S = Q K^T, before scaling. Fragments are asked for some groups of four products ahead; between(i, n) of n
  // is called as often between groups.
  template <typename Between>
  __device__ static void Scores(std::uint32_t q, std::uint32_t k, float (&s)[2][8][4], Between between) {
    constexpr int kSteps = Traits::D / 16, kGroups = 4 * kSteps, kAhead = Traits::kAhead;
    const int lane = threadIdx.x % 32;
    q += Traits::Offset(threadIdx.x / 32 * 32 + (lane & 15), lane >> 4);
    k += Traits::Offset((lane & 7) + (lane >> 4) * 8, lane >> 3 & 1);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) s[m][n][e] = 0;
      }
    }
    std::uint32_t a[2][2][4], b[kAhead + 1][4];
#pragma unroll
    for (int m = 0; m < 2; ++m) LoadMatrix4(a[0][m], q + m * kTile);
#pragma unroll
    for (int g = 0; g < kAhead; ++g) LoadMatrix4(b[g], Chunks(k, 2 * (g / 4)) + g % 4 * kTile);
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const int i = g / 4, n = g % 4, next = g + kAhead;
      if (next < kGroups) LoadMatrix4(b[next % (kAhead + 1)], Chunks(k, 2 * (next / 4)) + next % 4 * kTile);
      if (n < 2 && i + 1 < kSteps) LoadMatrix4(a[(i + 1) % 2][n], Chunks(q, 2 * (i + 1)) + n * kTile);
      const std::uint32_t(&now)[4] = b[g % (kAhead + 1)];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        MatrixMultiplyAdd<Matrix>(s[m][2 * n], a[i % 2][m], now[0], now[1]);
        MatrixMultiplyAdd<Matrix>(s[m][2 * n + 1], a[i % 2][m], now[2], now[3]);
      }
      between(g, kGroups);
    }
  }

  __device__ static void Negate(float (&s)[2][8][4]) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) s[m][n][e] = -s[m][n][e];
      }
    }
  }

  // Masks what a row does not see. `live`: a bit a key of the step; keys begin at first_key.
  __device__ static void Mask(const PrefillItem& item, const PrefillParams& params, int first_key,
                              std::uint64_t live, float (&s)[2][8][4]) {
    const int j = threadIdx.x % 4, window = params.common.window;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int last = item.Position(params, Row(m, half)) - first_key;  // the last visible key
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

  // Scores to probabilities; rescales what was summed before where a row's maximum has grown by so much that
  // probabilities could leave the range of halves.
  __device__ void Softmax(const typename Traits::Shared& shared, float (&s)[2][8][4]) {
    float scale[2][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) scale[i / 2][i % 2] = Scale(shared, i / 2, i % 2);
    constexpr float kGrowth = 8;  // to base 2
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
        const bool grows = (greatest - max[m][half]) * scale[m][half] > kGrowth;
        if (__any_sync(~0u, grows)) {
          const float updated = grows ? greatest : max[m][half];
          const float factor = grows ? Exp2((max[m][half] - updated) * scale[m][half]) : 1;
          max[m][half] = updated;
          sum[m][half] *= factor;
#pragma unroll
          for (int i = 0; i < kColumns; ++i) {
            o[m][i][e] *= factor;
            o[m][i][e + 1] *= factor;
          }
        }
        const float shift = max[m][half] == -INFINITY ? 0 : -max[m][half] * scale[m][half];
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          s[m][n][e] = Exp2(fmaf(s[m][n][e], scale[m][half], shift));
          s[m][n][e + 1] = Exp2(fmaf(s[m][n][e + 1], scale[m][half], shift));
          sum[m][half] += s[m][n][e] + s[m][n][e + 1];
        }
      }
    }
  }

  // O += P V.
  __device__ void Output(std::uint32_t v, const float (&s)[2][8][4]) {
    constexpr int kPairs = kColumns / 2, kGroups = 4 * kPairs, kAhead = Traits::kAhead;
    const int lane = threadIdx.x % 32;
    v += Traits::Offset(lane & 15, lane >> 4);
    std::uint32_t a[2][4], b[kAhead + 1][4];
#pragma unroll
    for (int g = 0; g < kAhead; ++g) LoadMatrix4Transposed(b[g], Chunks(v, 2 * g));
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const int i = g / kPairs, n = g % kPairs, next = g + kAhead;
      if (next < kGroups) {
        LoadMatrix4Transposed(b[next % (kAhead + 1)], Chunks(v, 2 * (next % kPairs)) + next / kPairs * kTile);
      }
      if (n == 0) {
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          a[m][0] = Pack<Matrix>(s[m][2 * i][0], s[m][2 * i][1]);
          a[m][1] = Pack<Matrix>(s[m][2 * i][2], s[m][2 * i][3]);
          a[m][2] = Pack<Matrix>(s[m][2 * i + 1][0], s[m][2 * i + 1][1]);
          a[m][3] = Pack<Matrix>(s[m][2 * i + 1][2], s[m][2 * i + 1][3]);
        }
      }
      const std::uint32_t(&now)[4] = b[g % (kAhead + 1)];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        MatrixMultiplyAdd<Matrix>(o[m][2 * n], a[m], now[0], now[1]);
        MatrixMultiplyAdd<Matrix>(o[m][2 * n + 1], a[m], now[2], now[3]);
      }
    }
  }

  // The row's sum over all lanes, and its LSE to base 2.
  __device__ float Lse(const typename Traits::Shared& shared, int m, int half, float* all) const {
    float total = sum[m][half];
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    *all = total;
    return total > 0 ? max[m][half] * Scale(shared, m, half) + Log2(total) : -INFINITY;
  }

 private:
  // The address of a row's chunk `chunk` (even) further on, from one of its first two: tiles begin where the
  // swizzled bits are zero.
  __device__ static std::uint32_t Chunks(std::uint32_t address, int chunk) { return address ^ (chunk << 4); }
};

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_PREFILL_ROWS_CUH_
