// What tests of kernels need: memory that exists twice (host for the reference backend, device for the
// kernels), with guard bands on the device, random and poisoned contents, comparison by relative norms,
// graphs.
#ifndef LLMD_TESTS_CUDA_SUPPORT_H_
#define LLMD_TESTS_CUDA_SUPPORT_H_

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "llmd/attention/backend.h"

namespace llmd::testing {

// Whether there is a device to test on; else the reason.
bool HasGpu(std::string* why);

enum class Side { kHost, kDevice };

// Fails the test run (not only the test: the context may be lost) if CUDA does.
void Must(cudaError_t error, const char* what);
#define LLMD_MUST(call) ::llmd::testing::Must(call, #call)

class Buffer {
 public:
  // All bytes are 0xff: NaN in every float type, -1 as a number. `offset`: of its address from a multiple of
  // 256.
  explicit Buffer(size_t bytes, size_t offset = 0);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  size_t size() const { return host_.size(); }
  void* at(Side side) { return side == Side::kHost ? host_.data() : device_; }
  template <typename T>
  T* as(Side side) {
    return static_cast<T*>(at(side));
  }
  template <typename T>
  T* host() {
    return as<T>(Side::kHost);
  }

  void Upload();                          // what the host has, and new guards
  std::vector<unsigned char> Download();  // what the device has; a test fails if a guard is hurt

 private:
  std::vector<unsigned char> host_;
  unsigned char* memory_ = nullptr;  // with the guards
  unsigned char* device_ = nullptr;
};

// Elements of `dtype`, drawn from a normal distribution. `first` and `count` in elements; count < 0: to the
// end.
void FillNormal(Buffer& buffer, llmd_dtype dtype, std::mt19937_64& random, float deviation = 1,
                int64_t first = 0, int64_t count = -1);

// Bytes equal to the host's (the reference's) everywhere. Downloads and checks guards.
void ExpectSame(Buffer& buffer, const std::string& what);

struct Tolerance {
  double overall;    // ||out - ref|| / ||ref|| over all
  double worst_row;  // of the worst run of `row` elements
};
Tolerance ToleranceOf(llmd_dtype dtype);

// Numbers near the host's; elements that the reference left as poison must still be poison, and others finite
// where the reference is. `row` elements are one row.
void ExpectClose(Buffer& buffer, llmd_dtype dtype, int64_t row, Tolerance tolerance, const std::string& what);

// `n`, or far fewer where the device is small because it is emulated, and takes a thousand times as long.
int Repetitions(int n);

class DeviceTest : public ::testing::Test {
 protected:
  void SetUp() override;
  void TearDown() override;

  // Runs a call on the reference with host pointers and on the kernels with device pointers; both must
  // succeed. `make(side)` returns the arguments.
  template <typename Args, typename Make>
  void RunBoth(llmd_code (*llmd_attention_backend::*function)(const Args*, llmd_stream), Make&& make) {
    const Args host = make(Side::kHost);
    ASSERT_EQ((reference_->*function)(&host, nullptr), LLMD_OK) << reference_->last_error();
    RunDevice(function, make);
  }
  template <typename Args, typename Make>
  void RunDevice(llmd_code (*llmd_attention_backend::*function)(const Args*, llmd_stream), Make&& make) {
    const Args device = make(Side::kDevice);
    ASSERT_EQ((cuda_->*function)(&device, stream_), LLMD_OK) << cuda_->last_error();
    LLMD_MUST(cudaStreamSynchronize(stream_));
  }

  // Captures what `enqueue` puts on the stream; Replay runs it and waits.
  void Capture(const std::function<void()>& enqueue);
  void Replay();

  std::mt19937_64 random_{20};
  llmd_stream stream_ = nullptr;
  const llmd_attention_backend* cuda_ = nullptr;
  const llmd_attention_backend* reference_ = nullptr;

 private:
  cudaGraphExec_t graph_ = nullptr;
};

// Numbers 0 .. n - 1 in random order.
std::vector<int64_t> Permutation(int64_t n, std::mt19937_64& random);

}  // namespace llmd::testing

#endif  // LLMD_TESTS_CUDA_SUPPORT_H_
