#include "src/attention/cpu_kernels.h"

#include <cstdlib>
#include <string_view>

#include "src/attention/cpu_kernels.inc"

namespace llmd::attention::cpu {

const KernelTable kBaseKernels = TableNamed("base");

namespace {

const KernelTable& Choose() {
#if defined(__x86_64__)
  const char* text = std::getenv("LLMD_CPU_KERNELS");
  const std::string_view wanted = text != nullptr ? text : "";
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  if (wanted == "base") return kBaseKernels;
  if (avx512 && wanted != "avx2") return kAvx512Kernels;
  if (avx2) return kAvx2Kernels;
#endif
  return kBaseKernels;
}

}  // namespace

const KernelTable& Kernels() {
  static const KernelTable& chosen = Choose();
  return chosen;
}

}  // namespace llmd::attention::cpu
