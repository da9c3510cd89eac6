#include "cuda/attention/decode_launch.cuh"

namespace llmd::cuda {

template llmd_code LaunchDecodeKernel<__nv_fp8_e4m3>(const DecodeParams& params, llmd_stream stream);

}  // namespace llmd::cuda
