// The end of a prefill item: the output of its rows, or the merge of the parts of one that was cut.
#ifndef LLMD_CUDA_ATTENTION_PREFILL_END_CUH_
#define LLMD_CUDA_ATTENTION_PREFILL_END_CUH_

#include "cuda/attention/prefill_rows.cuh"

namespace llmd::cuda {

template <typename Traits>
class PrefillEnd {
 public:
  __device__ PrefillEnd(const PrefillParams& params, typename Traits::Shared& shared)
      : params_(params), p_(params.common), item_(shared.item), shared_(shared) {}

  __device__ void Finish(const WarpRows<Traits>& rows) {
    const PrefillWork work = shared_.work;
    const int j = threadIdx.x % 4, slot = work.Slot(blockIdx.x - work.first_block, params_.grid);
    const float value_scale =
        Traits::kFp8 && p_.v_scale != nullptr ? __ldg(p_.v_scale + item_.kv_head * p_.scale_stride) : 1;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float sum;
        const float lse = rows.Lse(shared_, m, half, &sum);
        const int row = rows.Row(m, half);
        if (row >= item_.rows) continue;
        float factor = sum > 0 ? value_scale / sum : 0;
        if (work.parts == 1) {
          factor *= FinishRow(row, lse, j == 0);
          const std::int64_t at = OutputAt(row) + 2 * j;
#pragma unroll
          for (int i = 0; i < Traits::kColumns; ++i) {
            StoreOutputPair(p_, at + 8 * i, rows.o[m][i][2 * half] * factor,
                            rows.o[m][i][2 * half + 1] * factor);
          }
        } else {
          if (j == 0) p_.workspace.prefill_lse[At(slot, row)] = lse;
          float2* to = reinterpret_cast<float2*>(p_.workspace.prefill_partials + At(slot, row) * Traits::D);
#pragma unroll
          for (int i = 0; i < Traits::kColumns; ++i) {
            to[4 * i + j] = make_float2(rows.o[m][i][2 * half] * factor, rows.o[m][i][2 * half + 1] * factor);
          }
        }
      }
    }
    if (work.parts > 1 && ArrivesLast(work)) Merge(work);
  }

 private:
  __device__ std::int64_t At(int slot, int row) const {
    return static_cast<std::int64_t>(slot) * params_.rows_of_part + row;
  }
  __device__ std::int64_t OutputAt(int row) const {
    return (item_.first_token + item_.Token(params_, row)) * p_.o_strides.token +
           item_.Head(params_, row) * p_.o_strides.head;
  }

  // Adds the sink, writes the row's LSE if asked to, and returns what the row's values are to be multiplied
  // by.
  __device__ float FinishRow(int row, float lse, bool write) const {
    const int head = item_.Head(params_, row);
    const float factor = AddSink(p_, head, lse);
    if (write && p_.lse != nullptr) {
      p_.lse[(item_.first_token + item_.Token(params_, row)) * p_.lse_strides.token +
             head * p_.lse_strides.head] = lse * kLn2;
    }
    return factor;
  }

  // True in the block whose part is the last one to be there; all parts can then be read.
  __device__ bool ArrivesLast(const PrefillWork& work) {
    __syncthreads();
    if (threadIdx.x == 0) {
      unsigned* counter = p_.workspace.prefill_counters + work.first_block;
      __threadfence();
      const bool last = atomicAdd(counter, 1u) == work.parts - 1;
      __threadfence();
      if (last) *counter = 0;  // ready for the next launch
      shared_.arrived_last = last;
    }
    __syncthreads();
    return shared_.arrived_last;
  }

  // Merges the parts in their order. A thread has four columns of every fourth or eighth row; loads of some
  // rows and parts are under way together.
  __device__ void Merge(const PrefillWork& work) {
    constexpr int kQuads = Traits::D / 4, kRowsPerPass = kPrefillThreads / kQuads, kRows = 4, kParts = 4;
    const int quad = threadIdx.x % kQuads;
#pragma unroll 1
    for (int first = threadIdx.x / kQuads; first < item_.rows; first += kRows * kRowsPerPass) {
      float greatest[kRows], sum[kRows];
      float4 total[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        greatest[r] = -INFINITY, sum[r] = 0;
        total[r] = make_float4(0, 0, 0, 0);
      }
#pragma unroll 1
      for (int begin = 0; begin < work.parts; begin += kParts) {
        float lse[kRows][kParts];
        float4 value[kRows][kParts];
#pragma unroll
        for (int n = 0; n < kParts; ++n) {
          const int slot = work.Slot(begin + n, params_.grid);
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            const int row = first + r * kRowsPerPass;
            const bool live = begin + n < work.parts && row < item_.rows;
            const std::int64_t at = At(slot, row);
            lse[r][n] = live ? __ldcg(p_.workspace.prefill_lse + at) : -INFINITY;
            value[r][n] =
                live
                    ? __ldcg(reinterpret_cast<const float4*>(p_.workspace.prefill_partials + at * Traits::D) +
                             quad)
                    : make_float4(0, 0, 0, 0);
          }
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          float updated = greatest[r];
#pragma unroll
          for (int n = 0; n < kParts; ++n) updated = fmaxf(updated, lse[r][n]);
          const float shift = updated == -INFINITY ? 0 : updated, old = Exp2(greatest[r] - shift);
          greatest[r] = updated;
          sum[r] *= old;
          total[r].x *= old, total[r].y *= old, total[r].z *= old, total[r].w *= old;
#pragma unroll
          for (int n = 0; n < kParts; ++n) {
            const float weight = Exp2(lse[r][n] - shift);
            sum[r] += weight;
            total[r].x += weight * value[r][n].x;
            total[r].y += weight * value[r][n].y;
            total[r].z += weight * value[r][n].z;
            total[r].w += weight * value[r][n].w;
          }
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int row = first + r * kRowsPerPass;
        if (row >= item_.rows) break;
        const float lse = sum[r] > 0 ? greatest[r] + Log2(sum[r]) : -INFINITY;
        const float factor = (sum[r] > 0 ? 1 / sum[r] : 0) * FinishRow(row, lse, quad == 0);
        const std::int64_t at = OutputAt(row) + 4 * quad;
        StoreOutputPair(p_, at, total[r].x * factor, total[r].y * factor);
        StoreOutputPair(p_, at + 2, total[r].z * factor, total[r].w * factor);
      }
    }
  }

  const PrefillParams& params_;
  const DecodeParams& p_;
  const PrefillItem& item_;
  typename Traits::Shared& shared_;
};

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_PREFILL_END_CUH_
