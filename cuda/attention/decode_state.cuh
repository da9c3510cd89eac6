// A warp's part of decode: scores, softmax and output of its tiles.
#ifndef LLMD_CUDA_ATTENTION_DECODE_STATE_CUH_
#define LLMD_CUDA_ATTENTION_DECODE_STATE_CUH_

#include "cuda/attention/decode_traits.cuh"

namespace llmd::cuda {

// A warp's running softmax over its keys of a piece: rows r = lane / 4 and r + 8.
template <typename Traits, int D>
struct WarpState {
  using Matrix = typename Traits::Matrix;
  static constexpr int kNumbers = 2 * Traits::kGroups;  // 8-key column tiles of the scores

  std::uint32_t q[D / 16][4];
  float o[Traits::kColumns][4];
  float max[2], sum[2];  // sum: this lane's keys only
  float scale[2];        // of scores, to base 2

  __device__ void Begin() {
#pragma unroll
    for (int i = 0; i < Traits::kColumns; ++i) {
      o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0;
    }
    max[0] = max[1] = -INFINITY;
    sum[0] = sum[1] = 0;
  }

  // Q as the left operand; never by __ldg(), which may not read what the kernel before wrote while this one
  // ran. For an fp8 cache, lane j of four takes dimensions j * D / 4 on, four a step, as it reads K.
  __device__ void LoadQuery(const DecodeParams& p, const PieceWalk& walk) {
    const int lane = threadIdx.x % 32, j = lane % 4;
    int first_row;
    const int kv_head = walk.template KvHead<Traits>(p, &first_row),
              first_head = kv_head * p.group + first_row;
    const int rows = p.group - first_row;  // more than there are in a tile do no harm
    const std::int64_t token = p.q_start != nullptr ? p.q_start[walk.request] : walk.request;
    const float head_scale =
        p.scale_log2 *
        (Traits::kFp8 && p.k_scale != nullptr ? __ldg(p.k_scale + kv_head * p.scale_stride) : 1);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane / 4 + 8 * half;
      const bool live = row < rows;
      const char* source =
          p.q + 2 * (token * p.q_strides.token + (live ? first_head + row : 0) * p.q_strides.head);
      scale[half] = head_scale;
      if constexpr (!Traits::kFp8) {
#pragma unroll
        for (int step = 0; step < D / 16; ++step) {
          const std::uint32_t* pair = reinterpret_cast<const std::uint32_t*>(source) + 8 * step + j;
          q[step][half] = live ? *pair : 0;
          q[step][half + 2] = live ? pair[4] : 0;
        }
      } else {
        const uint2* four = reinterpret_cast<const uint2*>(source + 2 * j * (D / 4));
        if (p.q_dtype == LLMD_F16) {
#pragma unroll
          for (int step = 0; step < D / 16; ++step) {
            const uint2 value = live ? four[step] : uint2{0, 0};
            q[step][half] = value.x;
            q[step][half + 2] = value.y;
          }
        } else {
          LoadBfloatQuery(four, live, half);
        }
      }
    }
  }

