/* One set of functions, three implementations: `cuda` (its own library, llmd_cuda, also found at run time by
   dlopen + llmd_attention_cuda), `cpu` (threaded float, for hosts without a GPU) and `reference` (double,
   straight from the definitions, for tests). A host picks a table once and calls through it:

     const llmd_attention_backend* gpu = llmd_attention_cuda();
     if (gpu->append_kv(&args, stream) != LLMD_OK) fprintf(stderr, "%s\n", gpu->last_error());

   Every function checks its arguments on the host from host data, enqueues on the stream and returns; none
   allocates, synchronizes, uses the default stream or changes the current device. All are safe to call from
   several threads; a workspace is not. CPU backends take a null stream and have done the work when they
   return. */
#ifndef LLMD_ATTENTION_BACKEND_H_
#define LLMD_ATTENTION_BACKEND_H_

#include "llmd/attention/attention.h"
#include "llmd/attention/cache.h"
#include "llmd/attention/layers.h"
#include "llmd/attention/sampling.h"
#include "llmd/attention/types.h"

#ifdef __cplusplus
extern "C" {
#endif

#define LLMD_ATTENTION_ABI 1

typedef struct llmd_attention_backend {
  int32_t abi; /* LLMD_ATTENTION_ABI of the library; a caller made for another one must not go on */
  const char* name;
  const char* (*last_error)(void); /* of this thread's last failed call; never null */

  llmd_code (*append_kv)(const llmd_append_kv_args*, llmd_stream);
  llmd_code (*copy_blocks)(const llmd_copy_blocks_args*, llmd_stream);
  llmd_code (*gather_blocks)(const llmd_gather_blocks_args*, llmd_stream);
  llmd_code (*scatter_blocks)(const llmd_gather_blocks_args*, llmd_stream);

  /* Bytes of workspace for a shape on the current device; 0 and last_error() if the shape is not supported.
   */
  size_t (*workspace_bytes)(const llmd_attention_shape*);
  llmd_code (*init_workspace)(void* workspace, size_t bytes, llmd_stream);
  llmd_code (*plan)(const llmd_plan_args*, llmd_stream);
  llmd_code (*attention)(const llmd_attention_args*, llmd_stream);
  /* Waits for the stream and reports: LLMD_BAD_DATA and *error if validated mode met bad data; clears it. Not
   * for graphs. */
  llmd_code (*check_workspace)(void* workspace, llmd_data_error* error, llmd_stream);
  llmd_code (*merge_states)(const llmd_merge_states_args*, llmd_stream);

  llmd_code (*rope)(const llmd_rope_args*, llmd_stream);
  llmd_code (*rope_append)(const llmd_rope_append_args*, llmd_stream);
  llmd_code (*rms_norm)(const llmd_rms_norm_args*, llmd_stream);
  llmd_code (*silu_and_mul)(const llmd_silu_and_mul_args*, llmd_stream);
  llmd_code (*sample)(const llmd_sample_args*, llmd_stream);
} llmd_attention_backend;

const llmd_attention_backend* llmd_attention_reference(void);
const llmd_attention_backend* llmd_attention_cpu(void);
const llmd_attention_backend* llmd_attention_cuda(void); /* in library llmd_cuda */

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* LLMD_ATTENTION_BACKEND_H_ */
