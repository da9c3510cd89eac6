// The emulator's cuda/attention/ptx.cuh: the same functions, without a GPU.
#ifndef LLMD_CUDA_ATTENTION_PTX_CUH_
#define LLMD_CUDA_ATTENTION_PTX_CUH_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "tests/cuda/emulator/kernel_side.h"
#include "tests/cuda/emulator/matrix.h"

namespace llmd::cuda {

inline std::uint32_t SharedAddress(const void* pointer) { return emulator::SharedAddress(pointer); }

inline std::uint64_t EvictFirstPolicy() { return 1; }

inline void CopyAsync16(std::uint32_t shared, const void* global, bool live, std::uint64_t, LLMD_SITE) {
  emulator::CopyAsync(shared, global, live, site);
}
inline void CopyAsync16(std::uint32_t shared, const void* global, std::uint64_t, LLMD_SITE) {
  emulator::CopyAsync(shared, global, true, site);
}
inline void CopyAsync16(std::uint32_t shared, const void* global, bool live, LLMD_SITE) {
  emulator::CopyAsync(shared, global, live, site);
}
inline void PrefetchL2(const void*) {}
inline void CopyAsyncCommit() { emulator::CopyAsyncCommit(); }
template <int kPending>
void CopyAsyncWait() {
  emulator::CopyAsyncWait(kPending);
}

inline void LoadMatrix4(std::uint32_t (&r)[4], std::uint32_t shared, LLMD_SITE) {
  emulator::LoadMatrices(r, shared, false, site);
}
inline void LoadMatrix4Transposed(std::uint32_t (&r)[4], std::uint32_t shared, LLMD_SITE) {
  emulator::LoadMatrices(r, shared, true, site);
}

template <typename T>
void MatrixMultiplyAdd(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
                       LLMD_SITE) {
  constexpr bool kHalf = std::is_same_v<T, __half>;
  static_assert(kHalf || std::is_same_v<T, __nv_bfloat16>);
  emulator::MultiplyAdd(kHalf ? emulator::MatrixType::kHalf : emulator::MatrixType::kBfloat, d, a, b0, b1,
                        site);
}

inline void LoadShared16(std::uint32_t (&r)[4], std::uint32_t shared, LLMD_SITE) {
  std::memcpy(r, emulator::SharedPointer(shared, sizeof(r), site), sizeof(r));
}
inline void LoadShared8(std::uint32_t (&r)[2], std::uint32_t shared, LLMD_SITE) {
  std::memcpy(r, emulator::SharedPointer(shared, sizeof(r), site), sizeof(r));
}
inline void StoreShared16(std::uint32_t shared, const std::uint32_t (&r)[4], LLMD_SITE) {
  std::memcpy(emulator::SharedPointer(shared, sizeof(r), site), r, sizeof(r));
}
inline void StoreShared8(std::uint32_t shared, std::uint64_t value, LLMD_SITE) {
  std::memcpy(emulator::SharedPointer(shared, sizeof(value), site), &value, sizeof(value));
}

inline std::uint32_t Opaque(std::uint32_t value) { return value; }

// .ftz: what is too small for a normal number is zero.
inline float FlushToZero(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
inline float Exp2(float x) { return FlushToZero(std::exp2(FlushToZero(x))); }
inline float Log2(float x) { return std::log2(FlushToZero(x)); }
inline float Reciprocal(float x) { return FlushToZero(1 / FlushToZero(x)); }

template <typename T>
std::uint32_t Pack(float low, float high) {
  if constexpr (std::is_same_v<T, __half>) {
    return static_cast<std::uint32_t>(__half_as_ushort(__float2half_rn(high))) << 16 |
           __half_as_ushort(__float2half_rn(low));
  } else {
    static_assert(std::is_same_v<T, __nv_bfloat16>);
    return static_cast<std::uint32_t>(__bfloat16_as_ushort(__float2bfloat16_rn(high))) << 16 |
           __bfloat16_as_ushort(__float2bfloat16_rn(low));
  }
}

inline std::uint32_t HalfPairOfE4m3(std::uint32_t pair) { return emulator::HalvesOfE4m3(pair); }

inline void WaitForKernelBefore(LLMD_SITE) { emulator::WaitForGridBefore(site); }
inline void AllowKernelAfter() { emulator::AllowGridAfter(); }

inline void PublishWord(std::uint32_t* to, std::uint32_t word, LLMD_SITE) {
  emulator::VisibleToOthers(to, emulator::Visible::kAccess, site);
  *to = word;
}
inline void PublishFour(std::uint32_t* to, uint4 words, LLMD_SITE) {
  PublishWord(to, words.x, site);
  PublishWord(to + 1, words.y, site);
  PublishWord(to + 2, words.z, site);
  PublishWord(to + 3, words.w, site);
}
// The thread polls if nobody has written the word.
inline std::uint32_t ReadPublishedWord(const std::uint32_t* from, LLMD_SITE) {
  const std::uint32_t word = *from;
  if (word == 0) emulator::VisibleToOthers(from, emulator::Visible::kPoll, site);
  return word;
}
inline uint4 ReadPublishedFour(const std::uint32_t* from, LLMD_SITE) {
  const std::uint32_t last = ReadPublishedWord(from + 3, site);
  return uint4{from[0], from[1], from[2], last};
}

inline void SyncThreads(int barrier, int threads, LLMD_SITE) {
  emulator::Barrier("bar.sync", barrier, threads, false, site);
}

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_PTX_CUH_
