// rope and rope_append (spec 1.4). A block has a few tokens: it computes their sines and cosines once into
// shared memory, then every thread turns pieces of two vectors of heads. The whole turns of an angle are
// taken off in double, which costs nothing a token and keeps angles right at any position; frequencies come
// from the host.
#include <algorithm>
#include <numbers>
#include <type_traits>

#include "cuda/cache/placement.cuh"
#include "cuda/common/convert.cuh"
#include "cuda/common/device.cuh"
#include "cuda/common/divide.h"
#include "cuda/common/launch.h"
#include "cuda/kernels.h"
#include "src/attention/frequencies.h"

namespace llmd::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxPairs = 256;
constexpr int kMaxTokens = 8;  // of a block

struct Frequencies {  // in turns a position
  double at[kMaxPairs];
};

struct Job {
  const int32_t* positions;
  int num_tokens;
  int tokens_a_block;
  int q_heads;
  int kv_heads;
  int rotary_dim;
  int interleaved;
  const void* q;
  llmd_token_strides q_strides;
  void* q_out;
  llmd_token_strides q_out_strides;
  const void* k;
  llmd_token_strides k_strides;
  void* k_out;
  llmd_token_strides k_out_strides;
  int rotated_pieces;  // of a head; each is two vectors
  FastDivide pieces;   // of a head, with those of one vector past rotary_dim
  FastDivide heads;    // of a token: q, k, and v when they are appended
};

// The two vectors of a piece, as stored, turned by their angles. `turns` are the token's (cos, sin).
template <int N>
__device__ __forceinline__ void Rotate(const Job& job, int first, const float2* turns, float (&a)[N],
                                       float (&b)[N]) {
  const auto turn = [](const float2& t, float& x, float& y) {
    const float rotated = x * t.x - y * t.y;
    y = y * t.x + x * t.y;
    x = rotated;
  };
  if (N == 1 || !job.interleaved) {
    const int pair = N == 1 && job.interleaved ? first / 2 : first;
#pragma unroll
    for (int j = 0; j < N; ++j) turn(turns[pair + j], a[j], b[j]);
  } else {
#pragma unroll
    for (int j = 0; j + 1 < N; j += 2) {
      turn(turns[(first + j) / 2], a[j], a[j + 1]);
      turn(turns[(first + N + j) / 2], b[j], b[j + 1]);
    }
  }
}

template <typename T, typename Cache, int N>
__device__ __forceinline__ void StoreScaled(Cache* target, float (&x)[N], float scale) {
  if constexpr (std::is_same_v<Cache, Fp8>) {
#pragma unroll
    for (int j = 0; j < N; ++j) x[j] = __fdiv_rn(x[j], scale);
  }
  Store(target, FromFloats<Cache, N>(x));
}

