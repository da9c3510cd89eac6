#include "src/attention/cpu_kernels.h"

#include "src/attention/cpu_kernels_impl.h"

namespace llmd::attention::cpu {

extern const KernelTable kAvx2Kernels;

namespace {

constexpr KernelTable kBaseKernels = TableNamed("base");

const KernelTable& Choose() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kAvx2Kernels;
#endif
  return kBaseKernels;
}

}  // namespace

const KernelTable& Kernels() {
  static const KernelTable& chosen = Choose();
  return chosen;
}

}  // namespace llmd::attention::cpu
