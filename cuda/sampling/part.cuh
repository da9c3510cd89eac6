// A block's part of a row of logits, and the weights of tokens.
#ifndef LLMD_CUDA_SAMPLING_PART_CUH_
#define LLMD_CUDA_SAMPLING_PART_CUH_

#include <cfloat>

#include "cuda/attention/ptx.cuh"
#include "cuda/common/convert.cuh"
#include "cuda/sampling/keys.cuh"

namespace llmd::cuda {

inline constexpr int kLogSampleWarps = 4;
inline constexpr int kSampleWarps = 1 << kLogSampleWarps;
inline constexpr int kSampleThreads = 32 * kSampleWarps;
inline constexpr int kUnitBits = 40;

// The row is cut into steps of 32 vectors, and those into runs, one a warp of the cluster: ids stay in order.
// What a warp has read once it keeps in shared memory, as keys, if there is room.
template <typename T>
class Part {
 public:
  static constexpr int N = 16 / sizeof(T);
  static constexpr int kStep = 32 * N;
  using Key = std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>;

  // `kept`: room for the block's part, if `keep`.
  // The row has 2^log_blocks blocks.
  __device__ Part(const T* logits, int vocab, int rank, int log_blocks, Key* kept, bool keep)
      : logits_(logits), vocab_(vocab), kept_(kept), keep_(keep) {
    log_runs_ = log_blocks + kLogSampleWarps;
    const uint32_t run = rank * kSampleWarps + threadIdx.x / 32;
    begin_ = BeginOf(run);
    end_ = BeginOf(run + 1);
    first_ = BeginOf(rank * kSampleWarps);
  }

  // First id of a run, a multiple of kStep.
  __device__ int BeginOf(uint32_t run) const {
    const uint32_t steps = (vocab_ + kStep - 1) / kStep;  // 2^17 at most
    return static_cast<int>(steps * run >> log_runs_) * kStep;
  }

  // Calls f(first, keys) for every N ids of the calling thread, in order; keys past the vocabulary are 0,
  // which is below every logit's. The first time through the row is kept.
  template <bool kFirst = false, typename F>
  __device__ __forceinline__ void ForEach(F&& f) const {
    constexpr int kBatch = (kFirst ? 16 : 8) / N;  // loads under way together
    const bool kept = !kFirst && keep_;
    for (int at = begin_ + threadIdx.x % 32 * N; at < end_; at += kBatch * kStep) {
      uint4 raw[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (at + i * kStep < end_) raw[i] = kept ? Kept(at + i * kStep) : Logits(at + i * kStep);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int first = at + i * kStep;
        if (first >= end_) break;
        uint32_t keys[N];
        Unpack(raw[i], first, kept, keys);
        if (kFirst && keep_) Keep(first, keys);
        f(first, keys);
      }
    }
  }

  // Of step `at` of any run of the block.
  __device__ __forceinline__ void Read(int at, uint32_t (&keys)[N]) const {
    const int first = at + threadIdx.x % 32 * N;
    Unpack(keep_ ? Kept(first) : Logits(first), first, keep_, keys);
  }

 private:
  __device__ uint4 Kept(int first) const { return *reinterpret_cast<const uint4*>(kept_ + (first - first_)); }
  __device__ uint4 Logits(int first) const {
    if (reinterpret_cast<uintptr_t>(logits_) % 16 == 0 && first + N <= vocab_)
      return *reinterpret_cast<const uint4*>(logits_ + first);
    Vec<T, N> some;
#pragma unroll
    for (int j = 0; j < N; ++j) some.at[j] = first + j < vocab_ ? logits_[first + j] : T{};
    return reinterpret_cast<const uint4&>(some);
  }
  __device__ void Unpack(const uint4& raw, int first, bool kept, uint32_t (&keys)[N]) const {
    if (kept) {
      const auto& k = reinterpret_cast<const Vec<Key, N>&>(raw);
#pragma unroll
      for (int j = 0; j < N; ++j) keys[j] = k.at[j];
    } else {
      const auto& logits = reinterpret_cast<const Vec<T, N>&>(raw);
#pragma unroll
      for (int j = 0; j < N; ++j) keys[j] = first + j < vocab_ ? KeyOf(logits.at[j]) : 0;
    }
  }
  __device__ void Keep(int first, const uint32_t (&keys)[N]) const {
    Vec<Key, N> some;
#pragma unroll
    for (int j = 0; j < N; ++j) some.at[j] = static_cast<Key>(keys[j]);
    Store(kept_ + (first - first_), some);
  }

  const T* logits_;
  int vocab_;
  Key* kept_;
  bool keep_;
  int log_runs_;
  int begin_, end_;  // ids of the warp
  int first_;        // id of the block
};

// In every lane; three sums of pieces of 22 bits, each of which the hardware makes at once.
__device__ __forceinline__ uint64_t WarpSum(uint64_t x) {
  constexpr uint32_t kPiece = (1u << 22) - 1;
  const uint64_t low = __reduce_add_sync(~0u, static_cast<uint32_t>(x) & kPiece);
  const uint64_t middle = __reduce_add_sync(~0u, static_cast<uint32_t>(x >> 22) & kPiece);
  const uint64_t high = __reduce_add_sync(~0u, static_cast<uint32_t>(x >> 44));
  return low + (middle << 22) + (high << 44);
}

// Weights of tokens: exp((logit - greatest) / temperature) in units of 2^-40.
template <typename T>
struct Weights {
  uint32_t max_key;
  float max_logit;
  float log2_scale;  // log2(e) / temperature

  __device__ Weights(uint32_t greatest, float t)
      : max_key(greatest),
        max_logit(LogitOf<T>(greatest)),
        log2_scale(fminf(1.44269504f / t, FLT_MAX)) {}  // times 0 it is to be 0

  // 2^40 for the greatest logit, 0 below 2^-40 of it and for key 0.
  __device__ uint64_t Of(uint32_t key) const {
    const float e = Exp2(fmaxf((LogitOf<T>(key) - max_logit) * log2_scale, -60.0f));  // -60 for NaN
    return static_cast<uint64_t>(e * static_cast<float>(uint64_t{1} << kUnitBits));
  }

  // A key below which all weights are 0.
  __device__ uint32_t FloorKey(float temperature) const {
    const uint32_t key = KeyOf(FromFloat<T>(max_logit - 30.0f * temperature));  // e^-30 < 2^-43
    return max(key, kKeyOfMinusInfinity<T> + 2) - 1;                            // it may have been rounded up
  }

  // The least key whose weight is `least` (1 to 2^40) or more. Whole warps; 33 parts a time.
  __device__ uint32_t KeyOfWeight(uint64_t least) const {
    uint32_t low = kKeyOfMinusInfinity<T>, high = max_key;
    while (high - low > 1) {
      const uint32_t step = (high - low + 32) / 33;
      const uint32_t mine = low + (threadIdx.x % 32 + 1) * step;
      const unsigned reach = __ballot_sync(~0u, mine >= high || Of(mine) >= least);
      const uint32_t below = reach == 0 ? 32 : __ffs(static_cast<int>(reach)) - 1;  // lanes that do not
      high = min(high, low + (below + 1) * step);
      low += below * step;
    }
    return high;
  }
};

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_SAMPLING_PART_CUH_
