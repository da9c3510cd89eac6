// Paged prefill: a ragged batch of requests with any number of new tokens over any prefix, causal, by
// mma.sync.
//
// A row is a token and a query head of a KV head's group (row = token * G + head), so a tile of 128 rows
// shares its keys among all G heads. An item is (128 rows, KV head); blocks take items from a counter, long
// ones first. Four warps have 32 rows each; 64 keys a step go through two stages of shared memory, where a
// step's page ids were read two steps before (spec: paged-attention.md 3.9).
#ifndef LLMD_CUDA_ATTENTION_PREFILL_CUH_
#define LLMD_CUDA_ATTENTION_PREFILL_CUH_

#include "cuda/attention/prefill_params.h"
#include "cuda/attention/ptx.cuh"
#include "cuda/common/device.cuh"

namespace llmd::cuda {

inline constexpr int kPrefillThreads = 128;
inline constexpr int kPrefillKeys = 64;

template <int D>
struct PrefillShared {
  alignas(128) char q[kPrefillRows * D * 2];
  char k[2][kPrefillKeys * D * 2];
  char v[2][kPrefillKeys * D * 2];
  std::int64_t k_offset[3][kPrefillKeys];  // bytes from the head's first element; of keys that may be read
  std::int64_t v_offset[3][kPrefillKeys];
  std::uint32_t live[3][2];  // a bit a key
  int item;
};

// Rows of D 16-bit elements, stored so that the lanes of a matrix load meet in no bank.
template <int D>
__device__ __forceinline__ int SwizzledOffset(int row, int chunk) {
  return row * D * 2 + ((chunk ^ (row & 7)) << 4);
}

template <typename T, int D>
class PrefillTile {
 public:
  __device__ PrefillTile(const PrefillParams& params, PrefillShared<D>& shared)
      : params_(params),
        p_(params.common),
        shared_(shared),
        lane_(threadIdx.x % 32),
        warp_(threadIdx.x / 32) {}

  __device__ void Run(int item) {
    Locate(item);
    LoadQuery();
    PlaceKeys(0);
    PlaceKeys(1);
    __syncthreads();
    if (steps_ > 0) LoadKeys(0);  // a tile may have no key: no place has been written then
    CopyAsyncCommit();
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) o_[m][i][e] = 0;
      }
      max_[m][0] = max_[m][1] = -INFINITY;
      sum_[m][0] = sum_[m][1] = 0;
    }
