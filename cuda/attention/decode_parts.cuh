// The parts of cut items, from the blocks that make them to the one that merges them.
//
// Four elements of a part are published at once, the last complemented, so that zero says "not there yet";
// the one float with the complement zero, a NaN with all bits set, is published as another NaN. Whoever
// merges polls them, so that nobody needs a fence or a counter, and puts the zeros back for the next launch.
// A block waits only for blocks before it, which the device starts first.
#ifndef LLMD_CUDA_ATTENTION_DECODE_PARTS_CUH_
#define LLMD_CUDA_ATTENTION_DECODE_PARTS_CUH_

#include "cuda/attention/decode_traits.cuh"

namespace llmd::cuda {

__device__ __forceinline__ std::uint32_t ToWord(float value) { return max(~__float_as_uint(value), 1u); }
__device__ __forceinline__ float FromWord(std::uint32_t word) { return __uint_as_float(~word); }

// Four elements of a row from some of an item's parts: their softmax so far, base 2.
struct PartialRow {
  float greatest = -INFINITY, sum = 0;
  float4 total = {0, 0, 0, 0};

  __device__ void Rescale(float to) {
    const float old = Exp2(greatest - (to == -INFINITY ? 0 : to));
    greatest = to;
    sum *= old;
    total.x *= old, total.y *= old, total.z *= old, total.w *= old;
  }
  __device__ float Weight(float lse) const { return Exp2(lse - (greatest == -INFINITY ? 0 : greatest)); }
  __device__ void Add(float weight, float4 value) {
    total.x += weight * value.x, total.y += weight * value.y;
    total.z += weight * value.z, total.w += weight * value.w;
  }
};

// The parts of one item of the calling team.
template <typename Traits, int D>
class ItemParts {
 public:
  __device__ explicit ItemParts(const PieceTarget& target) : target_(target) {}

  // Sets what `target` says of the parts of the piece at `walk`, which is cut.
  __device__ static void Locate(const DecodeParams& p, const PieceWalk& walk, const PieceStart& start,
                                const PieceStart& end, PieceTarget& target) {
    std::int64_t place, own, first;
    if (p.fixed_split) {
      target.count = walk.units;
      target.part = walk.unit;
      first = place = UnitCount::Units(p.workspace.units[walk.request]) + walk.head * walk.units;
      own = place + walk.unit;
    } else {
      // Place c: the part with which block c begins. Place grid + c: the first part of an item, with which c
      // ends.
      const int block = blockIdx.x, first_block = walk.unit > 0 ? start.first_block : block;
      target.count = (walk.unit > 0 ? start.last_block : end.last_block) - first_block + 1;
      target.part = block - first_block;
      place = first_block;
      first = p.grid + first_block;
      own = target.part > 0 ? block : first;
    }
    target.own = SlotAt(p, own * Traits::kTeams + Traits::TeamIndex());
    target.first = SlotAt(p, first * Traits::kTeams + Traits::TeamIndex());
    target.rest = SlotAt(p, (place + 1) * Traits::kTeams + Traits::TeamIndex());
    target.groups = SlotAt(p, p.workspace.slots + GroupPlace(place) * Traits::kTeams + Traits::TeamIndex());
  }

  __device__ void PublishLse(int row, float lse) const { PublishWord(target_.own.lse + row, ToWord(lse)); }
  // Elements 4 * four to 4 * four + 3 of a row.
  __device__ void Publish(int row, int four, float4 value) const { Put(target_.own, row, four, value); }

  // Merges what ends with this part: its group, and the item. `store(row, four, value, lse)` takes an item's
  // results, normalized. To be called when the block has made its parts, as other blocks may be waited for.
  template <typename Store>
  __device__ void MergeUpTo(int rows, typename Traits::Shared& shared, const Store& store) const {
    const int part = target_.part, parts = target_.count, group = MergeGroup(parts, rows);
    const bool last = part == parts - 1, grouped = group < parts;
    const int mine = grouped ? part / group : 0;
    if (!last && (!grouped || part != mine * group + group - 1)) return;
    int count = part + 1 - mine * group;
    PartSlot first = target_.first, rest = target_.rest;
    if (mine > 0) {
      first = Next(rest, mine * group - 1);
      rest = Next(first, 1);
    }
    // The group, then the groups; one loop, so that the code of a merge is there once.
#pragma unroll 1
    for (bool of_parts = grouped;; of_parts = false) {
      Merge(first, rest, count, rows, shared, [&](int row, int four, float4 value, float lse) {
        if (!of_parts) return store(row, four, value, lse);
        const PartSlot to = Next(target_.groups, mine);
        Put(to, row, four, value);
        if (four == 0) PublishWord(to.lse + row, ToWord(lse));
      });
      if (!of_parts || !last) return;
      count = CeilDivide(parts, group);
      first = target_.groups;
      rest = Next(first, 1);
    }
  }

 private:
  static constexpr int kFours = D / 4;  // threads of a row