// Cache is void when nothing is appended.
template <typename T, typename Cache, int N>
__global__ void __launch_bounds__(kThreads)
    RopeKernel(const __grid_constant__ Job job, const __grid_constant__ Frequencies frequencies,
               const __grid_constant__ llmd_append_kv_args append,
               const __grid_constant__ FastDivide page_size) {
  constexpr bool kAppend = !std::is_void_v<Cache>;
  LLMD_DYNAMIC_SHARED(8, float2, turns);  // [tokens][pairs]
  __shared__ Place places[kMaxTokens];
  const int pairs = job.rotary_dim / 2;
  const int first_token = blockIdx.x * job.tokens_a_block;
  const int tokens = min(job.tokens_a_block, job.num_tokens - first_token);

  for (int i = threadIdx.x; i < tokens * pairs; i += kThreads) {
    double turn = job.positions[first_token + i / pairs] * frequencies.at[i % pairs];
    turn -= rint(turn);
    float sine, cosine;
    sincospif(static_cast<float>(2 * turn), &sine, &cosine);
    turns[i] = make_float2(cosine, sine);
  }
  if constexpr (kAppend) {
    if (threadIdx.x < tokens) {
      places[threadIdx.x] = FindPlace(append, page_size, first_token + threadIdx.x, true);
    }
  }
  __syncthreads();

  const int items = tokens * job.heads.divisor() * job.pieces.divisor();
  for (int i = threadIdx.x; i < items; i += kThreads) {
    uint32_t piece, head;
    const int local = static_cast<int>(job.heads.DivMod(job.pieces.DivMod(i, &piece), &head));
    const int64_t token = first_token + local;
    const bool is_q = head < job.q_heads;
    if (!is_q) head -= job.q_heads;
    const bool is_v = !is_q && head >= job.kv_heads;
    if (is_v) head -= job.kv_heads;
    const bool two = piece < job.rotated_pieces;
    // The element at which each vector begins.
    int first = (static_cast<int>(piece) - job.rotated_pieces) * N + job.rotary_dim;
    int second = first;
    if (two) {
      first = piece * N * (job.interleaved ? 2 : 1);
      second = first + (job.interleaved ? N : pairs);
    }
    const T* source = static_cast<const T*>(is_q ? job.q : is_v ? append.v : job.k);
    const llmd_token_strides in = is_q ? job.q_strides : is_v ? append.v_strides : job.k_strides;
    source += token * in.token + head * in.head;
    const Vec<T, N> x = LoadStream<T, N>(source + first);
    Vec<T, N> y = x;
    if (two) y = LoadStream<T, N>(source + second);
    float a[N], b[N];
    ToFloats(x, a);
    ToFloats(y, b);
    if (two && !is_v) Rotate(job, first, turns + local * pairs, a, b);
    if (!kAppend || is_q) {
      T* target = static_cast<T*>(is_q ? job.q_out : job.k_out);
      const llmd_token_strides out = is_q ? job.q_out_strides : job.k_out_strides;
      target += token * out.token + head * out.head;
      if (!two && target == source) continue;  // what is not turned stays
      Store(target + first, FromFloats<T, N>(a));
      if (two) Store(target + second, FromFloats<T, N>(b));
    } else if constexpr (kAppend) {
      const Place place = places[local];
      if (place.page < 0) continue;
      const llmd_kv_cache& cache = append.cache;
      Cache* target = static_cast<Cache*>(is_v ? cache.v : cache.k) +
                      Offset(is_v ? cache.v_strides : cache.k_strides, place, head);
      const float scale = ScaleOf(is_v ? cache.v_scale : cache.k_scale, cache.scale_stride, head);
      StoreScaled<T, Cache, N>(target + first, a, scale);
      if (two) StoreScaled<T, Cache, N>(target + second, b, scale);
    }
  }
}

// The last answer is kept, for a model asks the same at every layer.
llmd_code ComputeFrequencies(const char* name, const llmd_rope& rope, const Frequencies** out) {
  static thread_local llmd_rope last = {};
  static thread_local Frequencies frequencies = {};
  if (rope.rotary_dim > 2 * kMaxPairs) {
    return attention::Fail(LLMD_UNSUPPORTED, std::string(name) + ": rope.rotary_dim is " +
                                                 std::to_string(rope.rotary_dim) + ", the limit is " +
                                                 std::to_string(2 * kMaxPairs));
  }
  *out = &frequencies;
  if (rope.theta == last.theta && rope.rotary_dim == last.rotary_dim &&
      rope.scale_factor == last.scale_factor && rope.low_freq_factor == last.low_freq_factor &&
      rope.high_freq_factor == last.high_freq_factor && rope.old_context == last.old_context) {
    return LLMD_OK;
  }
  for (int i = 0; i < rope.rotary_dim / 2; ++i) {
    frequencies.at[i] = attention::Frequency(rope, i) / (2 * std::numbers::pi);
  }
  last = rope;
  return LLMD_OK;
}

