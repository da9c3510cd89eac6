#include "cuda/attention/prefill_launch.cuh"

namespace llmd::cuda {

template llmd_code LaunchPrefillKernel<__nv_fp8_e4m3>(const PrefillParams& params, llmd_stream stream);

}  // namespace llmd::cuda
