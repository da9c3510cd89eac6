#include "src/attention/cpu_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
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
  Pool() : helpers_(new Helper[Workers() - 1]) {
    for (int i = 0; i < Workers() - 1; ++i) {
      try {
        std::thread([this, i] { Serve(i); }).detach();
      } catch (const std::system_error&) {
        return;  // with those there are; the caller always works
      }
      ++count_helpers_;
    }
  }

  void Run(int64_t count, Function function, void* context) {
    const std::lock_guard turn(turn_);
    function_ = function;
    context_ = context;
    count_ = count;
    next_.store(0, std::memory_order_relaxed);
    woken_ = static_cast<int>(std::min<int64_t>(count_helpers_, count - 1));
    busy_.store(woken_, std::memory_order_relaxed);
    Wake(0);
    Work(0);
    for (int busy; (busy = busy_.load(std::memory_order_acquire)) != 0;)
      busy_.wait(busy, std::memory_order_acquire);
  }

 private:
  struct alignas(64) Helper {
    std::atomic<uint32_t> jobs{0};  // given to it so far
  };

  void Wake(int helper) {
    if (helper >= woken_) return;
    helpers_[helper].jobs.fetch_add(1, std::memory_order_release);
    helpers_[helper].jobs.notify_one();
  }

  void Work(int worker) {
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;)
      function_(context_, i, worker);
  }

  void Serve(int helper) {
    for (uint32_t done = 0;; ++done) {
      helpers_[helper].jobs.wait(done, std::memory_order_acquire);
      Wake(2 * helper + 1);  // a tree: the caller wakes one thread, however many there are
      Wake(2 * helper + 2);
      Work(helper + 1);
      if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_.notify_one();
    }
  }

  std::mutex turn_;  // one caller at a time
  const std::unique_ptr<Helper[]> helpers_;
  int count_helpers_ = 0;

  // The job.
  Function function_ = nullptr;
  void* context_ = nullptr;
  int64_t count_ = 0;
  int woken_ = 0;
  std::atomic<int64_t> next_{0};
  std::atomic<int> busy_{0};
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
