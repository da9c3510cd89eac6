// Whether the address sanitizer looks on.
#ifndef LLMD_TESTS_CUDA_EMULATOR_SANITIZER_H_
#define LLMD_TESTS_CUDA_EMULATOR_SANITIZER_H_

#if defined(__SANITIZE_ADDRESS__)
#define LLMD_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define LLMD_ADDRESS_SANITIZER 1
#endif
#endif
#ifndef LLMD_ADDRESS_SANITIZER
#define LLMD_ADDRESS_SANITIZER 0
#endif

#endif  // LLMD_TESTS_CUDA_EMULATOR_SANITIZER_H_
