// The emulator's cuda/common/cluster.cuh: the same functions, without a GPU.
#ifndef LLMD_CUDA_COMMON_CLUSTER_CUH_
#define LLMD_CUDA_COMMON_CLUSTER_CUH_

#include "tests/cuda/emulator/kernel_side.h"

namespace llmd::cuda {

inline void ClusterArrive(LLMD_SITE) { emulator::ClusterArrive(site); }
inline void ClusterWait(LLMD_SITE) { emulator::ClusterWait(site); }
inline void ClusterSync(LLMD_SITE) {
  emulator::ClusterArrive(site);
  emulator::ClusterWait(site);
}
template <typename T>
T* OfBlock(T* shared, unsigned rank, LLMD_SITE) {
  return static_cast<T*>(emulator::OfBlock(shared, rank, site));
}

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_COMMON_CLUSTER_CUH_
