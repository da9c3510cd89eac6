// append_kv (spec 1.2): one thread a piece of 8 elements of K or V, in token order, so that neighbouring
// threads read and write neighbouring bytes. Data is loaded before its place is known: the two chains of
// latency overlap.
#include <algorithm>

#include "cuda/cache/placement.cuh"
#include "cuda/common/convert.cuh"
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

struct Item {
  int token;
  bool is_v;
  int head;
  int element;
};

template <int N>
__device__ __forceinline__ Item Decode(const Split& split, uint32_t index, int first_token) {
  uint32_t piece, head;
  const uint32_t side = split.heads.DivMod(split.pieces.DivMod(index, &piece), &head);
  return {first_token + static_cast<int>(side / 2), side % 2 != 0, static_cast<int>(head),
          static_cast<int>(piece) * N};
}

template <typename Src, typename Dst, int N, int kUnroll>
__global__ void __launch_bounds__(kThreads)
    AppendKernel(const __grid_constant__ llmd_append_kv_args args, const __grid_constant__ Split split,
                 int first_token, uint32_t num_items) {
  const uint32_t first = blockIdx.x * (kThreads * kUnroll) + threadIdx.x;
  Vec<Src, N> data[kUnroll];
#pragma unroll
  for (int i = 0; i < kUnroll; ++i) {
    const uint32_t index = first + i * kThreads;
    if (index >= num_items) continue;
    const Item item = Decode<N>(split, index, first_token);
    const llmd_token_strides strides = item.is_v ? args.v_strides : args.k_strides;
    const Src* source = static_cast<const Src*>(item.is_v ? args.v : args.k);
    data[i] =
        LoadStream<Src, N>(source + item.token * strides.token + item.head * strides.head + item.element);
  }
#pragma unroll
  for (int i = 0; i < kUnroll; ++i) {
    const uint32_t index = first + i * kThreads;
    if (index >= num_items) continue;
    const Item item = Decode<N>(split, index, first_token);
    const Place place =
        FindPlace(args, split.page_size, item.token, !item.is_v && item.head == 0 && item.element == 0);
    if (place.page < 0) continue;
    const llmd_kv_cache& cache = args.cache;
    Dst* target = static_cast<Dst*>(item.is_v ? cache.v : cache.k) +
                  Offset(item.is_v ? cache.v_strides : cache.k_strides, place, item.head) + item.element;
    if constexpr (std::is_same_v<Src, Dst>) {
      Store(target, data[i]);
    } else {
      float x[N];
      ToFloats(data[i], x);
      if constexpr (std::is_same_v<Dst, Fp8>) {
        const float* scales = item.is_v ? cache.v_scale : cache.k_scale;
        if (scales != nullptr) {
          const float scale = scales[item.head * cache.scale_stride];
#pragma unroll
          for (int j = 0; j < N; ++j) x[j] = __fdiv_rn(x[j], scale);
        }
      }
      Store(target, FromFloats<Dst, N>(x));
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
    const int64_t items = std::min<int64_t>(most_tokens, args.num_tokens - first) * items_a_token;
    const Launch launch = {.kernel = "append_kv",
                           .grid = dim3(static_cast<unsigned>(CeilDivide(items, kThreads * kUnroll))),
                           .block = dim3(kThreads),
                           .stream = stream};
    const llmd_code code = LaunchKernel(launch, AppendKernel<Src, Dst, N, kUnroll>, args, split,
                                        static_cast<int>(first), static_cast<uint32_t>(items));
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
  const int64_t items =
      int64_t{args.num_tokens} * 2 * args.cache.num_kv_heads * (args.cache.head_dim / kVector);
  return items >= int64_t{device->sms} * 2048 * 4 ? Run<Src, Dst, kVector, 4>(args, stream)
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
