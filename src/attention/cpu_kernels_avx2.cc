#include "src/attention/cpu_kernels.inc"

namespace llmd::attention::cpu {

const KernelTable kAvx2Kernels = TableNamed("avx2");

}  // namespace llmd::attention::cpu
