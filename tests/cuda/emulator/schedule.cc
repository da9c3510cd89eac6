#include "tests/cuda/emulator/schedule.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <numeric>
#include <utility>

#include "tests/cuda/emulator/report.h"

// Of the thread that runs; the toolkit declares the same names for nvcc.
uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace llmd::emulator {
namespace {

constexpr std::uint64_t kPatience = 200'000;  // polls in a row while nothing else happens

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u | 1) {}
  std::uint32_t Below(std::uint32_t n) {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<std::uint32_t>((state_ >> 32) * n >> 32);
  }
  unsigned BitOf(std::uint32_t bits) {
    const int turn = static_cast<int>(Below(32));
    return (std::countr_zero(std::rotr(bits, turn)) + turn) % 32;
  }

 private:
  std::uint64_t state_;
};

struct Order {
  std::uint64_t seed = 1;
  std::uint64_t chains = 0;  // that have run under it: each has an order of its own
  Order() {
    if (const char* text = std::getenv("LLMD_EMULATOR_SEED")) seed = std::strtoull(text, nullptr, 10);
  }
} order;

class Scheduler {
 public:
  std::string Run(const std::vector<Grid>& chain) {
    own_.Adopt();
    random_ = Random(order.seed * 1'000'000 + ++order.chains);
    chain_ = &chain;
    progress_.assign(chain.size(), {});
    for (std::size_t g = 0; g < chain.size(); ++g) {
      Progress& progress = progress_[g];
      progress.unfinished = progress.not_allowed = chain[g].NumBlocks();
      if (progress.unfinished <= kShuffled) {
        progress.order.resize(progress.unfinished / chain[g].cluster);
        std::iota(progress.order.begin(), progress.order.end(), 0u);
        for (std::uint32_t i = 1; i < progress.order.size(); ++i) {
          std::swap(progress.order[i], progress.order[random_.Below(i + 1)]);
        }
      }
    }
    multiprocessors_.fill({});
    failed_ = nullptr;
    polls_ = 0;
    const std::string report = Loop();
    resident_.clear();
    active_ = nullptr;
    return report;
  }

  void Wait(Thread& thread) {
    thread.block->SetWaiting(thread.warp(), 1u << thread.lane());
    Leave(thread, NextIn(*thread.block));
  }
  void Wake(Block& block, unsigned warp, unsigned lanes) {
    polls_ = 0;
    for (unsigned rest = lanes; rest != 0; rest &= rest - 1) {
      block.threads[32 * warp + std::countr_zero(rest)]->waits_for = nullptr;
    }
    block.SetReady(warp, lanes);
  }

  // Another warp or block may be next.
  void GiveWay(Visible visible, Site site) {
    Thread& thread = *current_;
    if (visible == Visible::kPoll && ++polls_ > kPatience) {
      emulator::Fail(site, "deadlock: the thread polls, and nothing else happens");
    }
    if (visible == Visible::kAccess) {
      polls_ = 0;
      if (random_.Below(2) != 0) return;
    }
    thread.block->running_warp = random_.BitOf(thread.block->ready_warps);
    Leave(thread, nullptr);
  }

  void WaitForGridBefore(Thread& thread) {
    if (AllBeforeDone(thread.block->grid_number)) return;
    thread.block->warps[thread.warp()].waiting_for_grid |= 1u << thread.lane();
    Wait(thread);
  }
  void AllowGridAfter(Thread& thread) {
    if (!CountAllowed(*thread.block)) return;
    Leave(thread, nullptr);  // so that the next grid can start while this block goes on
  }

  // Makes no string: nothing that is left on a fiber's stack would be freed.
  [[noreturn]] void Fail(Site site, const char* format, std::va_list arguments) {
    if (current_ == nullptr) {
      std::fputs("a function of kernels is called outside of one\n", stderr);
      std::abort();
    }
    failed_ = current_;
    failed_at_ = site;
    std::vsnprintf(failure_, sizeof(failure_), format, arguments);
    Leave(*current_, nullptr);
    std::abort();  // not reached: nobody switches back
  }

