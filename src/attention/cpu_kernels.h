// The inner loops of the CPU backend, compiled once for each instruction set; Kernels() is the best that the
// processor has.
#ifndef LLMD_ATTENTION_CPU_KERNELS_H_
#define LLMD_ATTENTION_CPU_KERNELS_H_

#include <cstdint>

#include "llmd/attention/types.h"

namespace llmd::attention::cpu {

inline constexpr int kBlockKeys = 32;  // keys that are scored together; the first is a multiple of it
inline constexpr int kPadding = 16;    // head dims are padded to multiples of it: whole vectors

inline constexpr int kMostHeadDim = 1024;  // of the backend: a head's vector fits a stack
inline constexpr int kMostGroup = 1024;

inline constexpr int Padded(int dim) { return (dim + kPadding - 1) / kPadding * kPadding; }

// One part of online softmax: `rows` queries of one KV head over keys [first, last). Row r sees [begin[r],
// end[r]). Its result depends on its own query and keys only, bit for bit: not on the other rows, nor on
// first and last as long as they cover what it sees.
struct Part {
  const llmd_kv_cache* cache;
  const int32_t* pages;
  bool validate;
  int kv_head;
  int rows;
  int64_t first, last;
  const int64_t* begin;
  const int64_t* end;
  const float* q;  // [rows, padded D], times scale * log2(e) * k_scale
  float* k;        // scratch [kBlockKeys, padded D]
  float* v;        // scratch, the same
  float* scores;   // scratch [kBlockKeys]
  float* o;        // [rows, padded D] sum of exp2(t - m) * v
  float* m;        // [rows] greatest t, the score in base 2
  float* l;        // [rows] sum of exp2(t - m)
};

struct KernelTable {
  const char* name;
  void (*part)(const Part& part);
  // (o, m, l) of one row joined by a later part's.
  void (*join)(int padded, float* o, float* m, float* l, const float* part_o, float part_m, float part_l);
  void (*to_floats)(llmd_dtype dtype, const void* from, int64_t count, float* to);
  void (*from_floats)(llmd_dtype dtype, const float* from, int64_t count, void* to);
  // to[i] = silu(a[i]) * b[i]; sums of squares; to[i] = x[i] * factor * weight[i].
  void (*silu_and_mul)(const float* a, const float* b, int64_t count, float* to);
  float (*sum_of_squares)(const float* x, int64_t count);
  void (*scale)(const float* x, const float* weight, float factor, int64_t count, float* to);
};

extern const KernelTable kBaseKernels;  // for every processor
extern const KernelTable kAvx2Kernels;  // these two on other processors than x86-64: the same again
extern const KernelTable kAvx512Kernels;

// The best this processor has; LLMD_CPU_KERNELS=avx2 or base for less.
const KernelTable& Kernels();

}  // namespace llmd::attention::cpu

#endif  // LLMD_ATTENTION_CPU_KERNELS_H_
