// copy_blocks, gather_blocks and scatter_blocks (spec 1.2): scattered pieces at the rate of one contiguous
// copy. All pieces of a call are one run of 16-byte units; a block takes 4 KiB * kUnroll of it, whatever
// piece they are in, so small pieces fill it as well as large ones. A unit's two index loads hit the
// first-level cache.
#include <algorithm>

#include "cuda/common/convert.cuh"
#include "cuda/common/divide.h"
#include "cuda/common/launch.h"
#include "cuda/kernels.h"

namespace llmd::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kUnroll = 4;

using Unit = uint4;

enum class Move { kCopy, kGather, kScatter };

struct Job {
  void* const* bases;
  const int64_t* blocks;  // pairs if kCopy
  char* staging;
  int64_t page_stride;
  int64_t block_bytes;
  int64_t first_piece;
  FastDivide units;      // of a piece
  FastDivide num_bases;  // a piece's number is block * num_bases + base
  uint32_t num_units;
};

struct Way {
  const char* from;
  char* to;
};

// From and to where a unit of a piece goes.
template <Move kMove>
__device__ __forceinline__ Way Find(const Job& job, uint32_t piece, uint32_t unit) {
  const int64_t global_piece = job.first_piece + piece;
  int64_t block;
  uint32_t base;
  if (global_piece >> 31 == 0) {
    block = job.num_bases.DivMod(static_cast<uint32_t>(global_piece), &base);
  } else {
    block = global_piece / job.num_bases.divisor();
    base = static_cast<uint32_t>(global_piece % job.num_bases.divisor());
  }
  const int64_t inside = static_cast<int64_t>(unit) * sizeof(Unit);
  char* pool = static_cast<char*>(job.bases[base]) + inside;
  if constexpr (kMove == Move::kCopy) {
    return {pool + job.blocks[2 * block] * job.page_stride,
            pool + job.blocks[2 * block + 1] * job.page_stride};
  } else {
    char* page = pool + job.blocks[block] * job.page_stride;
    char* staged = job.staging + global_piece * job.block_bytes + inside;
    return kMove == Move::kGather ? Way{page, staged} : Way{staged, page};
  }
}

// kWhole: pieces are a multiple of what a block of threads moves, so its index loads are one chain, and one
// place serves all units of a thread.
template <Move kMove, bool kWhole>
__global__ void __launch_bounds__(kThreads) MoveKernel(const __grid_constant__ Job job) {
  const uint32_t first = blockIdx.x * (kThreads * kUnroll) + threadIdx.x;
  Way ways[kWhole ? 1 : kUnroll];
#pragma unroll
  for (int i = 0; i < (kWhole ? 1 : kUnroll); ++i) {
    uint32_t unit;
    const uint32_t piece = job.units.DivMod(min(first + i * kThreads, job.num_units - 1), &unit);
    ways[i] = Find<kMove>(job, piece, unit);
  }
  Vec<Unit, 1> data[kUnroll];
#pragma unroll
  for (int i = 0; i < kUnroll; ++i) {
    data[i] = LoadStream<Unit, 1>(reinterpret_cast<const Unit*>(ways[kWhole ? 0 : i].from) +
                                  (kWhole ? i * kThreads : 0));
  }
#pragma unroll
  for (int i = 0; i < kUnroll; ++i) {
    if (kWhole || first + i * kThreads < job.num_units) {
      Store(reinterpret_cast<Unit*>(ways[kWhole ? 0 : i].to) + (kWhole ? i * kThreads : 0), data[i]);
    }
  }
}

template <Move kMove>
llmd_code Run(const char* name, Job job, int64_t num_pieces, llmd_stream stream) {
  const int64_t units = job.block_bytes / static_cast<int64_t>(sizeof(Unit));
  if (units > int64_t{1} << 30) {
    return attention::Fail(LLMD_UNSUPPORTED, std::string(name) + ": block_bytes is " +
                                                 std::to_string(job.block_bytes) + ", the limit is " +
                                                 std::to_string((int64_t{1} << 30) * sizeof(Unit)));
  }
  job.units = FastDivide(static_cast<uint32_t>(units));
  const int64_t most_pieces = (int64_t{1} << 30) / units;  // 32-bit unit numbers in one launch
  for (int64_t first = 0; first < num_pieces; first += most_pieces) {
    job.first_piece = first;
    job.num_units = static_cast<uint32_t>(std::min(most_pieces, num_pieces - first) * units);
    const Launch launch = {.kernel = name,
                           .grid = dim3(static_cast<unsigned>(CeilDivide(job.num_units, kThreads * kUnroll))),
                           .block = dim3(kThreads),
                           .stream = stream};
    const bool whole = units % (kThreads * kUnroll) == 0;
    const llmd_code code = whole ? LaunchKernel(launch, MoveKernel<kMove, true>, job)
                                 : LaunchKernel(launch, MoveKernel<kMove, false>, job);
    if (code != LLMD_OK) return code;
  }
  return LLMD_OK;
}

Job MakeJob(const llmd_gather_blocks_args& args) {
  Job job = {};
  job.bases = args.bases;
  job.blocks = args.blocks;
  job.staging = static_cast<char*>(args.staging);
  job.page_stride = args.page_stride_bytes;
  job.block_bytes = args.block_bytes;
  job.num_bases = FastDivide(args.num_bases);
  return job;
}

}  // namespace

llmd_code CopyBlocks(const llmd_copy_blocks_args& args, llmd_stream stream) {
  if (args.num_pairs == 0) return LLMD_OK;
  Job job = {};
  job.bases = args.bases;
  job.blocks = args.pairs;
  job.page_stride = args.page_stride_bytes;
  job.block_bytes = args.block_bytes;
  job.num_bases = FastDivide(args.num_bases);
  return Run<Move::kCopy>("copy_blocks", job, int64_t{args.num_pairs} * args.num_bases, stream);
}

llmd_code GatherBlocks(const llmd_gather_blocks_args& args, llmd_stream stream) {
  if (args.num_blocks == 0) return LLMD_OK;
  return Run<Move::kGather>("gather_blocks", MakeJob(args), int64_t{args.num_blocks} * args.num_bases,
                            stream);
}

llmd_code ScatterBlocks(const llmd_gather_blocks_args& args, llmd_stream stream) {
  if (args.num_blocks == 0) return LLMD_OK;
  return Run<Move::kScatter>("scatter_blocks", MakeJob(args), int64_t{args.num_blocks} * args.num_bases,
                             stream);
}

}  // namespace llmd::cuda
