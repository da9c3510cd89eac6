// Before the real header's LaunchKernel() takes a kernel's type away, this one tells the emulator how to call
// it.
#ifndef LLMD_TESTS_CUDA_EMULATOR_INCLUDE_CUDA_COMMON_LAUNCH_H_
#define LLMD_TESTS_CUDA_EMULATOR_INCLUDE_CUDA_COMMON_LAUNCH_H_

#include_next "cuda/common/launch.h"

#include <tuple>
#include <utility>

#include "tests/cuda/emulator/kernel_side.h"

namespace llmd::emulator {

template <typename... Params>
Call BindKernel(const void* kernel, void** arguments) {
  auto* function = reinterpret_cast<void (*)(Params...)>(const_cast<void*>(kernel));
  return [&]<std::size_t... kIndex>(std::index_sequence<kIndex...>)->Call {
    std::tuple<std::remove_cv_t<Params>...> copies{
        *static_cast<std::remove_cv_t<Params>*>(arguments[kIndex])...};
    return [function, copies] { std::apply(function, copies); };
  }
  (std::index_sequence_for<Params...>());
}

}  // namespace llmd::emulator

namespace llmd::cuda {

// Chosen before the real one, because of its constraint.
template <typename... Params, typename... Args>
requires(sizeof...(Params) == sizeof...(Args)) llmd_code
    LaunchKernel(const Launch& launch, void (*kernel)(Params...), const Args&... args) {
  emulator::DeclareKernel(launch.kernel, reinterpret_cast<const void*>(kernel),
                          emulator::BindKernel<Params...>);
  void* pointers[] = {const_cast<void*>(static_cast<const void*>(&args))..., nullptr};
  return LaunchKernel(launch, reinterpret_cast<const void*>(kernel), pointers);
}

}  // namespace llmd::cuda

#endif  // LLMD_TESTS_CUDA_EMULATOR_INCLUDE_CUDA_COMMON_LAUNCH_H_
