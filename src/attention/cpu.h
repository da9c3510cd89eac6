// The CPU backend: float arithmetic on all processors. Attention is online softmax over keys in parts of a
// fixed length; a row's parts are computed anywhere and joined in the order of keys, so that its result
// depends on its query and keys only: not on the batch, on how its prompt was cut into chunks, on decode or
// prefill, or on the number of threads.
#ifndef LLMD_ATTENTION_CPU_H_
#define LLMD_ATTENTION_CPU_H_

#include "llmd/attention/backend.h"

namespace llmd::attention::cpu {

void AppendKv(const llmd_append_kv_args& args);
void CopyBlocks(const llmd_copy_blocks_args& args);
void GatherBlocks(const llmd_gather_blocks_args& args);
void ScatterBlocks(const llmd_gather_blocks_args& args);

size_t WorkspaceBytes(const llmd_attention_shape& shape);  // 0: too large
void Attention(const llmd_attention_args& args, llmd_data_error* error);
void MergeStates(const llmd_merge_states_args& args);

void Rope(const llmd_rope_args& args);
void RopeAppend(const llmd_rope_append_args& args);
void RmsNorm(const llmd_rms_norm_args& args);
void SiluAndMul(const llmd_silu_and_mul_args& args);
void Sample(const llmd_sample_args& args);

}  // namespace llmd::attention::cpu

#endif  // LLMD_ATTENTION_CPU_H_
