// Storing a head's vector in the cache, for append_kv and rope_append.
#ifndef LLMD_ATTENTION_CPU_STORE_H_
#define LLMD_ATTENTION_CPU_STORE_H_

#include "src/attention/check.h"
#include "src/attention/cpu_kernels.h"
#include "src/attention/pages.h"

namespace llmd::attention::cpu {

inline constexpr int kPiece = 128;  // elements converted at a time

// K or V of a cache.
struct CacheSide {
  void* base;
  const llmd_kv_strides& strides;
  const float* scales;

  void* At(const llmd_kv_cache& cache, const Place& place, int32_t head) const {
    return static_cast<char*>(base) +
           Offset(strides, place.page, place.offset, head) * static_cast<int64_t>(SizeOf(cache.dtype));
  }
  // Elements [first, first + count); x is changed.
  void Store(const KernelTable& kernels, const llmd_kv_cache& cache, const Place& place, int32_t head,
             int32_t first, float* x, int count) const {
    if (cache.dtype == LLMD_E4M3 && scales != nullptr) {
      const float scale = scales[head * cache.scale_stride];
      for (int i = 0; i < count; ++i) x[i] /= scale;
    }
    kernels.from_floats(cache.dtype, x, count,
                        static_cast<char*>(At(cache, place, head)) + first * SizeOf(cache.dtype));
  }
};

inline CacheSide KSide(const llmd_kv_cache& cache) { return {cache.k, cache.k_strides, cache.k_scale}; }
inline CacheSide VSide(const llmd_kv_cache& cache) { return {cache.v, cache.v_strides, cache.v_scale}; }

// Leaves the first token in *args.error whose place is out of range.
void ReportBadPlace(const llmd_append_kv_args& args);

}  // namespace llmd::attention::cpu

#endif  // LLMD_ATTENTION_CPU_STORE_H_
