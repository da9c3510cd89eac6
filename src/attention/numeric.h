// How numbers are stored: bf16, fp16 and fp8 e4m3 to and from float, bit for bit as the hardware converts.
// Narrowing rounds to nearest even; e4m3 saturates at 448 and has no infinity. A NaN stays one.
#ifndef LLMD_ATTENTION_NUMERIC_H_
#define LLMD_ATTENTION_NUMERIC_H_

#include <bit>
#include <cstdint>

#include "llmd/attention/types.h"

namespace llmd::attention {

inline float BF16ToFloat(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

inline uint16_t FloatToBF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>((bits >> 16) | 0x40);  // quiet NaN
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float F16ToFloat(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t size = bits & 0x7fff;
  if (size >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000 | (size << 13));
  if (size >= 0x0400) return std::bit_cast<float>(sign | ((size << 13) + (112u << 23)));
  const float tiny = static_cast<float>(size) * 0x1p-24f;  // exact
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(tiny));
}

inline uint16_t FloatToF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t size = bits & 0x7fffffff;
  uint32_t stored;
  if (size > 0x7f800000) {
    stored = 0x7e00 | ((size >> 13) & 0x3ff);  // quiet NaN
  } else if (size >= 0x477ff000) {             // 65520: halfway past the greatest
    stored = 0x7c00;
  } else if (size >= 0x38800000) {  // 2^-14: normal
    stored = (size + 0xfff + ((size >> 13) & 1) - (112u << 23)) >> 13;
  } else {  // adding 0.5 leaves the value in units of 2^-24, rounded by the addition
    stored = std::bit_cast<uint32_t>(std::bit_cast<float>(size) + 0.5f) - 0x3f000000;
  }
  return static_cast<uint16_t>(sign | stored);
}

inline float E4M3ToFloat(uint8_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x80) << 24;
  const uint32_t size = bits & 0x7f;
  if (size == 0x7f) return std::bit_cast<float>(sign | 0x7fc00000);
  if (size >= 0x08) return std::bit_cast<float>(sign | ((size << 20) + (120u << 23)));
  const float tiny = static_cast<float>(size) * 0x1p-9f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(tiny));
}

inline uint8_t FloatToE4M3(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 24) & 0x80;
  const uint32_t size = bits & 0x7fffffff;
  if (size > 0x7f800000) return 0x7f;  // without its sign, as the hardware does
  uint32_t stored;
  if (size >= 0x43e00000) {  // 448
    stored = 0x7e;
  } else if (size >= 0x3c800000) {  // 2^-6: normal
    stored = (size + 0x7ffff + ((size >> 20) & 1) - (120u << 23)) >> 20;
  } else {  // adding 2^14 leaves the value in units of 2^-9
    stored = std::bit_cast<uint32_t>(std::bit_cast<float>(size) + 0x1p14f) - 0x46800000;
  }
  return static_cast<uint8_t>(sign | stored);
}

// Element types as templates see them.
struct BF16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};
struct E4M3 {
  uint8_t bits;
};

inline float ToFloat(float value) { return value; }
inline float ToFloat(BF16 value) { return BF16ToFloat(value.bits); }
inline float ToFloat(F16 value) { return F16ToFloat(value.bits); }
inline float ToFloat(E4M3 value) { return E4M3ToFloat(value.bits); }

template <typename T>
T FromFloat(float value);
template <>
inline float FromFloat<float>(float value) {
  return value;
}
template <>
inline BF16 FromFloat<BF16>(float value) {
  return {FloatToBF16(value)};
}
template <>
inline F16 FromFloat<F16>(float value) {
  return {FloatToF16(value)};
}
template <>
inline E4M3 FromFloat<E4M3>(float value) {
  return {FloatToE4M3(value)};
}

// Calls f with a value of the element type; the dtype has been checked.
template <typename F>
decltype(auto) DispatchDtype(llmd_dtype dtype, F&& f) {
  switch (dtype) {
    case LLMD_F16:
      return f(F16{});
    case LLMD_BF16:
      return f(BF16{});
    case LLMD_E4M3:
      return f(E4M3{});
    case LLMD_F32:
      break;
  }
  return f(float{});
}

// One element of an array whose type is known at run time.
inline float LoadElement(llmd_dtype dtype, const void* base, int64_t index) {
  return DispatchDtype(dtype,
                       [&](auto type) { return ToFloat(static_cast<const decltype(type)*>(base)[index]); });
}

inline void StoreElement(llmd_dtype dtype, void* base, int64_t index, float value) {
  DispatchDtype(dtype, [&](auto type) {
    static_cast<decltype(type)*>(base)[index] = FromFloat<decltype(type)>(value);
  });
}

}  // namespace llmd::attention

#endif  // LLMD_ATTENTION_NUMERIC_H_
