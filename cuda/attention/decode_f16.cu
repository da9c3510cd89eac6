#include "cuda/attention/decode_launch.cuh"

namespace llmd::cuda {

template llmd_code LaunchDecodeKernel<__half>(const DecodeParams& params, llmd_stream stream);

}  // namespace llmd::cuda
