#include "tests/cuda/emulator/streams.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <utility>

#include "tests/cuda/emulator/crash.h"
#include "tests/cuda/emulator/schedule.h"

namespace llmd::emulator {
namespace {

// Runs one function at a time on an OS thread of its own, whose thread-local variables are shared memory.
class DeviceThread {
 public:
  DeviceThread() : thread_([this] { Loop(); }) {}
  void Run(const std::function<void()>& work) {
    std::unique_lock<std::mutex> lock(mutex_);
    work_ = &work;
    changed_.notify_all();
    const auto done = [this] { return work_ == nullptr; };
    std::uint64_t before = 0;
    while (!changed_.wait_for(lock, Patience(), done)) {
      if (std::exchange(before, Switches()) == before) ReportHang();
    }
  }

 private:
  // How long a kernel's thread may run without meeting another: LLMD_EMULATOR_PATIENCE seconds, more for a
  // debugger.
  static std::chrono::seconds Patience() {
    const char* text = std::getenv("LLMD_EMULATOR_PATIENCE");
    return std::chrono::seconds(text == nullptr ? 30 : std::atoi(text));
  }

  void Loop() {
    ReportCrashes();
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return work_ != nullptr; });
      lock.unlock();  // who waits looks whether anything moves
      (*work_)();
      lock.lock();
      work_ = nullptr;
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  const std::function<void()>* work_ = nullptr;
  std::thread thread_;
};

struct State {
  CUstream_st default_stream;
  std::vector<cudaStream_t> streams;
  cudaError_t sticky = cudaSuccess;
  std::string report;
  DeviceThread device;
};

// Never destroyed: the device's thread waits in it till the process ends.
State& TheState() {
  static auto* state = new State;
  return *state;
}

bool StartsEarly(const Operation& operation) {
  return std::holds_alternative<Grid>(operation) && std::get<Grid>(operation).early_start;
}

void RunKernels(CUstream_st& stream) {
  std::vector<Grid> chain;
  do {
    chain.push_back(std::move(std::get<Grid>(stream.operations.front())));
    stream.operations.pop_front();
  } while (!stream.operations.empty() && StartsEarly(stream.operations.front()));
  State& state = TheState();
  std::string report;
  state.device.Run([&] { report = RunGrids(chain); });
  if (report.empty()) return;
  state.report = report + "\n  under LLMD_EMULATOR_SEED=" + std::to_string(Seed());
  std::fprintf(stderr, "%s\n", state.report.c_str());
  state.sticky =
      report.find("deadlock") != std::string::npos ? cudaErrorLaunchTimeout : cudaErrorLaunchFailure;
}

double Now() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

cudaError_t StickyError() { return TheState().sticky; }
void ClearStickyError() { TheState().sticky = cudaSuccess; }
const std::string& LastReport() { return TheState().report; }

cudaStream_t DefaultStream() { return &TheState().default_stream; }
void AddStream(cudaStream_t stream) { TheState().streams.push_back(stream); }
void RemoveStream(cudaStream_t stream) { std::erase(TheState().streams, stream); }

void Enqueue(cudaStream_t stream, Operation operation) {
  if (stream == nullptr) stream = DefaultStream();
  if (stream->capture != nullptr) {
    stream->capture->operations.push_back(std::move(operation));
    return;
  }
  // The default stream and the blocking ones wait for each other.
  if (stream == DefaultStream()) {
    for (cudaStream_t other : TheState().streams) {
      if (other->blocking) Drain(other);
    }
  } else if (stream->blocking) {
    Drain(DefaultStream());
  }
  stream->operations.push_back(std::move(operation));
}

cudaError_t Drain(cudaStream_t stream) {
  if (stream == nullptr) stream = DefaultStream();
  while (!stream->operations.empty()) {
    if (StickyError() != cudaSuccess) {
      stream->operations.clear();
      break;
    }
    if (std::holds_alternative<Grid>(stream->operations.front())) {
      RunKernels(*stream);
      continue;
    }
    const Operation operation = std::move(stream->operations.front());
    stream->operations.pop_front();
    if (const auto* work = std::get_if<HostWork>(&operation)) {
      (*work)();
    } else if (const auto* record = std::get_if<RecordEvent>(&operation)) {
      record->event->done = std::max(record->event->done, record->record);
      record->event->milliseconds = Now();
    } else if (const auto* wait = std::get_if<WaitEvent>(&operation)) {
      if (wait->event->done < wait->record && wait->event->stream != nullptr) Drain(wait->event->stream);
    }
  }
  return StickyError();
}

cudaError_t DrainAll() {
  Drain(DefaultStream());
  for (cudaStream_t stream : TheState().streams) Drain(stream);
  return StickyError();
}

}  // namespace llmd::emulator
