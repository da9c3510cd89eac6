// Logits as integers that have their order.
#ifndef LLMD_CUDA_SAMPLING_KEYS_CUH_
#define LLMD_CUDA_SAMPLING_KEYS_CUH_

#include <cstdint>
#include <type_traits>

#include "cuda/common/convert.cuh"

namespace llmd::cuda {

// Keys of a dtype: greater for a greater logit, equal for equal ones. NaN becomes -inf, -0 becomes 0.
template <typename T>
struct Keys {  // bf16 and fp16
  static constexpr uint32_t kInfinity = std::is_same_v<T, __half> ? 0x7c00 : 0x7f80;
  static constexpr uint32_t kSign = 0x8000;
  static constexpr uint32_t kAll = 0xffff;
  __device__ static uint32_t BitsOf(T x) {
    if constexpr (std::is_same_v<T, __half>) {
      return __half_as_ushort(x);
    } else {
      return __bfloat16_as_ushort(x);
    }
  }
  __device__ static float ValueOf(uint32_t bits) {
    if constexpr (std::is_same_v<T, __half>) {
      return __half2float(__ushort_as_half(static_cast<uint16_t>(bits)));
    } else {
      return __uint_as_float(bits << 16);
    }
  }
};
template <>
struct Keys<float> {
  static constexpr uint32_t kInfinity = 0x7f800000;
  static constexpr uint32_t kSign = 0x80000000;
  static constexpr uint32_t kAll = 0xffffffff;
  __device__ static uint32_t BitsOf(float x) { return __float_as_uint(x); }
  __device__ static float ValueOf(uint32_t bits) { return __uint_as_float(bits); }
};

template <typename T>
__device__ __forceinline__ uint32_t KeyOf(T logit) {
  using K = Keys<T>;
  uint32_t bits = K::BitsOf(logit);
  if ((bits & ~K::kSign) > K::kInfinity) bits = K::kSign | K::kInfinity;
  if (bits == K::kSign) bits = 0;
  return (bits & K::kSign) ? ~bits & K::kAll : bits | K::kSign;
}

template <typename T>
__device__ __forceinline__ float LogitOf(uint32_t key) {
  using K = Keys<T>;
  return K::ValueOf((key & K::kSign) ? key & ~K::kSign : ~key & K::kAll);
}

template <typename T>
constexpr uint32_t kKeyOfInfinity = Keys<T>::kSign | Keys<T>::kInfinity;
template <typename T>
constexpr uint32_t kKeyOfMinusInfinity = ~(Keys<T>::kSign | Keys<T>::kInfinity) & Keys<T>::kAll;

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_SAMPLING_KEYS_CUH_
