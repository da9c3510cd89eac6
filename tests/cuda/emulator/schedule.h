// Runs grids: which blocks are resident, which thread is next. One OS thread, and every choice comes from a
// seeded generator, so a run can be repeated.
#ifndef LLMD_TESTS_CUDA_EMULATOR_SCHEDULE_H_
#define LLMD_TESTS_CUDA_EMULATOR_SCHEDULE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "tests/cuda/emulator/grid.h"

namespace llmd::emulator {

// What the device has; a launch that needs more is refused, blocks that do not fit wait.
struct Multiprocessor {
  static constexpr unsigned kThreads = 1024;
  static constexpr unsigned kBlocks = 8;
  static constexpr std::size_t kSharedBytes = 228 * 1024;
  static constexpr std::size_t kReservedBytes = 1024;  // of shared memory a block
  static constexpr std::size_t kBlockSharedBytes = kSharedBytes - kReservedBytes;
};
inline constexpr int kMultiprocessors = 8;

// Of the order of threads and blocks; LLMD_EMULATOR_SEED sets it, too.
void SetSeed(std::uint64_t seed);
std::uint64_t Seed();

// Runs grids of which each but the first may start early. Returns what went wrong, or nothing.
std::string RunGrids(const std::vector<Grid>& chain);

// From one thread to another, so far. May be asked by any OS thread.
std::uint64_t Switches();

// The thread that runs. Null outside of kernels.
Thread* Current();

// For collectives and barriers. The running thread waits, because of what its fields say, until Wake().
void Wait(Thread& thread);
void Wake(Block& block, unsigned warp, unsigned lanes);

}  // namespace llmd::emulator

#endif  // LLMD_TESTS_CUDA_EMULATOR_SCHEDULE_H_
