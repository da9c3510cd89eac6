// The reference backend: every function straight from its definition, in double, on one thread. It exists to
// be compared with; it allocates, and is slow.
#ifndef LLMD_ATTENTION_REFERENCE_H_
#define LLMD_ATTENTION_REFERENCE_H_

#include "llmd/attention/backend.h"

namespace llmd::attention::reference {

void AppendKv(const llmd_append_kv_args& args);
void Attention(const llmd_attention_args& args, llmd_data_error* error);
void MergeStates(const llmd_merge_states_args& args);
void Rope(const llmd_rope_args& args);
void RopeAppend(const llmd_rope_append_args& args);
void RmsNorm(const llmd_rms_norm_args& args);
void SiluAndMul(const llmd_silu_and_mul_args& args);
void Sample(const llmd_sample_args& args);

}  // namespace llmd::attention::reference

#endif  // LLMD_ATTENTION_REFERENCE_H_
