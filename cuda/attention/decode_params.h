// What the decode kernel is given, by value.
#ifndef LLMD_CUDA_ATTENTION_DECODE_PARAMS_H_
#define LLMD_CUDA_ATTENTION_DECODE_PARAMS_H_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "cuda/attention/workspace.h"
#include "cuda/common/divide.h"
#ifdef __CUDACC__
#include "cuda/attention/ptx.cuh"
#endif

namespace llmd::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

struct DecodeParams {
  const char* q;
  char* o;
  float* lse;
  llmd_token_strides q_strides, o_strides, lse_strides;  // elements
  const std::int32_t* q_start;                           // null: token b is request b
  const char* k;
  const char* v;
  llmd_kv_strides k_strides, v_strides;  // bytes
  const float* k_scale;
  const float* v_scale;
  const float* sinks;
  llmd_page_list pages;
  Workspace workspace;
  std::int64_t num_pages;
  FastDivide page_size, unit_keys;
  float scale_log2;
  int scale_stride;
  int batch, num_tokens, q_heads, group, row_tiles, heads, item_heads, head_dim;
  int window, grid;
  llmd_dtype q_dtype, o_dtype;
  bool groups_in_pages, fixed_split, validate, zero_padding, early_start;
};

#ifdef __CUDACC__
__device__ inline void StoreOutput(const DecodeParams& p, std::int64_t at, float value) {
  if (p.o_dtype == LLMD_BF16) {
    reinterpret_cast<__nv_bfloat16*>(p.o)[at] = __float2bfloat16_rn(value);
  } else if (p.o_dtype == LLMD_F16) {
    reinterpret_cast<__half*>(p.o)[at] = __float2half_rn(value);
  } else {
    reinterpret_cast<float*>(p.o)[at] = value;
  }
}

__device__ inline void StoreOutputPair(const DecodeParams& p, std::int64_t at, float first, float second) {
  if (p.o_dtype == LLMD_F32) {
    *reinterpret_cast<float2*>(reinterpret_cast<float*>(p.o) + at) = make_float2(first, second);
  } else {
    const std::uint32_t pair =
        p.o_dtype == LLMD_BF16 ? Pack<__nv_bfloat16>(first, second) : Pack<__half>(first, second);
    *reinterpret_cast<std::uint32_t*>(reinterpret_cast<__half*>(p.o) + at) = pair;
  }
}

// Adds the head's sink, if there is one, to a row's base-2 LSE; returns what the row's values are to be
// multiplied by (spec: paged-attention.md 2.4).
__device__ inline float AddSink(const DecodeParams& p, int head, float& lse) {
  if (p.sinks == nullptr) return 1;
  const float sink = __ldg(p.sinks + head) * kLog2E;
  const float greatest = fmaxf(lse, sink);
  if (greatest == -INFINITY) return 1;
  const float total = greatest + Log2(Exp2(lse - greatest) + Exp2(sink - greatest));
  const float factor = Exp2(lse - total);
  lse = total;
  return factor;
}

// Rows that see nothing, and rows past the batch if asked to.
__device__ inline void ZeroRows(const DecodeParams& p, int empty, int tokens) {
  const int padding = p.zero_padding ? max(0, p.num_tokens - tokens) : 0;
  for (int i = blockIdx.x; i < (empty + padding) * p.q_heads; i += gridDim.x) {
    const int head = i % p.q_heads, n = i / p.q_heads;
    const std::int64_t row = n < empty ? p.workspace.empty[n] : tokens + n - empty;
    for (int d = threadIdx.x; d < p.head_dim; d += blockDim.x) {
      StoreOutput(p, row * p.o_strides.token + head * p.o_strides.head + d, 0);
    }
    if (threadIdx.x == 0 && p.lse != nullptr) {
      p.lse[row * p.lse_strides.token + head * p.lse_strides.head] =
          p.sinks != nullptr && n < empty ? p.sinks[head] : -INFINITY;
    }
  }
}
#endif

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_DECODE_PARAMS_H_
