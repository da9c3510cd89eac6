#include "tests/cuda/emulator/faults.h"

#include "cuda/attention/ptx.cuh"
#include "cuda/common/device.cuh"
#include "cuda/common/launch.h"

namespace llmd::emulator {
namespace {

using cuda::LaunchKernel;
using cuda::SyncThreads;

// Counts an arrival: what came before it is seen after the count, as in kernels where blocks meet.
__device__ unsigned AddReleaseAcquire(unsigned* counter, unsigned value) {
  __threadfence();
  const unsigned before = atomicAdd(counter, value);
  __threadfence();
  return before;
}

__global__ void ReverseInBlockKernel(Code code, const int* in, int* out) {
  __shared__ int elements[kBlockThreads];
  const int i = threadIdx.x;
  elements[i] = in[i];
  if (code == Code::kRight) __syncthreads();
  out[i] = elements[kBlockThreads - 1 - i];
}

__global__ void ReverseInWarpKernel(Code code, const int* in, int* out) {
  __shared__ int elements[32];
  const int i = threadIdx.x;
  elements[i] = in[i];
  if (code == Code::kRight) __syncwarp();
  out[i] = elements[31 - i];
}

// A ring of two stages. A lane copies its own 16 bytes and reads its neighbour's.
__global__ void SumOfTilesKernel(CopyFault fault, const int* in, int* out) {
  constexpr int kTiles = 4, kStages = 2;
  __shared__ __align__(16) int ring[kStages][32][4];
  const int lane = threadIdx.x;
  int sum = 0;
  const auto issue = [&](int tile) {
    if (tile < kTiles) {
      cuda::CopyAsync16(cuda::SharedAddress(ring[tile % kStages][lane]), in + (tile * 32 + lane) * 4,
                        cuda::EvictFirstPolicy());
    }
    cuda::CopyAsyncCommit();
  };
  issue(0);
  for (int tile = 0; tile < kTiles; ++tile) {
    issue(tile + 1);
    if (fault == CopyFault::kWait) {
      cuda::CopyAsyncWait<kStages>();
    } else {
      cuda::CopyAsyncWait<kStages - 1>();
    }
    __syncwarp();
    for (int e = 0; e < 4; ++e) sum += ring[tile % kStages][(lane + 1) % 32][e];
    if (fault != CopyFault::kRefill) __syncwarp();
  }
  out[lane] = sum;
}

__global__ void ShuffleKernel(Code code, int* out) {
  const int lane = threadIdx.x;
  int value = lane;
  if (code == Code::kRight) {
    value = __shfl_xor_sync(~0u, value, 1);
  } else if (lane < 16) {
    value = __shfl_xor_sync(~0u, value, 1);
  } else {
    value = __shfl_xor_sync(~0u, value, 1);
  }
  out[lane] = value;
}

__global__ void VoteKernel(Code code, int* out) {
  const int lane = threadIdx.x;
  if (code == Code::kWrong && lane == 7) return;
  out[lane] = __any_sync(~0u, lane == 3);
}

__global__ void PartBarrierKernel(Code code, int* out) {
  const int threads = code == Code::kRight ? 64 : 32;
  if (threadIdx.x < threads) SyncThreads(1, 64);
  out[threadIdx.x] = 1;
}

__global__ void BarrierSizesKernel(Code code, int* out) {
  SyncThreads(2, code == Code::kWrong && threadIdx.x >= 32 ? 32 : 64);
  out[threadIdx.x] = 1;
}

__global__ void ReadMatricesKernel(int offset, int* out) {
  LLMD_DYNAMIC_SHARED(128, char, memory);
  std::uint32_t registers[4];
  cuda::LoadMatrix4(registers, cuda::SharedAddress(memory) + offset + 16 * threadIdx.x);
  out[threadIdx.x] = registers[0];
}

__global__ void MeetOfBlocksKernel(unsigned blocks, unsigned* counter, int* out) {
  if (threadIdx.x == 0) AddReleaseAcquire(counter, 1);
  while (*counter < blocks) __nanosleep(100);
  out[blockIdx.x] = 1;
}

__global__ void SumByLastBlockKernel(Code code, int* parts, unsigned* counter, int* out) {
  __shared__ bool last;
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  parts[i] = i;
  if (code == Code::kRight) __syncthreads();
  if (threadIdx.x == 0) last = AddReleaseAcquire(counter, 1) == gridDim.x - 1;
  __syncthreads();
  if (!last || threadIdx.x != 0) return;
  int sum = 0;
  for (int n = 0; n < gridDim.x * blockDim.x; ++n) sum += parts[n];
  *out = sum;
}

__global__ void BlocksOwnSharedKernel(unsigned* counter, int* first, int* out) {
  __shared__ int mine;
  if (threadIdx.x == 0) {
    first[blockIdx.x] = mine;
    mine = blockIdx.x;
  }
  __syncthreads();
  for (int n = 0; n < 20; ++n) AddReleaseAcquire(counter, 1);
  if (threadIdx.x == 40) out[blockIdx.x] = mine;
}

__global__ void FillMiddleKernel(int* middle) {
  cuda::AllowKernelAfter();
  middle[blockIdx.x * blockDim.x + threadIdx.x] = threadIdx.x;
}
__global__ void AddOneKernel(Code code, const int* middle, int* out) {
  if (code == Code::kRight) cuda::WaitForKernelBefore();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = middle[i] + 1;
}

__global__ void TakeTicketsKernel(unsigned* counter, int* out) {
  out[AddReleaseAcquire(counter, 1)] = threadIdx.x;
}

__global__ void EndlessLoopKernel(const int* flag) {
  while (*static_cast<const volatile int*>(flag) == 0) {
  }
}

__global__ void FillKernel(int count, int* out) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) out[i] = i;
}

}  // namespace

