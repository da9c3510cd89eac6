// The parts of cut items, from the blocks that make them to the one that merges them.
//
// A word of a part is published complemented, so that zero says "not there yet"; the one float with the
// complement zero, a NaN with all bits set, is published as another NaN. Whoever merges polls the words
// themselves, so that nobody needs a fence or a counter, and puts the zeros back for the next launch. A block
// waits only for blocks before it, which the device starts first.
#ifndef LLMD_CUDA_ATTENTION_DECODE_PARTS_CUH_
#define LLMD_CUDA_ATTENTION_DECODE_PARTS_CUH_

#include "cuda/attention/decode_state.cuh"

namespace llmd::cuda {

__device__ __forceinline__ std::uint32_t ToWord(float value) { return max(~__float_as_uint(value), 1u); }
__device__ __forceinline__ float FromWord(std::uint32_t word) { return __uint_as_float(~word); }

// The parts of one item of the calling team. A part's output lies as lanes hold it: [rows 0-7, 8-15][pair of
// column tiles][lane][4].
template <typename Traits, int D>
class ItemParts {
 public:
  // Those of the piece at `walk`, which is cut.
  __device__ void Locate(const DecodeParams& p, const PieceWalk& walk, const PieceStart& start,
                         const PieceStart& end) {
    std::int64_t first;
    if (p.fixed_split) {
      count_ = walk.units;
      part_ = walk.unit;
      first = UnitCount::Units(p.workspace.units[walk.request]) + walk.head * walk.units;
      step_ = 0;
    } else {
      // Slot c: the part with which block c begins. Slot grid + c: the first part of an item, with which c ends.
      const int block = blockIdx.x, first_block = walk.unit > 0 ? start.first_block : block;
      count_ = (walk.unit > 0 ? start.last_block : end.last_block) - first_block + 1;
      part_ = block - first_block;
      first = p.grid + first_block;
      step_ = -p.grid;
    }
    const std::int64_t slot = first * Traits::kTeams + Traits::TeamIndex();
    lse_ = p.workspace.part_lse + slot * kRowTile;
    o_ = p.workspace.part_o + slot * kWords + threadIdx.x % 32 * 4;
  }

  // `row`: lane / 4 + 8 * half.
  __device__ void PublishLse(int row, float lse) const {
    PublishWord(lse_ + Slot(part_) * kRowTile + row, ToWord(lse));
  }
  // The lane's values of a column tile.
  __device__ void Publish(int half, int tile, float2 value) const {
    PublishWords(o_ + Slot(part_) * kWords + Pair(half, tile / 2) + tile % 2 * 2,
                 uint2{ToWord(value.x), ToWord(value.y)});
  }

  // Adds the parts to the warps' states, each warp every kTeam-th, and takes them away. Waits for other blocks:
  // to be called when the block has published its own.
  __device__ void AddTo(WarpState<Traits, D>& state, int rows) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (8 * half >= rows) break;
#pragma unroll 1
      for (int n = Traits::Warp(); n < count_; n += kBatch * Traits::kTeam) AddBatch(state, rows, half, n);
    }
  }

 private:
  static constexpr int kWords = kRowTile * D;
  static constexpr int kPairs = Traits::kColumns / 2;
  static constexpr int kBatch = 3;  // whose loads are under way together

  __device__ static int Pair(int half, int pair) { return (half * kPairs + pair) * 128; }
  // From the first part's.
  __device__ std::int64_t Slot(int part) const {
    return (part > 0 ? part + step_ : 0) * static_cast<std::int64_t>(Traits::kTeams);
  }

  __device__ void AddBatch(WarpState<Traits, D>& state, int rows, int half, int first) const {
    const int lane = threadIdx.x % 32, row = lane / 4 + 8 * half;
    std::uint32_t lse[kBatch];
    uint4 words[kBatch][kPairs];
    bool there;
    do {
      there = true;
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int n = first + b * Traits::kTeam;
        const bool live = n < count_ && row < rows;
        const std::int64_t slot = Slot(n);
        lse[b] = ToWord(-INFINITY);
        ReadPublishedWord(lse[b], lse_ + slot * kRowTile + row, live);
#pragma unroll
        for (int i = 0; i < kPairs; ++i) {
          words[b][i] = uint4{~0u, ~0u, ~0u, ~0u};
          ReadPublishedWords(words[b][i], o_ + slot * kWords + Pair(half, i), live);
        }
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        there = there && lse[b] != 0;
#pragma unroll
        for (int i = 0; i < kPairs; ++i) {
          const uint4& word = words[b][i];
          there = there && word.x != 0 && word.y != 0 && word.z != 0 && word.w != 0;
        }
      }
    } while (!there);
    __syncwarp();  // all lanes have read the LSEs
    float greatest = state.max[half], value[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int n = first + b * Traits::kTeam;
      if (n < count_ && row < rows) {
        const std::int64_t slot = Slot(n);
        if (lane % 4 == 0) PublishWord(lse_ + slot * kRowTile + row, 0);
#pragma unroll
        for (int i = 0; i < kPairs; ++i) {
          PublishWords(o_ + slot * kWords + Pair(half, i), uint4{0, 0, 0, 0});
        }
      }
      value[b] = FromWord(lse[b]);
      greatest = fmaxf(greatest, value[b]);
    }
    const float shift = greatest == -INFINITY ? 0 : greatest, old = Exp2(state.max[half] - shift);
    state.max[half] = greatest;
    state.sum[half] *= old;
#pragma unroll
    for (int i = 0; i < Traits::kColumns; ++i) {
      state.o[i][2 * half] *= old;
      state.o[i][2 * half + 1] *= old;
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const float weight = Exp2(value[b] - shift);
      if (lane % 4 == 0) state.sum[half] += weight;  // of a row's four lanes, which are added up
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        state.o[2 * i][2 * half] += weight * FromWord(words[b][i].x);
        state.o[2 * i][2 * half + 1] += weight * FromWord(words[b][i].y);
        state.o[2 * i + 1][2 * half] += weight * FromWord(words[b][i].z);
        state.o[2 * i + 1][2 * half + 1] += weight * FromWord(words[b][i].w);
      }
    }
  }

  int count_, part_, step_;
  std::uint32_t* lse_;  // of the first part
  std::uint32_t* o_;    // and the lane's words of it
};

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_DECODE_PARTS_CUH_
