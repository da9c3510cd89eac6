// Blocks that work together and see each other's shared memory: clusters, from sm_90 on. Before, a block is
// alone.
#ifndef LLMD_CUDA_COMMON_CLUSTER_CUH_
#define LLMD_CUDA_COMMON_CLUSTER_CUH_

#include <cstdint>

namespace llmd::cuda {

// A barrier of all threads of the cluster in two halves: what was written to shared memory of any of its
// blocks before the first is seen after the second. A block's shared memory may be used by others once it has
// come to a first barrier, and until it comes to its last.
__device__ __forceinline__ void ClusterArrive() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void ClusterWait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
}
__device__ __forceinline__ void ClusterSync() {
  ClusterArrive();
  ClusterWait();
}

// The variable at the same place of the dynamic shared memory of block `rank` of the cluster.
template <typename T>
__device__ __forceinline__ T* OfBlock(T* shared, unsigned rank) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  std::uint64_t there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(reinterpret_cast<std::uint64_t>(shared)), "r"(rank));
  return reinterpret_cast<T*>(there);
#else
  return shared;
#endif
}

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_COMMON_CLUSTER_CUH_