  [[noreturn]] void Finish(Thread& thread) {
    Block& block = *thread.block;
    polls_ = 0;
    thread.done = true;
    --block.live;
    block.SetWaiting(thread.warp(), 1u << thread.lane());
    block.warps[thread.warp()].live &= ~(1u << thread.lane());
    LeaveWarp(thread);
    LeaveBarriers(thread);
    LeaveCluster(thread);
    Thread* next = NextIn(block);
    SetCurrent(next);
    Fiber::Switch(thread.fiber, next == nullptr ? own_ : next->fiber, true);
    std::abort();  // not reached
  }

  Thread* current() const { return current_; }
  std::uint64_t switches() const { return switches_.load(std::memory_order_relaxed); }

 private:
  static constexpr std::uint64_t kShuffled = 1 << 20;  // grids of more blocks start them by number

  struct Progress {
    std::uint64_t next = 0;  // block to start
    std::uint64_t unfinished = 0, not_allowed = 0;
    std::vector<std::uint32_t> order;
  };
  struct Load {
    unsigned threads = 0, blocks = 0;
    std::size_t shared_bytes = 0;
  };

  std::string Loop() {
    while (true) {
      while (StartBlock()) {
      }
      if (resident_.empty()) return "";
      const std::size_t slot = PickBlock();
      if (slot == resident_.size()) return Abandon(DeadlockReport(resident_));
      Resume(*resident_[slot]);
      if (failed_ != nullptr) return Abandon(FailureReport(*failed_, failure_, failed_at_));
      if (resident_[slot]->live == 0) Retire(slot);
    }
  }

  std::string Abandon(std::string report) {
    for (auto& block : resident_) {
      for (auto& thread : block->threads) thread->fiber.Abandon();
    }
    return report;
  }

  // One more block, or cluster of blocks, of the first grid that has one left and may start.
  bool StartBlock() {
    for (std::size_t g = 0; g < chain_->size(); ++g) {
      if (g > 0 && progress_[g - 1].not_allowed > 0) return false;
      Progress& progress = progress_[g];
      const Grid& grid = (*chain_)[g];
      if (progress.next == grid.NumBlocks()) continue;
      std::vector<int> places(grid.cluster);
      if (!FindPlaces(grid, places)) return false;
      auto cluster = std::make_shared<Cluster>();
      const std::uint64_t start = progress.next / grid.cluster;
      const std::uint64_t number = progress.order.empty() ? start : progress.order[start];
      for (unsigned rank = 0; rank < grid.cluster; ++rank) {
        resident_.push_back(NewBlock(grid, static_cast<int>(g), places[rank], number * grid.cluster + rank));
        resident_.back()->cluster = cluster;
        cluster->blocks.push_back(resident_.back().get());
        ++progress.next;
      }
      return true;
    }
    return false;
  }

  // Room on multiprocessors for the blocks of a cluster, which it then takes.
  bool FindPlaces(const Grid& grid, std::vector<int>& places) {
    const std::size_t shared = grid.shared_bytes + Multiprocessor::kReservedBytes;
    const unsigned threads = (grid.NumThreads() + 31) / 32 * 32;
    auto loads = multiprocessors_;
    for (int& place : places) {
      int m = 0;
      while (m < kMultiprocessors && (loads[m].threads + threads > Multiprocessor::kThreads ||
                                      loads[m].blocks == Multiprocessor::kBlocks ||
                                      loads[m].shared_bytes + shared > Multiprocessor::kSharedBytes)) {
        ++m;
      }
      if (m == kMultiprocessors) return false;
      loads[m].threads += threads;
      loads[m].blocks += 1;
      loads[m].shared_bytes += shared;
      place = m;
    }
    multiprocessors_ = loads;
    return true;
  }

