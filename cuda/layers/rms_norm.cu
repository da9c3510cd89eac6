// rms_norm (spec 1.4). A row is read once and kept in registers between the sum and the product: short rows
// (a head) have a few lanes of a warp, several rows in flight; longer rows a block. Rows too long for that,
// or not aligned, are read twice.
#include <algorithm>

#include "cuda/common/convert.cuh"
#include "cuda/common/launch.h"
#include "cuda/common/math.cuh"
#include "cuda/kernels.h"

namespace llmd::cuda {
namespace {

// x, or the sum with the residual that it leaves there; as floats of what is stored.
template <typename T, int N>
__device__ __forceinline__ void Sum(const Vec<T, N>& x, const Vec<T, N>& residual, T* target,
                                    float (&sum)[N]) {
  float a[N], b[N];
  ToFloats(x, a);
  ToFloats(residual, b);
#pragma unroll
  for (int j = 0; j < N; ++j) a[j] += b[j];
  const Vec<T, N> rounded = FromFloats<T, N>(a);
  Store(target, rounded);
  ToFloats(rounded, sum);
}

template <typename T, int N>
__device__ __forceinline__ void Scale(const float (&x)[N], float factor, const T* weight, T* y) {
  float w[N], out[N];
  ToFloats(Load<T, N>(weight), w);
#pragma unroll
  for (int j = 0; j < N; ++j) out[j] = x[j] * factor * w[j];
  Store(y, FromFloats<T, N>(out));
}

__device__ __forceinline__ float Factor(float sum, const llmd_rms_norm_args& args) {
  return 1.0f / sqrtf(sum / static_cast<float>(args.size) + args.epsilon);
}

// `lanes` threads (32 or fewer, or the whole block) hold kRows rows in kUnits vectors a row and thread.
template <typename T, int N, int kUnits, int kRows, bool kWholeBlock>
__global__ void __launch_bounds__(kWholeBlock ? 1024 : 256)
    RegisterKernel(const __grid_constant__ llmd_rms_norm_args args, int lanes) {
  __shared__ float shared[32];
  const int pieces = args.size / N;
  const int group = kWholeBlock ? 0 : threadIdx.x / lanes;
  const int lane = kWholeBlock ? threadIdx.x : threadIdx.x % lanes;
  const int groups = kWholeBlock ? 1 : blockDim.x / lanes;
  const T* x = static_cast<const T*>(args.x);
  T* residual = static_cast<T*>(args.residual);
  const T* weight = static_cast<const T*>(args.weight);
  T* y = static_cast<T*>(args.y);

  float values[kRows][kUnits][N];
  {
    Vec<T, N> in[kRows][kUnits], add[kRows][kUnits];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = (static_cast<int64_t>(blockIdx.x) * kRows + r) * groups + group;
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const int piece = lane + u * lanes;
        if (row >= args.num_rows || piece >= pieces) continue;
        in[r][u] = LoadStream<T, N>(x + row * args.x_stride + piece * N);
        if (residual != nullptr) add[r][u] = LoadStream<T, N>(residual + row * args.size + piece * N);
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = (static_cast<int64_t>(blockIdx.x) * kRows + r) * groups + group;
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const int piece = lane + u * lanes;
        if (row >= args.num_rows || piece >= pieces) {
#pragma unroll
          for (int j = 0; j < N; ++j) values[r][u][j] = 0.0f;
        } else if (residual != nullptr) {
          Sum(in[r][u], add[r][u], residual + row * args.size + piece * N, values[r][u]);
        } else {
          ToFloats(in[r][u], values[r][u]);
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = (static_cast<int64_t>(blockIdx.x) * kRows + r) * groups + group;
    float sum = 0.0f;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
#pragma unroll
      for (int j = 0; j < N; ++j) sum += values[r][u][j] * values[r][u][j];
    }
    sum = kWholeBlock ? BlockReduce(sum, Add(), shared) : WarpReduce(sum, Add(), lanes);
    const float factor = Factor(sum, args);
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int piece = lane + u * lanes;
      if (row >= args.num_rows || piece >= pieces) continue;
      Scale(values[r][u], factor, weight + piece * N, y + row * args.y_stride + piece * N);
    }
  }
}

template <typename T, int N>
__global__ void TwoPassKernel(const __grid_constant__ llmd_rms_norm_args args) {
  __shared__ float shared[32];
  const int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(args.x) + row * args.x_stride;
  T* residual = args.residual == nullptr ? nullptr : static_cast<T*>(args.residual) + row * args.size;
  float sum = 0.0f;
  for (int i = threadIdx.x * N; i < args.size; i += blockDim.x * N) {
    float v[N];
    if (residual != nullptr) {
      Sum(Load<T, N>(x + i), Load<T, N>(residual + i), residual + i, v);
    } else {
      ToFloats(Load<T, N>(x + i), v);
    }
#pragma unroll
    for (int j = 0; j < N; ++j) sum += v[j] * v[j];
  }
  const float factor = Factor(BlockReduce(sum, Add(), shared), args);
  const T* source = residual != nullptr ? residual : x;
  for (int i = threadIdx.x * N; i < args.size; i += blockDim.x * N) {
    float v[N];
    ToFloats(Load<T, N>(source + i), v);  // each thread reads what it wrote
    Scale(v, factor, static_cast<const T*>(args.weight) + i,
          static_cast<T*>(args.y) + row * args.y_stride + i);
  }
}

template <typename T, int N, int kUnits, int kRows, bool kWholeBlock>
llmd_code RunRegisters(const llmd_rms_norm_args& args, int lanes, llmd_stream stream) {
  constexpr int kThreads = 256;
  const int rows_a_block = kRows * (kWholeBlock ? 1 : kThreads / lanes);
  const Launch launch = {.kernel = "rms_norm",
                         .grid = dim3(static_cast<unsigned>(CeilDivide(args.num_rows, rows_a_block))),
                         .block = dim3(kWholeBlock ? lanes : kThreads),
                         .stream = stream};
  return LaunchKernel(launch, RegisterKernel<T, N, kUnits, kRows, kWholeBlock>, args, lanes);
}

template <typename T, int N>
llmd_code RunTwoPass(const llmd_rms_norm_args& args, llmd_stream stream) {
  const int64_t threads = std::min<int64_t>(1024, CeilDivide(CeilDivide(args.size, N), 32) * 32);
  const Launch launch = {.kernel = "rms_norm",
                         .grid = dim3(static_cast<unsigned>(args.num_rows)),
                         .block = dim3(static_cast<unsigned>(threads)),
                         .stream = stream};
  return LaunchKernel(launch, TwoPassKernel<T, N>, args);
}

template <typename T>
llmd_code RunTyped(const llmd_rms_norm_args& args, llmd_stream stream) {
  constexpr int N = 16 / sizeof(T);
  const bool vectors = Aligned(16, sizeof(T), args.x, args.x_stride, args.size) &&
                       Aligned(16, sizeof(T), args.residual) && Aligned(16, sizeof(T), args.weight) &&
                       Aligned(16, sizeof(T), args.y, args.y_stride);
  if (!vectors) return RunTwoPass<T, 1>(args, stream);
  const Device* device = CurrentDevice();
  if (device == nullptr) return LLMD_DEVICE_ERROR;
  const int pieces = args.size / N;
  if (pieces <= 32) {
    int lanes = 1;
    while (lanes < pieces) lanes *= 2;
    return args.num_rows * lanes >= int64_t{device->sms} * 2048 * 2
               ? RunRegisters<T, N, 1, 4, false>(args, lanes, stream)
               : RunRegisters<T, N, 1, 1, false>(args, lanes, stream);
  }
  // Few rows: as many threads as there are vectors. Many: fewer threads with more bytes each.
  const auto threads = [&](int units) {
    return static_cast<int>(CeilDivide(CeilDivide(pieces, units), 32) * 32);
  };
  if (pieces <= 1024 && args.num_rows <= device->sms) {
    return RunRegisters<T, N, 1, 1, true>(args, threads(1), stream);
  }
  if (pieces <= 2048) return RunRegisters<T, N, 2, 1, true>(args, threads(2), stream);
  return RunTwoPass<T, N>(args, stream);
}

}  // namespace

llmd_code RmsNorm(const llmd_rms_norm_args& args, llmd_stream stream) {
  if (args.num_rows == 0 || args.size == 0) return LLMD_OK;
  if (args.num_rows > INT32_MAX)
    return attention::Fail(LLMD_UNSUPPORTED, "rms_norm: num_rows is 2^31 or more");
  return DispatchDtype(args.dtype, [&](auto element) { return RunTyped<decltype(element)>(args, stream); });
}

}  // namespace llmd::cuda
