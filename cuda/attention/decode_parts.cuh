// The parts of cut items, from the blocks that make them to the one that merges them.
//
// A word of a part is published complemented, so that zero says "not there yet"; the one float with the
// complement zero, a NaN with all bits set, is published as another NaN. Whoever merges polls the words
// themselves, so that nobody needs a fence or a counter, and puts the zeros back for the next launch. A block
// waits only for blocks before it, which the device starts first.
#ifndef LLMD_CUDA_ATTENTION_DECODE_PARTS_CUH_
#define LLMD_CUDA_ATTENTION_DECODE_PARTS_CUH_

#include "cuda/attention/decode_traits.cuh"

namespace llmd::cuda {

__device__ __forceinline__ std::uint32_t ToWord(float value) { return max(~__float_as_uint(value), 1u); }
__device__ __forceinline__ float FromWord(std::uint32_t word) { return __uint_as_float(~word); }

// The parts of one item of the calling team.
template <typename Traits, int D>
class ItemParts {
 public:
  // The piece at `walk` is part() of count(); a part each where nothing is cut.
  __device__ void Locate(const DecodeParams& p, const PieceWalk& walk, const PieceStart& start,
                         const PieceStart& end) {
    workspace_ = &p.workspace;
    std::int64_t place;
    if (p.fixed_split) {
      count_ = walk.units;
      part_ = walk.unit;
      place = UnitCount::Units(p.workspace.units[walk.request]) + walk.head * walk.units;
      first_slot_ = place * Traits::kTeams + Traits::TeamIndex();
      step_ = 0;
    } else {
      // Place c: the part with which block c begins; place grid + c: the first part of an item, with which c
      // ends.
      const int block = blockIdx.x;
      int first_block = block, last_block = block;
      if (walk.unit > 0) {
        first_block = start.first_block;
        last_block = start.last_block;
      } else if (walk.unit_end < walk.units) {
        last_block = end.last_block;
      }
      count_ = last_block - first_block + 1;
      part_ = block - first_block;
      place = first_block;
      first_slot_ = (p.grid + place) * Traits::kTeams + Traits::TeamIndex();
      step_ = -p.grid * Traits::kTeams;
    }
    first_group_slot_ = p.workspace.slots + GroupPlace(place) * Traits::kTeams + Traits::TeamIndex();
  }

  __device__ int count() const { return count_; }
  __device__ int part() const { return part_; }

  __device__ void PublishLse(int row, float lse) const {
    PublishWord(workspace_->part_lse + Slot(part_) * kRowTile + row, ToWord(lse));
  }
  __device__ void Publish(int row, int d0, int d1, float2 value) const {
    std::uint32_t* to = workspace_->part_o + (Slot(part_) * kRowTile + row) * D;
    if constexpr (Traits::kFp8) {
      PublishWord(to + d0, ToWord(value.x));
      PublishWord(to + d1, ToWord(value.y));
    } else {  // d1 is d0 + 1
      PublishWords(to + d0, uint2{ToWord(value.x), ToWord(value.y)});
    }
  }

  // Merges what ends with this part: its group, and the item. `store(row, quad, value, lse)` takes an item's
  // results, normalized. To be called when the block has made its parts, as other blocks may be waited for.
  template <typename Store>
  __device__ void MergeUpTo(int rows, const Store& store) const {
    const int group = MergeGroup(count_), groups = CeilDivide(count_, group), mine = part_ / group;
    const bool last = part_ == count_ - 1;
    if (!last && part_ != mine * group + group - 1) return;
    Slots from{Slot(mine * group), mine == 0 ? step_ : 0};
    int count = part_ + 1 - mine * group;
    // The group, then the groups; one loop, so that the code of a merge is there once.
#pragma unroll 1
    for (std::int64_t to = groups > 1 ? GroupSlot(mine) : -1;; to = -1) {
      Merge(from, count, rows, [&](int row, int quad, float4 value, float lse) {
        if (to < 0) {
          store(row, quad, value, lse);
          return;
        }
        const std::int64_t at = to * kRowTile + row;
        PublishWords(workspace_->part_o + at * D + 4 * quad,
                     uint4{ToWord(value.x), ToWord(value.y), ToWord(value.z), ToWord(value.w)});
        if (quad == 0) PublishWord(workspace_->part_lse + at, ToWord(lse));
      });
      if (to < 0 || !last) return;
      from = {GroupSlot(0), 0};
      count = groups;
    }
  }

