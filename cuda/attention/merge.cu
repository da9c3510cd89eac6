// merge_states (spec 2.3): a thread has 4 elements of a row and goes through the row's parts in index order.
// The log-sums of a row are read by each of its threads: they come from the first-level cache.
#include <algorithm>
#include <cmath>

#include "cuda/common/convert.cuh"
#include "cuda/common/divide.h"
#include "cuda/common/launch.h"
#include "cuda/kernels.h"

namespace llmd::cuda {
namespace {

constexpr int kThreads = 128;

__device__ __forceinline__ bool Empty(float lse) { return isinf(lse); }

template <typename In, typename Out, int N>
__global__ void __launch_bounds__(kThreads)
    MergeKernel(const __grid_constant__ llmd_merge_states_args args, FastDivide pieces_a_row,
                FastDivide heads, uint32_t first_row, uint32_t num_items) {
  const uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= num_items) return;
  uint32_t piece, head;
  const int64_t token = heads.DivMod(first_row + pieces_a_row.DivMod(index, &piece), &head);
  // Part s is row begin + s * step of the partial results.
  int64_t begin = token, step = args.num_tokens;
  int count = args.num_parts;
  if (args.part_start != nullptr) {
    begin = args.part_start[token];
    count = args.part_start[token + 1] - static_cast<int>(begin);
    step = 1;
  }
  const float* lse = args.partial_lse + begin * args.num_heads + head;
  const int64_t lse_step = step * args.num_heads;
  const In* partial =
      static_cast<const In*>(args.partial_o) + (begin * args.num_heads + head) * args.head_dim + piece * N;
  const int64_t partial_step = lse_step * args.head_dim;

  float greatest = -INFINITY;
  for (int s = 0; s < count; ++s) {
    const float part = lse[s * lse_step];
    if (!Empty(part)) greatest = fmaxf(greatest, part);
  }
  float sum = 0.0f;
  float o[N] = {};
#pragma unroll 4
  for (int s = 0; s < count; ++s) {
    const float part = lse[s * lse_step];
    if (Empty(part)) continue;  // its values need not be numbers
    const float weight = expf(part - greatest);
    float x[N];
    ToFloats(LoadStream<In, N>(partial + s * partial_step), x);
    sum += weight;
#pragma unroll
    for (int j = 0; j < N; ++j) o[j] += weight * x[j];
  }
  const bool any = greatest != -INFINITY;
#pragma unroll
  for (int j = 0; j < N; ++j) o[j] = any ? o[j] / sum : 0.0f;
  Store(static_cast<Out*>(args.o) + token * args.o_strides.token + head * args.o_strides.head + piece * N,
        FromFloats<Out, N>(o));
  if (args.lse != nullptr && piece == 0) {
    args.lse[token * args.lse_strides.token + head * args.lse_strides.head] =
        any ? greatest + logf(sum) : -INFINITY;
  }
}

template <typename In, typename Out, int N>
llmd_code Run(const llmd_merge_states_args& args, llmd_stream stream) {
  const int64_t pieces = args.head_dim / N;
  const int64_t rows = int64_t{args.num_tokens} * args.num_heads;
  const int64_t most_rows = std::max<int64_t>(1, (int64_t{1} << 30) / pieces);  // 32-bit item numbers
  for (int64_t first = 0; first < rows; first += most_rows) {
    const int64_t items = std::min(most_rows, rows - first) * pieces;
    const Launch launch = {.kernel = "merge_states",
                           .grid = dim3(static_cast<unsigned>(CeilDivide(items, kThreads))),
                           .block = dim3(kThreads),
                           .stream = stream};
    const llmd_code code =
        LaunchKernel(launch, MergeKernel<In, Out, N>, args, FastDivide(static_cast<uint32_t>(pieces)),
                     FastDivide(static_cast<uint32_t>(args.num_heads)), static_cast<uint32_t>(first),
                     static_cast<uint32_t>(items));
    if (code != LLMD_OK) return code;
  }
  return LLMD_OK;
}

}  // namespace

llmd_code MergeStates(const llmd_merge_states_args& args, llmd_stream stream) {
  if (args.num_tokens == 0) return LLMD_OK;
  if (int64_t{args.num_tokens} * args.num_heads >= int64_t{1} << 31) {
    return attention::Fail(LLMD_UNSUPPORTED, "merge_states: num_tokens * num_heads is 2^31 or more");
  }
  return DispatchDtype(args.partial_dtype, [&](auto in) {
    return DispatchDtype(args.o_dtype, [&](auto out) {
      using In = decltype(in);
      using Out = decltype(out);
      constexpr int kVector = 4;
      const bool vectors =
          Aligned(kVector * sizeof(In), sizeof(In), args.partial_o, args.head_dim) &&
          Aligned(kVector * sizeof(Out), sizeof(Out), args.o, args.o_strides.token, args.o_strides.head);
      return vectors ? Run<In, Out, kVector>(args, stream) : Run<In, Out, 1>(args, stream);
    });
  });
}

}  // namespace llmd::cuda
