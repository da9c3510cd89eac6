#include <algorithm>
#include <cstring>

#include "src/attention/check.h"
#include "src/attention/cpu.h"
#include "src/attention/cpu_kernels.h"
#include "src/attention/cpu_pool.h"
#include "src/attention/cpu_store.h"
#include "src/attention/pages.h"

namespace llmd::attention::cpu {
namespace {

constexpr int64_t kGrainBytes = 64 << 10;  // work that is worth a thread

}  // namespace

void ReportBadPlace(const llmd_append_kv_args& args) {
  if (args.error == nullptr || args.error[0] != LLMD_DATA_OK) return;
  for (int32_t t = 0; t < args.num_tokens; ++t) {
    const Place place = PlaceOf(args, t);
    if (place.error == LLMD_DATA_OK) continue;
    args.error[0] = place.error;
    args.error[1] = t;
    args.error[2] = place.value;
    return;
  }
}

void AppendKv(const llmd_append_kv_args& args) {
  const KernelTable& kernels = Kernels();
  const llmd_kv_cache& cache = args.cache;
  const auto size = static_cast<int64_t>(SizeOf(args.dtype));
  const int64_t token_bytes = 2 * int64_t{cache.num_kv_heads} * cache.head_dim * size;
  ReportBadPlace(args);
  ParallelRanges(
      args.num_tokens, std::max<int64_t>(1, kGrainBytes / token_bytes), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          const Place place = PlaceOf(args, static_cast<int32_t>(t));
          if (place.skip) continue;
          for (int32_t h = 0; h < cache.num_kv_heads; ++h) {
            const auto store = [&](const void* from, const llmd_token_strides& s, const CacheSide& side) {
              const char* row = static_cast<const char*>(from) + (t * s.token + h * s.head) * size;
              if (args.dtype == cache.dtype) {
                std::memcpy(side.At(cache, place, h), row, cache.head_dim * size);
                return;
              }
              float x[kPiece];
              for (int32_t d = 0; d < cache.head_dim; d += kPiece) {
                const int count = std::min(kPiece, cache.head_dim - d);
                kernels.to_floats(args.dtype, row + d * size, count, x);
                side.Store(kernels, cache, place, h, d, x, count);
              }
            };
            store(args.k, args.k_strides, KSide(cache));
            store(args.v, args.v_strides, VSide(cache));
          }
        }
      });
}

void CopyBlocks(const llmd_copy_blocks_args& args) {
  if (args.num_pairs == 0) return;  // the other fields may then be anything
  const int64_t count = int64_t{args.num_pairs} * args.num_bases;
  ParallelRanges(count, std::max<int64_t>(1, kGrainBytes / args.block_bytes),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i) {
                     const int64_t* pair = args.pairs + 2 * (i / args.num_bases);
                     auto* base = static_cast<char*>(args.bases[i % args.num_bases]);
                     std::memcpy(base + pair[1] * args.page_stride_bytes,
                                 base + pair[0] * args.page_stride_bytes, args.block_bytes);
                   }
                 });
}

namespace {

// Calls f(pool block, staging block) for every block and base.
template <typename F>
void ForEachStaged(const llmd_gather_blocks_args& args, F&& f) {
  if (args.num_blocks == 0) return;
  const int64_t count = int64_t{args.num_blocks} * args.num_bases;
  ParallelRanges(count, std::max<int64_t>(1, kGrainBytes / args.block_bytes),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i) {
                     f(static_cast<char*>(args.bases[i % args.num_bases]) +
                           args.blocks[i / args.num_bases] * args.page_stride_bytes,
                       static_cast<char*>(args.staging) + i * args.block_bytes);
                   }
                 });
}

}  // namespace

void GatherBlocks(const llmd_gather_blocks_args& args) {
  ForEachStaged(args, [&](char* pool, char* staging) { std::memcpy(staging, pool, args.block_bytes); });
}

void ScatterBlocks(const llmd_gather_blocks_args& args) {
  ForEachStaged(args, [&](char* pool, char* staging) { std::memcpy(pool, staging, args.block_bytes); });
}

}  // namespace llmd::attention::cpu
