// Element types and vectors of them. Kernels compute in float; Elem<llmd_dtype> says how a type is stored.
#ifndef LLMD_CUDA_COMMON_CONVERT_CUH_
#define LLMD_CUDA_COMMON_CONVERT_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

#include "cuda/common/device.cuh"
#include "llmd/attention/types.h"

namespace llmd::cuda {

struct Fp8 {
  uint8_t bits;
};

template <llmd_dtype kType>
struct ElemOf;
template <>
struct ElemOf<LLMD_F32> {
  using type = float;
};
template <>
struct ElemOf<LLMD_F16> {
  using type = __half;
};
template <>
struct ElemOf<LLMD_BF16> {
  using type = __nv_bfloat16;
};
template <>
struct ElemOf<LLMD_E4M3> {
  using type = Fp8;
};
template <llmd_dtype kType>
using Elem = typename ElemOf<kType>::type;

// Round to nearest even. For e4m3 what is past 448 saturates and NaN stays NaN (spec 1.2); the toolkit's
// function is the hardware's instruction from sm_89 on, and the same results in software before.
template <typename T>
__device__ __forceinline__ T FromFloat(float x);
template <>
__device__ __forceinline__ float FromFloat<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half FromFloat<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 FromFloat<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ Fp8 FromFloat<Fp8>(float x) {
  return {__nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3)};
}

__device__ __forceinline__ float ToFloat(float x) { return x; }
__device__ __forceinline__ float ToFloat(__half x) { return __half2float(x); }
__device__ __forceinline__ float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float ToFloat(Fp8 x) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(x.bits, __NV_E4M3)));
}

// N elements that are loaded and stored in accesses of up to 16 bytes.
template <typename T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Vec {
  T at[N];
};

// Of what no other thread reads: past the first-level cache. What is loaded may be overwritten by the same
// thread later.
template <typename T, int N>
__device__ __forceinline__ Vec<T, N> LoadStream(const T* p) {
  constexpr int kBytes = sizeof(T) * N;
  Vec<T, N> v;
  if constexpr (kBytes % 16 == 0) {
    uint4* out = reinterpret_cast<uint4*>(&v);
#pragma unroll
    for (int i = 0; i < kBytes / 16; ++i) out[i] = LoadStream16(reinterpret_cast<const uint4*>(p) + i);
  } else if constexpr (kBytes == 8) {
    uint2* out = reinterpret_cast<uint2*>(&v);
    *out = LoadStream8(p);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) v.at[i] = p[i];
  }
  return v;
}

// An ordinary load: of what this kernel may also write, or what several threads read.
template <typename T, int N>
__device__ __forceinline__ Vec<T, N> Load(const T* p) {
  return *reinterpret_cast<const Vec<T, N>*>(p);
}

template <typename T, int N>
__device__ __forceinline__ void Store(T* p, const Vec<T, N>& v) {
  *reinterpret_cast<Vec<T, N>*>(p) = v;
}

template <typename T, int N>
__device__ __forceinline__ void ToFloats(const Vec<T, N>& v, float (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = ToFloat(v.at[i]);
}

template <typename T, int N>
__device__ __forceinline__ Vec<T, N> FromFloats(const float (&x)[N]) {
  Vec<T, N> v;
  if constexpr (sizeof(T) == 1) {  // two a conversion
    static_assert(N % 2 != 0 || alignof(Vec<T, N>) >= 2);
#pragma unroll
    for (int i = 0; i + 1 < N; i += 2) {
      const __nv_fp8x2_storage_t two =
          __nv_cvt_float2_to_fp8x2(make_float2(x[i], x[i + 1]), __NV_SATFINITE, __NV_E4M3);
      if constexpr (N % 2 == 0) {
        reinterpret_cast<__nv_fp8x2_storage_t*>(&v)[i / 2] = two;
      } else {
        v.at[i].bits = static_cast<uint8_t>(two & 0xff);
        v.at[i + 1].bits = static_cast<uint8_t>(two >> 8);
      }
    }
    if constexpr (N % 2 != 0) v.at[N - 1] = FromFloat<T>(x[N - 1]);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) v.at[i] = FromFloat<T>(x[i]);
  }
  return v;
}

// Calls f with a value of the element type of activations: F32, F16 or BF16; the dtype has been checked.
template <typename F>
llmd_code DispatchDtype(llmd_dtype dtype, F&& f) {
  if (dtype == LLMD_F16) return f(__half{});
  if (dtype == LLMD_BF16) return f(__nv_bfloat16{});
  return f(float{});
}

// The same for a cache: F16, BF16 or E4M3.
template <typename F>
llmd_code DispatchCacheDtype(llmd_dtype dtype, F&& f) {
  if (dtype == LLMD_F16) return f(__half{});
  if (dtype == LLMD_BF16) return f(__nv_bfloat16{});
  return f(Fp8{});
}

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_COMMON_CONVERT_CUH_
