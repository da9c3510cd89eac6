// The launches behind api.cc; each leaves last_error() and returns a code.
#ifndef LLMD_CUDA_ATTENTION_LAUNCH_H_
#define LLMD_CUDA_ATTENTION_LAUNCH_H_

#include "cuda/attention/decode_params.h"
#include "cuda/attention/prefill_params.h"
#include "cuda/attention/workspace.h"

namespace llmd::cuda {

llmd_code LaunchPlan(const llmd_plan_args& args, const WorkspaceLayout& layout, llmd_stream stream);

template <typename Cache>
llmd_code LaunchDecodeKernel(const DecodeParams& params, llmd_stream stream);  // decode_<cache>.cu

template <typename Cache>
llmd_code LaunchPrefillKernel(const PrefillParams& params, llmd_stream stream);  // prefill_<cache>.cu

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_LAUNCH_H_
