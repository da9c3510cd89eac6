// The shared memory of a block that samples, all dynamic: other blocks of the row's cluster write into it.
#ifndef LLMD_CUDA_SAMPLING_SHARED_CUH_
#define LLMD_CUDA_SAMPLING_SHARED_CUH_

#include "cuda/common/cluster.cuh"
#include "cuda/sampling/part.cuh"

namespace llmd::cuda {

inline constexpr int kLogMaxBlocks = 3;  // a row: eight are what every device with clusters has
inline constexpr int kMaxBlocks = 1 << kLogMaxBlocks;
inline constexpr int kMaxRuns = kMaxBlocks * kSampleWarps;
inline constexpr int kRunsALane = kMaxRuns / 32;
inline constexpr int kBinBits = 11;
inline constexpr int kBins = 1 << kBinBits;
inline constexpr int kCopies = 2;  // of a histogram: neighbouring lanes do not meet in one word
inline constexpr int kBinsAThread = kBins / kSampleThreads;
inline constexpr int kMaxCandidates = 1024;
inline constexpr int kSlots = 2 * kMaxCandidates;  // blocks do not find the same number

// What is asked of a row.
struct Settings {
  float temperature, min_p, top_p;
  int top_k;
  uint64_t request, step;
};

struct Crossing {
  uint32_t bin;
  uint64_t above, here;
};

// Tokens are key << 32 | ~id: the greatest is the most probable, and of equals the one of the lowest id.
struct Gathered {
  uint64_t slots[kSlots];  // shared out evenly among the blocks
  uint64_t tokens[kMaxCandidates];
  uint64_t weights[kMaxCandidates];
};

struct SampleShared {
  uint64_t best[kMaxRuns];    // token of each warp of the cluster
  uint32_t floor[kMaxRuns];   // key that some tokens of each warp reach
  uint64_t weight[kMaxRuns];  // kept by each warp
  uint64_t all[kMaxRuns];
  uint32_t equals[kMaxRuns];
  Settings settings;
  uint64_t random;  // 24 bits, at the top
  uint64_t reduce[kSampleWarps];
  Crossing crossing;
  uint32_t row_floor;
  int found;                // candidates of this block
  int founds[kMaxBlocks];   // of all
  uint64_t kept, drawable;  // weight of the candidates that top-k leaves, and then top-p
  uint64_t all_of_row;
  union {
    // Two words a bin and copy, the low ones first. Folded, the low half holds 64 bits a bin of this block,
    // and the high half takes those of the cluster.
    alignas(16) uint32_t words[2 * kBins * kCopies];
    Gathered gathered;
  };
};
static_assert(sizeof(Gathered) <= sizeof(SampleShared::words));

// A barrier of all blocks of a row, and what a thread does while it waits for others.
template <typename F>
__device__ __forceinline__ void RowSync(int blocks, F&& meanwhile) {
  if (blocks > 1) {
    ClusterArrive();
    meanwhile();
    ClusterWait();
  } else {
    meanwhile();
    __syncthreads();
  }
}
__device__ __forceinline__ void RowSync(int blocks) {
  RowSync(blocks, [] {});
}

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_SAMPLING_SHARED_CUH_
