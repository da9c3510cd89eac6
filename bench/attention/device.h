// Small pieces for programs that measure on a GPU: errors that end the program, owned memory, and timing by
// replays of a captured graph.
#ifndef BENCH_ATTENTION_DEVICE_H_
#define BENCH_ATTENTION_DEVICE_H_

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <utility>
#include <vector>

#include "bench/bench_util.h"
#include "llmd/attention/backend.h"

namespace llmd::bench {

inline void CheckCuda(cudaError_t error, const char* what, const char* file, int line) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s:%d: %s: %s\n", file, line, what, cudaGetErrorString(error));
  std::exit(1);
}
#define LLMD_CUDA(call) ::llmd::bench::CheckCuda((call), #call, __FILE__, __LINE__)

class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(std::size_t bytes) : bytes_(bytes) {
    if (bytes > 0) LLMD_CUDA(cudaMalloc(&data_, bytes));
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~DeviceBuffer() { cudaFree(data_); }

  template <typename T>
  static DeviceBuffer Of(const std::vector<T>& values) {
    DeviceBuffer buffer(values.size() * sizeof(T));
    LLMD_CUDA(cudaMemcpy(buffer.data_, values.data(), buffer.bytes_, cudaMemcpyHostToDevice));
    return buffer;
  }

  template <typename T = void>
  T* as() const {
    return static_cast<T*>(data_);
  }
  char* at(std::size_t offset) const { return static_cast<char*>(data_) + offset; }
  std::size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

struct Timing {
  double us = 0;  // median of the replays, for one launch
  double min_us = 0;
  double max_us = 0;
  int launches = 0;  // in the graph
  int replays = 0;
};

// Working sets that together do not fit in any L2 cache several times over (section 5): how many disjoint
// ones to rotate over.
inline constexpr double kColdBytes = 300e6;
inline int Rotations(double bytes) {
  return bytes >= kColdBytes ? 1 : static_cast<int>(kColdBytes / std::max(bytes, 1.0)) + 2;
}

// Launches in a graph for a working set of `bytes`: each of the rotations at least once, 20 to 50 otherwise,
// fewer when one launch takes longer than a millisecond.
inline int GraphLaunches(double bytes) {
  if (bytes > 3.5e9) return 6;
  return std::max(Rotations(bytes), bytes < 134e6 ? 50 : 20);
}

// Captures `launches` calls of enqueue(i) on the stream into one graph, replays it, and gives the time of one
// call. At least 20 replays, and as many more, up to 100, as fit in `seconds`; five if 20 would take thrice
// that.
inline Timing TimeGraph(cudaStream_t stream, int launches, double seconds,
                        const std::function<void(int)>& enqueue) {
  for (int i = 0; i < 3; ++i) enqueue(i % launches);  // loads what is loaded on first use
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  LLMD_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < launches; ++i) enqueue(i);
  LLMD_CUDA(cudaStreamEndCapture(stream, &graph));
  LLMD_CUDA(cudaGraphInstantiate(&executable, graph, 0));
  // All replays are queued at once: the device does not wait for the host between them.
  const auto replay = [&](int count) {
    std::vector<cudaEvent_t> events(count + 1);
    for (cudaEvent_t& event : events) LLMD_CUDA(cudaEventCreate(&event));
    LLMD_CUDA(cudaEventRecord(events[0], stream));
    for (int i = 0; i < count; ++i) {
      LLMD_CUDA(cudaGraphLaunch(executable, stream));
      LLMD_CUDA(cudaEventRecord(events[i + 1], stream));
    }
    LLMD_CUDA(cudaStreamSynchronize(stream));
    std::vector<double> us(count);
    for (int i = 0; i < count; ++i) {
      float ms = 0;
      LLMD_CUDA(cudaEventElapsedTime(&ms, events[i], events[i + 1]));
      us[i] = ms * 1e3;
    }
    for (cudaEvent_t event : events) LLMD_CUDA(cudaEventDestroy(event));
    return us;
  };
  const double once = std::max(replay(2)[1], 1.0) * 1e-6;
  const int wanted = std::clamp(static_cast<int>(seconds / once), 20, 100);
  const int replays = wanted * once > 3 * seconds ? 5 : wanted;
  std::vector<double> us = replay(replays + 1);
  us.erase(us.begin());  // waited for the host
  for (double& value : us) value /= launches;
  LLMD_CUDA(cudaGraphExecDestroy(executable));
  LLMD_CUDA(cudaGraphDestroy(graph));
  const auto [least, greatest] = std::minmax_element(us.begin(), us.end());
  return {Median(us), *least, *greatest, launches, replays};
}

// What every benchmark needs.
struct Device {
  const llmd_attention_backend* backend = nullptr;
  cudaStream_t stream = nullptr;
  int multiprocessors = 0;

  // Ends the program if the library refused.
  void Require(llmd_code code, const char* what) const {
    if (code == LLMD_OK) return;
    std::fprintf(stderr, "%s: %s\n", what, backend->last_error());
    std::exit(1);
  }
};

// fill.cu: all asynchronous on the stream.
// Standard normal values of the type (of E4M3 as well: unscaled); the same for the same seed.
void FillNormal(void* data, std::int64_t count, llmd_dtype dtype, std::uint64_t seed, cudaStream_t stream);
// Adds the number of NaN and infinite bf16 values to *count.
void CountNonFinite(const void* data, std::int64_t count, unsigned long long* result, cudaStream_t stream);
// Reads bytes (a multiple of 16) once, with `blocks` blocks of `threads`; `sink` gets a word that nobody
// reads.
void ReadAll(const void* data, std::int64_t bytes, int blocks, int threads, int unroll, void* sink,
             cudaStream_t stream);
void CopyAll(const void* from, void* to, std::int64_t bytes, int blocks, int threads, cudaStream_t stream);

}  // namespace llmd::bench

#endif  // BENCH_ATTENTION_DEVICE_H_