#pragma unroll 1
    for (int step = 0; step < steps_; ++step) {
      CopyAsyncWait<0>();
      __syncthreads();  // this step's keys are here, and the last step's have been used
      if (step + 1 < steps_) LoadKeys(step + 1);
      CopyAsyncCommit();
      PlaceKeys(step + 2);
      Compute(step);
    }
    CopyAsyncWait<0>();
    Store();
    __syncthreads();  // shared memory is free for the next item
  }

 private:
  static constexpr int kColumns = D / 8;
  static constexpr int kChunks = D / 8;  // of 16 bytes a row
  static constexpr int kRowsPerPass = kPrefillThreads / kChunks;

  __device__ void Locate(int item) {
    const int heads = p_.heads / p_.row_tiles, tiles = p_.workspace.header->prefill_tiles;
    kv_head_ = item % heads;
    const int tile = tiles - 1 - item / heads;  // of a request, the later tiles see more keys
    int low = 0, high = p_.batch;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (p_.workspace.prefill[middle] <= tile)
        low = middle;
      else
        high = middle;
    }
    request_ = low;
    first_row_ = (tile - p_.workspace.prefill[low]) * kPrefillRows;
    first_token_ = p_.q_start[low];
    tokens_ = p_.q_start[low + 1] - first_token_;
    rows_ = min(kPrefillRows, tokens_ * p_.group - first_row_);
    length_ = p_.workspace.lengths[low];
    const int first_position = Position(0), last_position = Position(rows_ - 1);
    begin_ = p_.window > 0 ? max(0, first_position - p_.window + 1) / kGroupKeys * kGroupKeys : 0;
    steps_ = max(0, CeilDivide(last_position + 1 - begin_, kPrefillKeys));
    pages_ = PagesOf(p_.pages, low);
  }

  __device__ int Position(int row) const {
    return length_ - tokens_ + params_.group.Divide(first_row_ + row);
  }

  __device__ const char* Query(int row) const {
    const int token = params_.group.Divide(first_row_ + row);
    const int head = kv_head_ * p_.group + first_row_ + row - token * p_.group;
    return p_.q + 2 * ((first_token_ + token) * p_.q_strides.token + head * p_.q_strides.head);
  }

  __device__ void LoadQuery() {
    const std::uint32_t base = SharedAddress(shared_.q);
    const int chunk = threadIdx.x % kChunks;
#pragma unroll 4
    for (int row = threadIdx.x / kChunks; row < kPrefillRows; row += kRowsPerPass) {
      const bool live = row < rows_;
      CopyAsync16(base + SwizzledOffset<D>(row, chunk), live ? Query(row) + chunk * 16 : p_.q, live, kept_);
    }
  }

  // Finds where the keys of a step are.
  __device__ void PlaceKeys(int step) {
    if (threadIdx.x >= kPrefillKeys || step >= steps_) return;
    const int slot = step % 3, key = begin_ + step * kPrefillKeys + threadIdx.x;
    bool live = key < length_ && (p_.window <= 0 || key > Position(0) - p_.window);
    std::int64_t k_offset = 0, v_offset = 0;
    if (live) {
      const int index = p_.page_size.Divide(key), offset = key - index * p_.page_size.divisor();
      const int id = __ldg(pages_ + index);
      if (id < 0 || (p_.validate && id >= p_.num_pages)) {
        if (p_.validate) ReportDataError(p_.workspace.header, LLMD_BAD_PAGE, request_, index, id);
        live = false;
      } else {
        k_offset = id * p_.k_strides.page + offset * p_.k_strides.token;
        v_offset = id * p_.v_strides.page + offset * p_.v_strides.token;
      }
    }
    const std::uint32_t bits = __ballot_sync(~0u, live);
    if (lane_ == 0) shared_.live[slot][warp_] = bits;
    shared_.k_offset[slot][threadIdx.x] = k_offset;
    shared_.v_offset[slot][threadIdx.x] = v_offset;
  }

  __device__ void LoadKeys(int step) {
    const int slot = step % 3, stage = step & 1, chunk = threadIdx.x % kChunks;
    const std::uint32_t k = SharedAddress(shared_.k[stage]), v = SharedAddress(shared_.v[stage]);
    const char* k_head = p_.k + kv_head_ * p_.k_strides.head + chunk * 16;
    const char* v_head = p_.v + kv_head_ * p_.v_strides.head + chunk * 16;
    const std::uint64_t live = shared_.live[slot][0] | static_cast<std::uint64_t>(shared_.live[slot][1])
                                                           << 32;
    const int first = threadIdx.x / kChunks;
    if (live == ~0ull) {
#pragma unroll
      for (int i = 0; i < kPrefillKeys / kRowsPerPass; ++i) {
        const int row = first + i * kRowsPerPass;
        CopyAsync16(k + SwizzledOffset<D>(row, chunk), k_head + shared_.k_offset[slot][row], kept_);
      }
#pragma unroll
      for (int i = 0; i < kPrefillKeys / kRowsPerPass; ++i) {
        const int row = first + i * kRowsPerPass;
        CopyAsync16(v + SwizzledOffset<D>(row, chunk), v_head + shared_.v_offset[slot][row], kept_);
      }
    } else {
#pragma unroll 1
      for (int i = 0; i < kPrefillKeys / kRowsPerPass; ++i) {
        const int row = first + i * kRowsPerPass;
        const bool use = live >> row & 1;
        CopyAsync16(k + SwizzledOffset<D>(row, chunk), k_head + shared_.k_offset[slot][row], use, kept_);
        CopyAsync16(v + SwizzledOffset<D>(row, chunk), v_head + shared_.v_offset[slot][row], use, kept_);
      }
    }
  }

  __device__ void Compute(int step) {
    const int first_key = begin_ + step * kPrefillKeys;
    const int warp_first = warp_ * 32;
    if (warp_first >= rows_) return;
    const int lowest = Position(warp_first), highest = Position(min(warp_first + 31, rows_ - 1));
    if (first_key > highest) return;
    if (p_.window > 0 && first_key + kPrefillKeys - 1 <= lowest - p_.window) return;

    float s[2][8][4];
    Scores(step & 1, s);
    const std::uint32_t live[2] = {shared_.live[step % 3][0], shared_.live[step % 3][1]};
    if (first_key + kPrefillKeys - 1 > lowest || (live[0] & live[1]) != ~0u ||
        (p_.window > 0 && first_key <= highest - p_.window)) {
      Mask(first_key, live, s);
    }
    Softmax(s);
    Output(step & 1, s);
  }

  __device__ void Scores(int stage, float (&s)[2][8][4]) const {
    const std::uint32_t q = SharedAddress(shared_.q), k = SharedAddress(shared_.k[stage]);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) s[m][n][e] = 0;
      }
    }
    const int q_row = warp_ * 32 + (lane_ & 15), k_row = (lane_ & 7) + (lane_ >> 4) * 8;
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
      std::uint32_t a[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m)
        LoadMatrix4(a[m], q + SwizzledOffset<D>(q_row + 16 * m, 2 * i + (lane_ >> 4)));
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        std::uint32_t b[4];
        LoadMatrix4(b, k + SwizzledOffset<D>(k_row + 16 * n, 2 * i + (lane_ >> 3 & 1)));
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          MatrixMultiplyAdd<T>(s[m][2 * n], a[m], b[0], b[1]);
          MatrixMultiplyAdd<T>(s[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  __device__ void Mask(int first_key, const std::uint32_t (&live)[2], float (&s)[2][8][4]) const {
    const int j = lane_ % 4;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int position = Position(warp_ * 32 + 16 * m + 8 * half + lane_ / 4);
        const int end = position - first_key;  // the last visible key
        const int begin = p_.window > 0 ? end - p_.window + 1 : 0;
#pragma unroll
        for (int n = 0; n < 8; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int key = 8 * n + 2 * j + e;
            if (key > end || key < begin || !(live[n / 4] >> (key % 32) & 1))
              s[m][n][2 * half + e] = -INFINITY;
          }
        }
      }
    }
  }

  // Scores to probabilities; rescales what was summed before.
  __device__ void Softmax(float (&s)[2][8][4]) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int e = 2 * half;
        float greatest = -INFINITY;
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          s[m][n][e] *= p_.scale_log2;
          s[m][n][e + 1] *= p_.scale_log2;
          greatest = fmaxf(greatest, fmaxf(s[m][n][e], s[m][n][e + 1]));
        }
        greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, 1));
        greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, 2));
        if (__any_sync(~0u, greatest > max_[m][half])) {
          const float updated = fmaxf(max_[m][half], greatest);
          const float factor = updated == -INFINITY ? 1 : Exp2(max_[m][half] - updated);
          max_[m][half] = updated;
          sum_[m][half] *= factor;
#pragma unroll
          for (int i = 0; i < kColumns; ++i) {
            o_[m][i][e] *= factor;
            o_[m][i][e + 1] *= factor;
          }
        }
        const float shift = max_[m][half] == -INFINITY ? 0 : max_[m][half];
        float sum = 0;
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          s[m][n][e] = Exp2(s[m][n][e] - shift);
          s[m][n][e + 1] = Exp2(s[m][n][e + 1] - shift);
          sum += s[m][n][e] + s[m][n][e + 1];
        }
        sum_[m][half] += sum;
      }
    }
  }

  __device__ void Output(int stage, const float (&s)[2][8][4]) {
    const std::uint32_t v = SharedAddress(shared_.v[stage]);
    const int row = lane_ & 15;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      std::uint32_t a[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        a[m][0] = Pack<T>(s[m][2 * i][0], s[m][2 * i][1]);
        a[m][1] = Pack<T>(s[m][2 * i][2], s[m][2 * i][3]);
        a[m][2] = Pack<T>(s[m][2 * i + 1][0], s[m][2 * i + 1][1]);
        a[m][3] = Pack<T>(s[m][2 * i + 1][2], s[m][2 * i + 1][3]);
      }
#pragma unroll
      for (int n = 0; n < kColumns / 2; ++n) {
        std::uint32_t b[4];
        LoadMatrix4Transposed(b, v + SwizzledOffset<D>(row + 16 * i, 2 * n + (lane_ >> 4)));
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          MatrixMultiplyAdd<T>(o_[m][2 * n], a[m], b[0], b[1]);
          MatrixMultiplyAdd<T>(o_[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  __device__ void Store() {
    const int j = lane_ % 4;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float sum = sum_[m][half];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const int row = warp_ * 32 + 16 * m + 8 * half + lane_ / 4;
        if (row >= rows_) continue;
        const int token = params_.group.Divide(first_row_ + row);
        const int head = kv_head_ * p_.group + first_row_ + row - token * p_.group;
        float lse = sum > 0 ? max_[m][half] + Log2(sum) : -INFINITY;
        const float factor = (sum > 0 ? 1 / sum : 0) * AddSink(p_, head, lse);
        const std::int64_t at = (first_token_ + token) * p_.o_strides.token + head * p_.o_strides.head;
#pragma unroll
        for (int i = 0; i < kColumns; ++i) {
          StoreOutputPair(p_, at + 8 * i + 2 * j, o_[m][i][2 * half] * factor,
                          o_[m][i][2 * half + 1] * factor);
        }
        if (j == 0 && p_.lse != nullptr) {
          p_.lse[(first_token_ + token) * p_.lse_strides.token + head * p_.lse_strides.head] = lse * kLn2;
        }
      }
    }
  }

  const PrefillParams& params_;
  const DecodeParams& p_;
  PrefillShared<D>& shared_;
  const int lane_, warp_;
  const std::uint64_t kept_ = EvictLastPolicy();  // keys are read again by other row tiles
  int kv_head_, request_, first_row_, first_token_, tokens_, rows_, length_, begin_, steps_;
  const std::int32_t* pages_;
  float o_[2][kColumns][4];
  float max_[2][2], sum_[2][2];  // rows lane / 4, + 8 of two 16-row tiles; sum: this lane's keys only
};

template <typename T, int D>
__global__ void __launch_bounds__(kPrefillThreads, 2)
    PrefillKernel(const __grid_constant__ PrefillParams params) {
  LLMD_DYNAMIC_SHARED(128, char, memory);
  auto& shared = *reinterpret_cast<PrefillShared<D>*>(memory);
  PlanHeader* header = params.common.workspace.header;
  const int items = header->prefill_tiles * (params.common.heads / params.common.row_tiles);
  PrefillTile<T, D> tile(params, shared);
  while (true) {
    if (threadIdx.x == 0) shared.item = atomicAdd(&header->prefill_next, 1);
    __syncthreads();
    const int item = shared.item;
    __syncthreads();
    if (item >= items) break;
    tile.Run(item);
  }
  if (threadIdx.x == 0 && atomicAdd(&header->prefill_done, 1) == gridDim.x - 1) {
    header->prefill_next = header->prefill_done = 0;  // ready for the next launch
  }
  if (params.zero_padding) ZeroRows(params.common, 0, header->tokens);
}

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_PREFILL_CUH_
