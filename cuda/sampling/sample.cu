// Sampling without a sort (sampling.h; spec 1.4): one block a row, which reads its row a few times from the
// L2 cache.
//
// What the filters keep is always "the tokens whose key is greater than a threshold, and the first r of those
// equal to it", with the key the logit's bits in an order that integers have. Top-k and top-p each find their
// threshold by a radix search: a histogram of the keys' leading digit, the bin in which the k-th token (or
// the p-th share) lies, then a histogram of the next digit inside that bin. Weights are integers, exp((logit
// - greatest) / temperature) in units of 2^-40: sums of integers have no order, so a row's token depends
// neither on the timing of atomics nor on its place in the batch.
#include <algorithm>
#include <cmath>

#include "cuda/common/convert.cuh"
#include "cuda/common/device.cuh"
#include "cuda/common/launch.h"
#include "cuda/common/math.cuh"
#include "cuda/kernels.h"

namespace llmd::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr int kUnitBits = 40;

// Keys of a dtype: greater for a greater logit, equal for equal ones. NaN becomes -inf, -0 becomes 0.
template <typename T>
struct Keys {  // bf16 and fp16
  static constexpr int kBits = 16;
  static constexpr int kDigitBits = 8;
  static constexpr int kCopies = 8;  // of a histogram: neighbouring lanes rarely meet in one word
  static constexpr uint32_t kInfinity = std::is_same_v<T, __half> ? 0x7c00 : 0x7f80;
  static constexpr uint32_t kSign = 0x8000;
  static constexpr uint32_t kAll = 0xffff;
  __device__ static uint32_t BitsOf(T x) {
    if constexpr (std::is_same_v<T, __half>) {
      return __half_as_ushort(x);
    } else {
      return __bfloat16_as_ushort(x);
    }
  }
  __device__ static float ValueOf(uint32_t bits) {
    if constexpr (std::is_same_v<T, __half>) {
      return __half2float(__ushort_as_half(static_cast<uint16_t>(bits)));
    } else {
      return __uint_as_float(bits << 16);
    }
  }
};
template <>
struct Keys<float> {
  static constexpr int kBits = 32;
  static constexpr int kDigitBits = 11;
  static constexpr int kCopies = 4;
  static constexpr uint32_t kInfinity = 0x7f800000;
  static constexpr uint32_t kSign = 0x80000000;
  static constexpr uint32_t kAll = 0xffffffff;
  __device__ static uint32_t BitsOf(float x) { return __float_as_uint(x); }
  __device__ static float ValueOf(uint32_t bits) { return __uint_as_float(bits); }
};

template <typename T>
__device__ __forceinline__ uint32_t KeyOf(T logit) {
  using K = Keys<T>;
  uint32_t bits = K::BitsOf(logit);
  if ((bits & ~K::kSign) > K::kInfinity) bits = K::kSign | K::kInfinity;
  if (bits == K::kSign) bits = 0;
  return (bits & K::kSign) ? ~bits & K::kAll : bits | K::kSign;
}

template <typename T>
__device__ __forceinline__ float LogitOf(uint32_t key) {
  using K = Keys<T>;
  return K::ValueOf((key & K::kSign) ? key & ~K::kSign : ~key & K::kAll);
}

template <typename T>
constexpr uint32_t kKeyOfInfinity = Keys<T>::kSign | Keys<T>::kInfinity;
template <typename T>
constexpr uint32_t kKeyOfMinusInfinity = ~(Keys<T>::kSign | Keys<T>::kInfinity) & Keys<T>::kAll;

template <typename T>
struct Row {
  const T* logits;
  int vocab;
  bool vectors;  // the row may be read in 16-byte pieces
  uint32_t max_key;
  float max_logit;
  float temperature;
  float log2_scale;     // log2(e) / temperature
  uint64_t min_weight;  // of min_p
  uint32_t min_key;     // nothing below can be kept

  static constexpr int N = 16 / sizeof(T);

  // Keys of ids first .. first + N - 1; past the end 0, which is below every logit's.
  __device__ void Read(int first, uint32_t (&keys)[N]) const {
    if (vectors && first + N <= vocab) {
      const Vec<T, N> piece = Load<T, N>(logits + first);
#pragma unroll
      for (int j = 0; j < N; ++j) keys[j] = KeyOf(piece.at[j]);
    } else {
#pragma unroll
      for (int j = 0; j < N; ++j) keys[j] = first + j < vocab ? KeyOf(logits[first + j]) : 0;
    }
  }

