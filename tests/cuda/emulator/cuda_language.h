// What nvcc adds to C++, for a host compiler. Included before the first line of every kernel source: the
// toolkit's own headers come first, which then define their types and conversions for the host; after them
// the sources see the macro by which they tell a CUDA compiler.
#ifndef LLMD_TESTS_CUDA_EMULATOR_CUDA_LANGUAGE_H_
#define LLMD_TESTS_CUDA_EMULATOR_CUDA_LANGUAGE_H_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime_api.h>
#include <vector_functions.h>

#define __CUDACC__

#undef __shared__
#define __shared__ thread_local  // shared_memory.h
#undef __launch_bounds__
#define __launch_bounds__(...)

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

#include "tests/cuda/emulator/arithmetic.h"
#include "tests/cuda/emulator/memory_functions.h"
#include "tests/cuda/emulator/warp_functions.h"

#endif  // LLMD_TESTS_CUDA_EMULATOR_CUDA_LANGUAGE_H_
