// The end of a decode piece: the merge of a block's warps, and where the result goes.
#ifndef LLMD_CUDA_ATTENTION_DECODE_END_CUH_
#define LLMD_CUDA_ATTENTION_DECODE_END_CUH_

#include "cuda/attention/decode_parts.cuh"

namespace llmd::cuda {

template <typename Traits, int D>
class PieceEnd {
 public:
  __device__ PieceEnd(const DecodeParams& p, typename Traits::Shared& shared) : p_(p), shared_(shared) {}

  // Merges the warps of a team. A whole item goes to the output, a part of one to the workspace.
  __device__ void Finish(WarpState<Traits, D>& state, const PieceWalk& walk, const PieceStart& start,
                         const PieceStart& end) {
    Locate(walk);
    const bool cut = walk.IsCut();
    if (cut) parts_.Locate(p_, walk, start, end);
    MergeTeam(state, cut, Traits::kFp8 && p_.v_scale != nullptr ? __ldg(p_.v_scale + kv_head_ * p_.scale_stride) : 1);
  }

  // After all pieces of the block: merges the items of which it has the last part. Unless the split is fixed,
  // only the first piece can be that.
  __device__ void MergeParts(WarpState<Traits, D>& state, const PieceStart& start, const PieceStart& end) {
    PieceWalk walk;
    if (!p_.fixed_split && (start.unit == 0 || (start.request == end.request && start.head == end.head))) return;
    walk.Begin(p_, start, end);
    do {
      if (!walk.IsCut() || walk.unit_end < walk.units) continue;
      Locate(walk);
      parts_.Locate(p_, walk, start, end);
      state.Begin();
      parts_.AddTo(state, rows_);
      MergeTeam(state, false, 1);
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

  __device__ void MergeTeam(WarpState<Traits, D>& state, bool cut, float value_scale) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (8 * half >= rows_) break;
      float sum = state.sum[half];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      const int row = lane / 4 + 8 * half;
#pragma unroll
      for (int i = 0; i < Traits::kColumns; ++i) {
        shared_.merge[warp][i][lane] = make_float2(state.o[i][2 * half], state.o[i][2 * half + 1]);
      }
      if (lane % 4 == 0) {
        shared_.max[warp][row] = state.max[half];
        shared_.sum[warp][row] = sum;
      }
      Traits::TeamSync();
      if (row < rows_) MergeRow(row, half, cut, value_scale);
      Traits::TeamSync();  // all has been read
    }
  }

  // A warp takes its share of the column tiles.
  __device__ void MergeRow(int row, int half, bool cut, float value_scale) {
    const int lane = threadIdx.x % 32, j = lane % 4, warp = Traits::Warp();
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
    const bool first = warp == 0 && j == 0;
    if (!cut) {
      factor *= FinishRow(row, lse, first);
    } else if (first) {
      parts_.PublishLse(row, lse);
    }
    const std::int64_t at = token_ * p_.o_strides.token + (first_head_ + row) * p_.o_strides.head;
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
      if (cut) {
        parts_.Publish(half, tile, value);
      } else if constexpr (Traits::kFp8) {
        StoreOutput(p_, at + Traits::Dimension(tile, j, 0), value.x);
        StoreOutput(p_, at + Traits::Dimension(tile, j, 1), value.y);
      } else {
        StoreOutputPair(p_, at + Traits::Dimension(tile, j, 0), value.x, value.y);
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

  const DecodeParams& p_;
  typename Traits::Shared& shared_;
  ItemParts<Traits, D> parts_;
  int kv_head_, rows_, first_head_;
  std::int64_t token_;
};

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_DECODE_END_CUH_