  // 2^40 for the greatest logit, 0 below 2^-40 of it.
  __device__ uint64_t Weight(uint32_t key) const {
    if (key == max_key) return uint64_t{1} << kUnitBits;
    if (key <= kKeyOfMinusInfinity<T>) return 0;
    const float e = exp2f((LogitOf<T>(key) - max_logit) * log2_scale);
    const uint32_t bits = __float_as_uint(e);
    const uint32_t down = 127 - (bits >> 23);
    const uint64_t mantissa = (bits & 0x7fffff) | 0x800000;
    return down > kUnitBits ? 0 : (mantissa << (kUnitBits - 23)) >> down;
  }

  // Of what passes min_p.
  __device__ uint64_t Kept(uint32_t key) const {
    if (key < min_key) return 0;
    const uint64_t weight = Weight(key);
    return weight >= min_weight ? weight : 0;
  }
};

template <typename T>
struct Bins {
  static constexpr int kBins = 1 << Keys<T>::kDigitBits;
  static constexpr int kCopies = Keys<T>::kCopies;
  static constexpr int kWords = kBins * kCopies;
  static constexpr int kEach = (kBins + kThreads - 1) / kThreads;  // bins a thread looks after
  static constexpr size_t kBytes = 3 * kWords * sizeof(uint32_t);
};

struct Crossing {
  uint32_t bin;
  uint64_t above_count;
  uint64_t above_weight;
};

struct Shared {
  uint64_t reduce[kWarps];
  uint64_t warp_weight[kWarps];
  uint32_t warp_equals[kWarps];
  Crossing crossing;
};

// Where a search ends: tokens above `key`, and the first `equals` tokens at it.
struct Threshold {
  uint32_t key;
  uint64_t equals;
  uint64_t weight;  // of what it keeps
};

// Counts the tokens whose key begins with `prefix` (of `prefix_bits`) by the following digit of `digit_bits`.
template <typename T>
__device__ void Histogram(const Row<T>& row, uint32_t prefix, int prefix_bits, int digit_bits,
                          uint32_t* words) {
  using B = Bins<T>;
  uint32_t* counts = words;
  uint32_t* low = words + B::kWords;
  uint32_t* high = words + 2 * B::kWords;
  __syncthreads();
  for (int i = threadIdx.x; i < 3 * B::kWords; i += kThreads) words[i] = 0;
  __syncthreads();
  const int shift = Keys<T>::kBits - prefix_bits - digit_bits;
  const uint32_t mask = (1u << digit_bits) - 1;
  const int copy = threadIdx.x % B::kCopies;
  constexpr int N = Row<T>::N;
  for (int first = threadIdx.x * N; first < row.vocab; first += kThreads * N) {
    uint32_t keys[N];
    row.Read(first, keys);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (prefix_bits != 0 && keys[j] >> (shift + digit_bits) != prefix) continue;
      const uint64_t weight = row.Kept(keys[j]);
      if (weight == 0) continue;
      const int word = static_cast<int>(keys[j] >> shift & mask) * B::kCopies + copy;
      atomicAdd(&counts[word], 1u);
      // 64 bits in two words: the one whose addition overflows carries.
      const uint32_t part = static_cast<uint32_t>(weight);
      const uint32_t before = atomicAdd(&low[word], part);
      const uint32_t carry = static_cast<uint32_t>(weight >> 32) + (before + part < before);
      if (carry != 0) atomicAdd(&high[word], carry);
    }
  }
  __syncthreads();
}

