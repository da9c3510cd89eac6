// The end of a decode piece: the merge of a block's warps, and where the result goes.
#ifndef LLMD_CUDA_ATTENTION_DECODE_END_CUH_
#define LLMD_CUDA_ATTENTION_DECODE_END_CUH_

#include "cuda/attention/decode_parts.cuh"
#include "cuda/attention/decode_state.cuh"

namespace llmd::cuda {

template <typename Traits, int D>
class PieceEnd {
 public:
  __device__ PieceEnd(const DecodeParams& p, typename Traits::Shared& shared) : p_(p), shared_(shared) {}

  // Merges the warps of a team. A whole item goes to the output, a part of one to the workspace.
  __device__ void Finish(const WarpState<Traits, D>& state, const PieceWalk& walk, const PieceStart& start,
                         const PieceStart& end) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Locate(walk);
    const bool cut = walk.IsCut();
    if (cut) parts_.Locate(p_, walk, start, end);
    const float value_scale =
        Traits::kFp8 && p_.v_scale != nullptr ? __ldg(p_.v_scale + kv_head_ * p_.scale_stride) : 1;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (8 * half >= rows_) break;
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
      MergeRows(half, cut, value_scale);
      Traits::TeamSync();  // all has been read
    }
  }

  // After all pieces of the block: merges what ends with its parts. Unless the split is fixed, only the first
  // piece can be an item's end and not the whole of it.
  __device__ void MergeParts(const PieceStart& start, const PieceStart& end) {
    if (start.unit == 0 && !p_.fixed_split) return;
    PieceWalk walk;
    walk.Begin(p_, start, end);
    do {
      if (!walk.IsCut()) continue;
      Locate(walk);
      parts_.Locate(p_, walk, start, end);
      parts_.MergeUpTo(rows_, shared_, [this](int row, int four, float4 value, float lse) {
        StoreFour(row, four, value, FinishRow(row, lse, four == 0));
      });
    } while (p_.fixed_split && walk.Next(p_, end));
  }

 private:
  __device__ void Locate(const PieceWalk& walk) {
    int first_row;
    kv_head_ = walk.template KvHead<Traits>(p_, &first_row);
    rows_ = min(kRowTile, p_.group - first_row);
    first_head_ = kv_head_ * p_.group + first_row;
    token_ = p_.q_start != nullptr ? p_.q_start[walk.request] : walk.request;
  }

  // Of eight rows in shared memory. A thread takes four elements of a row at a time.
  __device__ void MergeRows(int half, bool cut, float value_scale) {
    constexpr int kFours = D / 4;
    const int first_warp = Traits::TeamIndex() * Traits::kTeam, rows = min(8, rows_ - 8 * half);
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
      const float factor = sum > 0 ? value_scale * Reciprocal(sum) : 0;
      const int row_of_item = row + 8 * half;
      if (cut) {
        if (four == 0) parts_.PublishLse(row_of_item, lse);
        value.x *= factor, value.y *= factor, value.z *= factor, value.w *= factor;
        parts_.Publish(row_of_item, four, value);
      } else {
        StoreFour(row_of_item, four, value, factor * FinishRow(row_of_item, lse, four == 0));
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

  // Elements at places 4 * four on of a row, times `factor`.
  __device__ void StoreFour(int row, int four, float4 value, float factor) const {
    const std::int64_t at = token_ * p_.o_strides.token + (first_head_ + row) * p_.o_strides.head;
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
  ItemParts<Traits, D> parts_;
  int kv_head_, rows_, first_head_;
  std::int64_t token_;
};

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_DECODE_END_CUH_
