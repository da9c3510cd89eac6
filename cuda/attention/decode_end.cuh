// The end of a decode piece: the merge of a block's warps, and where the result goes.
#ifndef LLMD_CUDA_ATTENTION_DECODE_END_CUH_
#define LLMD_CUDA_ATTENTION_DECODE_END_CUH_

#include "cuda/attention/decode_parts.cuh"
#include "cuda/attention/decode_state.cuh"

namespace llmd::cuda {

template <typename Traits, int D>
class PieceEnd {
 public:
  __device__ PieceEnd(const DecodeParams& p, typename Traits::Shared& shared)
      : p_(p), shared_(shared), target_(shared.target[Traits::TeamIndex()]) {}

  // Works out where the result of the piece at `walk` goes: by one thread, while the piece's keys are on
  // their way. A barrier of the team must lie before and after; Finish() has them.
  __device__ void SetTarget(const PieceWalk& walk, const PieceStart& start, const PieceStart& end) {
    if (Traits::Thread() != 0) return;
    int first_row;
    const int kv_head = walk.template KvHead<Traits>(p_, &first_row);
    const std::int64_t token = p_.q_start != nullptr ? p_.q_start[walk.request] : walk.request;
    target_.rows = min(kRowTile, p_.group - first_row);
    target_.first_head = kv_head * p_.group + first_row;
    target_.o = token * p_.o_strides.token + target_.first_head * p_.o_strides.head;
    target_.lse = token * p_.lse_strides.token + target_.first_head * p_.lse_strides.head;
    target_.value_scale =
        Traits::kFp8 && p_.v_scale != nullptr ? __ldg(p_.v_scale + kv_head * p_.scale_stride) : 1;
    target_.part = 0;
    target_.count = 1;
    if (walk.unit > 0 || walk.unit_end < walk.units) {
      ItemParts<Traits, D>::Locate(p_, walk, start, end, target_);
    }
  }

  // Merges the warps of a team. A whole item goes to the output, a part of one to the workspace.
  // `two_rows` a lane, as where the softmax was taken: there may be more than eight.
  __device__ void Finish(const WarpState<Traits, D>& state, bool two_rows) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (half == 1 && !two_rows) break;
      float sum = state.sum[half];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
#pragma unroll
      for (int i = 0; i < Traits::kColumns; ++i) {
        *reinterpret_cast<float2*>(&shared_.merge[warp][Traits::Merged(lane / 4, 4 * i + lane % 4)]) =
            make_float2(state.o[i][2 * half], state.o[i][2 * half + 1]);
      }
      if (lane % 4 == 0) shared_.max_and_sum[warp][lane / 4] = make_float2(state.max[half], sum);
      Traits::TeamSync();
      MergeRows(half);
      Traits::TeamSync();  // all has been read
    }
  }

  // After all pieces of the block: merges what ends with its parts, groups and items. Unless the split is
  // fixed, only the first piece can end one. `only`: the block had no other piece, so that its target is
  // still set.
  __device__ void MergeParts(const PieceStart& start, const PieceStart& end, bool only) {
    if (start.unit == 0 && !p_.fixed_split) return;
    if (only) {
      MergeTarget();
      return;
    }
    PieceWalk walk;
    walk.Begin(p_, start, end);
    do {
      SetTarget(walk, start, end);
      Traits::TeamSync();
      MergeTarget();
      Traits::TeamSync();
    } while (p_.fixed_split && walk.Next(p_, end));
  }

 private:
  __device__ void MergeTarget() {
    if (target_.count == 1) return;
    ItemParts<Traits, D>(target_).MergeUpTo(target_.rows, shared_,
                                            [this](int row, int four, float4 value, float lse) {
                                              StoreFour(row, four, value, FinishRow(row, lse, four == 0));
                                            });
  }

  // Of eight rows in shared memory. A thread takes four elements of a row at a time.
  __device__ void MergeRows(int half) {
    constexpr int kFours = D / 4;
    const int first_warp = Traits::TeamIndex() * Traits::kTeam, rows = min(8, target_.rows - 8 * half);
    const bool cut = target_.count > 1;
#pragma unroll 1
    for (int i = Traits::Thread(); i < rows * kFours; i += 32 * Traits::kTeam) {
      const int row = i / kFours, four = i % kFours;
      float2 state[Traits::kTeam];  // the maximum, the sum
      float greatest = -INFINITY, sum = 0;
#pragma unroll
      for (int w = 0; w < Traits::kTeam; ++w) {
        state[w] = shared_.max_and_sum[first_warp + w][row];
        greatest = fmaxf(greatest, state[w].x);
      }
      const float shift = greatest == -INFINITY ? 0 : greatest;
      float4 value = make_float4(0, 0, 0, 0);
#pragma unroll
      for (int w = 0; w < Traits::kTeam; ++w) {
        const float weight = Exp2(state[w].x - shift);
        sum += weight * state[w].y;
        const float4 part =
            *reinterpret_cast<const float4*>(&shared_.merge[first_warp + w][Traits::Merged(row, 2 * four)]);
        value.x += weight * part.x, value.y += weight * part.y;
        value.z += weight * part.z, value.w += weight * part.w;
      }
      const float lse = sum > 0 ? greatest + Log2(sum) : -INFINITY;
      const float factor = sum > 0 ? target_.value_scale * Reciprocal(sum) : 0;
      const int row_of_item = row + 8 * half;
      if (cut) {
        const ItemParts<Traits, D> parts(target_);
        if (four == 0) parts.PublishLse(row_of_item, lse);
        value.x *= factor, value.y *= factor, value.z *= factor, value.w *= factor;
        parts.Publish(row_of_item, four, value);
      } else {
        StoreFour(row_of_item, four, value, factor * FinishRow(row_of_item, lse, four == 0));
      }
    }
  }

  // Adds the sink, writes the row's LSE if asked to, and returns what the row's values are to be multiplied
  // by.
  __device__ float FinishRow(int row, float lse, bool write) const {
    const float factor = AddSink(p_, target_.first_head + row, lse);
    if (write && p_.lse != nullptr) p_.lse[target_.lse + row * p_.lse_strides.head] = lse * kLn2;
    return factor;
  }

  // Elements at places 4 * four on of a row, times `factor`.
  __device__ void StoreFour(int row, int four, float4 value, float factor) const {
    const std::int64_t at = target_.o + row * p_.o_strides.head;
    if constexpr (Traits::kFp8) {
      StoreOutput(p_, at + Traits::Dimension(4 * four), value.x * factor);
      StoreOutput(p_, at + Traits::Dimension(4 * four + 1), value.y * factor);
      StoreOutput(p_, at + Traits::Dimension(4 * four + 2), value.z * factor);
      StoreOutput(p_, at + Traits::Dimension(4 * four + 3), value.w * factor);
    } else {
      StoreOutputPair(p_, at + 4 * four, value.x * factor, value.y * factor);
      StoreOutputPair(p_, at + 4 * four + 2, value.z * factor, value.w * factor);
    }
  }

  const DecodeParams& p_;
  typename Traits::Shared& shared_;
  PieceTarget& target_;
};

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_DECODE_END_CUH_
