#include "cuda/common/launch.h"

#include <array>
#include <map>
#include <mutex>
#include <utility>

namespace llmd::cuda {
namespace {

constexpr int kMaxDevices = 64;

std::string Dim(const dim3& d) {
  return std::to_string(d.x) + "x" + std::to_string(d.y) + "x" + std::to_string(d.z);
}

}  // namespace

llmd_code DeviceError(cudaError_t error, const std::string& what) {
  (void)cudaGetLastError();  // so that the next launch does not report it as its own
  return attention::Fail(LLMD_DEVICE_ERROR,
                         what + ": " + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")");
}

const Device* CurrentDevice() {
  static std::array<Device, kMaxDevices> devices;
  static std::array<std::once_flag, kMaxDevices> once;
  static std::array<cudaError_t, kMaxDevices> errors;
  int index = 0;
  if (const cudaError_t error = cudaGetDevice(&index); error != cudaSuccess) {
    DeviceError(error, "cudaGetDevice");
    return nullptr;
  }
  if (index < 0 || index >= kMaxDevices) {
    attention::Fail(LLMD_DEVICE_ERROR, "device " + std::to_string(index) + " is past the supported " +
                                           std::to_string(kMaxDevices));
    return nullptr;
  }
  std::call_once(once[index], [index] {
    Device& device = devices[index];
    device.index = index;
    int major = 0, minor = 0, l2 = 0;
    cudaError_t error = cudaSuccess;
    const auto get = [&](int* value, cudaDeviceAttr attribute) {
      if (error == cudaSuccess) error = cudaDeviceGetAttribute(value, attribute, index);
    };
    get(&device.sms, cudaDevAttrMultiProcessorCount);
    get(&major, cudaDevAttrComputeCapabilityMajor);
    get(&minor, cudaDevAttrComputeCapabilityMinor);
    get(&device.max_shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    get(&l2, cudaDevAttrL2CacheSize);
    device.capability = major * 10 + minor;
    device.l2_bytes = l2;
    errors[index] = error;
  });
  if (errors[index] != cudaSuccess) {
    DeviceError(errors[index], "properties of device " + std::to_string(index));
    return nullptr;
  }
  return &devices[index];
}

int CodeArchitecture(const void* kernel) {
  const Device* device = CurrentDevice();
  if (device == nullptr) return 0;
  static std::mutex mutex;
  static std::map<std::pair<int, const void*>, int> known;
  std::lock_guard<std::mutex> lock(mutex);
  int& architecture = known[{device->index, kernel}];
  if (architecture != 0) return architecture;
  cudaFuncAttributes attributes = {};
  const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  if (error != cudaSuccess) {
    DeviceError(error, "cudaFuncGetAttributes");
    return 0;
  }
  return architecture = attributes.ptxVersion;
}

llmd_code LaunchKernel(const Launch& launch, const void* kernel, void** args) {
  cudaLaunchConfig_t config = {};
  config.gridDim = launch.grid;
  config.blockDim = launch.block;
  config.dynamicSmemBytes = launch.shared_bytes;
  config.stream = launch.stream;
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (launch.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {launch.cluster, 1, 1};
  }
  if (launch.early_start && CodeArchitecture(kernel) >= 90) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  const cudaError_t error = cudaLaunchKernelExC(&config, kernel, args);
  if (error == cudaSuccess) return LLMD_OK;
  return DeviceError(error, std::string(launch.kernel) + ": launch of " + Dim(launch.grid) + " blocks of " +
                                Dim(launch.block) + " threads with " + std::to_string(launch.shared_bytes) +
                                " bytes of shared memory");
}

llmd_code AllowShared(const char* name, const void* kernel, size_t bytes) {
  constexpr size_t kAlwaysAllowed = 48 * 1024;
  if (bytes <= kAlwaysAllowed) return LLMD_OK;
  const Device* device = CurrentDevice();
  if (device == nullptr) return LLMD_DEVICE_ERROR;
  if (bytes > static_cast<size_t>(device->max_shared_bytes)) {
    return attention::Fail(LLMD_UNSUPPORTED, std::string(name) + " needs " + std::to_string(bytes) +
                                                 " bytes of shared memory a block; this device has " +
                                                 std::to_string(device->max_shared_bytes));
  }
  static std::mutex mutex;
  static std::map<std::pair<int, const void*>, size_t> allowed;
  std::lock_guard<std::mutex> lock(mutex);
  size_t& limit = allowed[{device->index, kernel}];
  if (limit >= bytes) return LLMD_OK;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (error != cudaSuccess) {
    return DeviceError(error, std::string(name) + ": " + std::to_string(bytes) + " bytes of shared memory");
  }
  limit = bytes;
  return LLMD_OK;
}

}  // namespace llmd::cuda