template <typename T, typename Cache, int N>
llmd_code Run(const char* name, Job job, int head_dim, const llmd_rope& rope,
              const llmd_append_kv_args& append, llmd_stream stream) {
  const Frequencies* frequencies = nullptr;
  if (const llmd_code code = ComputeFrequencies(name, rope, &frequencies); code != LLMD_OK) return code;
  const Device* device = CurrentDevice();
  if (device == nullptr) return LLMD_DEVICE_ERROR;
  job.rotated_pieces = job.rotary_dim / 2 / N;
  const int pieces = job.rotated_pieces + (head_dim - job.rotary_dim) / N;
  const int heads = job.q_heads + job.kv_heads * (std::is_void_v<Cache> ? 1 : 2);
  job.pieces = FastDivide(pieces);
  job.heads = FastDivide(heads);
  // Several tokens a block hide the time for the angles, once there are blocks enough for the device.
  const int64_t wanted = CeilDivide(4 * kThreads, int64_t{heads} * pieces);
  const int64_t fair = job.num_tokens / (int64_t{8} * device->sms);
  job.tokens_a_block = static_cast<int>(std::clamp<int64_t>(std::min(wanted, fair), 1, kMaxTokens));
  const Launch launch = {.kernel = name,
                         .grid = dim3(static_cast<unsigned>(CeilDivide(job.num_tokens, job.tokens_a_block))),
                         .block = dim3(kThreads),
                         .shared_bytes = sizeof(float2) * job.tokens_a_block * (job.rotary_dim / 2),
                         .stream = stream};
  return LaunchKernel(launch, RopeKernel<T, Cache, N>, job, *frequencies, append,
                      FastDivide(std::max(1, append.cache.page_size)));
}

template <typename T, typename Cache>
llmd_code RunTyped(const char* name, const Job& job, int head_dim, const llmd_rope& rope,
                   const llmd_append_kv_args& append, llmd_stream stream) {
  constexpr int N = 16 / sizeof(T);
  const bool vectors = job.rotary_dim % (2 * N) == 0 && head_dim % N == 0 &&
                       Aligned(16, sizeof(T), job.q, job.q_strides.token, job.q_strides.head) &&
                       Aligned(16, sizeof(T), job.q_out, job.q_out_strides.token, job.q_out_strides.head) &&
                       Aligned(16, sizeof(T), job.k, job.k_strides.token, job.k_strides.head) &&
                       Aligned(16, sizeof(T), job.k_out, job.k_out_strides.token, job.k_out_strides.head) &&
                       Aligned(16, sizeof(T), append.v, append.v_strides.token, append.v_strides.head);
  return vectors ? Run<T, Cache, N>(name, job, head_dim, rope, append, stream)
                 : Run<T, Cache, 1>(name, job, head_dim, rope, append, stream);
}

}  // namespace

llmd_code Rope(const llmd_rope_args& args, llmd_stream stream) {
  if (args.num_tokens == 0) return LLMD_OK;
  Job job = {};
  job.positions = args.positions;
  job.num_tokens = args.num_tokens;
  job.q_heads = args.num_q_heads;
  job.kv_heads = args.k == nullptr ? 0 : args.num_kv_heads;
  job.rotary_dim = args.rope.rotary_dim;
  job.interleaved = args.rope.interleaved;
  job.q = args.q;
  job.q_strides = args.q_strides;
  job.q_out = args.q_out;
  job.q_out_strides = args.q_out_strides;
  if (job.kv_heads != 0) {
    job.k = args.k;
    job.k_strides = args.k_strides;
    job.k_out = args.k_out;
    job.k_out_strides = args.k_out_strides;
  }
  return DispatchDtype(args.dtype, [&](auto element) {
    return RunTyped<decltype(element), void>("rope", job, args.head_dim, args.rope, {}, stream);
  });
}

llmd_code RopeAppend(const llmd_rope_append_args& args, llmd_stream stream) {
  const llmd_append_kv_args& append = args.append;
  if (append.num_tokens == 0) return LLMD_OK;
  Job job = {};
  job.positions = append.positions;
  job.num_tokens = append.num_tokens;
  job.q_heads = args.num_q_heads;
  job.kv_heads = append.cache.num_kv_heads;
  job.rotary_dim = args.rope.rotary_dim;
  job.interleaved = args.rope.interleaved;
  job.q = args.q;
  job.q_strides = args.q_strides;
  job.q_out = args.q_out;
  job.q_out_strides = args.q_out_strides;
  job.k = append.k;
  job.k_strides = append.k_strides;
  const int head_dim = append.cache.head_dim;
  return DispatchDtype(append.dtype, [&](auto element) {
    return DispatchCacheDtype(append.cache.dtype, [&](auto cache) {
      return RunTyped<decltype(element), decltype(cache)>("rope_append", job, head_dim, args.rope, append,
                                                          stream);
    });
  });
}

}  // namespace llmd::cuda
