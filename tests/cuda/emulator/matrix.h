// The matrix instructions of a warp: each lane gives its registers, the last to come computes for all.
#ifndef LLMD_TESTS_CUDA_EMULATOR_MATRIX_H_
#define LLMD_TESTS_CUDA_EMULATOR_MATRIX_H_

#include <cstdint>

#include "tests/cuda/emulator/kernel_side.h"

namespace llmd::emulator {

enum class MatrixType { kHalf, kBfloat };

void LoadMatrices(std::uint32_t (&registers)[4], std::uint32_t shared, bool transposed, Site site);
void MultiplyAdd(MatrixType type, float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                 std::uint32_t b1, Site site);

// Two e4m3 values to two halves.
std::uint32_t HalvesOfE4m3(std::uint32_t pair);

}  // namespace llmd::emulator

#endif  // LLMD_TESTS_CUDA_EMULATOR_MATRIX_H_
