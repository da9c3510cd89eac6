// The emulator's cuda/common/cluster.cuh: the same functions, without a GPU.
#ifndef LLMD_CUDA_COMMON_CLUSTER_CUH_
#define LLMD_CUDA_COMMON_CLUSTER_CUH_

#include "tests/cuda/emulator/kernel_side.h"

namespace llmd::cuda {

inline void ClusterArrive(emulator::Site site = emulator::Site::current()) { emulator::ClusterArrive(site); }
inline void ClusterWait(emulator::Site site = emulator::Site::current()) { emulator::ClusterWait(site); }
inline void ClusterSync(emulator::Site site = emulator::Site::current()) {
  emulator::ClusterArrive(site);
  emulator::ClusterWait(site);
}
template <typename T>
T* OfBlock(T* shared, unsigned rank, emulator::Site site = emulator::Site::current()) {
  return static_cast<T*>(emulator::OfBlock(shared, rank, site));
}

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_COMMON_CLUSTER_CUH_