// The bin, from the greatest down, in which the running count (or weight) reaches `target`. All threads get
// the answer.
template <typename T>
__device__ Crossing Cross(const uint32_t* words, bool by_weight, uint64_t target, Shared* shared) {
  using B = Bins<T>;
  uint64_t count[B::kEach], weight[B::kEach];
  uint64_t count_sum = 0, weight_sum = 0;
#pragma unroll
  for (int i = 0; i < B::kEach; ++i) {
    const int from_top = threadIdx.x * B::kEach + i;
    count[i] = weight[i] = 0;
    if (from_top < B::kBins) {
      const int word = (B::kBins - 1 - from_top) * B::kCopies;
      for (int c = 0; c < B::kCopies; ++c) {
        const int at = word + (c + threadIdx.x) % B::kCopies;  // another bank for each lane
        count[i] += words[at];
        weight[i] += words[B::kWords + at] + (static_cast<uint64_t>(words[2 * B::kWords + at]) << 32);
      }
    }
    count_sum += count[i];
    weight_sum += weight[i];
  }
  uint64_t all;
  uint64_t above_count = BlockExclusiveSum(count_sum, shared->reduce, &all);
  uint64_t above_weight = BlockExclusiveSum(weight_sum, shared->reduce, &all);
#pragma unroll
  for (int i = 0; i < B::kEach; ++i) {
    const uint64_t above = by_weight ? above_weight : above_count;
    const uint64_t here = by_weight ? weight[i] : count[i];
    if (above < target && target <= above + here) {
      const uint32_t bin = B::kBins - 1 - (threadIdx.x * B::kEach + i);
      shared->crossing = {bin, above_count, above_weight};
    }
    above_count += count[i];
    above_weight += weight[i];
  }
  __syncthreads();
  return shared->crossing;
}

// A key that at least `top_k` tokens reach, from the greatest key of each thread's tokens alone: top_k <=
// kThreads.
template <typename T>
__device__ uint32_t Floor(uint32_t thread_max_key, int top_k, uint32_t* words, Shared* shared) {
  using B = Bins<T>;
  constexpr int kShift = Keys<T>::kBits - Keys<T>::kDigitBits;
  __syncthreads();
  for (int i = threadIdx.x; i < 3 * B::kWords; i += kThreads) words[i] = 0;
  __syncthreads();
  atomicAdd(&words[(thread_max_key >> kShift) * B::kCopies + threadIdx.x % B::kCopies], 1u);
  __syncthreads();
  return Cross<T>(words, false, static_cast<uint64_t>(top_k), shared).bin << kShift;
}

// The sums over all bins of a first histogram.
template <typename T>
__device__ void Totals(const uint32_t* words, Shared* shared, uint64_t* count, uint64_t* weight) {
  using B = Bins<T>;
  uint64_t count_sum = 0, weight_sum = 0;
  for (int i = threadIdx.x; i < B::kWords; i += kThreads) {
    count_sum += words[i];
    weight_sum += words[B::kWords + i] + (static_cast<uint64_t>(words[2 * B::kWords + i]) << 32);
  }
  *count = BlockReduce(count_sum, Add(), shared->reduce);
  *weight = BlockReduce(weight_sum, Add(), shared->reduce);
}

// From the histogram of the first digit, which it overwrites, down to one key. 1 <= target <= the histogram's
// total.
template <typename T>
__device__ Threshold Search(const Row<T>& row, bool by_weight, uint64_t target, uint32_t* words,
                            Shared* shared) {
  uint32_t prefix = 0;
  uint64_t above_weight = 0;
  int bits = 0;
  for (;;) {
    const int digit = min(Keys<T>::kDigitBits, Keys<T>::kBits - bits);
    if (bits > 0) Histogram(row, prefix, bits, digit, words);
    const Crossing crossing = Cross<T>(words, by_weight, target, shared);
    target -= by_weight ? crossing.above_weight : crossing.above_count;
    above_weight += crossing.above_weight;
    prefix = prefix << digit | crossing.bin;
    bits += digit;
    if (bits == Keys<T>::kBits) break;
  }
  const uint64_t each = row.Kept(prefix);
  const uint64_t equals = by_weight ? (target + each - 1) / each : target;
  return {prefix, equals, above_weight + equals * each};
}

