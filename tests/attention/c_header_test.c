#include "llmd/attention/attention.h"
#include "llmd/attention/backend.h"
#include "llmd/attention/cache.h"
#include "llmd/attention/layers.h"
#include "llmd/attention/sampling.h"
#include "llmd/attention/types.h"

int CompiledAsC(void);

/* A C program's way to a backend. */
int CompiledAsC(void) {
  const llmd_attention_backend* backend = llmd_attention_cpu();
  llmd_attention_shape shape = {0};
  return backend->abi == LLMD_ATTENTION_ABI && backend->workspace_bytes(&shape) == 0;
}
