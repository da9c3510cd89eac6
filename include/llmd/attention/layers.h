/* The rest of a decode layer: rotary embedding, RMSNorm, SiLU-and-mul. Device memory, asynchronous, safe in
 * graphs. */
#ifndef LLMD_ATTENTION_LAYERS_H_
#define LLMD_ATTENTION_LAYERS_H_

#include "llmd/attention/cache.h"
#include "llmd/attention/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Angle of pair i at position p: p * f_i, f_i = theta^(-2i / rotary_dim), i < rotary_dim / 2; in fp32.
   With scale_factor s > 0, Llama-3 scaling: wavelength l = 2 pi / f; l < old_context / high_freq_factor: f;
   l > old_context / low_freq_factor: f / s; between them (1 - w) f / s + w f with
   w = (old_context / l - low) / (high - low). */
typedef struct llmd_rope {
  float theta;
  int32_t rotary_dim;  /* <= D, even; what is past it stays */
  int32_t interleaved; /* 0: pairs (i, i + rotary_dim / 2); 1: pairs (2i, 2i + 1) */
  float scale_factor;  /* 0: none */
  float low_freq_factor;
  float high_freq_factor;
  float old_context;
} llmd_rope;

/* Rotates q [T, Hq, D] and k [T, Hkv, D] by position; `_out` may be the same memory. k may be null (no KV
 * heads). */
typedef struct llmd_rope_args {
  llmd_rope rope;
  llmd_dtype dtype;
  int32_t num_tokens;
  int32_t num_q_heads;
  int32_t num_kv_heads;
  int32_t head_dim;
  const int32_t* positions; /* [T] */
  const void* q;
  llmd_token_strides q_strides;
  void* q_out;
  llmd_token_strides q_out_strides;
  const void* k;
  llmd_token_strides k_strides;
  void* k_out;
  llmd_token_strides k_out_strides;
} llmd_rope_args;

/* Rotates q into q_out and k straight into the cache, and appends v, in one pass: append.k is the unrotated
   k. append.positions is the position of the rotation too and must be given, with either way of placing
   tokens. */
typedef struct llmd_rope_append_args {
  llmd_rope rope;
  llmd_append_kv_args append;
  int32_t num_q_heads;
  const void* q;
  llmd_token_strides q_strides;
  void* q_out;
  llmd_token_strides q_out_strides;
} llmd_rope_append_args;

/* y = x * weight / sqrt(mean(x^2) + epsilon) over rows of `size`; with `residual`: residual += x first
   (rounded to dtype), and y is the norm of the sum. Sums in fp32. y may be x. Row strides in elements;
   `residual` is contiguous. A norm a head (Qwen3's q and k): rows = T * heads, size = D. */
typedef struct llmd_rms_norm_args {
  llmd_dtype dtype;
  int64_t num_rows;
  int32_t size;
  const void* x;
  int64_t x_stride;
  void* residual;     /* may be null */
  const void* weight; /* [size] */
  float epsilon;
  void* y;
  int64_t y_stride;
} llmd_rms_norm_args;

/* y[t, i] = silu(x[t, i]) * x[t, size + i]; x is [T, 2 * size], y is [T, size], both contiguous. */
typedef struct llmd_silu_and_mul_args {
  llmd_dtype dtype;
  int64_t num_rows;
  int32_t size;
  const void* x;
  void* y;
} llmd_silu_and_mul_args;

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* LLMD_ATTENTION_LAYERS_H_ */
