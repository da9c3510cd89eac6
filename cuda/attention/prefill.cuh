// Paged prefill: a ragged batch of requests with any number of new tokens over any prefix, causal, by
// mma.sync.
//
// A row is a token and a query head of a KV head's group (row = token * G + head), so a tile of 128 rows
// shares its keys among all G heads. An item is (128 rows, KV head); blocks take items from a counter, long
// ones first, or, where there are few, have even shares of all steps, with partial results merged by the
// block that ends last (prefill_plan.h). Four warps have 32 rows each; 64 keys a step go through two stages
// of shared memory, where a step's page ids were read two steps before (spec: paged-attention.md 3.9).
#ifndef LLMD_CUDA_ATTENTION_PREFILL_CUH_
#define LLMD_CUDA_ATTENTION_PREFILL_CUH_

#include "cuda/attention/prefill_end.cuh"
#include "cuda/attention/prefill_load.cuh"
#include "cuda/common/device.cuh"

namespace llmd::cuda {

template <typename Traits>
class PrefillTile {
 public:
  __device__ PrefillTile(const PrefillParams& params, typename Traits::Shared& shared)
      : params_(params), p_(params.common), shared_(shared) {}

  __device__ void Run(const PrefillItem& item, const PrefillWork& work) {
    const int end = min(work.end, item.steps);
    KeyLoader<Traits> keys(p_, item, end, shared_, kept_);
    QueryLoader<Traits>::Load(p_, item, shared_, kept_);
    CopyAsyncCommit();
    keys.Place(work.begin);
    keys.Place(work.begin + 1);
    __syncthreads();
    keys.Load(work.begin);
    CopyAsyncCommit();
    if constexpr (Traits::kFp8) {
      CopyAsyncWait<1>();
      QueryLoader<Traits>::Scale(p_, shared_);
      __syncthreads();
    }
    rows_.Begin(p_, item, shared_);
#pragma unroll 1
    for (int step = work.begin; step < end; ++step) {
      CopyAsyncWait<0>();
      __syncthreads();  // this step's keys are here, and the last step's have been used
      keys.Load(step + 1);
      CopyAsyncCommit();
      if constexpr (Traits::kFp8) keys.Convert(step);
      keys.Place(step + 2);
      if constexpr (Traits::kFp8) __syncthreads();
      Compute(item, step);
    }
    CopyAsyncWait<0>();
    PrefillEnd<Traits>(params_, item, shared_).Finish(rows_, work);
  }

 private:
  __device__ void Compute(const PrefillItem& item, int step) {
    const int first_key = item.begin + step * kPrefillKeys, warp_first = threadIdx.x / 32 * 32;
    if (warp_first >= item.rows) return;
    const int lowest = item.Position(warp_first),
              highest = item.Position(min(warp_first + 31, item.rows - 1));
    if (first_key > highest) return;
    if (p_.window > 0 && first_key + kPrefillKeys - 1 <= lowest - p_.window) return;

    float s[2][8][4];
    rows_.Scores(SharedAddress(shared_.q), Traits::K(shared_, step), s);
    const int slot = step % kPlaces;
    const std::uint64_t live = shared_.live[slot][0] | static_cast<std::uint64_t>(shared_.live[slot][1])
                                                           << 32;
    if (first_key + kPrefillKeys - 1 > lowest || live != ~0ull ||
        (p_.window > 0 && first_key <= highest - p_.window)) {
      rows_.Mask(item, p_.window, first_key, live, s);
    }
    rows_.Softmax(s);
    rows_.Output(Traits::V(shared_, step), s);
  }

  const PrefillParams& params_;
  const DecodeParams& p_;
  typename Traits::Shared& shared_;
  const std::uint64_t kept_ = EvictLastPolicy();  // keys are read again by other row tiles
  WarpRows<Traits> rows_;
};

template <typename Traits>
__global__ void __launch_bounds__(kPrefillThreads, 2)
    PrefillKernel(const __grid_constant__ PrefillParams params) {
  LLMD_DYNAMIC_SHARED(128, char, memory);
  auto& shared = *reinterpret_cast<typename Traits::Shared*>(memory);
  PlanHeader* header = params.common.workspace.header;
  PrefillTile<Traits> tile(params, shared);
  if (threadIdx.x == 0) shared.work.Begin(params);
  while (true) {
    __syncthreads();
    const PrefillWork work = shared.work;
    if (work.tile < 0) break;
    tile.Run(PrefillItem(params, work.tile, work.head), work);
    if (threadIdx.x == 0) shared.work.Next(params);
  }
  if (header->prefill_shares == 0 && threadIdx.x == 0 &&
      atomicAdd(&header->prefill_done, 1) == gridDim.x - 1) {
    header->prefill_next = header->prefill_done = 0;  // ready for the next launch
  }
  if (params.zero_padding) ZeroRows(params.common, 0, header->tokens);
}

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_PREFILL_CUH_