llmd_code ReverseInBlock(Code code, const int* in, int* out) {
  return LaunchKernel({.kernel = "reverse", .grid = 1, .block = kBlockThreads}, ReverseInBlockKernel, code,
                      in, out);
}
llmd_code ReverseInWarp(Code code, const int* in, int* out) {
  return LaunchKernel({.kernel = "reverse", .grid = 1, .block = 32}, ReverseInWarpKernel, code, in, out);
}
llmd_code SumOfTiles(CopyFault fault, const int* in, int* out) {
  return LaunchKernel({.kernel = "tiles", .grid = 1, .block = 32}, SumOfTilesKernel, fault, in, out);
}
llmd_code Shuffle(Code code, int* out) {
  return LaunchKernel({.kernel = "shuffle", .grid = 1, .block = 32}, ShuffleKernel, code, out);
}
llmd_code Vote(Code code, int* out) {
  return LaunchKernel({.kernel = "vote", .grid = 1, .block = 32}, VoteKernel, code, out);
}
llmd_code PartBarrier(Code code, int* out) {
  return LaunchKernel({.kernel = "part", .grid = 1, .block = kBlockThreads}, PartBarrierKernel, code, out);
}
llmd_code BarrierSizes(Code code, int* out) {
  return LaunchKernel({.kernel = "sizes", .grid = 1, .block = 64}, BarrierSizesKernel, code, out);
}
llmd_code ReadMatrices(int bytes, int offset, int* out) {
  return LaunchKernel(
      {.kernel = "matrices", .grid = 1, .block = 32, .shared_bytes = static_cast<std::size_t>(bytes)},
      ReadMatricesKernel, offset, out);
}
llmd_code MeetOfBlocks(int blocks, unsigned* counter, int* out) {
  const auto count = static_cast<unsigned>(blocks);
  return LaunchKernel({.kernel = "meet", .grid = count, .block = 512}, MeetOfBlocksKernel, count, counter,
                      out);
}
llmd_code SumByLastBlock(Code code, int* parts, unsigned* counter, int* out) {
  return LaunchKernel({.kernel = "last", .grid = 8, .block = kBlockThreads}, SumByLastBlockKernel, code,
                      parts, counter, out);
}
llmd_code BlocksOwnShared(unsigned* counter, int* first, int* out) {
  return LaunchKernel({.kernel = "own", .grid = 40, .block = 64}, BlocksOwnSharedKernel, counter, first, out);
}
llmd_code EarlyStart(Code code, int* middle, int* out) {
  const llmd_code first = LaunchKernel({.kernel = "fill", .grid = 4, .block = 64}, FillMiddleKernel, middle);
  if (first != LLMD_OK) return first;
  return LaunchKernel({.kernel = "add", .grid = 4, .block = 64, .early_start = true}, AddOneKernel, code,
                      static_cast<const int*>(middle), out);
}
llmd_code TakeTickets(unsigned* counter, int* out) {
  return LaunchKernel({.kernel = "tickets", .grid = 1, .block = 32}, TakeTicketsKernel, counter, out);
}
llmd_code EndlessLoop(const int* flag) {
  return LaunchKernel({.kernel = "loop", .grid = 1, .block = 32}, EndlessLoopKernel, flag);
}
llmd_code Fill(int count, int* out) {
  return LaunchKernel({.kernel = "fill", .grid = 1, .block = 32}, FillKernel, count, out);
}

}  // namespace llmd::emulator
