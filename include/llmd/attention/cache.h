/* Writing, copying and moving KV blocks. All pointers are device memory unless said otherwise (host memory
   for CPU backends). Calls are asynchronous on the stream and safe in CUDA graphs; no call allocates. */
#ifndef LLMD_ATTENTION_CACHE_H_
#define LLMD_ATTENTION_CACHE_H_

#include "llmd/attention/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Stores T new tokens. Where token t goes is given either by `slots` [T] (negative: a padding token,
   skipped), or, if `slots` is null, by `batch_index` [T] and `positions` [T] through `pages` (batch_index <
   0: skipped). `k` and `v` are [T, Hkv, D] of type `dtype` (F32, F16 or BF16), views of a fused QKV tensor
   welcome. An E4M3 cache stores sat(round_to_nearest_even(x / scale)). No two tokens of a call may share a
   slot. `error`, if given, is a device int64[3] set to zero by the caller: a place out of range is then
   skipped and the first one seen is left there: {LLMD_BAD_SLOT, token, slot}, {LLMD_BAD_PAGE, token, page id}
   or {LLMD_BAD_LENGTH, token, position} for a position outside of the page list. Without it such a place is
   undefined behaviour. */
typedef struct llmd_append_kv_args {
  llmd_kv_cache cache;
  const void* k;
  const void* v;
  llmd_token_strides k_strides;
  llmd_token_strides v_strides;
  llmd_dtype dtype;
  int32_t num_tokens;
  const int64_t* slots;
  const int32_t* batch_index;
  const int32_t* positions;
  llmd_page_list pages;
  int64_t* error;
} llmd_append_kv_args;

/* Copies blocks inside a cache, all layers in one launch. `bases` is a device array of 2 * num_layers base
   pointers (K and V of each layer); block i of a base begins at base + i * page_stride_bytes and has
   block_bytes contiguous bytes; bases and both sizes are multiples of 16. `pairs` [num_pairs][2] = (source,
   destination) in device memory. Sources and destinations are disjoint. */
typedef struct llmd_copy_blocks_args {
  void* const* bases;
  int32_t num_bases;
  int64_t page_stride_bytes;
  int64_t block_bytes;
  const int64_t* pairs;
  int32_t num_pairs;
} llmd_copy_blocks_args;

/* gather: pages to one contiguous staging buffer [num_blocks][num_bases][block_bytes]; scatter: back. Bases
   as above (K, V of layer 0, K, V of layer 1, ...). Staging is device memory or page-locked host memory
   mapped to the device. */
typedef struct llmd_gather_blocks_args {
  void* const* bases;
  int32_t num_bases;
  int64_t page_stride_bytes;
  int64_t block_bytes;
  const int64_t* blocks; /* [num_blocks], device */
  int32_t num_blocks;
  void* staging;
} llmd_gather_blocks_args;

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* LLMD_ATTENTION_CACHE_H_ */
