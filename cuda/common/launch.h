// Launching kernels: what every host function of a kernel file needs, usable from .cc and .cu.
#ifndef LLMD_CUDA_COMMON_LAUNCH_H_
#define LLMD_CUDA_COMMON_LAUNCH_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>
#include <type_traits>

#include "cuda/common/divide.h"
#include "llmd/attention/types.h"
#include "src/attention/check.h"

namespace llmd::cuda {

struct Device {
  int index;
  int sms;
  int capability;        // 90 for 9.0
  int max_shared_bytes;  // of a block, opted in
  int64_t l2_bytes;
};

// The current device's properties, asked for once a device and process; null with last_error() if CUDA
// refuses. Safe from any thread.
const Device* CurrentDevice();

// Leaves "what: the runtime's words" in last_error() and clears the runtime's own error.
llmd_code DeviceError(cudaError_t error, const std::string& what);

// The architecture of the PTX that a kernel's code on the current device was made from, 80 for compute_80, or
// 0 with last_error(). It may be less than the device's capability: then the code has nothing that came
// later. Remembered.
int CodeArchitecture(const void* kernel);

template <typename... Params>
int CodeArchitecture(void (*kernel)(Params...)) {
  return CodeArchitecture(reinterpret_cast<const void*>(kernel));
}

struct Launch {
  const char* kernel;  // its name in messages
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  llmd_stream stream = nullptr;
  unsigned cluster = 1;      // blocks a cluster along x
  bool early_start = false;  // programmatic dependent launch, if the kernel's code can wait: sm_90
};

// Enqueues `kernel(args...)`. More than 48 KB of shared memory must have been allowed with AllowShared().
llmd_code LaunchKernel(const Launch& launch, const void* kernel, void** args);

template <typename... Params, typename... Args>
llmd_code LaunchKernel(const Launch& launch, void (*kernel)(Params...), const Args&... args) {
  static_assert((std::is_same_v<std::decay_t<Params>, Args> && ...), "pass exactly the kernel's types");
  void* pointers[] = {const_cast<void*>(static_cast<const void*>(&args))..., nullptr};
  return LaunchKernel(launch, reinterpret_cast<const void*>(kernel), pointers);
}

// Raises a kernel's limit of dynamic shared memory on the current device; remembered, so cheap after the
// first time.
llmd_code AllowShared(const char* name, const void* kernel, size_t bytes);

template <typename... Params>
llmd_code AllowShared(const char* name, void (*kernel)(Params...), size_t bytes) {
  return AllowShared(name, reinterpret_cast<const void*>(kernel), bytes);
}

// True if a tensor's rows may be accessed in pieces of `bytes`: its address and its strides are multiples of
// that.
template <typename... Strides>
bool Aligned(int64_t bytes, [[maybe_unused]] size_t element_bytes, const void* address, Strides... strides) {
  return reinterpret_cast<uintptr_t>(address) % bytes == 0 &&
         ((static_cast<int64_t>(strides) * static_cast<int64_t>(element_bytes) % bytes == 0) && ...);
}

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_COMMON_LAUNCH_H_
