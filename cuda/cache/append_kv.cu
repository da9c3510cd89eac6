// append_kv (spec 1.2): one thread a piece of 8 elements of K or V, the same of several neighbouring tokens,
// so that neighbouring threads read and write neighbouring bytes and places are worked out once a token. Data
// is loaded before its place is known: the two chains of latency overlap.
#include <algorithm>
#include <type_traits>

#include "cuda/cache/placement.cuh"
#include "cuda/common/convert.cuh"
#include "cuda/common/device.cuh"
#include "cuda/common/divide.h"
#include "cuda/common/launch.h"
#include "cuda/kernels.h"

namespace llmd::cuda {
namespace {

constexpr int kThreads = 256;

struct Split {  // an item's number is ((token * 2 + side) * heads + head) * pieces + piece
  FastDivide pieces;
  FastDivide heads;
  FastDivide page_size;
};

// N elements as they were loaded; of 16-bit elements in an array the compiler would give each a register.
template <typename T, int N>
struct Loaded {
  static constexpr bool kWords = sizeof(T) * N == 16;
  std::conditional_t<kWords, uint4, Vec<T, N>> data;

  __device__ __forceinline__ void Load(const T* p) {
    if constexpr (kWords) {
      data = LoadStream16(p);
    } else {
      data = LoadStream<T, N>(p);
    }
  }
  __device__ __forceinline__ const Vec<T, N>& vector() const {
    return reinterpret_cast<const Vec<T, N>&>(data);
  }
};

// x / scale, as division rounds it, for results that e4m3 can tell from 0 and from 448; of a scale that is
// positive and neither tiny nor huge. `inverse`: 1 / scale (Markstein: a quotient, its exact remainder, and a
// correction, with signs that keep that of a zero).
__device__ __forceinline__ float Quotient(float x, float scale, float inverse) {
  const float quotient = x * inverse;
  const float corrected = fmaf(fmaf(quotient, scale, -x), -inverse, quotient);
  return fabsf(quotient) < 1024 ? corrected : quotient;
}

// A thread has one piece of K or V of kUnroll tokens.
template <typename Src, typename Dst, int N, int kUnroll>
__global__ void __launch_bounds__(kThreads)
    AppendKernel(const __grid_constant__ llmd_append_kv_args args, const __grid_constant__ Split split,
                 int first_token, int end_token) {
  uint32_t piece, head;
  const uint32_t side =
      split.heads.DivMod(split.pieces.DivMod(blockIdx.x * kThreads + threadIdx.x, &piece), &head);
  const bool is_v = side % 2 != 0;
  const int element = static_cast<int>(piece) * N;
  first_token += static_cast<int>(side / 2) * kUnroll;
  if (first_token >= end_token) return;
  const llmd_token_strides strides = is_v ? args.v_strides : args.k_strides;
  const Src* source = static_cast<const Src*>(is_v ? args.v : args.k) + head * strides.head + element;
  Loaded<Src, N> data[kUnroll];
#pragma unroll
  for (int i = 0; i < kUnroll; ++i) {
    const int token = first_token + i;
    if (token < end_token) data[i].Load(source + token * strides.token);
  }
  const llmd_kv_cache& cache = args.cache;
  const llmd_kv_strides to = is_v ? cache.v_strides : cache.k_strides;
  int64_t places[kUnroll];  // elements from the head's first one, or negative
#pragma unroll
  for (int i = 0; i < kUnroll; ++i) {
    const int token = first_token + i;
    places[i] = -1;
    if (token >= end_token) continue;
    const Place place = FindPlace(args, split.page_size, token, !is_v && head == 0 && element == 0);
    if (place.page >= 0) places[i] = Offset(to, place, 0);
  }
  Dst* target = static_cast<Dst*>(is_v ? cache.v : cache.k) + head * to.head + element;
  const float* scales = is_v ? cache.v_scale : cache.k_scale;
  float scale = 1;
  if (std::is_same_v<Dst, Fp8> && scales != nullptr) scale = scales[head * cache.scale_stride];
  const float inverse = 1 / scale;
  const bool plain = scale > 0x1p-60f && scale < 0x1p60f;
#pragma unroll
  for (int i = 0; i < kUnroll; ++i) {
    if (places[i] < 0) continue;
    Dst* row = target + places[i];
    if constexpr (std::is_same_v<Src, Dst>) {
      Store(row, data[i].vector());
    } else {
      float x[N];
      ToFloats(data[i].vector(), x);
      if constexpr (std::is_same_v<Dst, Fp8>) {
        if (scales != nullptr) {
#pragma unroll
          for (int j = 0; j < N; ++j) x[j] = plain ? Quotient(x[j], scale, inverse) : __fdiv_rn(x[j], scale);
        }
      }
      Store(row, FromFloats<Dst, N>(x));
    }
  }
}

template <typename Src, typename Dst, int N, int kUnroll>
llmd_code Run(const llmd_append_kv_args& args, llmd_stream stream) {
  const uint32_t pieces = args.cache.head_dim / N;
  const uint32_t heads = args.cache.num_kv_heads;
  const Split split = {FastDivide(pieces), FastDivide(heads), FastDivide(args.cache.page_size)};
  const int64_t items_a_token = int64_t{2} * heads * pieces;
  if (items_a_token > INT32_MAX)
    return attention::Fail(LLMD_UNSUPPORTED, "append_kv: num_kv_heads * head_dim is 2^30 or more");
  const int64_t most_tokens =
      std::max<int64_t>(1, (int64_t{1} << 30) / items_a_token);  // 32-bit item numbers
  for (int64_t first = 0; first < args.num_tokens; first += most_tokens) {
    const int64_t tokens = std::min<int64_t>(most_tokens, args.num_tokens - first);
    const int64_t threads = CeilDivide(tokens, kUnroll) * items_a_token;
    const Launch launch = {.kernel = "append_kv",
                           .grid = dim3(static_cast<unsigned>(CeilDivide(threads, kThreads))),
                           .block = dim3(kThreads),
                           .stream = stream};
    const llmd_code code = LaunchKernel(launch, AppendKernel<Src, Dst, N, kUnroll>, args, split,
                                        static_cast<int>(first), static_cast<int>(first + tokens));
    if (code != LLMD_OK) return code;
  }
  return LLMD_OK;
}

template <typename Src, typename Dst>
llmd_code RunTyped(const llmd_append_kv_args& args, llmd_stream stream) {
  constexpr int kVector = 8;
  const bool vectors = args.cache.head_dim % kVector == 0 &&
                       Aligned(16, sizeof(Src), args.k, args.k_strides.token, args.k_strides.head) &&
                       Aligned(16, sizeof(Src), args.v, args.v_strides.token, args.v_strides.head);
  if (!vectors) return Run<Src, Dst, 1, 1>(args, stream);
  const Device* device = CurrentDevice();
  if (device == nullptr) return LLMD_DEVICE_ERROR;
  // Once every thread of the device has a piece, several a thread: more bytes in flight and fewer blocks.
  constexpr int kUnroll = sizeof(Src) == 4 ? 1 : 4;
  const int64_t items =
      int64_t{args.num_tokens} * 2 * args.cache.num_kv_heads * (args.cache.head_dim / kVector);
  return items >= int64_t{device->sms} * 2048 * kUnroll ? Run<Src, Dst, kVector, kUnroll>(args, stream)
                                                        : Run<Src, Dst, kVector, 1>(args, stream);
}

}  // namespace

llmd_code AppendKv(const llmd_append_kv_args& args, llmd_stream stream) {
  if (args.num_tokens == 0) return LLMD_OK;
  return DispatchDtype(args.dtype, [&](auto source) {
    return DispatchCacheDtype(args.cache.dtype, [&](auto cache) {
      return RunTyped<decltype(source), decltype(cache)>(args, stream);
    });
  });
}

}  // namespace llmd::cuda
