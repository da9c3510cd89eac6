// Launches the prefill kernels of one cache type; each type's are compiled in a file of their own.
#ifndef LLMD_CUDA_ATTENTION_PREFILL_LAUNCH_CUH_
#define LLMD_CUDA_ATTENTION_PREFILL_LAUNCH_CUH_

#include "cuda/attention/launch.h"
#include "cuda/attention/prefill.cuh"
#include "cuda/common/launch.h"

namespace llmd::cuda {

template <typename Cache, int D>
llmd_code LaunchPrefillKernelFor(const PrefillParams& params, llmd_stream stream) {
  using Traits = PrefillTraits<Cache, D>;
  constexpr int kBytes = sizeof(typename Traits::Shared);
  static_assert(kBytes <= 113 * 1024, "two blocks a multiprocessor");
  auto* kernel = PrefillKernel<Traits>;
  if (llmd_code code = AllowShared("prefill", kernel, kBytes); code != LLMD_OK) return code;
  return LaunchKernel({.kernel = "prefill",
                       .grid = static_cast<unsigned>(params.grid),
                       .block = kPrefillThreads,
                       .shared_bytes = kBytes,
                       .stream = stream},
                      kernel, params);
}

template <typename Cache>
llmd_code LaunchPrefillKernel(const PrefillParams& params, llmd_stream stream) {
  return params.common.head_dim == 128 ? LaunchPrefillKernelFor<Cache, 128>(params, stream)
                                       : LaunchPrefillKernelFor<Cache, 64>(params, stream);
}

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_PREFILL_LAUNCH_CUH_
