// What kernels need that C++ has no words for: dynamic shared memory, loads past the first-level cache.
#ifndef LLMD_CUDA_COMMON_DEVICE_CUH_
#define LLMD_CUDA_COMMON_DEVICE_CUH_

// Declares `name`, the block's dynamic shared memory, as an array of `type`; it is as large as the launch
// says.
#define LLMD_DYNAMIC_SHARED(alignment, type, name) \
  extern __shared__ __align__(alignment)           \
  type name[]

namespace llmd::cuda {

// Global memory that no other thread reads.
__device__ __forceinline__ uint4 LoadStream16(const void* p) {
  uint4 v;
  asm("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(p));
  return v;
}
__device__ __forceinline__ uint2 LoadStream8(const void* p) {
  uint2 v;
  asm("ld.global.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
  return v;
}

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_COMMON_DEVICE_CUH_
