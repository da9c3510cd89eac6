// The words of failures: kernel, block, thread, and what they wait for.
#ifndef LLMD_TESTS_CUDA_EMULATOR_REPORT_H_
#define LLMD_TESTS_CUDA_EMULATOR_REPORT_H_

#include <memory>
#include <string>
#include <vector>

#include "tests/cuda/emulator/grid.h"

namespace llmd::emulator {

std::string Place(const Site& site);  // file:line

std::string WhereIs(const Thread& thread);  // kernel, block, thread

std::string FailureReport(const Thread& thread, const std::string& what, const Site& site);

// No thread of the resident blocks can go on: what each waits for.
std::string DeadlockReport(const std::vector<std::unique_ptr<Block>>& resident);

}  // namespace llmd::emulator

#endif  // LLMD_TESTS_CUDA_EMULATOR_REPORT_H_