  // bf16 as halves: a power of two a row, which its scale gives back, brings the greatest value to [1, 2).
  __device__ void LoadBfloatQuery(const uint2* four, bool live, int half) {
    std::uint32_t greatest = 0;
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      const uint2 value = live ? four[step] : uint2{0, 0};
      q[step][half] = value.x;
      q[step][half + 2] = value.y;
      greatest = ::max(greatest, ::max(::max(value.x & 0x7FFF, value.x >> 16 & 0x7FFF),
                                       ::max(value.y & 0x7FFF, value.y >> 16 & 0x7FFF)));
    }
    greatest = ::max(greatest, __shfl_xor_sync(~0u, greatest, 1));
    greatest = ::max(greatest, __shfl_xor_sync(~0u, greatest, 2));
    const int exponent = ::min(::max(static_cast<int>(greatest >> 7), 1), 253) - 127;
    const float shrink = __uint_as_float((127 - exponent) << 23);
    scale[half] *= __uint_as_float((127 + exponent) << 23);
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
#pragma unroll
      for (int part = 0; part < 4; part += 2) {
        const std::uint32_t pair = q[step][half + part];
        q[step][half + part] =
            Pack<__half>(__uint_as_float(pair << 16) * shrink, __uint_as_float(pair & 0xFFFF0000u) * shrink);
      }
    }
  }

  __device__ void Add(std::uint32_t stage, std::uint32_t live, bool two_rows) {
    float s[kNumbers][4] = {};
    Scores(stage, s);
    std::uint32_t p[Traits::kGroups][4];
    Softmax(s, live, two_rows, p);
#pragma unroll
    for (int group = 0; group < Traits::kGroups; ++group) {
      Output(stage + Traits::kTileBytes + group * kGroupKeys * Traits::kRowBytes, p[group]);
    }
  }

  __device__ void Scores(std::uint32_t tile, float (&s)[kNumbers][4]) const {
    const int lane = threadIdx.x % 32;
    if constexpr (!Traits::kFp8) {
      const int row = (lane & 7) + (lane >> 4) * 8;
      const std::uint32_t base = tile + row * Traits::kRowBytes;
      const std::uint32_t first = (lane >> 3 & 1) ^ (row & 7);
#pragma unroll
      for (int step = 0; step < D / 16; ++step) {
#pragma unroll
        for (int group = 0; group < Traits::kGroups; ++group) {
          std::uint32_t k[4];
          LoadMatrix4(k, base + group * kGroupKeys * Traits::kRowBytes + ((first ^ (2 * step)) << 4));
          MatrixMultiplyAdd<Matrix>(s[2 * group], q[step], k[0], k[1]);
          MatrixMultiplyAdd<Matrix>(s[2 * group + 1], q[step], k[2], k[3]);
        }
      }
    } else {
      const int j = lane % 4;
#pragma unroll
      for (int chunk = 0; chunk < D / 64; ++chunk) {
#pragma unroll
        for (int n = 0; n < kNumbers; ++n) {
          const int row = lane / 4 + 8 * n;
          std::uint32_t k[4];
          LoadShared16(k, tile + row * Traits::kRowBytes + Traits::Swizzle(row, j * (D / 64) + chunk) * 16);
#pragma unroll
          for (int word = 0; word < 4; ++word) {
            MatrixMultiplyAdd<Matrix>(s[n], q[4 * chunk + word], HalfPairOfE4m3(k[word] & 0xFFFF),
                                      HalfPairOfE4m3(k[word] >> 16));
          }
        }
      }
    }
  }

  // Scores to probabilities, in the layout of the next product's left operand.
  __device__ void Softmax(float (&s)[kNumbers][4], std::uint32_t live, bool two_rows,
                          std::uint32_t (&p)[Traits::kGroups][4]) {
    const int j = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (half == 1 && !two_rows) {
#pragma unroll
        for (int group = 0; group < Traits::kGroups; ++group) p[group][1] = p[group][3] = 0;
        break;
      }
      const int e = 2 * half;
#pragma unroll
      for (int n = 0; n < kNumbers; ++n) {
        s[n][e] *= scale[half];
        s[n][e + 1] *= scale[half];
      }
      if (live != Traits::kAllLive) {  // after scaling: a scale may be 0 or less
#pragma unroll
        for (int n = 0; n < kNumbers; ++n) {
          if (!(live >> (8 * n + 2 * j) & 1)) s[n][e] = -INFINITY;
          if (!(live >> (8 * n + 2 * j + 1) & 1)) s[n][e + 1] = -INFINITY;
        }
      }
      float greatest = -INFINITY;
#pragma unroll
      for (int n = 0; n < kNumbers; ++n) greatest = fmaxf(greatest, fmaxf(s[n][e], s[n][e + 1]));
      greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, 1));
      greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, 2));
      if (__any_sync(~0u, greatest > max[half])) {
        const float updated = fmaxf(max[half], greatest);
        const float factor = updated == -INFINITY ? 1 : Exp2(max[half] - updated);
        max[half] = updated;
        sum[half] *= factor;
#pragma unroll
        for (int i = 0; i < Traits::kColumns; ++i) {
          o[i][e] *= factor;
          o[i][e + 1] *= factor;
        }
      }
      const float shift = max[half] == -INFINITY ? 0 : max[half];
#pragma unroll
      for (int n = 0; n < kNumbers; ++n) {
        s[n][e] = Exp2(s[n][e] - shift);
        s[n][e + 1] = Exp2(s[n][e + 1] - shift);
        sum[half] += s[n][e] + s[n][e + 1];
        p[n / 2][half + n % 2 * 2] = Pack<Matrix>(s[n][e], s[n][e + 1]);
      }
    }
  }

  __device__ void Output(std::uint32_t tile, const std::uint32_t (&p)[4]) {
    const int lane = threadIdx.x % 32;
    if constexpr (!Traits::kFp8) {
      const int row = lane & 15;
      const std::uint32_t base = tile + row * Traits::kRowBytes;
      const std::uint32_t first = (lane >> 4) ^ (row & 7);
#pragma unroll
      for (int i = 0; i < Traits::kColumns; i += 2) {
        std::uint32_t v[4];
        LoadMatrix4Transposed(v, base + ((first ^ i) << 4));
        MatrixMultiplyAdd<Matrix>(o[i], p, v[0], v[1]);
        MatrixMultiplyAdd<Matrix>(o[i + 1], p, v[2], v[3]);
      }
    } else {
      // Keys 2j, 2j + 1, 2j + 8, 2j + 9; of each the D / 8 dimensions of lane / 4.
      constexpr int kWords = Traits::kColumns / 4;
      const int j = lane % 4, r = lane / 4;
      std::uint32_t v[4][kWords];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = 2 * j + (i & 1) + (i & 2) * 4;
        const std::uint32_t base = tile + row * Traits::kRowBytes;
        if constexpr (kWords == 4) {
          LoadShared16(v[i], base + Traits::Swizzle(row, r) * 16);
        } else {
          LoadShared8(v[i], base + Traits::Swizzle(row, r / 2) * 16 + r % 2 * 8);
        }
      }
#pragma unroll
      for (int word = 0; word < kWords; ++word) {
        // Bytes of two keys side by side.
        const std::uint32_t low[2] = {__byte_perm(v[0][word], v[1][word], 0x5140),
                                      __byte_perm(v[0][word], v[1][word], 0x7362)};
        const std::uint32_t high[2] = {__byte_perm(v[2][word], v[3][word], 0x5140),
                                       __byte_perm(v[2][word], v[3][word], 0x7362)};
#pragma unroll
        for (int byte = 0; byte < 4; ++byte) {
          const int shift = 16 * (byte & 1);
          MatrixMultiplyAdd<Matrix>(o[4 * word + byte], p, HalfPairOfE4m3(low[byte / 2] >> shift & 0xFFFF),
                                    HalfPairOfE4m3(high[byte / 2] >> shift & 0xFFFF));
        }
      }
    }
  }
};

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_DECODE_STATE_CUH_
