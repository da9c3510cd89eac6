// The instructions the attention kernels are made of, as functions. PTX ISA names; sm_80 and later unless
// said otherwise.
#ifndef LLMD_CUDA_ATTENTION_PTX_CUH_
#define LLMD_CUDA_ATTENTION_PTX_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

namespace llmd::cuda {

__device__ __forceinline__ std::uint32_t SharedAddress(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

// L2 policy for data that is read once: it leaves first.
__device__ __forceinline__ std::uint64_t EvictFirstPolicy() {
  std::uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// Copies 16 bytes to shared memory past L1; with `live` false it writes zeros and reads nothing.
__device__ __forceinline__ void CopyAsync16(std::uint32_t shared, const void* global, bool live,
                                            std::uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(shared), "l"(global),
               "r"(live ? 16 : 0), "l"(policy)
               : "memory");
}
__device__ __forceinline__ void CopyAsync16(std::uint32_t shared, const void* global, std::uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
               "l"(policy)
               : "memory");
}
// The same without a policy.
__device__ __forceinline__ void CopyAsync16(std::uint32_t shared, const void* global, bool live) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(live ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void CopyAsyncCommit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void CopyAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Asks for the 128 bytes around an address to come to the L2 cache.
__device__ __forceinline__ void PrefetchL2(const void* global) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}

// Four 8x8 matrices of 16-bit elements; lane 8i + r gives the address of row r of matrix i.
__device__ __forceinline__ void LoadMatrix4(std::uint32_t (&r)[4], std::uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared));
}
__device__ __forceinline__ void LoadMatrix4Transposed(std::uint32_t (&r)[4], std::uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared));
}

// d += a * b, a 16x16, b 16x8, fp32 sums. Lane 4r + j holds rows r, r + 8: a = {(r; 2j, 2j+1), (r+8; same),
// (r; 2j+8, 2j+9), (r+8; same)}, b = {(2j, 2j+1; r), (2j+8, 2j+9; r)}, d = {(r; 2j), (r; 2j+1), (r+8; 2j),
// (r+8; 2j+1)}.
template <typename T>
__device__ __forceinline__ void MatrixMultiplyAdd(float (&d)[4], const std::uint32_t (&a)[4],
                                                  std::uint32_t b0, std::uint32_t b1);
template <>
__device__ __forceinline__ void MatrixMultiplyAdd<__nv_bfloat16>(float (&d)[4], const std::uint32_t (&a)[4],
                                                                 std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void MatrixMultiplyAdd<__half>(float (&d)[4], const std::uint32_t (&a)[4],
                                                          std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void LoadShared16(std::uint32_t (&r)[4], std::uint32_t shared) {
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared));
}
__device__ __forceinline__ void LoadShared8(std::uint32_t (&r)[2], std::uint32_t shared) {
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(shared));
}

__device__ __forceinline__ void StoreShared16(std::uint32_t shared, const std::uint32_t (&r)[4]) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(r[0]), "r"(r[1]), "r"(r[2]),
               "r"(r[3])
               : "memory");
}

__device__ __forceinline__ void StoreShared8(std::uint32_t shared, std::uint64_t value) {
  asm volatile("st.shared.b64 [%0], %1;" ::"r"(shared), "l"(value) : "memory");
}

// The same value, but of unknown origin: not computed again where it is used, and what is made of it in a
// loop is not made before the loop and kept in registers.
__device__ __forceinline__ std::uint32_t Opaque(std::uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float Log2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float Reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two floats to a pair, the first in the low half.
template <typename T>
__device__ __forceinline__ std::uint32_t Pack(float low, float high);
template <>
__device__ __forceinline__ std::uint32_t Pack<__nv_bfloat16>(float low, float high) {
  std::uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
template <>
__device__ __forceinline__ std::uint32_t Pack<__half>(float low, float high) {
  std::uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// Two e4m3 values in the low 16 bits to a pair of halves; exact.
__device__ __forceinline__ std::uint32_t HalfPairOfE4m3(std::uint32_t pair) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  std::uint32_t halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<std::uint16_t>(pair)));
  return halves;
#else
  // The bits of an e4m3 value, shifted to where a half has them, stand for 2^-8 of it.
  std::uint32_t spread = ((pair & 0xFF00) << 16) | ((pair & 0x00FF) << 8);
  std::uint32_t bits = (spread & 0x80008000u) | ((spread & 0x7F007F00u) >> 1);
  __half2 value = __hmul2(*reinterpret_cast<__half2*>(&bits), __half2half2(__ushort_as_half(0x5C00)));  // 2^8
  std::uint32_t nan = (__vcmpeq2(spread & 0x7F007F00u, 0x7F007F00u)) & 0x7FFF7FFFu;
  return *reinterpret_cast<std::uint32_t*>(&value) | nan;
#endif
}

// Programmatic dependent launch (sm_90): waits until the kernels before on the stream have ended and what
// they wrote is visible; lets the kernel after this one start as blocks of this one end.
__device__ __forceinline__ void WaitForKernelBefore() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void AllowKernelAfter() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Words, and aligned groups of four, that blocks hand to each other. Each is whole when it is seen; nothing
// is said of their order.
__device__ __forceinline__ void PublishWord(std::uint32_t* to, std::uint32_t word) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(word) : "memory");
}
__device__ __forceinline__ void PublishFour(std::uint32_t* to, uint4 words) {
  asm volatile(
      "{\n .reg .b64 low, high;\n .reg .b128 four;\n mov.b64 low, {%1, %2};\n mov.b64 high, {%3, %4};\n"
      " mov.b128 four, {low, high};\n st.relaxed.gpu.global.b128 [%0], four;\n}" ::"l"(to),
      "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w)
      : "memory");
}
__device__ __forceinline__ std::uint32_t ReadPublishedWord(const std::uint32_t* from) {
  std::uint32_t word;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(word) : "l"(from) : "memory");
  return word;
}
// Of a group whose last word is zero until it is published.
__device__ __forceinline__ uint4 ReadPublishedFour(const std::uint32_t* from) {
  uint4 words;
  asm volatile(
      "{\n .reg .b64 low, high;\n .reg .b128 four;\n ld.relaxed.gpu.global.b128 four, [%4];\n"
      " mov.b128 {low, high}, four;\n mov.b64 {%0, %1}, low;\n mov.b64 {%2, %3}, high;\n}"
      : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
      : "l"(from)
      : "memory");
  return words;
}

// A barrier of its own for a part of the block.
__device__ __forceinline__ void SyncThreads(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_PTX_CUH_
