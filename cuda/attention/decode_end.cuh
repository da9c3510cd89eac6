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
  }

  // After all pieces of the block: merges what ends with its parts. Unless the split is fixed, only the first
  // piece can be an item's end and not the whole of it.
  __device__ void MergeParts(const PieceStart& start, const PieceStart& end) {
    if (start.unit == 0 && !p_.fixed_split) return;
    PieceWalk walk;
    walk.Begin(p_, start, end);
    do {
      Locate(walk, start, end);
      if (parts_.count() == 1) continue;
      parts_.MergeUpTo(rows_, [this](int row, int quad, float4 value, float lse) {
        const float factor = FinishRow(row, lse, quad == 0);
        const std::int64_t at = OutputAt(row) + 4 * quad;
        StoreOutputPair(p_, at, value.x * factor, value.y * factor);
        StoreOutputPair(p_, at + 2, value.z * factor, value.w * factor);
      });
    } while (p_.fixed_split && walk.Next(p_, end));
  }

 private:
  __device__ void Locate(const PieceWalk& walk, const PieceStart& start, const PieceStart& end) {
    const int head = walk.template Head<Traits>(), first = head % p_.row_tiles * kRowTile;
    kv_head_ = head / p_.row_tiles;
    rows_ = min(kRowTile, p_.group - first);
    first_head_ = kv_head_ * p_.group + first;
    token_ = p_.q_start != nullptr ? p_.q_start[walk.request] : walk.request;
    parts_.Locate(p_, walk, start, end);
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
    float factor = sum > 0 ? value_scale / sum : 0;
    const float lse = sum > 0 ? greatest + Log2(sum) : -INFINITY;
    const int j = lane % 4;
    const bool cut = parts_.count() > 1, first = warp == 0 && j == 0;
    if (!cut) {
      factor *= FinishRow(row, lse, first);
    } else if (first) {
      parts_.PublishLse(row, lse);
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
      value.x *= factor;
      value.y *= factor;
      const int d0 = Traits::Dimension(tile, j, 0), d1 = Traits::Dimension(tile, j, 1);
      if (cut) {
        parts_.Publish(row, d0, d1, value);
      } else if constexpr (Traits::kFp8) {
        StoreOutput(p_, OutputAt(row) + d0, value.x);
        StoreOutput(p_, OutputAt(row) + d1, value.y);
      } else {
        StoreOutputPair(p_, OutputAt(row) + d0, value.x, value.y);
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

  const DecodeParams& p_;
  typename Traits::Shared& shared_;
  ItemParts<Traits, D> parts_;
  int kv_head_, rows_, first_head_;
  std::int64_t token_;
};

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_DECODE_END_CUH_