 private:
  // Slots whose contents are merged.
  struct Slots {
    std::int64_t first, step;
    __device__ std::int64_t At(int n) const { return first + n * Traits::kTeams + (n > 0 ? step : 0); }
  };

  __device__ std::int64_t Slot(int part) const { return Slots{first_slot_, step_}.At(part); }
  __device__ std::int64_t GroupSlot(int group) const { return first_group_slot_ + group * Traits::kTeams; }

  // In the order of the slots. Their loads are under way together, kBatch at a time.
  template <typename Store>
  __device__ void Merge(const Slots& from, int count, int rows, const Store& store) const {
    constexpr int kQuads = D / 4, kBatch = 20, kThreads = 32 * Traits::kTeam;
    for (int i = Traits::Thread(); i < rows * kQuads; i += kThreads) {
      const int row = i / kQuads, quad = i % kQuads;
      float greatest = -INFINITY, sum = 0;
      float4 total = make_float4(0, 0, 0, 0);
#pragma unroll 1
      for (int begin = 0; begin < count; begin += kBatch) {
        std::uint32_t lse_word[kBatch];
        uint4 words[kBatch];
        Await(from, begin, count, row, quad, lse_word, words);
        float lse[kBatch], updated = greatest;
#pragma unroll
        for (int n = 0; n < kBatch; ++n) {
          lse[n] = FromWord(lse_word[n]);
          updated = fmaxf(updated, lse[n]);
        }
        const float shift = updated == -INFINITY ? 0 : updated, old = Exp2(greatest - shift);
        greatest = updated;
        sum *= old;
        total.x *= old, total.y *= old, total.z *= old, total.w *= old;
#pragma unroll
        for (int n = 0; n < kBatch; ++n) {
          const float weight = Exp2(lse[n] - shift);
          sum += weight;
          total.x += weight * FromWord(words[n].x);
          total.y += weight * FromWord(words[n].y);
          total.z += weight * FromWord(words[n].z);
          total.w += weight * FromWord(words[n].w);
        }
      }
      const float factor = sum > 0 ? 1 / sum : 0;
      total.x *= factor, total.y *= factor, total.z *= factor, total.w *= factor;
      store(row, quad, total, sum > 0 ? greatest + Log2(sum) : -INFINITY);
    }
    Traits::TeamSync();  // all have read the LSEs
    for (int i = Traits::Thread(); i < count * kRowTile; i += kThreads) {
      const int row = i % kRowTile;
      if (row < rows) PublishWord(workspace_->part_lse + from.At(i / kRowTile) * kRowTile + row, 0);
    }
  }

  // Reads the parts from `begin` on until all are there, and takes their values away. Those past `count` are
  // empty.
  template <int kBatch>
  __device__ void Await(const Slots& from, int begin, int count, int row, int quad,
                        std::uint32_t (&lse)[kBatch], uint4 (&words)[kBatch]) const {
    bool there;
    do {
#pragma unroll
      for (int n = 0; n < kBatch; ++n) {
        lse[n] = ToWord(-INFINITY);
        words[n] = uint4{~0u, ~0u, ~0u, ~0u};
        const bool live = begin + n < count;
        const std::int64_t at = from.At(begin + n) * kRowTile + row;
        ReadPublishedWord(lse[n], workspace_->part_lse + at, live);
        ReadPublishedWords(words[n], workspace_->part_o + at * D + 4 * quad, live);
      }
      there = true;
#pragma unroll
      for (int n = 0; n < kBatch; ++n) {
        there =
            there && lse[n] != 0 && words[n].x != 0 && words[n].y != 0 && words[n].z != 0 && words[n].w != 0;
      }
    } while (!there);
#pragma unroll
    for (int n = 0; n < kBatch; ++n) {
      if (begin + n >= count) break;
      PublishWords(workspace_->part_o + (from.At(begin + n) * kRowTile + row) * D + 4 * quad,
                   uint4{0, 0, 0, 0});
    }
  }

  const Workspace* workspace_;
  int count_, part_;
  std::int64_t first_slot_, step_, first_group_slot_;
};

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_DECODE_PARTS_CUH_