  __device__ static PartSlot SlotAt(const DecodeParams& p, std::int64_t slot) {
    return {p.workspace.part_lse + slot * kRowTile, p.workspace.part_o + slot * (kRowTile * D)};
  }
  __device__ static PartSlot Next(const PartSlot& slot, int n) {
    const int step = n * Traits::kTeams;
    return {slot.lse + step * kRowTile, slot.o + static_cast<std::int64_t>(step) * (kRowTile * D)};
  }
  __device__ static void Put(const PartSlot& to, int row, int four, float4 value) {
    PublishFour(to.o + row * D + 4 * four, uint4{__float_as_uint(value.x), __float_as_uint(value.y),
                                                 __float_as_uint(value.z), ToWord(value.w)});
  }

  // Merges `count` parts, at `first` and from `rest` on. A thread has four elements of a row; where rows are
  // few, several threads share their parts.
  template <typename Store>
  __device__ void Merge(const PartSlot& first, const PartSlot& rest, int count, int rows,
                        typename Traits::Shared& shared, const Store& store) const {
    constexpr int kUnits = 32 * Traits::kTeam / kFours;
    const int four = Traits::Thread() % kFours, unit = Traits::Thread() / kFours;
    int splits = kUnits;  // a power of two
    while (splits > 1 && splits * rows > kUnits) splits /= 2;
    const int split = unit % splits;
#pragma unroll 1
    for (int begin = 0; begin < rows; begin += kUnits / splits) {
      const int row = begin + unit / splits;
      PartialRow sum;
      if (row < rows) sum = Gather(first, rest, count, row, four, split, splits);
      if (splits > 1) {  // then there is one round
        auto* totals = reinterpret_cast<float4*>(shared.merge[Traits::TeamIndex() * Traits::kTeam]);
        auto* sums = reinterpret_cast<float2*>(totals + 32 * Traits::kTeam);
        totals[Traits::Thread()] = sum.total;
        sums[Traits::Thread()] = make_float2(sum.greatest, sum.sum);
        Traits::TeamSync();
        if (split > 0) continue;
#pragma unroll 1
        for (int other = 1; other < splits; ++other) {
          const int at = Traits::Thread() + other * kFours;
          const float2 of = sums[at];
          sum.Rescale(fmaxf(sum.greatest, of.x));
          const float weight = sum.Weight(of.x);
          sum.sum += weight * of.y;
          sum.Add(weight, totals[at]);
        }
      }
      if (row >= rows) continue;
      const float factor = sum.sum > 0 ? Reciprocal(sum.sum) : 0;
      sum.total.x *= factor, sum.total.y *= factor, sum.total.z *= factor, sum.total.w *= factor;
      store(row, four, sum.total, sum.sum > 0 ? sum.greatest + Log2(sum.sum) : -INFINITY);
    }
    Traits::TeamSync();  // shared memory may be used again
  }

  // Waits for every `splits`-th part from `split` on and takes their values away.
  __device__ PartialRow Gather(const PartSlot& first, const PartSlot& rest, int count, int row, int four,
                               int split, int splits) const {
    constexpr int kBatch = 8;  // whose loads are under way together
    PartialRow sum;
#pragma unroll 1
    for (int begin = split; begin < count; begin += kBatch * splits) {
      std::uint32_t *lse_at[kBatch], *o_at[kBatch];
      std::uint32_t lse[kBatch];
      uint4 words[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int n = begin + b * splits;
        const PartSlot slot = n == 0 ? first : Next(rest, n - 1);
        lse_at[b] = slot.lse + row;
        o_at[b] = slot.o + row * D + 4 * four;
      }
      bool there;
      do {
        there = true;
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          lse[b] = ToWord(-INFINITY);
          words[b] = uint4{0, 0, 0, ~0u};
          if (begin + b * splits < count) {
            lse[b] = ReadPublishedWord(lse_at[b]);
            words[b] = ReadPublishedFour(o_at[b]);
          }
        }
#pragma unroll
        for (int b = 0; b < kBatch; ++b) there = there && lse[b] != 0 && words[b].w != 0;
      } while (!there);
      SyncRow();  // all have read the LSEs
      float greatest = sum.greatest;
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        greatest = fmaxf(greatest, FromWord(lse[b]));
        if (begin + b * splits < count) {
          PublishWord(o_at[b] + 3, 0);
          if (four == 0) PublishWord(lse_at[b], 0);
        }
      }
      sum.Rescale(greatest);
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const float weight = sum.Weight(FromWord(lse[b]));
        sum.sum += weight;
        sum.Add(weight, make_float4(__uint_as_float(words[b].x), __uint_as_float(words[b].y),
                                    __uint_as_float(words[b].z), FromWord(words[b].w)));
      }
    }
    return sum;
  }

  // The threads of a row are a warp, or half of one.
  __device__ static void SyncRow() {
    const std::uint32_t row = kFours == 32 ? ~0u : 0xFFFFu << (threadIdx.x % 32 / kFours * kFours);
    __syncwarp(row);
  }

  const PieceTarget& target_;
};

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_DECODE_PARTS_CUH_
