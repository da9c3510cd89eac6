// rms_norm (spec 1.4). A row is read once and kept in registers between the sum and the product: short rows
// (a head) have a few lanes of a warp, several rows in flight; longer rows a block, which goes from row to
// row. Rows too long for that, or not aligned, are read twice.
#include <algorithm>
#include <type_traits>

#include "cuda/common/convert.cuh"
#include "cuda/common/device.cuh"
#include "cuda/common/launch.h"
#include "cuda/common/math.cuh"
#include "cuda/kernels.h"

namespace llmd::cuda {
namespace {

// The sum of x and the residual, which it leaves there; as floats of what is stored, too.
template <typename T, int N>
__device__ __forceinline__ Vec<T, N> Sum(const Vec<T, N>& x, const Vec<T, N>& residual, T* target,
                                         float (&sum)[N]) {
  float a[N], b[N];
  ToFloats(x, a);
  ToFloats(residual, b);
#pragma unroll
  for (int j = 0; j < N; ++j) a[j] += b[j];
  const Vec<T, N> rounded = FromFloats<T, N>(a);
  Store(target, rounded);
  ToFloats(rounded, sum);
  return rounded;
}

template <typename T, int N>
__device__ __forceinline__ void Scale(const float (&x)[N], float factor, const Vec<T, N>& weight, T* y) {
  float w[N], out[N];
  ToFloats(weight, w);
#pragma unroll
  for (int j = 0; j < N; ++j) out[j] = x[j] * factor * w[j];
  Store(y, FromFloats<T, N>(out));
}

__device__ __forceinline__ float Factor(float sum, const llmd_rms_norm_args& args) {
  return 1.0f / sqrtf(sum / static_cast<float>(args.size) + args.epsilon);
}

// `lanes` threads (32 or fewer) hold kRows rows, a vector of each.
template <typename T, int N, int kRows>
__global__ void __launch_bounds__(256)
    LanesKernel(const __grid_constant__ llmd_rms_norm_args args, int lanes) {
  const int pieces = args.size / N;
  const int group = threadIdx.x / lanes, groups = blockDim.x / lanes;
  const int piece = threadIdx.x % lanes;
  T* residual = static_cast<T*>(args.residual);
  float values[kRows][N];
  {
    Vec<T, N> in[kRows], add[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = (static_cast<int64_t>(blockIdx.x) * kRows + r) * groups + group;
      if (row >= args.num_rows || piece >= pieces) continue;
      in[r] = LoadStream<T, N>(static_cast<const T*>(args.x) + row * args.x_stride + piece * N);
      if (residual != nullptr) add[r] = LoadStream<T, N>(residual + row * args.size + piece * N);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = (static_cast<int64_t>(blockIdx.x) * kRows + r) * groups + group;
      if (row >= args.num_rows || piece >= pieces) {
#pragma unroll
        for (int j = 0; j < N; ++j) values[r][j] = 0.0f;
      } else if (residual != nullptr) {
        Sum(in[r], add[r], residual + row * args.size + piece * N, values[r]);
      } else {
        ToFloats(in[r], values[r]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = (static_cast<int64_t>(blockIdx.x) * kRows + r) * groups + group;
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < N; ++j) sum += values[r][j] * values[r][j];
    const float factor = Factor(WarpReduce(sum, Add(), lanes), args);
    if (row >= args.num_rows || piece >= pieces) continue;
    Scale(values[r], factor, Load<T, N>(static_cast<const T*>(args.weight) + piece * N),
          static_cast<T*>(args.y) + row * args.y_stride + piece * N);
  }
}

// A block has every gridDim.x-th row, in kUnits vectors a thread, and loads the next row before it sums up
// the one it has: loads are always under way. The weights stay in registers where these are enough.
template <typename T, int N, int kUnits, bool kResidual>
__global__ void __launch_bounds__(1024) BlockKernel(const __grid_constant__ llmd_rms_norm_args args) {
  __shared__ float sums[2][32];
  constexpr bool kAhead = !kResidual || kUnits == 1;  // else registers do not suffice
  const int64_t size = args.size;
  const int pieces = args.size / N;
  const auto num_rows = static_cast<uint32_t>(args.num_rows);  // less than 2^31
  T* residual = static_cast<T*>(args.residual);
  const T* weights = static_cast<const T*>(args.weight);
  // As words: of 16-bit elements the compiler would give each a register.
  uint4 weight[kUnits], x[kUnits], add[kUnits];
  const auto vector = [](const uint4& words) { return reinterpret_cast<const Vec<T, N>&>(words); };
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    const int piece = threadIdx.x + u * blockDim.x;
    if (!kResidual && piece < pieces) weight[u] = *reinterpret_cast<const uint4*>(weights + piece * N);
  }
  const auto load = [&](uint32_t row) {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int piece = threadIdx.x + u * blockDim.x;
      if (row >= num_rows || piece >= pieces) continue;
      x[u] = LoadStream16(static_cast<const T*>(args.x) + row * args.x_stride + piece * N);
      if (kResidual) add[u] = LoadStream16(residual + row * size + piece * N);
    }
  };
  if (kAhead) load(blockIdx.x);
  bool odd = false;
#pragma unroll 1
  for (uint32_t row = blockIdx.x; row < num_rows; row += gridDim.x, odd = !odd) {
    if (!kAhead) load(row);
    uint4 now[kUnits];
    float sum = 0.0f;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int piece = threadIdx.x + u * blockDim.x;
      if (piece >= pieces) continue;
      float values[N];
      if (kResidual) {
        const Vec<T, N> rounded =
            Sum(vector(x[u]), vector(add[u]), residual + row * size + piece * N, values);
        now[u] = reinterpret_cast<const uint4&>(rounded);
      } else {
        now[u] = x[u];
        ToFloats(vector(x[u]), values);
      }
#pragma unroll
      for (int j = 0; j < N; ++j) sum += values[j] * values[j];
    }
    if (kAhead) load(row + gridDim.x);
    sum = WarpReduce(sum, Add());
    float* shared = sums[odd];  // one barrier a row: the other's sums may still be read
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = WarpReduce(threadIdx.x % 32 < blockDim.x / 32 ? shared[threadIdx.x % 32] : 0.0f, Add());
    const float factor = Factor(sum, args);
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int piece = threadIdx.x + u * blockDim.x;
      if (piece >= pieces) continue;
      float values[N];
      ToFloats(vector(now[u]), values);
      if (kResidual) weight[u] = *reinterpret_cast<const uint4*>(weights + piece * N);
      Scale(values, factor, vector(weight[u]), static_cast<T*>(args.y) + row * args.y_stride + piece * N);
    }
  }
}

