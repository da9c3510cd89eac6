// Paged prefill: a ragged batch of requests with any number of new tokens over any prefix, causal, by
// mma.sync.
//
// A row is a token and a query head of a KV head's group (row = token * G + head), so a tile of 128 rows
// shares its keys among all G heads. An item is (128 rows, KV head); blocks take items from a counter, long
// ones first, or, where there are few, have even shares of all steps, with partial results merged by the
// block that ends last (prefill_plan.h). Four warps have 32 rows each; 64 keys a step go through two stages
// of shared memory; the copies of a step begin between the products of the one before (spec:
// paged-attention.md 3.9).
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
      : params_(params), p_(params.common), shared_(shared), base_(Opaque(SharedAddress(&shared))) {}

  // What shared_.work says.
  __device__ void Run() {
    if (threadIdx.x < 32) {
      if (threadIdx.x == 0) shared_.item.Locate(params_, shared_.work);
      __syncwarp();
      if (threadIdx.x < kPrefillThreads / 32)
        shared_.steps[threadIdx.x].Set(params_, shared_.item, threadIdx.x);
    }
    __syncthreads();
    const int steps = shared_.item.steps;
    KeyLoader<Traits> keys(p_, shared_, base_);
    QueryLoader<Traits>::Load(params_, shared_);
    CopyAsyncCommit();
    keys.Begin(0);
    keys.Note(0);
    __syncthreads();
    auto first = keys.BeginCopy(0, steps > 0);
    keys.Finish(first);
    CopyAsyncCommit();
    if constexpr (Traits::kFp8) {
      CopyAsyncWait<1>();
      QueryLoader<Traits>::Scale(p_, shared_);
      __syncthreads();
    }
    rows_.Begin();
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      CopyAsyncWait<0>();
      __syncthreads();  // this step's keys are here, and the last step's have been used
      if constexpr (Traits::kFp8) keys.Convert(step);
      if (step % 2 == 0) keys.Note(step + 2);
      if constexpr (Traits::kFp8) __syncthreads();
      const WarpSteps warp = Traits::Steps(base_);
      auto next = keys.BeginCopy(step + 1, step + 1 < steps);
      if (warp.Has(step)) {
        Compute(step, warp.IsOpen(step), next);
      } else {
        keys.Finish(next);
        CopyAsyncCommit();
      }
    }
    CopyAsyncWait<0>();
    PrefillEnd<Traits>(params_, shared_).Finish(rows_);
  }

 private:
  // `open`: no row's mask hides a key. `next`: copies to begin between the products.
  __device__ void Compute(int step, bool open, typename KeyLoader<Traits>::Copy& next) {
    float s[2][8][4];
    rows_.Scores(base_ + Traits::kQ, base_ + Traits::K(step), s, [&next](int i, int count) {
      const int each = count / KeyLoader<Traits>::kPasses;
      if (i % each == 0) KeyLoader<Traits>::Continue(next, i / each);
    });
    CopyAsyncCommit();
    if (shared_.item.scale < 0) rows_.Negate(s);
    const std::uint64_t live = Traits::Live(base_, step);
    if (!open || live != ~0ull) {
      rows_.Mask(shared_.item, params_, shared_.item.keys.begin + step * kPrefillKeys, live, s);
    }
    rows_.Softmax(shared_, s);
    rows_.Output(base_ + Traits::V(step), s);
  }

  const PrefillParams& params_;
  const DecodeParams& p_;
  typename Traits::Shared& shared_;
  const std::uint32_t base_;  // its address
  WarpRows<Traits> rows_;
};

template <typename Traits>
__global__ void __launch_bounds__(kPrefillThreads, 2)
    PrefillKernel(const __grid_constant__ PrefillParams params) {
  LLMD_DYNAMIC_SHARED(256, char, memory);
  auto& shared = *reinterpret_cast<typename Traits::Shared*>(memory);
  PlanHeader* header = params.common.workspace.header;
  PrefillTile<Traits> tile(params, shared);
  if (threadIdx.x == 0) shared.work.Begin(params);
  while (true) {
    __syncthreads();
    if (shared.work.tile < 0) break;
    tile.Run();
    __syncthreads();  // all are done with it
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
