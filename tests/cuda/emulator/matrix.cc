#include "tests/cuda/emulator/matrix.h"

#include <cuda_fp8.h>

#include <array>
#include <bit>
#include <cstring>

namespace llmd::emulator {
namespace {

constexpr unsigned kAll = 0xffffffff;

struct LoadArguments {
  std::uint32_t* registers;
  const void* row;
};

template <bool kTransposed>
void Load(void* const (&arguments)[32], unsigned) {
  const auto at = [&](int lane) -> const LoadArguments& {
    return *static_cast<const LoadArguments*>(arguments[lane]);
  };
  for (int matrix = 0; matrix < 4; ++matrix) {
    std::uint16_t elements[8][8];
    for (int row = 0; row < 8; ++row)
      std::memcpy(elements[row], at(8 * matrix + row).row, sizeof(elements[row]));
    for (int lane = 0; lane < 32; ++lane) {
      const int row = lane / 4, column = 2 * (lane % 4);
      const std::uint32_t low = kTransposed ? elements[column][row] : elements[row][column];
      const std::uint32_t high = kTransposed ? elements[column + 1][row] : elements[row][column + 1];
      at(lane).registers[matrix] = high << 16 | low;
    }
  }
}

struct MultiplyArguments {
  float* d;
  const std::uint32_t* a;
  std::uint32_t b[2];
};

template <MatrixType kType>
float ToFloat(std::uint32_t bits) {
  if constexpr (kType == MatrixType::kBfloat) return std::bit_cast<float>(bits << 16);
  // Moved to where a float has them, the bits stand for 2^-112 of the value; exponents of all ones stay so.
  const std::uint32_t moved = (bits & 0x7fff) << 13;
  const std::uint32_t special = (bits & 0x7c00) == 0x7c00 ? 0x7f800000 : 0;
  const float value = std::bit_cast<float>(moved) * 0x1p112f;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) | special | (bits & 0x8000) << 16);
}

template <MatrixType kType>
void Multiply(void* const (&arguments)[32], unsigned) {
  float a[16][16], b[16][8], d[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& mine = *static_cast<const MultiplyArguments*>(arguments[lane]);
    const int r = lane / 4, j = 2 * (lane % 4);
    for (int half = 0; half < 2; ++half) {  // of k
      for (int low = 0; low < 2; ++low) {
        const int shift = 16 * low;
        a[r][8 * half + j + low] = ToFloat<kType>(mine.a[2 * half] >> shift & 0xffff);
        a[r + 8][8 * half + j + low] = ToFloat<kType>(mine.a[2 * half + 1] >> shift & 0xffff);
        b[8 * half + j + low][r] = ToFloat<kType>(mine.b[half] >> shift & 0xffff);
      }
    }
    d[r][j] = mine.d[0];
    d[r][j + 1] = mine.d[1];
    d[r + 8][j] = mine.d[2];
    d[r + 8][j + 1] = mine.d[3];
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) {
      const float factor = a[row][k];
      for (int column = 0; column < 8; ++column) d[row][column] += factor * b[k][column];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    float* mine = static_cast<const MultiplyArguments*>(arguments[lane])->d;
    const int r = lane / 4, j = 2 * (lane % 4);
    mine[0] = d[r][j];
    mine[1] = d[r][j + 1];
    mine[2] = d[r + 8][j];
    mine[3] = d[r + 8][j + 1];
  }
}

std::array<std::uint16_t, 256> MakeHalves() {
  std::array<std::uint16_t, 256> halves{};
  for (int bits = 0; bits < 256; ++bits) {
    halves[bits] = __nv_cvt_fp8_to_halfraw(static_cast<__nv_fp8_storage_t>(bits), __NV_E4M3).x;
  }
  return halves;
}

}  // namespace

void LoadMatrices(std::uint32_t (&registers)[4], std::uint32_t shared, bool transposed, Site site) {
  LoadArguments mine{registers, SharedPointer(shared, 16, site)};
  Collective("ldmatrix", kAll, &mine, transposed ? Load<true> : Load<false>, site, Lanes::kAligned);
}

void MultiplyAdd(MatrixType type, float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                 std::uint32_t b1, Site site) {
  MultiplyArguments mine{d, a, {b0, b1}};
  Collective("mma", kAll, &mine,
             type == MatrixType::kHalf ? Multiply<MatrixType::kHalf> : Multiply<MatrixType::kBfloat>, site,
             Lanes::kAligned);
}

std::uint32_t HalvesOfE4m3(std::uint32_t pair) {
  static const std::array<std::uint16_t, 256> halves = MakeHalves();
  return static_cast<std::uint32_t>(halves[pair >> 8 & 0xff]) << 16 | halves[pair & 0xff];
}

}  // namespace llmd::emulator