template <typename T, int N>
__global__ void __launch_bounds__(1024) TwoPassKernel(const __grid_constant__ llmd_rms_norm_args args) {
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
    Scale(v, factor, Load<T, N>(static_cast<const T*>(args.weight) + i),
          static_cast<T*>(args.y) + row * args.y_stride + i);
  }
}

template <typename T, int N, int kRows>
llmd_code RunLanes(const llmd_rms_norm_args& args, int lanes, llmd_stream stream) {
  constexpr int kThreads = 256;
  const int rows_a_block = kRows * (kThreads / lanes);
  const Launch launch = {.kernel = "rms_norm",
                         .grid = dim3(static_cast<unsigned>(CeilDivide(args.num_rows, rows_a_block))),
                         .block = dim3(kThreads),
                         .stream = stream};
  return LaunchKernel(launch, LanesKernel<T, N, kRows>, args, lanes);
}

template <typename T, int N, int kUnits, bool kResidual>
llmd_code RunBlocks(const llmd_rms_norm_args& args, const Device& device, llmd_stream stream) {
  constexpr int kResident = 2048 / kUnits;  // threads of a multiprocessor
  const int threads = CeilDivide(CeilDivide(args.size / N, kUnits), 32) * 32;
  const int64_t blocks = std::min<int64_t>(args.num_rows, int64_t{device.sms} * (kResident / threads));
  const Launch launch = {.kernel = "rms_norm",
                         .grid = dim3(static_cast<unsigned>(blocks)),
                         .block = dim3(static_cast<unsigned>(threads)),
                         .stream = stream};
  return LaunchKernel(launch, BlockKernel<T, N, kUnits, kResidual>, args);
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
    return args.num_rows * lanes >= int64_t{device->sms} * 2048 * 2 ? RunLanes<T, N, 4>(args, lanes, stream)
                                                                    : RunLanes<T, N, 1>(args, lanes, stream);
  }
  // Few rows: as many threads as there are vectors. Many: fewer threads with more bytes each.
  const auto run = [&](auto units) {
    constexpr int kUnits = decltype(units)::value;
    return args.residual != nullptr ? RunBlocks<T, N, kUnits, true>(args, *device, stream)
                                    : RunBlocks<T, N, kUnits, false>(args, *device, stream);
  };
  if (pieces <= 1024 && (args.residual != nullptr || args.num_rows <= device->sms))
    return run(std::integral_constant<int, 1>());
  if (pieces <= 2048) return run(std::integral_constant<int, 2>());
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
