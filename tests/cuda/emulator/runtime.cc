// The functions of CUDA's runtime that the kernels' host code and tests use, for one small device of
// capability 9.0.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "tests/cuda/emulator/schedule.h"
#include "tests/cuda/emulator/streams.h"

namespace llmd::emulator {
namespace {

constexpr std::size_t kDeviceBytes = std::size_t{16} << 30;
constexpr std::size_t kPoisonedBytes = std::size_t{64}
                                       << 20;  // larger allocations stay untouched, to cost nothing
constexpr std::size_t kAlignment = 512;
constexpr std::size_t kAlwaysAllowedShared = 48 * 1024;

struct Kernel {
  std::string name;
  Call (*bind)(const void*, void**) = nullptr;
  std::size_t allowed_shared = kAlwaysAllowedShared;
};

// One lock for all of the runtime; kernels run under it.
std::recursive_mutex& Lock() {
  static auto* mutex = new std::recursive_mutex;
  return *mutex;
}
#define LLMD_EMULATOR_LOCK std::lock_guard<std::recursive_mutex> lock(::llmd::emulator::Lock())

std::map<const void*, Kernel>& Kernels() {
  static auto* kernels = new std::map<const void*, Kernel>;
  return *kernels;
}
std::map<void*, std::size_t>& Allocations() {
  static auto* allocations = new std::map<void*, std::size_t>;
  return *allocations;
}

thread_local cudaError_t last_error = cudaSuccess;

cudaError_t Return(cudaError_t error) {
  if (error == cudaSuccess) error = StickyError();
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t Allocate(void** pointer, std::size_t bytes) {
  std::size_t all = bytes;
  for (const auto& [memory, size] : Allocations()) all += size;
  *pointer = nullptr;
  if (all > kDeviceBytes || posix_memalign(pointer, kAlignment, bytes == 0 ? 1 : bytes) != 0) {
    return Return(cudaErrorMemoryAllocation);
  }
  if (bytes <= kPoisonedBytes) std::memset(*pointer, kPoison, bytes);
  Allocations()[*pointer] = bytes;
  return Return(cudaSuccess);
}

cudaError_t Free(void* pointer) {
  if (pointer == nullptr) return Return(cudaSuccess);
  DrainAll();
  if (Allocations().erase(pointer) == 0) return Return(cudaErrorInvalidValue);
  std::free(pointer);
  return Return(cudaSuccess);
}

cudaError_t EnqueueHost(cudaStream_t stream, HostWork work) {
  Enqueue(stream, std::move(work));
  return Return(cudaSuccess);
}

}  // namespace

void DeclareKernel(const char* name, const void* kernel, Call (*bind)(const void* kernel, void** arguments)) {
  LLMD_EMULATOR_LOCK;
  Kernels()[kernel].name = name;
  Kernels()[kernel].bind = bind;
}

}  // namespace llmd::emulator

using namespace llmd::emulator;  // NOLINT: the functions below are C

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return Return(device == 0 ? cudaSuccess : cudaErrorInvalidDevice); }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return Return(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = kMultiprocessors;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(Multiprocessor::kBlockSharedBytes);
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(Multiprocessor::kSharedBytes);
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = static_cast<int>(Multiprocessor::kThreads);
      break;
    case cudaDevAttrL2CacheSize:
      *value = 1 << 20;
      break;
    default:
      return Return(cudaErrorNotSupported);
  }
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) { return cudaRuntimeGetVersion(version); }
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  LLMD_EMULATOR_LOCK;
  *free = *total = kDeviceBytes;
  for (const auto& [memory, size] : Allocations()) *free -= size;
  return Return(cudaSuccess);
}

cudaError_t cudaDeviceSynchronize() {
  LLMD_EMULATOR_LOCK;
  return Return(DrainAll());
}
// Ends what a failed kernel left; memory and streams stay.
cudaError_t cudaDeviceReset() {
  LLMD_EMULATOR_LOCK;
  DrainAll();
  ClearStickyError();
  last_error = cudaSuccess;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() {
  const cudaError_t error = std::exchange(last_error, cudaSuccess);
  return error == cudaSuccess ? StickyError() : error;
}
cudaError_t cudaPeekAtLastError() { return last_error == cudaSuccess ? StickyError() : last_error; }

#define LLMD_EMULATOR_ERRORS(X)     \
  X(cudaSuccess)                    \
  X(cudaErrorInvalidValue)          \
  X(cudaErrorMemoryAllocation)      \
  X(cudaErrorInvalidConfiguration)  \
  X(cudaErrorInvalidDevice)         \
  X(cudaErrorInvalidDeviceFunction) \
  X(cudaErrorLaunchFailure)         \
  X(cudaErrorLaunchTimeout)         \
  X(cudaErrorNotReady)              \
  X(cudaErrorNotSupported)          \
  X(cudaErrorStreamCaptureUnsupported)
const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define LLMD_EMULATOR_NAME(name) \
  case name:                     \
    return #name;
    LLMD_EMULATOR_ERRORS(LLMD_EMULATOR_NAME)
    default:
      return "an error that the emulator does not return";
  }
}
const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaErrorLaunchFailure || error == cudaErrorLaunchTimeout) return LastReport().c_str();
  return cudaGetErrorName(error);
}

