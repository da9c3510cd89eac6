/* A decode step of two requests in C: the example of docs/attention.md. */
#include <stdio.h>
#include <stdlib.h>

#include "llmd/attention/backend.h"

enum { kPages = 8, kPageSize = 16, kHeads = 8, kKvHeads = 2, kDim = 64, kBatch = 2, kMaxPages = 4 };

static int Fail(const llmd_attention_backend* backend) {
  fprintf(stderr, "%s: %s\n", backend->name, backend->last_error());
  return 1;
}

static int DecodeStep(const llmd_attention_backend* backend, llmd_kv_cache cache, const uint16_t* q,
                      const uint16_t* k, const uint16_t* v, uint16_t* o, llmd_stream stream) {
  /* Request 0 has 18 tokens with the new one, on pages 5 and 2; request 1 has 3, on page 7. */
  static const int32_t table[kBatch * kMaxPages] = {5, 2, -1, -1, 7, -1, -1, -1};
  static const int32_t lengths[kBatch] = {18, 3};
  static const int64_t slots[kBatch] = {2 * kPageSize + 1, 7 * kPageSize + 2};

  llmd_append_kv_args append = {0};
  append.cache = cache;
  append.k = k;
  append.v = v;
  append.k_strides.token = append.v_strides.token = kKvHeads * kDim;
  append.k_strides.head = append.v_strides.head = kDim;
  append.dtype = LLMD_BF16;
  append.num_tokens = kBatch;
  append.slots = slots;
  if (backend->append_kv(&append, stream) != LLMD_OK) return Fail(backend);

  llmd_attention_shape shape = {0};
  shape.mode = LLMD_DECODE;
  shape.max_batch = kBatch;
  shape.num_q_heads = kHeads;
  shape.num_kv_heads = kKvHeads;
  shape.head_dim = kDim;
  shape.kv_dtype = LLMD_BF16;
  shape.page_size = kPageSize;

  /* Once for the life of the model; device memory for the CUDA backend. */
  size_t bytes = backend->workspace_bytes(&shape);
  if (bytes == 0) return Fail(backend);
  void* workspace = malloc(bytes);
  if (backend->init_workspace(workspace, bytes, stream) != LLMD_OK) return Fail(backend);

  /* Once a step. */
  llmd_plan_args plan = {0};
  plan.shape = shape;
  plan.batch = kBatch;
  plan.pages.pages = table;
  plan.pages.row_stride = plan.pages.max_pages = kMaxPages;
  plan.pages.seq_lens = lengths;
  plan.workspace = workspace;
  plan.workspace_bytes = bytes;
  if (backend->plan(&plan, stream) != LLMD_OK) return Fail(backend);

  /* Once a layer. */
  llmd_attention_args layer = {0};
  layer.shape = shape;
  layer.batch = layer.num_tokens = kBatch;
  layer.q = q;
  layer.o = o;
  layer.q_strides.token = layer.o_strides.token = kHeads * kDim;
  layer.q_strides.head = layer.o_strides.head = kDim;
  layer.q_dtype = layer.o_dtype = LLMD_BF16;
  layer.cache = cache;
  layer.pages = plan.pages;
  layer.scale = 0.125f; /* 1 / sqrt(64) */
  layer.workspace = workspace;
  layer.workspace_bytes = bytes;
  if (backend->attention(&layer, stream) != LLMD_OK) return Fail(backend);
  free(workspace);
  return 0;
}

int main(void) {
  static uint16_t pool[2 * kPages * kPageSize * kKvHeads * kDim + 8];
  static uint16_t q[kBatch * kHeads * kDim], k[kBatch * kKvHeads * kDim], v[kBatch * kKvHeads * kDim];
  static uint16_t o[kBatch * kHeads * kDim];
  llmd_kv_cache cache = {0};
  cache.k = (char*)pool + (16 - (uintptr_t)pool % 16) % 16;
  cache.v = (uint16_t*)cache.k + kPages * kPageSize * kKvHeads * kDim;
  cache.k_strides.page = kPageSize * kKvHeads * kDim; /* NHD */
  cache.k_strides.token = kKvHeads * kDim;
  cache.k_strides.head = kDim;
  cache.v_strides = cache.k_strides;
  cache.num_pages = kPages;
  cache.page_size = kPageSize;
  cache.num_kv_heads = kKvHeads;
  cache.head_dim = kDim;
  cache.dtype = LLMD_BF16;
  for (int i = 0; i < kBatch * kKvHeads * kDim; ++i) v[i] = 0x3f80; /* 1.0: the other tokens are zeros */
  if (DecodeStep(llmd_attention_cpu(), cache, q, k, v, o, NULL) != 0) return 1;
  /* Equal scores: 1 / 18 and 1 / 3 in bf16. */
  return o[0] == 0x3d64 && o[kHeads * kDim] == 0x3eab ? 0 : 1;
}