  std::unique_ptr<Block> NewBlock(const Grid& grid, int grid_number, int multiprocessor,
                                  std::uint64_t number) {
    std::unique_ptr<Block> block;
    if (free_.empty()) {
      block = std::make_unique<Block>();
    } else {
      block = std::move(free_.back());
      free_.pop_back();
    }
    block->grid = &grid;
    block->grid_number = grid_number;
    block->multiprocessor = multiprocessor;
    block->index = {static_cast<unsigned>(number % grid.blocks.x),
                    static_cast<unsigned>(number / grid.blocks.x % grid.blocks.y),
                    static_cast<unsigned>(number / grid.blocks.x / grid.blocks.y)};
    block->live = grid.NumThreads();
    block->started = block->allowed_next = false;
    block->ready_warps = 0;
    block->running_warp = 0;
    block->barriers.fill({});
    for (unsigned w = 0; w < 32; ++w) {
      Warp& warp = block->warps[w];
      const unsigned lanes = std::min(block->live - std::min(block->live, 32 * w), 32u);
      warp.live = static_cast<unsigned>((std::uint64_t{1} << lanes) - 1);
      warp.ready = warp.waiting_for_grid = 0;
      warp.meetings.clear();
      block->SetReady(w, warp.live);
    }
    return block;
  }

  void StartThreads(Block& block) {
    const dim3 size = block.grid->threads;
    for (unsigned t = 0; t < block.live; ++t) {
      if (free_threads_.empty()) free_threads_.push_back(std::make_unique<Thread>());
      block.threads.push_back(std::move(free_threads_.back()));
      free_threads_.pop_back();
      Thread& thread = *block.threads[t];
      thread.block = &block;
      thread.number = t;
      thread.index = {t % size.x, t / size.x % size.y, t / size.x / size.y};
      thread.done = false;
      thread.waits_for = nullptr;
      thread.copies.clear();
      thread.copy_group = 0;
      thread.cluster_phase = 0;
      thread.fiber.Start(RunThread);
    }
  }

  static void RunThread();

  std::size_t PickBlock() {
    const std::size_t first = random_.Below(static_cast<std::uint32_t>(resident_.size()));
    for (std::size_t i = 0; i < resident_.size(); ++i) {
      const std::size_t slot = (first + i) % resident_.size();
      if (resident_[slot]->ready_warps != 0) return slot;
    }
    return resident_.size();
  }

  void Resume(Block& block) {
    if (active_ != &block) {
      if (active_ != nullptr) active_->shared.Save();
      active_ = &block;
      if (block.started) block.shared.Restore();
    }
    if (!block.started) {
      block.started = true;
      block.shared.Begin(block.grid->shared_bytes, StaticOf(block.grid->address));
      StartThreads(block);
    }
    blockIdx = block.index;
    blockDim = block.grid->threads;
    gridDim = block.grid->blocks;
    Thread* next = NextIn(block);
    SetCurrent(next);
    Fiber::Switch(own_, next->fiber);
  }

  void Retire(std::size_t slot) {
    std::unique_ptr<Block> block = std::move(resident_[slot]);
    resident_.erase(resident_.begin() + static_cast<std::ptrdiff_t>(slot));
    active_ = nullptr;
    std::replace(block->cluster->blocks.begin(), block->cluster->blocks.end(), block.get(),
                 static_cast<Block*>(nullptr));
    block->cluster.reset();
    Load& load = multiprocessors_[block->multiprocessor];
    load.threads -= (block->grid->NumThreads() + 31) / 32 * 32;
    load.blocks -= 1;
    load.shared_bytes -= block->grid->shared_bytes + Multiprocessor::kReservedBytes;
    CountAllowed(*block);
    if (--progress_[block->grid_number].unfinished == 0) {
      for (auto& other : resident_) {
        if (!AllBeforeDone(other->grid_number)) continue;
        for (unsigned w = 0; w < 32; ++w) Wake(*other, w, std::exchange(other->warps[w].waiting_for_grid, 0));
      }
    }
    // The stacks that were used last are used next: they are in the caches.
    std::move(block->threads.begin(), block->threads.end(), std::back_inserter(free_threads_));
    block->threads.clear();
    free_.push_back(std::move(block));
  }
  bool CountAllowed(Block& block) {
    if (std::exchange(block.allowed_next, true)) return false;
    --progress_[block.grid_number].not_allowed;
    return true;
  }
  bool AllBeforeDone(int grid) const {
    return std::all_of(progress_.begin(), progress_.begin() + grid,
                       [](const Progress& progress) { return progress.unfinished == 0; });
  }

