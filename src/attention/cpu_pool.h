// The threads of the CPU backend: one pool a process, started by the first call that has work for two. Its
// size is the number of processors this process may run on, or LLMD_CPU_THREADS (1: no threads at all).
#ifndef LLMD_ATTENTION_CPU_POOL_H_
#define LLMD_ATTENTION_CPU_POOL_H_

#include <cstdint>

namespace llmd::attention::cpu {

int Workers();  // threads that work on a call, the caller's included; constant in a process

// Calls function(context, index, worker) for every index in [0, count), worker in [0, Workers()); returns
// when all are done. Calls from several threads take turns. Indexes are handed out one by one, in order.
using Function = void (*)(void* context, int64_t index, int worker);
void RunParallel(int64_t count, Function function, void* context);

template <typename F>
void Parallel(int64_t count, F&& f) {
  RunParallel(
      count, [](void* context, int64_t index, int worker) { (*static_cast<F*>(context))(index, worker); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

// Cuts [0, count) into pieces of at least `grain` and calls f(begin, end).
template <typename F>
void ParallelRanges(int64_t count, int64_t grain, F&& f) {
  const int64_t most = 4 * static_cast<int64_t>(Workers());
  const int64_t pieces = count / grain < 1 ? 1 : count / grain > most ? most : count / grain;
  Parallel(pieces, [&](int64_t i, int) { f(count * i / pieces, count * (i + 1) / pieces); });
}

}  // namespace llmd::attention::cpu

#endif  // LLMD_ATTENTION_CPU_POOL_H_
