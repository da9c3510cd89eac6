// Paged decode for one new token a request: MHA, GQA and MQA, split over keys, combined in the same kernel.
//
// A block of eight warps, one block a multiprocessor, walks its share of the plan (plan.h). Within a piece,
// each warp takes every eighth tile; or teams of warps take neighbouring heads, and the warps of a team
// the tiles. Each warp has a ring of stages in shared memory that it fills by cp.async on its own, across the
// ends of pieces, so there is no barrier in the main loop and loads never stop between pieces. The query
// heads of a group are the rows of the matrix products (16 x 8 x 16): S = Q K^T leaves P in the registers
// where P V wants it. At the end of a piece the warps' (m, l, o) are merged in shared memory; a cut item's
// part goes to the workspace, and the block with its last keys merges the parts in their order (spec:
// paged-attention.md 3.2, 3.3, 3.6).
#ifndef LLMD_CUDA_ATTENTION_DECODE_CUH_
#define LLMD_CUDA_ATTENTION_DECODE_CUH_

#include "cuda/attention/decode_end.cuh"
#include "cuda/attention/decode_load.cuh"
#include "cuda/common/device.cuh"

namespace llmd::cuda {

template <typename Traits, int D>
__global__ void __launch_bounds__(kDecodeThreads, 1) DecodeKernel(const __grid_constant__ DecodeParams p) {
  LLMD_DYNAMIC_SHARED(128, char, memory);
  auto& shared = *reinterpret_cast<typename Traits::Shared*>(memory);
  constexpr int kStages = Traits::kStages;
  const int warp = threadIdx.x / 32;
  PrefetchPages(p);
  // Asked for together, for latency; the header is needed only at the end.
  const PieceStart start = p.workspace.starts[blockIdx.x], end = p.workspace.starts[blockIdx.x + 1];
  const int empty = p.workspace.header->empty_rows, tokens = p.workspace.header->tokens;
  // The kernel after may start once nothing runs but this one: what it reads before it waits, a kernel two
  // before it may have written.
  const auto wait = [] {
    WaitForKernelBefore();
    AllowKernelAfter();
  };
  if (start.request < p.batch) {
    TileLoader<Traits> loader(p, shared, start, end);
    bool waited = !p.early_start;
#pragma unroll 1
    for (int stage = 0; stage < kStages; ++stage) {
      if (!waited && !loader.NextIsOld()) {
        wait();
        waited = true;
      }
      loader.Issue(stage);
      CopyAsyncCommit();
    }
    int use = 0;
    const std::uint32_t ring = SharedAddress(shared.ring[warp][0]);
    WarpState<Traits, D> state;
    PieceEnd<Traits, D> piece_end(p, shared);
    PieceWalk walk;
    walk.Begin(p, start, end);
    piece_end.SetTarget(walk, start, end);
    if (!waited) wait();
    state.LoadQuery(p, walk);
    bool more = true, only = true;
    const bool two_rows = p.group > 8;
    while (more) {
      state.Begin();
      const int tiles = walk.template Tiles<Traits>(p);
#pragma unroll 1
      for (int tile = 0; tile < tiles; ++tile) {
        CopyAsyncWait<kStages - 1>();
        __syncwarp();
        state.Add(ring + use * Traits::kStageBytes, shared.live[warp][use], two_rows);
        __syncwarp();  // the stage may be filled again
        loader.Issue(use);
        CopyAsyncCommit();
        use = use + 1 == kStages ? 0 : use + 1;
      }
      more = walk.Next(p, end);
      if (more) state.LoadQuery(p, walk);  // arrives while the piece is finished
      piece_end.Finish(state, two_rows);
      if (more) {
        piece_end.SetTarget(walk, start, end);
        only = false;
      }
    }
    CopyAsyncWait<0>();
    piece_end.MergeParts(start, end, only);
  } else if (p.early_start) {
    wait();
  }
  ZeroRows(p, empty, tokens);
}

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_DECODE_CUH_
