// Streams, events and graphs. Nothing runs before the host waits for it, so a host that forgets to wait sees
// it; then the device's OS thread runs it while the host's stands still.
#ifndef LLMD_TESTS_CUDA_EMULATOR_STREAMS_H_
#define LLMD_TESTS_CUDA_EMULATOR_STREAMS_H_

#include <cuda_runtime_api.h>

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "tests/cuda/emulator/grid.h"

// What CUDA's handles point to.
struct CUevent_st {
  std::uint64_t records = 0;  // enqueued
  std::uint64_t done = 0;
  CUstream_st* stream = nullptr;  // of the last record
  double milliseconds = 0;
};

namespace llmd::emulator {

struct RecordEvent {
  cudaEvent_t event;
  std::uint64_t record;
};
struct WaitEvent {
  cudaEvent_t event;
  std::uint64_t record;
};
using HostWork = std::function<void()>;
using Operation = std::variant<Grid, HostWork, RecordEvent, WaitEvent>;

}  // namespace llmd::emulator

struct CUgraph_st {
  std::vector<llmd::emulator::Operation> operations;
};
struct CUgraphExec_st {
  std::vector<llmd::emulator::Operation> operations;
};
struct CUstream_st {
  std::deque<llmd::emulator::Operation> operations;
  std::unique_ptr<CUgraph_st> capture;
  bool blocking = true;  // with the default stream
};

namespace llmd::emulator {

// Errors of kernels stay, as CUDA's do, until cudaDeviceReset().
cudaError_t StickyError();
void ClearStickyError();
const std::string& LastReport();

cudaStream_t DefaultStream();
void AddStream(cudaStream_t stream);
void RemoveStream(cudaStream_t stream);

void Enqueue(cudaStream_t stream, Operation operation);  // null: the default stream
cudaError_t Drain(cudaStream_t stream);
cudaError_t DrainAll();

}  // namespace llmd::emulator

#endif  // LLMD_TESTS_CUDA_EMULATOR_STREAMS_H_
