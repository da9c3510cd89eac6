#include "src/attention/cpu_kernels.inc"

namespace llmd::attention::cpu {

const KernelTable kAvx512Kernels = TableNamed("avx512");

}  // namespace llmd::attention::cpu
