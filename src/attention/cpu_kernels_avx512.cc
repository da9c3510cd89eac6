#include "src/attention/cpu_kernels_impl.h"

namespace llmd::attention::cpu {

const KernelTable kAvx512Kernels = TableNamed("avx512");

}  // namespace llmd::attention::cpu
