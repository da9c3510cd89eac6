// Checks of arguments that all backends share, from host data alone. Each returns LLMD_OK, or a code with a message in
// last_error() that names the field, the value and the limit.
#ifndef LLMD_ATTENTION_CHECK_H_
#define LLMD_ATTENTION_CHECK_H_

#include <string>

#include "llmd/attention/backend.h"

namespace llmd::attention {

// This thread's last message, and a way to leave one: `return Fail(LLMD_INVALID_ARGUMENT, "...")`.
const char* LastError();
llmd_code Fail(llmd_code code, std::string message);

std::size_t SizeOf(llmd_dtype dtype);  // bytes an element; 0 for a value that is no dtype
const char* NameOf(llmd_dtype dtype);  // "bf16"

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
