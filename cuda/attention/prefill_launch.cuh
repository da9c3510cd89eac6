// Launches the prefill kernels of one type; each type's are compiled in a file of their own.
#ifndef LLMD_CUDA_ATTENTION_PREFILL_LAUNCH_CUH_
#define LLMD_CUDA_ATTENTION_PREFILL_LAUNCH_CUH_

#include "cuda/attention/launch.h"
#include "cuda/attention/prefill.cuh"
#include "cuda/common/launch.h"

namespace llmd::cuda {

template <typename T, int D>
llmd_code LaunchPrefillKernelFor(const PrefillParams& params, llmd_stream stream) {
  constexpr int kBytes = sizeof(PrefillShared<D>);
  static_assert(kBytes <= 113 * 1024, "two blocks a multiprocessor");
  auto* kernel = PrefillKernel<T, D>;
  if (llmd_code code = AllowShared("prefill", kernel, kBytes); code != LLMD_OK) return code;
  return LaunchKernel({.kernel = "prefill",
                       .grid = static_cast<unsigned>(params.grid),
                       .block = kPrefillThreads,
                       .shared_bytes = kBytes,
                       .stream = stream},
                      kernel, params);
}

template <typename T>
llmd_code LaunchPrefillKernel(const PrefillParams& params, llmd_stream stream) {
  return params.common.head_dim == 128 ? LaunchPrefillKernelFor<T, 128>(params, stream)
                                       : LaunchPrefillKernelFor<T, 64>(params, stream);
}

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_PREFILL_LAUNCH_CUH_
