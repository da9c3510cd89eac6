#include "src/attention/cpu_kernels_impl.h"

namespace llmd::attention::cpu {

const KernelTable kAvx2Kernels = TableNamed("avx2");

}  // namespace llmd::attention::cpu