// Draws the token: the first, in the order of ids, at which the running weight of what is kept passes the
// draw. Warps have consecutive parts of the row, so that ids stay in order and one warp alone looks for the
// token.
template <typename T>
__device__ void Draw(const Row<T>& row, const Threshold& threshold, uint64_t random, Shared* shared,
                     int32_t* token, float* logprob) {
  constexpr int N = Row<T>::N;
  constexpr int kStep = 32 * N;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int part = (row.vocab + kWarps * kStep - 1) / (kWarps * kStep) * kStep;
  const int begin = min(warp * part, row.vocab);
  const int end = min(begin + part, row.vocab);
  uint64_t kept = 0, all = 0;
  uint32_t equals = 0;
  for (int first = begin + lane * N; first < end; first += kStep) {
    uint32_t keys[N];
    row.Read(first, keys);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      equals += keys[j] == threshold.key;
      if (keys[j] <= threshold.key && logprob == nullptr) continue;
      const uint64_t weight = row.Weight(keys[j]);
      all += weight;
      if (keys[j] > threshold.key && weight >= row.min_weight) kept += weight;
    }
  }
  kept = WarpReduce(kept, Add());
  equals = WarpReduce(equals, Add());
  all = BlockReduce(all, Add(), shared->reduce);
  if (lane == 0) {
    shared->warp_weight[warp] = kept;
    shared->warp_equals[warp] = equals;
  }
  __syncthreads();

  const uint64_t each = threshold.equals == 0 ? 0 : row.Kept(threshold.key);
  // Equals that a warp keeps, when `before` come before its part.
  const auto kept_equals = [&](uint64_t before, uint64_t here) {
    return before >= threshold.equals ? 0 : min(here, threshold.equals - before);
  };
  uint64_t total = 0, before = 0;
#pragma unroll 1
  for (int w = 0; w < kWarps; ++w) {
    total += shared->warp_weight[w] + kept_equals(before, shared->warp_equals[w]) * each;
    before += shared->warp_equals[w];
  }
  const uint64_t draw = __umul64hi(total, random);  // below total
  uint64_t running = 0;
  before = 0;
  int chosen = -1;
