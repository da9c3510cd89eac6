#include "src/attention/cpu_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <system_error>
#include <thread>

namespace llmd::attention::cpu {
namespace {

constexpr int kMostWorkers = 256;

int CountWorkers() {
  if (const char* text = std::getenv("LLMD_CPU_THREADS"); text != nullptr) {
    const int wanted = std::atoi(text);
    if (wanted > 0) return std::min(wanted, kMostWorkers);
  }
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
    return std::clamp(CPU_COUNT(&allowed), 1, kMostWorkers);
  }
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMostWorkers);
}

class Pool {
 public:
  Pool() {
    for (int worker = 1; worker < Workers(); ++worker) {
      try {
        std::thread([this, worker] { Serve(worker); }).detach();
      } catch (const std::system_error&) {
        return;  // with those there are; the caller always works
      }
      ++threads_;
    }
  }

  void Run(int64_t count, Function function, void* context) {
    const std::lock_guard turn(turn_);
    {
      const std::lock_guard lock(mutex_);
      function_ = function;
      context_ = context;
      count_ = count;
      next_.store(0, std::memory_order_relaxed);
      busy_ = threads_;
      ++job_;
    }
    start_.notify_all();
    Work(0);
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
  }

 private:
  void Work(int worker) {
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;)
      function_(context_, i, worker);
  }

  void Serve(int worker) {
    uint64_t seen = 0;
    std::unique_lock lock(mutex_);
    while (true) {
      start_.wait(lock, [&] { return job_ != seen; });
      seen = job_;
      lock.unlock();
      Work(worker);
      lock.lock();
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::mutex turn_;  // one caller at a time
  std::mutex mutex_;
  std::condition_variable start_, done_;
  uint64_t job_ = 0;
  int busy_ = 0;
  int threads_ = 0;
  Function function_ = nullptr;
  void* context_ = nullptr;
  int64_t count_ = 0;
  std::atomic<int64_t> next_{0};
};

// Never destroyed: its threads end with the process. A child made by fork has no threads and starts its own
// pool.
std::atomic<Pool*> pool{nullptr};
std::mutex* pool_mutex = new std::mutex;

Pool& ThePool() {
  if (Pool* ready = pool.load(std::memory_order_acquire); ready != nullptr) return *ready;
  const std::lock_guard lock(*pool_mutex);
  if (Pool* ready = pool.load(std::memory_order_acquire); ready != nullptr) return *ready;
  static const int registered = pthread_atfork(nullptr, nullptr, [] {
    pool.store(nullptr, std::memory_order_release);
    pool_mutex = new std::mutex;
  });
  static_cast<void>(registered);
  Pool* fresh = new Pool;
  pool.store(fresh, std::memory_order_release);
  return *fresh;
}

}  // namespace

int Workers() {
  static const int workers = CountWorkers();
  return workers;
}

void RunParallel(int64_t count, Function function, void* context) {
  if (count <= 1 || Workers() == 1) {
    for (int64_t i = 0; i < count; ++i) function(context, i, 0);
    return;
  }
  ThePool().Run(count, function, context);
}

}  // namespace llmd::attention::cpu