  std::span<char> StaticOf(const void* kernel) {
    if (kernel != static_of_) {
      static_of_ = kernel;
      statics_ = StaticShared(kernel);
    }
    return statics_;
  }

  // A thread of the warp that ran last, or of another one; null if all wait.
  Thread* NextIn(Block& block) {
    if (block.ready_warps == 0) return nullptr;
    if (block.warps[block.running_warp].ready == 0) block.running_warp = random_.BitOf(block.ready_warps);
    return block.threads[32 * block.running_warp + random_.BitOf(block.warps[block.running_warp].ready)]
        .get();
  }

  void Leave(Thread& thread, Thread* next) {
    if (next == &thread) return;
    SetCurrent(next);
    Fiber::Switch(thread.fiber, next == nullptr ? own_ : next->fiber);
  }

  void SetCurrent(Thread* thread) {
    current_ = thread;
    switches_.store(switches_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    if (thread != nullptr) threadIdx = thread->index;
  }

  Fiber own_;
  Random random_{1};
  const std::vector<Grid>* chain_ = nullptr;
  std::vector<Progress> progress_;
  std::vector<std::unique_ptr<Block>> resident_, free_;
  std::vector<std::unique_ptr<Thread>> free_threads_;
  std::array<Load, kMultiprocessors> multiprocessors_{};
  Block* active_ = nullptr;  // whose static shared memory is in place
  Thread* current_ = nullptr;
  const void* static_of_ = nullptr;
  std::span<char> statics_;
  const Thread* failed_ = nullptr;
  Site failed_at_;
  char failure_[512];
  std::uint64_t polls_ = 0;
  std::atomic<std::uint64_t> switches_ = 0;
};

// Of the device's OS thread; never destroyed, its stacks may hold frames.
Scheduler& TheScheduler() {
  static auto* scheduler = new Scheduler;
  return *scheduler;
}

void Scheduler::RunThread() {
  Fiber::Entered();
  Thread* thread = TheScheduler().current();
  thread->block->grid->call();
  TheScheduler().Finish(*TheScheduler().current());
}

}  // namespace

void SetSeed(std::uint64_t seed) {
  order.seed = seed;
  order.chains = 0;
}
std::uint64_t Seed() { return order.seed; }
std::string RunGrids(const std::vector<Grid>& chain) { return TheScheduler().Run(chain); }
std::uint64_t Switches() { return TheScheduler().switches(); }
Thread* Current() { return TheScheduler().current(); }
void Wait(Thread& thread) { TheScheduler().Wait(thread); }
void Wake(Block& block, unsigned warp, unsigned lanes) { TheScheduler().Wake(block, warp, lanes); }

void Fail(Site site, const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  TheScheduler().Fail(site, format, arguments);
}

void VisibleToOthers(const void* address, Visible visible, Site site) {
  std::uint32_t shared;
  Thread& thread = *Current();
  if (!thread.block->shared.AddressOf(static_cast<const char*>(address), &shared) ||
      visible == Visible::kPoll) {
    TheScheduler().GiveWay(visible, site);
  }
}

void WaitForGridBefore(Site site) {
  Thread& thread = *Current();
  thread.waits_for = "the grid before";
  thread.waits_at = Thread::At::kGrid;
  thread.site = site;
  TheScheduler().WaitForGridBefore(thread);
  thread.waits_for = nullptr;
}

void AllowGridAfter() { TheScheduler().AllowGridAfter(*Current()); }

}  // namespace llmd::emulator
