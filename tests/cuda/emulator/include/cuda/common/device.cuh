// The emulator's cuda/common/device.cuh: the same functions, without a GPU.
#ifndef LLMD_CUDA_COMMON_DEVICE_CUH_
#define LLMD_CUDA_COMMON_DEVICE_CUH_

#include "tests/cuda/emulator/kernel_side.h"

#define LLMD_DYNAMIC_SHARED(alignment, type, name) \
  type* const name = reinterpret_cast<type*>(llmd::emulator::DynamicShared())

namespace llmd::cuda {

inline uint4 LoadStream16(const void* p) { return *static_cast<const uint4*>(p); }
inline uint2 LoadStream8(const void* p) { return *static_cast<const uint2*>(p); }

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_COMMON_DEVICE_CUH_
