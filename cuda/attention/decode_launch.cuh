// Launches the decode kernels of one cache type; each type's are compiled in a file of their own.
#ifndef LLMD_CUDA_ATTENTION_DECODE_LAUNCH_CUH_
#define LLMD_CUDA_ATTENTION_DECODE_LAUNCH_CUH_

#include "cuda/attention/decode.cuh"
#include "cuda/attention/launch.h"
#include "cuda/common/launch.h"

namespace llmd::cuda {

template <typename Cache, int D, int kTeams>
llmd_code LaunchDecodeKernelFor(const DecodeParams& params, llmd_stream stream) {
  using Traits = DecodeTraits<Cache, D, kTeams>;
  constexpr size_t kMostBytes = sizeof(typename Traits::Shared);
  constexpr size_t kBytesOf80 = kMostBytes - kDecodeWarps * (RingBytes(90) - RingBytes(80));
  static_assert(kMostBytes <= 227 * 1024 && kBytesOf80 <= 163 * 1024);
  auto* kernel = DecodeKernel<Traits, D>;
  const int architecture = CodeArchitecture(kernel);
  if (architecture == 0) return LLMD_DEVICE_ERROR;
  const size_t bytes = architecture >= 90 ? kMostBytes : kBytesOf80;
  if (llmd_code code = AllowShared("decode", kernel, bytes); code != LLMD_OK) return code;
  return LaunchKernel({.kernel = "decode",
                       .grid = static_cast<unsigned>(params.grid),
                       .block = kDecodeThreads,
                       .shared_bytes = bytes,
                       .stream = stream,
                       .early_start = params.early_start},
                      kernel, params);
}

template <typename Cache, int D>
llmd_code LaunchDecodeKernelFor(const DecodeParams& params, llmd_stream stream) {
  switch (params.heads / params.item_heads) {  // teams; TeamsOf() chooses
    case kDecodeWarps:
      return LaunchDecodeKernelFor<Cache, D, kDecodeWarps>(params, stream);
    case 2:
      if constexpr (D * sizeof(Cache) <= kShortRowBytes)
        return LaunchDecodeKernelFor<Cache, D, 2>(params, stream);
      [[fallthrough]];
    default:
      return LaunchDecodeKernelFor<Cache, D, 1>(params, stream);
  }
}

template <typename Cache>
llmd_code LaunchDecodeKernel(const DecodeParams& params, llmd_stream stream) {
  return params.head_dim == 128 ? LaunchDecodeKernelFor<Cache, 128>(params, stream)
                                : LaunchDecodeKernelFor<Cache, 64>(params, stream);
}

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_DECODE_LAUNCH_CUH_
