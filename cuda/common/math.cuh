// Small arithmetic shared by kernels: reductions, random numbers.
#ifndef LLMD_CUDA_COMMON_MATH_CUH_
#define LLMD_CUDA_COMMON_MATH_CUH_

#include <cstdint>

namespace llmd::cuda {

struct Add {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};

// Over `lanes` neighbouring lanes (a power of two); every lane gets the result, and each in the same order of
// sums.
template <typename T, typename Op>
__device__ __forceinline__ T WarpReduce(T x, Op op, int lanes = 32) {
  for (int step = lanes / 2; step > 0; step /= 2) x = op(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}

template <typename T>
__device__ __forceinline__ T WarpExclusiveSum(T x, T* total) {
  const int lane = threadIdx.x % 32;
  T sum = x;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const T below = __shfl_up_sync(0xffffffffu, sum, step);
    if (lane >= step) sum += below;
  }
  *total = __shfl_sync(0xffffffffu, sum, 31);
  return sum - x;
}

// Over a block of whole warps. `shared` holds one T a warp (32 are always enough); all threads must come, and
// a barrier must lie between two uses of the same `shared`: the function begins with one.
template <typename T, typename Op>
__device__ __forceinline__ T BlockReduce(T x, Op op, T* shared) {
  x = WarpReduce(x, op);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  x = shared[0];
  for (unsigned i = 1; i < blockDim.x / 32; ++i) x = op(x, shared[i]);
  return x;
}

template <typename T>
__device__ __forceinline__ T BlockExclusiveSum(T x, T* shared, T* total) {
  T warp_total;
  T sum = WarpExclusiveSum(x, &warp_total);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = warp_total;
  __syncthreads();
  T all = 0;
  for (unsigned i = 0; i < blockDim.x / 32; ++i) {
    if (i == threadIdx.x / 32) sum += all;
    all += shared[i];
  }
  *total = all;
  return sum;
}

struct Philox {
  uint32_t out[4];
};

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3").
__host__ __device__ inline Philox Philox4x32(uint64_t key, uint64_t counter_low, uint64_t counter_high) {
  uint32_t c[4] = {static_cast<uint32_t>(counter_low), static_cast<uint32_t>(counter_low >> 32),
                   static_cast<uint32_t>(counter_high), static_cast<uint32_t>(counter_high >> 32)};
  uint32_t k[2] = {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * c[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * c[2];
    const uint32_t next[4] = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ k[0], static_cast<uint32_t>(b),
                              static_cast<uint32_t>(a >> 32) ^ c[3] ^ k[1], static_cast<uint32_t>(a)};
    for (int i = 0; i < 4; ++i) c[i] = next[i];
    k[0] += 0x9E3779B9u;
    k[1] += 0xBB67AE85u;
  }
  return {{c[0], c[1], c[2], c[3]}};
}

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_COMMON_MATH_CUH_
