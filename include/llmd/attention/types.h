/* Types shared by the attention and cache functions: C, usable from C++ and through ctypes or cffi.

   A layer's KV cache is pages of `page_size` token slots. One base pointer and three strides for K and three
   for V describe every layout in use (element strides; the last dimension is contiguous):

     layout                         page stride       token stride  head stride  V
     NHD  [pages, P, Hkv, D]        P*Hkv*D           Hkv*D         D            k + pages*page, or its own
     HND  [pages, Hkv, P, D]        Hkv*P*D           D             P*D          the same
     NHD  [pages, 2, P, Hkv, D]     2*P*Hkv*D         Hkv*D         D            k + P*Hkv*D
     HND  [pages, 2, Hkv, P, D]     2*Hkv*P*D         D             P*D          k + Hkv*P*D
     rows [pages, Hkv, P, 2*D]      Hkv*P*2*D         2*D           P*2*D        k + D

   Words: T query tokens of a call, B requests, Hq and Hkv query and KV heads, G = Hq / Hkv, D head dim, P
   page size, slot = page * P + offset. Structures are plain values: zero-initialize one, set what you need,
   and call; nothing is kept after a call returns, except what is documented of workspaces. */
#ifndef LLMD_ATTENTION_TYPES_H_
#define LLMD_ATTENTION_TYPES_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum llmd_dtype {
  LLMD_F32 = 0,
  LLMD_F16 = 1,
  LLMD_BF16 = 2,
  LLMD_E4M3 = 3 /* fp8: 4 exponent bits, 3 mantissa bits, largest finite value 448 */
} llmd_dtype;

/* What every function returns; the reason in words is the backend's last_error(), per thread. */
typedef enum llmd_code {
  LLMD_OK = 0,
  LLMD_INVALID_ARGUMENT = 1, /* an argument breaks a rule of its documentation */
  LLMD_UNSUPPORTED = 2,      /* right, but this backend has no kernel for it */
  LLMD_DEVICE_ERROR = 3,     /* the CUDA runtime refused; a launch may be lost */
  LLMD_BAD_DATA = 4          /* validated mode found a bad page, length or slot (check_workspace) */
} llmd_code;

/* A cudaStream_t (null: CUDA's legacy default stream, as the caller then wishes); null for CPU backends. */
typedef struct CUstream_st* llmd_stream;

/* Element strides of a [tokens, heads, D] tensor whose last dimension is contiguous. */
typedef struct llmd_token_strides {
  int64_t token;
  int64_t head;
} llmd_token_strides;

typedef struct llmd_kv_strides {
  int64_t page;
  int64_t token;
  int64_t head;
} llmd_kv_strides;

/* One layer's cache. Pointers and strides in bytes are multiples of 16. `k_scale` and `v_scale` belong to
   LLMD_E4M3 (value = stored * scale; null: 1): device floats, one if scale_stride is 0, one a KV head if it
   is 1. */
typedef struct llmd_kv_cache {
  void* k;
  void* v;
  llmd_kv_strides k_strides;
  llmd_kv_strides v_strides;
  int64_t num_pages;
  int32_t page_size;
  int32_t num_kv_heads;
  int32_t head_dim;
  llmd_dtype dtype;
  const float* k_scale;
  const float* v_scale;
  int32_t scale_stride;
} llmd_kv_cache;

/* Which pages hold a request's tokens, in device memory, in one of two formats:
   - block table: `pages` [B, max_pages] with row stride `row_stride`, `seq_lens` [B]; `indptr` null;
   - CSR: `indptr` [B + 1], `pages` [indptr[B]], `last_page_len` [B] in 1..P; `seq_lens` null. A request of n
   pages has (n - 1) * P + last_page_len tokens, none if n is 0. `max_pages` is then the capacity of `pages`.
   Lengths count the tokens being processed now. Entries past a request's length are never read. */
typedef struct llmd_page_list {
  const int32_t* pages;
  int64_t row_stride;
  int32_t max_pages;
  const int32_t* seq_lens;
  const int32_t* indptr;
  const int32_t* last_page_len;
} llmd_page_list;

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* LLMD_ATTENTION_TYPES_H_ */
