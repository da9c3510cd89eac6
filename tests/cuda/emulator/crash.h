// A kernel that crashes says which thread of it did.
#ifndef LLMD_TESTS_CUDA_EMULATOR_CRASH_H_
#define LLMD_TESTS_CUDA_EMULATOR_CRASH_H_

namespace llmd::emulator {

// For the calling OS thread, which runs kernels.
void ReportCrashes();

// For one that waits for it, when nothing has moved for long: says where, and ends the process.
[[noreturn]] void ReportHang();

}  // namespace llmd::emulator

#endif  // LLMD_TESTS_CUDA_EMULATOR_CRASH_H_
