// The number formats, over all their patterns, against a decoder that only knows sign, exponent and mantissa.
#include "src/attention/numeric.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "src/attention/cpu_kernels.h"

namespace llmd::attention {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct FormatOf {
  const char* name;
  llmd_dtype dtype;
  int exponent_bits, mantissa_bits;
  uint32_t greatest;  // pattern of the greatest finite number
  float (*to_float)(uint32_t);
  uint32_t (*from_float)(float);
};

const FormatOf kFormats[] = {
    {"bf16", LLMD_BF16, 8, 7, 0x7f7f, [](uint32_t x) { return BF16ToFloat(x); },
     [](float x) -> uint32_t { return FloatToBF16(x); }},
    {"f16", LLMD_F16, 5, 10, 0x7bff, [](uint32_t x) { return F16ToFloat(x); },
     [](float x) -> uint32_t { return FloatToF16(x); }},
    {"e4m3", LLMD_E4M3, 4, 3, 0x7e, [](uint32_t x) { return E4M3ToFloat(x); },
     [](float x) -> uint32_t { return FloatToE4M3(x); }},
};

uint32_t SignOf(const FormatOf& f) { return 1u << (f.exponent_bits + f.mantissa_bits); }

double Decode(const FormatOf& f, uint32_t bits) {
  const int bias = (1 << (f.exponent_bits - 1)) - 1;
  const uint32_t size = bits & (SignOf(f) - 1);
  const int exponent = static_cast<int>(size >> f.mantissa_bits);
  const double mantissa = size & ((1u << f.mantissa_bits) - 1);
  const double unit = std::ldexp(1.0, -f.mantissa_bits);
  const double value = exponent == 0 ? std::ldexp(mantissa * unit, 1 - bias)
                                     : std::ldexp(1 + mantissa * unit, exponent - bias);
  return (bits & SignOf(f)) != 0 ? -value : value;
}

TEST(Numeric, EveryFinitePattern) {
  for (const FormatOf& f : kFormats) {
    SCOPED_TRACE(f.name);
    for (uint32_t size = 0; size <= f.greatest; ++size) {
      for (const uint32_t bits : {size, size | SignOf(f)}) {
        const float value = f.to_float(bits);
        ASSERT_EQ(value, Decode(f, bits)) << bits;
        ASSERT_EQ(std::signbit(value), bits != size);
        ASSERT_EQ(f.from_float(value), bits);
      }
    }
  }
}

TEST(Numeric, RoundsToNearestEvenBetweenEveryTwoNeighbours) {
  for (const FormatOf& f : kFormats) {
    SCOPED_TRACE(f.name);
    for (uint32_t low = 0; low < f.greatest; ++low) {
      const float middle = static_cast<float>((Decode(f, low) + Decode(f, low + 1)) / 2);
      const uint32_t even = low % 2 == 0 ? low : low + 1;
      for (const uint32_t sign : {0u, SignOf(f)}) {
        const float s = sign != 0 ? -1.0f : 1.0f;
        ASSERT_EQ(f.from_float(s * middle), sign | even) << low;
        ASSERT_EQ(f.from_float(s * std::nextafter(middle, 0.0f)), sign | low) << low;
        ASSERT_EQ(f.from_float(s * std::nextafter(middle, kInfinity)), sign | (low + 1)) << low;
      }
    }
  }
}

TEST(Numeric, PastTheGreatest) {
  EXPECT_EQ(FloatToBF16(kInfinity), 0x7f80);
  EXPECT_EQ(FloatToBF16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_EQ(FloatToF16(65519.996f), 0x7bff);
  EXPECT_EQ(FloatToF16(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToF16(-kInfinity), 0xfc00);
  EXPECT_EQ(F16ToFloat(0xfc00), -kInfinity);
  EXPECT_EQ(BF16ToFloat(0x7f80), kInfinity);
  for (const float x : {448.0f, 449.0f, 464.0f, 1e9f, kInfinity}) {
    EXPECT_EQ(FloatToE4M3(x), 0x7e) << x;
    EXPECT_EQ(FloatToE4M3(-x), 0xfe) << x;
  }
}

TEST(Numeric, NaNStaysNaN) {
  for (const uint32_t bits : {0x7f800001u, 0x7fc00000u, 0x7fffffffu, 0xff800001u, 0xffffffffu}) {
    const float nan = std::bit_cast<float>(bits);
    EXPECT_TRUE(std::isnan(BF16ToFloat(FloatToBF16(nan))));
    EXPECT_TRUE(std::isnan(F16ToFloat(FloatToF16(nan))));
    EXPECT_EQ(FloatToE4M3(nan), 0x7f);
  }
  EXPECT_TRUE(std::isnan(E4M3ToFloat(0x7f)));
  EXPECT_TRUE(std::isnan(E4M3ToFloat(0xff)));
  for (uint32_t bits = 0x7c01; bits < 0x8000; ++bits) EXPECT_TRUE(std::isnan(F16ToFloat(bits)));
}

// The vectors of each instruction set convert as the functions above do, at every length and place.
TEST(Numeric, VectorKernelsConvertTheSame) {
  std::vector<const cpu::KernelTable*> tables = {&cpu::kBaseKernels};
  const cpu::KernelTable* best = &cpu::Kernels();
  if (best == &cpu::kAvx512Kernels) tables.push_back(&cpu::kAvx2Kernels);
  if (best != tables[0]) tables.push_back(best);
  std::mt19937 random(3);
  std::vector<float> floats;
  for (uint32_t high = 0; high < 0x10000; ++high) {  // every exponent, ties and their neighbours, NaNs
    for (const uint32_t low :
         {0x0000u, 0x7fffu, 0x8000u, 0x8001u, static_cast<uint32_t>(random() & 0xffff)}) {
      floats.push_back(std::bit_cast<float>(high << 16 | low));
    }
  }
  for (const cpu::KernelTable* table : tables) {
    for (const llmd_dtype dtype : {LLMD_BF16, LLMD_F16, LLMD_E4M3, LLMD_F32}) {
      SCOPED_TRACE(std::string(table->name) + " dtype " + std::to_string(dtype));
      std::vector<char> stored(floats.size() * 4), want(floats.size() * 4);
      table->from_floats(dtype, floats.data(), floats.size(), stored.data());
      for (size_t i = 0; i < floats.size(); ++i) StoreElement(dtype, want.data(), i, floats[i]);
      ASSERT_TRUE(stored == want);
      std::vector<float> back(floats.size());
      table->to_floats(dtype, stored.data(), floats.size(), back.data());
      for (size_t i = 0; i < floats.size(); ++i) {
        const float expected = LoadElement(dtype, stored.data(), i);
        if (std::isnan(expected)) {
          ASSERT_TRUE(std::isnan(back[i]));
        } else {
          ASSERT_EQ(std::bit_cast<uint32_t>(back[i]), std::bit_cast<uint32_t>(expected)) << floats[i];
        }
      }
      for (int64_t count = 0; count < 20; ++count) {
        std::vector<float> few(count);
        table->to_floats(dtype, stored.data(), count, few.data());
        for (int64_t i = 0; i < count; ++i) ASSERT_EQ(few[i], LoadElement(dtype, stored.data(), i));
        const std::vector<float> from(floats.begin() + 1000, floats.begin() + 1000 + count);
        const int64_t size = dtype == LLMD_F32 ? 4 : dtype == LLMD_E4M3 ? 1 : 2;
        std::vector<char> to(count * size);
        table->from_floats(dtype, from.data(), count, to.data());
        for (int64_t i = 0; i < count; ++i) {
          char one[4];
          StoreElement(dtype, one, 0, from[i]);
          ASSERT_EQ(std::memcmp(one, to.data() + i * size, size), 0);
        }
      }
    }
  }
}

}  // namespace
}  // namespace llmd::attention
