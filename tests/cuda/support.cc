#include "tests/cuda/support.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>

#include "src/attention/check.h"
#include "src/attention/numeric.h"

namespace llmd::testing {
namespace {

constexpr size_t kGuard = 512;
constexpr unsigned char kGuardByte = 0xa5;

}  // namespace

bool HasGpu(std::string* why) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  (void)cudaGetLastError();
  if (error == cudaSuccess && count > 0) return true;
  *why = error == cudaSuccess ? "no CUDA device" : cudaGetErrorString(error);
  return false;
}

void Must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

Buffer::Buffer(size_t bytes, size_t offset) : host_(bytes, 0xff) {
  LLMD_MUST(cudaMalloc(reinterpret_cast<void**>(&memory_), bytes + offset + 2 * kGuard));
  device_ = memory_ + kGuard + offset;
  Upload();
}

Buffer::~Buffer() { cudaFree(memory_); }

void Buffer::Upload() {
  const size_t before = static_cast<size_t>(device_ - memory_);
  LLMD_MUST(cudaMemset(memory_, kGuardByte, before));
  LLMD_MUST(cudaMemset(device_ + host_.size(), kGuardByte, kGuard));
  LLMD_MUST(cudaMemcpy(device_, host_.data(), host_.size(), cudaMemcpyHostToDevice));
  LLMD_MUST(cudaDeviceSynchronize());  // the tests' streams do not wait for the default one
}

std::vector<unsigned char> Buffer::Download() {
  const size_t before = static_cast<size_t>(device_ - memory_);
  std::vector<unsigned char> all(before + host_.size() + kGuard);
  LLMD_MUST(cudaMemcpy(all.data(), memory_, all.size(), cudaMemcpyDeviceToHost));
  const auto hurt = [](unsigned char byte) { return byte != kGuardByte; };
  EXPECT_EQ(std::count_if(all.begin(), all.begin() + before, hurt), 0) << "written before the buffer";
  EXPECT_EQ(std::count_if(all.end() - kGuard, all.end(), hurt), 0) << "written past the buffer";
  return {all.begin() + before, all.end() - kGuard};
}

void FillNormal(Buffer& buffer, llmd_dtype dtype, std::mt19937_64& random, float deviation, int64_t first,
                int64_t count) {
  std::normal_distribution<float> normal(0, deviation);
  const int64_t elements = static_cast<int64_t>(buffer.size() / attention::SizeOf(dtype));
  const int64_t end = count < 0 ? elements : first + count;
  for (int64_t i = first; i < end; ++i) {
    attention::StoreElement(dtype, buffer.at(Side::kHost), i, normal(random));
  }
}

void ExpectSame(Buffer& buffer, const std::string& what) {
  const std::vector<unsigned char> out = buffer.Download();
  const unsigned char* expected = buffer.host<unsigned char>();
  const auto [a, b] = std::mismatch(out.begin(), out.end(), expected);
  if (a == out.end()) return;
  int64_t different = 0;
  for (size_t i = 0; i < out.size(); ++i) different += out[i] != expected[i];
  ADD_FAILURE() << what << ": " << different << " of " << out.size() << " bytes differ, the first at "
                << a - out.begin() << ": " << int{*a} << ", expected " << int{*b};
}

Tolerance ToleranceOf(llmd_dtype dtype) {
  switch (dtype) {
    case LLMD_F32:
      return {2e-6, 1e-5};
    case LLMD_F16:
      return {2e-4, 2e-3};
    case LLMD_BF16:
      return {1e-3, 1e-2};
    case LLMD_E4M3:
      return {1e-2, 1e-1};
  }
  return {0, 0};
}

void ExpectClose(Buffer& buffer, llmd_dtype dtype, int64_t row, Tolerance tolerance,
                 const std::string& what) {
  const std::vector<unsigned char> out = buffer.Download();
  const size_t size = attention::SizeOf(dtype);
  const int64_t elements = static_cast<int64_t>(out.size() / size);
  double all_error = 0, all_norm = 0, worst = 0;
  int64_t worst_row = 0, bad = 0, first_bad = -1;
  for (int64_t begin = 0; begin < elements; begin += row) {
    double error = 0, norm = 0;
    for (int64_t i = begin; i < std::min(begin + row, elements); ++i) {
      const double got = attention::LoadElement(dtype, out.data(), i);
      const double expected = attention::LoadElement(dtype, buffer.at(Side::kHost), i);
      if (!std::isfinite(expected)) {  // poison, infinities and NaN: the same bits, or NaN for NaN
        const bool poison = std::all_of(buffer.host<unsigned char>() + i * size,
                                        buffer.host<unsigned char>() + (i + 1) * size,
                                        [](unsigned char byte) { return byte == 0xff; });
        const bool same =
            std::memcmp(out.data() + i * size, buffer.host<unsigned char>() + i * size, size) == 0;
        if (same || (!poison && std::isnan(expected) && std::isnan(got))) continue;
      } else if (std::isfinite(got)) {
        error += (got - expected) * (got - expected);
        norm += expected * expected;
        continue;
      }
      if (bad++ == 0) first_bad = i;
    }
    all_error += error;
    all_norm += norm;
    const double relative = error == 0 ? 0 : std::sqrt(error / std::max(norm, 1e-30));
    if (relative > worst) {
      worst = relative;
      worst_row = begin / row;
    }
  }
  EXPECT_EQ(bad, 0) << what << ": elements that are not finite, or were not to be written; the first is "
                    << first_bad;
  const double overall = all_error == 0 ? 0 : std::sqrt(all_error / std::max(all_norm, 1e-30));
  EXPECT_LE(overall, tolerance.overall) << what;
  EXPECT_LE(worst, tolerance.worst_row) << what << ": row " << worst_row;
}

int Repetitions(int n) {
  constexpr int kSmallestGpu = 16;
  int multiprocessors = 0;
  LLMD_MUST(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0));
  return multiprocessors >= kSmallestGpu ? n : (n + 9) / 10;
}

void DeviceTest::SetUp() {
  std::string why;
  if (!HasGpu(&why)) GTEST_SKIP() << "needs a GPU: " << why;
  cuda_ = llmd_attention_cuda();
  reference_ = llmd_attention_reference();
  LLMD_MUST(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
}

void DeviceTest::TearDown() {
  if (graph_ != nullptr) LLMD_MUST(cudaGraphExecDestroy(graph_));
  if (stream_ != nullptr) LLMD_MUST(cudaStreamDestroy(stream_));
}

void DeviceTest::Capture(const std::function<void()>& enqueue) {
  LLMD_MUST(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  enqueue();
  cudaGraph_t graph = nullptr;
  LLMD_MUST(cudaStreamEndCapture(stream_, &graph));
  LLMD_MUST(cudaGraphInstantiate(&graph_, graph, 0));
  LLMD_MUST(cudaGraphDestroy(graph));
}

void DeviceTest::Replay() {
  LLMD_MUST(cudaGraphLaunch(graph_, stream_));
  LLMD_MUST(cudaStreamSynchronize(stream_));
}

std::vector<int64_t> Permutation(int64_t n, std::mt19937_64& random) {
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), int64_t{0});
  std::shuffle(order.begin(), order.end(), random);
  return order;
}

}  // namespace llmd::testing
