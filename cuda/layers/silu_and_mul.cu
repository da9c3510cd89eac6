// silu_and_mul (spec 1.4): y = silu(a) * b. Bound by memory: two pieces of 16 bytes of each half in flight a
// thread.
#include <algorithm>

#include "cuda/common/convert.cuh"
#include "cuda/common/divide.h"
#include "cuda/common/launch.h"
#include "cuda/kernels.h"

namespace llmd::cuda {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ float SiluAndMul(float a, float b) { return __fdividef(a, 1.0f + expf(-a)) * b; }

template <typename T, int N, int kUnroll>
__global__ void __launch_bounds__(kThreads)
    SiluKernel(const T* x, T* y, int size, FastDivide pieces_a_row, uint32_t num_items) {
  const uint32_t first = blockIdx.x * (kThreads * kUnroll) + threadIdx.x;
  Vec<T, N> a[kUnroll], b[kUnroll];
#pragma unroll
  for (int i = 0; i < kUnroll; ++i) {
    const uint32_t index = first + i * kThreads;
    if (index >= num_items) continue;
    uint32_t piece;
    const int64_t row = pieces_a_row.DivMod(index, &piece);
    const T* source = x + row * 2 * size + piece * N;
    a[i] = LoadStream<T, N>(source);
    b[i] = LoadStream<T, N>(source + size);
  }
#pragma unroll
  for (int i = 0; i < kUnroll; ++i) {
    const uint32_t index = first + i * kThreads;
    if (index >= num_items) continue;
    float fa[N], fb[N];
    ToFloats(a[i], fa);
    ToFloats(b[i], fb);
#pragma unroll
    for (int j = 0; j < N; ++j) fa[j] = SiluAndMul(fa[j], fb[j]);
    Store(y + static_cast<int64_t>(index) * N, FromFloats<T, N>(fa));  // y is contiguous
  }
}

template <typename T, int N, int kUnroll>
llmd_code Run(const llmd_silu_and_mul_args& args, llmd_stream stream) {
  const int64_t pieces = args.size / N;
  const int64_t most_rows = std::max<int64_t>(1, (int64_t{1} << 30) / pieces);  // 32-bit item numbers
  for (int64_t first = 0; first < args.num_rows; first += most_rows) {
    const int64_t items = std::min(most_rows, args.num_rows - first) * pieces;
    const Launch launch = {.kernel = "silu_and_mul",
                           .grid = dim3(static_cast<unsigned>(CeilDivide(items, kThreads * kUnroll))),
                           .block = dim3(kThreads),
                           .stream = stream};
    const T* x = static_cast<const T*>(args.x) + first * 2 * args.size;
    T* y = static_cast<T*>(args.y) + first * args.size;
    const llmd_code code =
        LaunchKernel(launch, SiluKernel<T, N, kUnroll>, x, y, args.size,
                     FastDivide(static_cast<uint32_t>(pieces)), static_cast<uint32_t>(items));
    if (code != LLMD_OK) return code;
  }
  return LLMD_OK;
}

}  // namespace

llmd_code SiluAndMul(const llmd_silu_and_mul_args& args, llmd_stream stream) {
  if (args.num_rows == 0 || args.size == 0) return LLMD_OK;
  return DispatchDtype(args.dtype, [&](auto element) {
    using T = decltype(element);
    constexpr int kVector = 16 / sizeof(T);
    const bool vectors = Aligned(16, sizeof(T), args.x, args.size) && Aligned(16, sizeof(T), args.y);
    return vectors ? Run<T, kVector, 2>(args, stream) : Run<T, 1, 4>(args, stream);
  });
}

}  // namespace llmd::cuda
