// Checks of arguments that all backends share, from host data alone. Each returns LLMD_OK, or
// LLMD_INVALID_ARGUMENT with a message in last_error() that names the field, the value and the limit. What
// only some backend cannot do (head dims, alignment of q, k_new and o for wide accesses) is that backend's to
// refuse, with LLMD_UNSUPPORTED. A pointer to an empty tensor may be null. The standard library is all this
// needs: the CUDA library is loaded where nothing else of ours is.
#ifndef LLMD_ATTENTION_CHECK_H_
#define LLMD_ATTENTION_CHECK_H_

#include <cstddef>
#include <string>

#include "llmd/attention/backend.h"

namespace llmd::attention {

// This thread's last message, and a way to leave one: `return Fail(LLMD_INVALID_ARGUMENT, "...")`.
const char* LastError();
llmd_code Fail(llmd_code code, std::string message);

std::size_t SizeOf(llmd_dtype dtype);  // bytes an element; 0 for a value that is no dtype
const char* NameOf(llmd_dtype dtype);  // "bf16"

// Whether a [tokens, heads, D] tensor begins every row at a multiple of `alignment` bytes.
bool IsAligned(const void* pointer, llmd_token_strides strides, llmd_dtype dtype, std::size_t alignment);

llmd_code CheckWorkspaceBytes(std::size_t bytes, std::size_t needed);

llmd_code Check(const llmd_append_kv_args& args);
llmd_code Check(const llmd_copy_blocks_args& args);
llmd_code Check(const llmd_gather_blocks_args& args);
llmd_code Check(const llmd_attention_shape& shape);
llmd_code Check(const llmd_plan_args& args);
llmd_code Check(const llmd_attention_args& args);
llmd_code Check(const llmd_merge_states_args& args);
llmd_code Check(const llmd_rope_args& args);
llmd_code Check(const llmd_rope_append_args& args);
llmd_code Check(const llmd_rms_norm_args& args);
llmd_code Check(const llmd_silu_and_mul_args& args);
llmd_code Check(const llmd_sample_args& args);

}  // namespace llmd::attention

#endif  // LLMD_ATTENTION_CHECK_H_