#pragma unroll 1
  for (int w = 0; w < kWarps; ++w) {
    const uint64_t weight = shared->warp_weight[w] + kept_equals(before, shared->warp_equals[w]) * each;
    if (draw < running + weight) {
      chosen = w;
      break;
    }
    running += weight;
    before += shared->warp_equals[w];
  }
  if (warp != chosen) return;

  for (int step = begin; step < end; step += kStep) {
    const int first = step + lane * N;
    uint32_t keys[N];
    row.Read(first, keys);
    if (first >= end) {
#pragma unroll
      for (int j = 0; j < N; ++j) keys[j] = 0;
    }
    uint64_t here = 0;
#pragma unroll
    for (int j = 0; j < N; ++j) here += keys[j] == threshold.key;
    uint64_t all_equals;
    uint64_t rank = before + WarpExclusiveSum(here, &all_equals);
    const auto weight_of = [&](uint32_t key, uint64_t* next_rank) -> uint64_t {
      if (key == threshold.key) return (*next_rank)++ < threshold.equals ? each : 0;
      return key > threshold.key ? row.Kept(key) : 0;
    };
    uint64_t sum = 0;
    uint64_t next = rank;
#pragma unroll
    for (int j = 0; j < N; ++j) sum += weight_of(keys[j], &next);
    uint64_t step_weight;
    uint64_t at = running + WarpExclusiveSum(sum, &step_weight);
    if (draw < running + step_weight) {
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const uint64_t weight = weight_of(keys[j], &rank);
        if (at <= draw && draw < at + weight) {
          *token = first + j;
          if (logprob != nullptr) {
            const double sum_of_all = static_cast<double>(all) / (uint64_t{1} << kUnitBits);
            *logprob =
                static_cast<float>((LogitOf<T>(keys[j]) - row.max_logit) / row.temperature - log(sum_of_all));
          }
        }
        at += weight;
      }
      return;
    }
    running += step_weight;
    before += all_equals;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) SampleKernel(const __grid_constant__ llmd_sample_args args) {
  LLMD_DYNAMIC_SHARED(4, uint32_t, words);
  __shared__ Shared shared;
  constexpr int N = Row<T>::N;
  const int b = blockIdx.x;
  Row<T> row;
  row.logits = static_cast<const T*>(args.logits) + b * args.row_stride;
  row.vocab = args.vocab;
  row.vectors = reinterpret_cast<uintptr_t>(row.logits) % 16 == 0;

  // The greatest logit, and of equals the lowest id.
  uint64_t best = 0;
  for (int first = threadIdx.x * N; first < row.vocab; first += kThreads * N) {
    uint32_t keys[N];
    row.Read(first, keys);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      best = max(best, static_cast<uint64_t>(keys[j]) << 32 | ~static_cast<uint32_t>(first + j));
    }
  }
  const uint32_t thread_max_key = static_cast<uint32_t>(best >> 32);
  best = BlockReduce(best, Max(), shared.reduce);
  row.max_key = static_cast<uint32_t>(best >> 32);
  row.max_logit = LogitOf<T>(row.max_key);
  const int32_t best_id = static_cast<int32_t>(~static_cast<uint32_t>(best));
  float* logprob = args.logprobs == nullptr ? nullptr : args.logprobs + b;
  if (row.max_key == kKeyOfMinusInfinity<T> || row.max_key == kKeyOfInfinity<T>) {
    if (threadIdx.x == 0) {
      args.tokens[b] = -1;
      if (logprob != nullptr) *logprob = NAN;
    }
    return;
  }

  const float temperature = args.temperature == nullptr ? 1.0f : args.temperature[b];
  const bool greedy = !(temperature > 0);
  if (greedy && threadIdx.x == 0) args.tokens[b] = best_id;
  if (greedy && logprob == nullptr) return;
  row.temperature = greedy ? 1.0f : temperature;
  row.log2_scale = 1.44269504f / row.temperature;
  row.min_weight = 0;
  row.min_key = 0;
  if (greedy) {  // the same sums, of the whole row
    uint64_t all = 0;
    for (int first = threadIdx.x * N; first < row.vocab; first += kThreads * N) {
      uint32_t keys[N];
      row.Read(first, keys);
#pragma unroll
      for (int j = 0; j < N; ++j) all += row.Weight(keys[j]);
    }
    all = BlockReduce(all, Add(), shared.reduce);
    if (threadIdx.x == 0) {
      *logprob = static_cast<float>(-log(static_cast<double>(all) / (uint64_t{1} << kUnitBits)));
    }
    return;
  }

  const double unit = static_cast<double>(uint64_t{1} << kUnitBits);
  const float min_p = args.min_p == nullptr ? 0.0f : args.min_p[b];
  if (min_p > 0) row.min_weight = static_cast<uint64_t>(ceil(min(min_p, 1.0f) * unit));
  const int top_k = args.top_k == nullptr ? 0 : args.top_k[b];
  const float top_p = args.top_p == nullptr ? 1.0f : args.top_p[b];
  Threshold threshold = {0, 0, 0};  // everything
  if ((top_k > 0 && top_k < row.vocab) || top_p < 1) {
    if (top_k > 0 && top_k <= kThreads) row.min_key = Floor<T>(thread_max_key, top_k, words, &shared);
    uint64_t count, weight;
    Histogram(row, 0, 0, Keys<T>::kDigitBits, words);
    Totals<T>(words, &shared, &count, &weight);
    const bool by_count = top_k > 0 && top_k <= count;
    if (by_count) {
      threshold = Search(row, false, static_cast<uint64_t>(top_k), words, &shared);
      weight = threshold.weight;
      row.min_key = threshold.key;
    }
    if (top_p < 1) {
      if (by_count) Histogram(row, 0, 0, Keys<T>::kDigitBits, words);
      const double share = ceil(max(top_p, 0.0f) * static_cast<double>(weight));
      threshold =
          Search(row, true, min(max(static_cast<uint64_t>(share), uint64_t{1}), weight), words, &shared);
    }
  }
  const uint64_t request = args.request_ids == nullptr ? b : args.request_ids[b];
  const uint64_t step = args.steps == nullptr ? 0 : args.steps[b];
  // 24 bits, at the top of a word of 64.
  const uint64_t random = static_cast<uint64_t>(Philox4x32(args.seed, request, step).out[0] >> 8) << 40;
  Draw(row, threshold, random, &shared, args.tokens + b, logprob);
}

}  // namespace

llmd_code Sample(const llmd_sample_args& args, llmd_stream stream) {
  if (args.batch == 0) return LLMD_OK;
  return DispatchDtype(args.dtype, [&](auto element) {
    using T = decltype(element);
    const size_t bytes = Bins<T>::kBytes;
    if (const llmd_code code = AllowShared("sample", SampleKernel<T>, bytes); code != LLMD_OK) return code;
    const Launch launch = {.kernel = "sample",
                           .grid = dim3(static_cast<unsigned>(args.batch)),
                           .block = dim3(kThreads),
                           .shared_bytes = bytes,
                           .stream = stream};
    return LaunchKernel(launch, SampleKernel<T>, args);
  });
}

}  // namespace llmd::cuda
