// Grids, blocks, warps and threads while they run. Everything here belongs to the one OS thread that is the
// device.
#ifndef LLMD_TESTS_CUDA_EMULATOR_GRID_H_
#define LLMD_TESTS_CUDA_EMULATOR_GRID_H_

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/cuda/emulator/fiber.h"
#include "tests/cuda/emulator/kernel_side.h"
#include "tests/cuda/emulator/shared_memory.h"

namespace llmd::emulator {

struct Block;

// A launch, as it stands in a stream.
struct Grid {
  std::string kernel;
  const void* address = nullptr;
  Call call;
  dim3 blocks, threads;
  std::size_t shared_bytes = 0;
  unsigned cluster = 1;  // blocks, along x
  bool early_start = false;

  std::uint64_t NumBlocks() const { return std::uint64_t{blocks.x} * blocks.y * blocks.z; }
  unsigned NumThreads() const { return threads.x * threads.y * threads.z; }
};

struct PendingCopy {
  char* target;
  const char* source;  // null: zeros
  int group;
};

struct Thread {
  Fiber fiber;
  Block* block = nullptr;
  unsigned number = 0;  // in the block
  uint3 index{};
  bool done = false;
  const char* waits_for = nullptr;  // null: it can go on
  enum class At { kCollective, kBarrier, kGrid } waits_at = At::kGrid;
  unsigned mask_or_barrier = 0;
  Site site;
  unsigned answer = 0;              // of a barrier
  std::uint64_t cluster_phase = 0;  // of the cluster's barrier, when it came there
  std::vector<PendingCopy> copies;
  int copy_group = 0;  // the one that takes new copies

  unsigned lane() const { return number % 32; }
  unsigned warp() const { return number / 32; }
};

// Lanes that came to a collective and wait for others.
struct Meeting {
  unsigned mask = 0;
  unsigned arrived = 0;
  const char* name = nullptr;
  Site site;
};

struct Warp {
  unsigned ready = 0;  // a bit a lane that can go on
  unsigned live = 0;   // that has not returned
  unsigned waiting_for_grid = 0;
  std::vector<Meeting> meetings;
  void* arguments[32] = {};
};

struct NamedBarrier {
  int threads = 0;  // that must come
  int arrived = 0;
  int predicates = 0;
  std::array<unsigned, 32> lanes{};  // of each warp that wait
  std::array<Site, 32> sites{};
};

// Blocks that run at the same time and see each other's shared memory.
struct Cluster {
  std::vector<Block*> blocks;  // null: it has ended
  std::uint64_t phase = 0;     // how often all have met
  unsigned arrived = 0;        // threads
  std::vector<Thread*> waiting;
};

struct Block {
  const Grid* grid = nullptr;
  int grid_number = 0;  // in the chain that runs
  int multiprocessor = 0;
  uint3 index{};
  unsigned live = 0;  // threads
  bool started = false;
  bool allowed_next = false;  // the grid after may start, as far as this block is concerned
  std::uint32_t ready_warps = 0;
  unsigned running_warp = 0;
  std::vector<std::unique_ptr<Thread>> threads;  // once it has started
  std::array<Warp, 32> warps;
  std::array<NamedBarrier, 16> barriers;
  SharedMemory shared;
  std::shared_ptr<Cluster> cluster;

  void SetReady(unsigned warp, unsigned lanes) {
    warps[warp].ready |= lanes;
    if (warps[warp].ready != 0) ready_warps |= 1u << warp;
  }
  void SetWaiting(unsigned warp, unsigned lanes) {
    warps[warp].ready &= ~lanes;
    if (warps[warp].ready == 0) ready_warps &= ~(1u << warp);
  }
};

// Collectives and barriers that the end of a thread may complete.
void LeaveWarp(Thread& thread);
void LeaveBarriers(Thread& thread);
void LeaveCluster(Thread& thread);

}  // namespace llmd::emulator

#endif  // LLMD_TESTS_CUDA_EMULATOR_GRID_H_
