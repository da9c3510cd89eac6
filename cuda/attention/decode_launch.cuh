// Launches the decode kernels of one cache type; each type's are compiled in a file of their own.
#ifndef LLMD_CUDA_ATTENTION_DECODE_LAUNCH_CUH_
#define LLMD_CUDA_ATTENTION_DECODE_LAUNCH_CUH_

#include "cuda/attention/decode.cuh"
#include "cuda/attention/launch.h"
#include "cuda/common/launch.h"

namespace llmd::cuda {

template <typename Cache, int D>
llmd_code LaunchDecodeKernelFor(const DecodeParams& params, llmd_stream stream) {
  // The same bytes in flight whatever the size of a tile: 96 KB a block, two blocks a multiprocessor.
  constexpr int kStages = 3 * 256 / (D * static_cast<int>(sizeof(Cache)));
  constexpr int kBytes = sizeof(typename DecodeTraits<Cache, D, kStages>::Shared);
  static_assert(kBytes <= 113 * 1024, "two blocks a multiprocessor");
  auto* kernel = DecodeKernel<Cache, D, kStages>;
  if (llmd_code code = AllowShared("decode", kernel, kBytes); code != LLMD_OK) return code;
  return LaunchKernel({.kernel = "decode",
                       .grid = static_cast<unsigned>(params.grid),
                       .block = kDecodeThreads,
                       .shared_bytes = kBytes,
                       .stream = stream},
                      kernel, params);
}

template <typename Cache>
llmd_code LaunchDecodeKernel(const DecodeParams& params, llmd_stream stream) {
  return params.head_dim == 128 ? LaunchDecodeKernelFor<Cache, 128>(params, stream)
                                : LaunchDecodeKernelFor<Cache, 64>(params, stream);
}

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_DECODE_LAUNCH_CUH_
