#include "src/attention/cpu_kernels.h"

#include <cstdlib>
#include <cstring>

#include "src/attention/cpu_kernels_impl.h"

namespace llmd::attention::cpu {

const KernelTable kBaseKernels = TableNamed("base");

namespace {

const KernelTable& Choose() {
  const char* wanted = std::getenv("LLMD_CPU_KERNELS");
  if (wanted != nullptr && std::strcmp(wanted, "base") == 0) return kBaseKernels;
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
