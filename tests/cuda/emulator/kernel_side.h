// What kernels call when they run on the CPU; cuda_language.h and the headers below include/ give these
// functions the names that CUDA has for them. A Site is where the kernel's source calls, for messages and to
// tell one collective from another.
#ifndef LLMD_TESTS_CUDA_EMULATOR_KERNEL_SIDE_H_
#define LLMD_TESTS_CUDA_EMULATOR_KERNEL_SIDE_H_

#include <cstddef>
#include <cstdint>
#include <functional>

namespace llmd::emulator {

// A place in a kernel's source: as the default of a function's parameter, that of the call.
struct Site {
  const char* file = "";
  int line = 0;
  static constexpr Site Here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};
#define LLMD_SITE ::llmd::emulator::Site site = ::llmd::emulator::Site::Here()

// Ends the grid with an error that cudaStreamSynchronize() returns, after a report of kernel, block and
// thread.
[[noreturn, gnu::format(printf, 2, 3)]] void Fail(Site site, const char* format, ...);

// Returns when each lane of `mask` that has not returned from the kernel has come here; the last one to come
// runs `together` on the arguments of all. kAligned: an instruction that all lanes of the warp must execute.
enum class Lanes { kOfMask, kAligned };
using Together = void (*)(void* const (&arguments)[32], unsigned lanes);
void Collective(const char* name, unsigned mask, void* argument, Together together, Site site,
                Lanes lanes = Lanes::kOfMask);

// Barrier 0 to 15 of the block, for `threads` of it, or for all that have not returned (0). Returns how many
// came with `predicate`.
unsigned Barrier(const char* name, int barrier, int threads, bool predicate, Site site);

// Other blocks may run now: at what is visible to them. kPoll: this thread waits for something that they do.
enum class Visible { kAccess, kPoll };
void VisibleToOthers(const void* address, Visible visible, Site site);

// Asynchronous copies, done only when the thread waits for them. Until then the target holds poison.
void CopyAsync(std::uint32_t shared, const void* global, bool live, Site site);
void CopyAsyncCommit();
void CopyAsyncWait(int pending_groups);

// Shared memory: a block's dynamic part, and 32-bit addresses of any.
char* DynamicShared();
std::uint32_t SharedAddress(const void* pointer);
void* SharedPointer(std::uint32_t address, std::size_t bytes, Site site);  // checks range and alignment

// Clusters: a barrier of all threads in two halves, and the place in block `rank` that corresponds to one in
// this block's dynamic shared memory.
void ClusterArrive(Site site);
void ClusterWait(Site site);
void* OfBlock(void* shared, unsigned rank, Site site);

// Programmatic dependent launch.
void WaitForGridBefore(Site site);
void AllowGridAfter();

// A kernel's name, and how to call it, so that cudaLaunchKernelExC() can: from the launch's array of pointers
// to arguments to a function that one thread runs.
using Call = std::function<void()>;
void DeclareKernel(const char* name, const void* kernel, Call (*bind)(const void* kernel, void** arguments));

}  // namespace llmd::emulator

#endif  // LLMD_TESTS_CUDA_EMULATOR_KERNEL_SIDE_H_