cudaError_t cudaMalloc(void** pointer, std::size_t bytes) {
  LLMD_EMULATOR_LOCK;
  return Allocate(pointer, bytes);
}
cudaError_t cudaHostAlloc(void** pointer, std::size_t bytes, unsigned) {
  LLMD_EMULATOR_LOCK;
  return Allocate(pointer, bytes);
}
cudaError_t cudaMallocHost(void** pointer, std::size_t bytes) { return cudaHostAlloc(pointer, bytes, 0); }
cudaError_t cudaFree(void* pointer) {
  LLMD_EMULATOR_LOCK;
  return Free(pointer);
}
cudaError_t cudaFreeHost(void* pointer) {
  LLMD_EMULATOR_LOCK;
  return Free(pointer);
}
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  *device = host;
  return Return(cudaSuccess);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  LLMD_EMULATOR_LOCK;
  return EnqueueHost(stream, [=] { std::memcpy(to, from, bytes); });
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  LLMD_EMULATOR_LOCK;
  return EnqueueHost(stream, [=] { std::memset(to, value, bytes); });
}
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  LLMD_EMULATOR_LOCK;
  cudaMemcpyAsync(to, from, bytes, kind, nullptr);
  return Return(Drain(nullptr));
}
cudaError_t cudaMemset(void* to, int value, std::size_t bytes) {
  LLMD_EMULATOR_LOCK;
  return cudaMemsetAsync(to, value, bytes, nullptr);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  LLMD_EMULATOR_LOCK;
  *stream = new CUstream_st;
  (*stream)->blocking = (flags & cudaStreamNonBlocking) == 0;
  AddStream(*stream);
  return Return(cudaSuccess);
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  LLMD_EMULATOR_LOCK;
  const cudaError_t error = Drain(stream);
  RemoveStream(stream);
  delete stream;
  return Return(error);
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  LLMD_EMULATOR_LOCK;
  if (stream != nullptr && stream->capture != nullptr) return Return(cudaErrorStreamCaptureUnsupported);
  return Return(Drain(stream));
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  LLMD_EMULATOR_LOCK;
  Enqueue(stream, WaitEvent{event, event->records});
  return Return(cudaSuccess);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return Return(cudaSuccess);
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  LLMD_EMULATOR_LOCK;
  DrainAll();
  delete event;
  return Return(cudaSuccess);
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  LLMD_EMULATOR_LOCK;
  event->stream = stream == nullptr ? DefaultStream() : stream;
  Enqueue(stream, RecordEvent{event, ++event->records});
  return Return(cudaSuccess);
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  LLMD_EMULATOR_LOCK;
  return event->done == event->records ? Return(cudaSuccess) : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  LLMD_EMULATOR_LOCK;
  if (event->done < event->records) Drain(event->stream);
  return Return(cudaSuccess);
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  LLMD_EMULATOR_LOCK;
  if (begin->done < begin->records || end->done < end->records) return Return(cudaErrorNotReady);
  *milliseconds = static_cast<float>(end->milliseconds - begin->milliseconds);
  return Return(cudaSuccess);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  LLMD_EMULATOR_LOCK;
  if (stream == nullptr || stream->capture != nullptr) return Return(cudaErrorStreamCaptureUnsupported);
  stream->capture = std::make_unique<CUgraph_st>();
  return Return(cudaSuccess);
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  LLMD_EMULATOR_LOCK;
  if (stream->capture == nullptr) return Return(cudaErrorInvalidValue);
  *graph = stream->capture.release();
  return Return(cudaSuccess);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = new CUgraphExec_st{graph->operations};
  return Return(cudaSuccess);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  LLMD_EMULATOR_LOCK;
  for (const Operation& operation : executable->operations) Enqueue(stream, operation);
  return Return(cudaSuccess);
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return Return(cudaSuccess);
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return Return(cudaSuccess);
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  LLMD_EMULATOR_LOCK;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return Return(cudaErrorNotSupported);
  if (value < 0 || static_cast<std::size_t>(value) > Multiprocessor::kBlockSharedBytes) {
    return Return(cudaErrorInvalidValue);
  }
  Kernels()[kernel].allowed_shared = static_cast<std::size_t>(value);
  return Return(cudaSuccess);
}
// Of any kernel: it becomes known when it is launched.
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  LLMD_EMULATOR_LOCK;
  *attributes = {};
  attributes->ptxVersion = attributes->binaryVersion = 90;
  attributes->maxDynamicSharedSizeBytes = static_cast<int>(Kernels()[kernel].allowed_shared);
  return Return(cudaSuccess);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void** arguments) {
  LLMD_EMULATOR_LOCK;
  const Kernel& known = Kernels()[kernel];
  if (known.bind == nullptr) return Return(cudaErrorInvalidDeviceFunction);
  Grid grid;
  grid.kernel = known.name;
  grid.address = kernel;
  grid.blocks = config->gridDim;
  grid.threads = config->blockDim;
  grid.shared_bytes = config->dynamicSmemBytes;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config->attrs[i];
    if (attribute.id == cudaLaunchAttributeProgrammaticStreamSerialization) {
      grid.early_start = attribute.val.programmaticStreamSerializationAllowed != 0;
    } else if (attribute.id == cudaLaunchAttributeClusterDimension) {
      const auto& cluster = attribute.val.clusterDim;
      if (cluster.x > 8 || cluster.y != 1 || cluster.z != 1 || grid.blocks.x % cluster.x != 0) {
        return Return(cudaErrorInvalidClusterSize);
      }
      grid.cluster = cluster.x;
    } else {
      return Return(cudaErrorNotSupported);
    }
  }
  constexpr unsigned kMostThreads = 1024, kMostYz = 65535;
  if (grid.NumBlocks() == 0 || grid.NumThreads() == 0 || grid.NumThreads() > kMostThreads ||
      grid.blocks.y > kMostYz || grid.blocks.z > kMostYz || grid.blocks.x > 0x7fffffff) {
    return Return(cudaErrorInvalidConfiguration);
  }
  if (grid.shared_bytes > known.allowed_shared) return Return(cudaErrorInvalidValue);
  grid.call = known.bind(kernel, arguments);
  Enqueue(config->stream, std::move(grid));
  return Return(cudaSuccess);
}

}  // extern "C"
