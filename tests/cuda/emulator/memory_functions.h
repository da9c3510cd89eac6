// CUDA's functions on memory: cached loads and stores, fences, atomics. All is sequentially consistent here;
// what is tested is who may see what between two of these calls.
#ifndef LLMD_TESTS_CUDA_EMULATOR_MEMORY_FUNCTIONS_H_
#define LLMD_TESTS_CUDA_EMULATOR_MEMORY_FUNCTIONS_H_

#include <type_traits>

#include "tests/cuda/emulator/kernel_side.h"

template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
T __ldcg(const T* p) {
  return *p;
}
template <typename T>
T __ldca(const T* p) {
  return *p;
}
template <typename T>
T __ldcs(const T* p) {
  return *p;
}
template <typename T>
T __ldlu(const T* p) {
  return *p;
}
template <typename T>
void __stcg(T* p, std::type_identity_t<T> value) {
  *p = value;
}
template <typename T>
void __stcs(T* p, std::type_identity_t<T> value) {
  *p = value;
}
template <typename T>
void __stwt(T* p, std::type_identity_t<T> value) {
  *p = value;
}

inline void __threadfence_block() {}
inline void __threadfence(LLMD_SITE) {
  llmd::emulator::VisibleToOthers(nullptr, llmd::emulator::Visible::kAccess, site);
}
inline void __threadfence_system(LLMD_SITE) {
  llmd::emulator::VisibleToOthers(nullptr, llmd::emulator::Visible::kAccess, site);
}
inline void __nanosleep(unsigned, LLMD_SITE) {
  llmd::emulator::VisibleToOthers(nullptr, llmd::emulator::Visible::kPoll, site);
}

namespace llmd::emulator {

// Threads change only inside calls of the emulator: an update is one without more ado.
template <typename T, typename F>
T Atomic(T* p, Site site, F&& updated) {
  VisibleToOthers(p, Visible::kAccess, site);
  const T before = *p;
  *p = updated(before);
  // What changes nothing may be a loop that waits.
  VisibleToOthers(p, *p == before ? Visible::kPoll : Visible::kAccess, site);
  return before;
}

}  // namespace llmd::emulator

template <typename T>
T atomicAdd(T* p, std::type_identity_t<T> value, LLMD_SITE) {
  return llmd::emulator::Atomic(p, site, [&](T before) { return before + value; });
}
template <typename T>
T atomicSub(T* p, std::type_identity_t<T> value, LLMD_SITE) {
  return llmd::emulator::Atomic(p, site, [&](T before) { return before - value; });
}
template <typename T>
T atomicExch(T* p, std::type_identity_t<T> value, LLMD_SITE) {
  return llmd::emulator::Atomic(p, site, [&](T) { return value; });
}
template <typename T>
T atomicMax(T* p, std::type_identity_t<T> value, LLMD_SITE) {
  return llmd::emulator::Atomic(p, site, [&](T before) { return before < value ? value : before; });
}
template <typename T>
T atomicMin(T* p, std::type_identity_t<T> value, LLMD_SITE) {
  return llmd::emulator::Atomic(p, site, [&](T before) { return value < before ? value : before; });
}
template <typename T>
T atomicOr(T* p, std::type_identity_t<T> value, LLMD_SITE) {
  return llmd::emulator::Atomic(p, site, [&](T before) { return before | value; });
}
template <typename T>
T atomicAnd(T* p, std::type_identity_t<T> value, LLMD_SITE) {
  return llmd::emulator::Atomic(p, site, [&](T before) { return before & value; });
}
template <typename T>
T atomicXor(T* p, std::type_identity_t<T> value, LLMD_SITE) {
  return llmd::emulator::Atomic(p, site, [&](T before) { return before ^ value; });
}
template <typename T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> value, LLMD_SITE) {
  return llmd::emulator::Atomic(p, site, [&](T before) { return before == expected ? value : before; });
}
inline unsigned atomicInc(unsigned* p, unsigned last, LLMD_SITE) {
  return llmd::emulator::Atomic(p, site, [&](unsigned before) { return before >= last ? 0 : before + 1; });
}

#endif  // LLMD_TESTS_CUDA_EMULATOR_MEMORY_FUNCTIONS_H_
