// What the files of kernels offer to the backend table (cuda/backend.cc): one function a table entry, with
// arguments already checked (src/attention/check.h), and a last_error() left behind on failure.
#ifndef LLMD_CUDA_KERNELS_H_
#define LLMD_CUDA_KERNELS_H_

#include "llmd/attention/backend.h"

namespace llmd::cuda {

llmd_code AppendKv(const llmd_append_kv_args& args, llmd_stream stream);          // cache/append_kv.cu
llmd_code CopyBlocks(const llmd_copy_blocks_args& args, llmd_stream stream);      // cache/blocks.cu
llmd_code GatherBlocks(const llmd_gather_blocks_args& args, llmd_stream stream);  // cache/blocks.cu
llmd_code ScatterBlocks(const llmd_gather_blocks_args& args, llmd_stream stream);

size_t WorkspaceBytes(const llmd_attention_shape& shape);  // attention/api.cc
llmd_code InitWorkspace(void* workspace, size_t bytes, llmd_stream stream);
llmd_code Plan(const llmd_plan_args& args, llmd_stream stream);
llmd_code Attention(const llmd_attention_args& args, llmd_stream stream);
llmd_code CheckWorkspace(void* workspace, llmd_data_error* error, llmd_stream stream);
llmd_code MergeStates(const llmd_merge_states_args& args, llmd_stream stream);  // attention/merge.cu

llmd_code Rope(const llmd_rope_args& args, llmd_stream stream);                // layers/rope.cu
llmd_code RopeAppend(const llmd_rope_append_args& args, llmd_stream stream);   // layers/rope.cu
llmd_code RmsNorm(const llmd_rms_norm_args& args, llmd_stream stream);         // layers/rms_norm.cu
llmd_code SiluAndMul(const llmd_silu_and_mul_args& args, llmd_stream stream);  // layers/silu_and_mul.cu
llmd_code Sample(const llmd_sample_args& args, llmd_stream stream);            // sampling/sample.cu

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_KERNELS_H_
