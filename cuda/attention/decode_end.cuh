// The end of a decode piece: the merge of a block's warps, and of an item's parts.
#ifndef LLMD_CUDA_ATTENTION_DECODE_END_CUH_
#define LLMD_CUDA_ATTENTION_DECODE_END_CUH_

#include "cuda/attention/decode_state.cuh"

namespace llmd::cuda {

// Where the results of a piece go, and the merge of parts.
template <typename Traits, int D>
class PieceEnd {
 public:
  __device__ PieceEnd(const DecodeParams& p, typename Traits::Shared& shared) : p_(p), shared_(shared) {}

  __device__ void Finish(WarpState<Traits, D>& state, const PieceWalk& walk, const PieceStart& start,
                         const PieceStart& end) {
    const int lane = threadIdx.x % 32, warp = Traits::Warp(), j = lane % 4;
    const int first_warp = Traits::TeamIndex() * Traits::kTeam;
    Locate(walk, start, end);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      state.sum[half] += __shfl_xor_sync(~0u, state.sum[half], 1);
      state.sum[half] += __shfl_xor_sync(~0u, state.sum[half], 2);
    }
    const float value_scale =
        Traits::kFp8 && p_.v_scale != nullptr ? __ldg(p_.v_scale + kv_head_ * p_.scale_stride) : 1;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (8 * half >= rows_) break;
      const int row = lane / 4 + 8 * half;
      Traits::TeamSync();  // what was there before has been read
#pragma unroll
      for (int i = 0; i < Traits::kColumns; ++i) {
        shared_.merge[first_warp + warp][i][lane] =
            make_float2(state.o[i][2 * half], state.o[i][2 * half + 1]);
      }
      if (j == 0) {
        shared_.max[first_warp + warp][row] = state.max[half];
        shared_.sum[first_warp + warp][row] = state.sum[half];
      }
      Traits::TeamSync();
      if (row < rows_) MergeWarps(row, warp, lane, value_scale);
    }
    if (parts_ > 1) Arrive();
  }

 private:
  __device__ void Locate(const PieceWalk& walk, const PieceStart& start, const PieceStart& end) {
    const int head = walk.template Head<Traits>(), first = head % p_.row_tiles * kRowTile;
    kv_head_ = head / p_.row_tiles;
    rows_ = min(kRowTile, p_.group - first);
    first_head_ = kv_head_ * p_.group + first;
    token_ = p_.q_start != nullptr ? p_.q_start[walk.request] : walk.request;
    std::int64_t slot;
    if (p_.fixed_split) {
      parts_ = walk.units;
      part_ = walk.unit;
      slot = UnitCount::Units(p_.workspace.units[walk.request]) + walk.head * walk.units;
      step_ = 0;
    } else {
      // Slot c: the part with which block c begins; slot grid + c: the first part of an item, with which c
      // ends.
      const int block = blockIdx.x;
      int first_block = block, last_block = block;
      if (walk.unit > 0) {
        first_block = start.first_block;
        last_block = start.last_block;
      } else if (walk.unit_end < walk.units) {
        last_block = end.last_block;
      }
      parts_ = last_block - first_block + 1;
      part_ = block - first_block;
      slot = p_.grid + first_block;
      step_ = -p_.grid * Traits::kTeams;
    }
    first_slot_ = slot * Traits::kTeams + Traits::TeamIndex();
  }
  __device__ std::int64_t Slot(int part) const {
    return first_slot_ + part * Traits::kTeams + (part > 0 ? step_ : 0);
  }

  __device__ void MergeWarps(int row, int warp, int lane, float value_scale) {
    const int first_warp = Traits::TeamIndex() * Traits::kTeam;
    float greatest = -INFINITY, sum = 0, weight[Traits::kTeam];
#pragma unroll
    for (int w = 0; w < Traits::kTeam; ++w) greatest = fmaxf(greatest, shared_.max[first_warp + w][row]);
    const float shift = greatest == -INFINITY ? 0 : greatest;
#pragma unroll
    for (int w = 0; w < Traits::kTeam; ++w) {
      weight[w] = Exp2(shared_.max[first_warp + w][row] - shift);
      sum += weight[w] * shared_.sum[first_warp + w][row];
    }
    const float inverse = sum > 0 ? value_scale / sum : 0;
    const float lse = sum > 0 ? greatest + Log2(sum) : -INFINITY;
    const int j = lane % 4;
    float factor = inverse;
    if (parts_ == 1) {
      factor *= FinishRow(row, lse, warp == 0 && j == 0);
    } else if (warp == 0 && j == 0) {
      p_.workspace.lse[Slot(part_) * kRowTile + row] = lse;
    }
#pragma unroll
    for (int i = 0; i < Traits::kColumns / Traits::kTeam; ++i) {
      const int tile = warp * (Traits::kColumns / Traits::kTeam) + i;
      float2 value = make_float2(0, 0);
#pragma unroll
      for (int w = 0; w < Traits::kTeam; ++w) {
        const float2 part = shared_.merge[first_warp + w][tile][lane];
        value.x += weight[w] * part.x;
        value.y += weight[w] * part.y;
      }
      const int d0 = Traits::Dimension(tile, j, 0), d1 = Traits::Dimension(tile, j, 1);
      if (parts_ == 1) {
        if constexpr (Traits::kFp8) {
          StoreOutput(p_, OutputAt(row) + d0, value.x * factor);
          StoreOutput(p_, OutputAt(row) + d1, value.y * factor);
        } else {
          StoreOutputPair(p_, OutputAt(row) + d0, value.x * factor, value.y * factor);
        }
      } else {
        float* partial = p_.workspace.partials + (Slot(part_) * kRowTile + row) * D;
        partial[d0] = value.x * factor;
        partial[d1] = value.y * factor;
      }
    }
  }

  // Adds the sink, writes the row's LSE if asked to, and returns what the row's values are to be multiplied
  // by.
  __device__ float FinishRow(int row, float lse, bool write) const {
    const float factor = AddSink(p_, first_head_ + row, lse);
    if (write && p_.lse != nullptr) {
      p_.lse[token_ * p_.lse_strides.token + (first_head_ + row) * p_.lse_strides.head] = lse * kLn2;
    }
    return factor;
  }

  __device__ std::int64_t OutputAt(int row) const {
    return token_ * p_.o_strides.token + (first_head_ + row) * p_.o_strides.head;
  }

  // Counts this part; the last of its group merges the group, and the last group's merger merges the groups.
  __device__ void Arrive() {
    const int group = MergeGroup(parts_), groups = CeilDivide(parts_, group);
    const int mine = part_ / group, first = mine * group;
    if (!Last(p_.workspace.counters + Slot(first), min(group, parts_ - first))) return;
    MergeParts(first, 1, min(group, parts_ - first), groups == 1);
    if (groups == 1) return;
    if (Last(p_.workspace.counters + p_.workspace.slots + Slot(0), groups))
      MergeParts(0, group, groups, true);
  }

  __device__ bool Last(unsigned* counter, int expected) {
    Traits::TeamSync();
    if (Traits::Thread() == 0) {
      const bool last = AddReleaseAcquire(counter, 1) == expected - 1;
      if (last) *counter = 0;  // ready for the next launch
      shared_.arrived_last[Traits::TeamIndex()] = last;
    }
    Traits::TeamSync();
    return shared_.arrived_last[Traits::TeamIndex()];
  }

  // Merges parts first, first + step, ... of the item, into the output or into the first of them. Eight at a
  // time, so that their loads are under way together.
  __device__ void MergeParts(int first, int step, int count, bool to_output) {
    constexpr int kQuads = D / 4, kBatch = 16;
    for (int i = Traits::Thread(); i < rows_ * kQuads; i += 32 * Traits::kTeam) {
      const int row = i / kQuads, quad = i % kQuads;
      float greatest = -INFINITY, sum = 0;
      float4 total = make_float4(0, 0, 0, 0);
#pragma unroll 1
      for (int begin = 0; begin < count; begin += kBatch) {
        float lse[kBatch];
        float4 value[kBatch];
#pragma unroll
        for (int n = 0; n < kBatch; ++n) {
          const int part = min(begin + n, count - 1);
          const std::int64_t at = Slot(first + part * step) * kRowTile + row;
          lse[n] = __ldcg(p_.workspace.lse + at);
          value[n] = __ldcg(reinterpret_cast<const float4*>(p_.workspace.partials + at * D) + quad);
        }
        float updated = greatest;
#pragma unroll
        for (int n = 0; n < kBatch; ++n) {
          if (begin + n >= count) lse[n] = -INFINITY;
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
          total.x += weight * value[n].x;
          total.y += weight * value[n].y;
          total.z += weight * value[n].z;
          total.w += weight * value[n].w;
        }
      }
      float factor = sum > 0 ? 1 / sum : 0;
      const float lse = sum > 0 ? greatest + Log2(sum) : -INFINITY;
      if (to_output) {
        factor *= FinishRow(row, lse, quad == 0);
        const std::int64_t at = OutputAt(row) + 4 * quad;
        StoreOutputPair(p_, at, total.x * factor, total.y * factor);
        StoreOutputPair(p_, at + 2, total.z * factor, total.w * factor);
      } else {
        const std::int64_t at = Slot(first) * kRowTile + row;
        total.x *= factor, total.y *= factor, total.z *= factor, total.w *= factor;
        reinterpret_cast<float4*>(p_.workspace.partials + at * D)[quad] = total;
        if (quad == 0) shared_.sum[Traits::TeamIndex() * Traits::kTeam][row] = lse;
      }
    }
    if (!to_output) {
      Traits::TeamSync();  // all have read the old one
      const int row = Traits::Thread();
      if (row < rows_) {
        p_.workspace.lse[Slot(first) * kRowTile + row] =
            shared_.sum[Traits::TeamIndex() * Traits::kTeam][row];
      }
    }
  }

  const DecodeParams& p_;
  typename Traits::Shared& shared_;
  int kv_head_, rows_, first_head_, parts_, part_;
  std::int64_t token_, first_slot_, step_;
};

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_DECODE_END_CUH_
