// Attention over pages that lie past 2^32 bytes and 2^31 elements of their pool (spec: paged-attention.md
// section 6): an offset computed in 32 bits would read other memory.
#include <string>
#include <vector>

#include "src/attention/check.h"
#include "tests/cuda/attention_case.h"

namespace llmd::testing {
namespace {

class LargePoolTest : public DeviceTest {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    if (IsSkipped()) return;
    std::size_t free = 0, total = 0;
    LLMD_MUST(cudaMemGetInfo(&free, &total));
    if (free < kBytes + (std::size_t{1} << 28)) {
      GTEST_SKIP() << "NOT TESTED: a pool of " << kBytes << " bytes needs more memory than the " << free
                   << " bytes that are free";
    }
    LLMD_MUST(cudaMalloc(reinterpret_cast<void**>(&memory_), kBytes));
  }
  void TearDown() override {
    if (memory_ != nullptr) LLMD_MUST(cudaFree(memory_));
    DeviceTest::TearDown();
  }

  // The case, with the device's pages moved to the end of the large pool.
  void Check(CaseOptions options) {
    options.layout = Layout::kNhdPacked;  // K and V of a page together: one allocation for both
    AttentionCase problem(options);
    llmd_attention_args& args = problem.device().args;
    const auto element = static_cast<int64_t>(attention::SizeOf(args.cache.dtype));
    const int64_t page_bytes = args.cache.k_strides.page * element;
    const int64_t pages = static_cast<int64_t>(kBytes) / page_bytes;
    const int64_t moved_by = pages - args.cache.num_pages;
    ASSERT_GT(moved_by * page_bytes, int64_t{1} << 32);
    ASSERT_GE(moved_by * args.cache.k_strides.page, int64_t{1} << 31);
    LLMD_MUST(cudaMemcpy(memory_ + moved_by * page_bytes, args.cache.k, args.cache.num_pages * page_bytes,
                         cudaMemcpyDeviceToDevice));
    args.cache.v = memory_ + (static_cast<char*>(args.cache.v) - static_cast<char*>(args.cache.k));
    args.cache.k = memory_;
    args.cache.num_pages = pages;
    const std::vector<int>& ids = problem.host_pages();
    Buffer moved(ids.size() * sizeof(int32_t));
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const bool real = ids[i] < pages;  // entries past a request's end are not
      moved.host<int32_t>()[i] = real ? static_cast<int32_t>(ids[i] + moved_by) : ids[i];
    }
    moved.Upload();
    args.pages.pages = problem.device().plan.pages.pages = moved.as<int32_t>(Side::kDevice);
    ASSERT_EQ(problem.RunDevice(), LLMD_OK) << cuda_->last_error();
    EXPECT_EQ(problem.Compare(), "");
  }

  static constexpr std::size_t kBytes = (std::size_t{1} << 32) + (std::size_t{16} << 20);
  char* memory_ = nullptr;
};

TEST_F(LargePoolTest, Decode) {
  for (llmd_dtype dtype : {LLMD_BF16, LLMD_E4M3}) {
    for (int page_size : {16, 7}) {
      for (bool validate : {false, true}) {
        Check({.page_size = page_size, .kv_dtype = dtype, .lengths = {500, 33}, .validate = validate});
      }
    }
  }
}

TEST_F(LargePoolTest, Prefill) {
  for (int page_size : {16, 7}) {
    Check({.mode = LLMD_PREFILL, .page_size = page_size, .lengths = {300, 33}, .queries = {70, 3}});
  }
}

}  // namespace
}  // namespace llmd::testing
