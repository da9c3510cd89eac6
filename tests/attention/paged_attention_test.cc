#include "llmd/attention/paged_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/attention/attention_problem.h"

namespace llmd::attention {
namespace {

using testing::HasSubstr;

Problem AProblem(uint32_t flags = 0) {
  Case c;
  c.requests = {{70}, {3}};
  c.o_dtype = LLMD_F32;
  c.flags = flags;
  return Problem(c, 1);
}

TEST(PagedAttention, PlansAndRuns) {
  const Problem problem = AProblem();
  int64_t live = 0;
  Memory memory = {[&live](std::size_t bytes) { return ++live, HostMemory().allocate(bytes); },
                   [&live](void* p) { --live, HostMemory().free(p); }};
  {
    auto attention = PagedAttention::Create(*llmd_attention_cpu(), problem.shape(), memory);
    ASSERT_TRUE(attention.ok()) << attention.status();
    PagedAttention moved = *std::move(attention);
    EXPECT_EQ(live, 1);
    ASSERT_TRUE(moved.Plan(2, problem.args().pages).ok());
    llmd_attention_args layer = problem.args();
    const int64_t row = problem.num_heads() * 64;
    std::vector<float> o(2 * row);
    layer.o = o.data();
    layer.o_strides = {row, 64};
    layer.shape = {};  // filled in, as the rest of the step
    layer.pages = {};
    layer.num_tokens = 0;
    const absl::Status status = moved.Run(layer);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_TRUE(o == problem.Run(*llmd_attention_cpu()).o);
    EXPECT_TRUE(moved.Check().ok());
  }
  EXPECT_EQ(live, 0);
}

TEST(PagedAttention, Errors) {
  Problem problem = AProblem(LLMD_VALIDATE);
  llmd_attention_shape shape = problem.shape();
  shape.head_dim = 0;
  auto attention = PagedAttention::Create(*llmd_attention_cpu(), shape, HostMemory());
  EXPECT_EQ(attention.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(attention.status().message(), HasSubstr("shape.head_dim is 0"));
  attention = PagedAttention::Create(*llmd_attention_cpu(), problem.shape(),
                                     {[](auto) -> void* { return nullptr; }, {}});
  EXPECT_EQ(attention.status().code(), absl::StatusCode::kResourceExhausted);
  llmd_attention_backend other = *llmd_attention_cpu();
  other.abi = 77;
  attention = PagedAttention::Create(other, problem.shape(), HostMemory());
  EXPECT_EQ(attention.status().code(), absl::StatusCode::kFailedPrecondition);

  attention = PagedAttention::Create(*llmd_attention_cpu(), problem.shape(), HostMemory());
  ASSERT_TRUE(attention.ok());
  EXPECT_EQ(attention->Plan(3, problem.args().pages).code(), absl::StatusCode::kInvalidArgument);
  problem.pages(0)[2] = -9;
  ASSERT_TRUE(attention->Plan(2, problem.args().pages).ok());
  llmd_attention_args layer = problem.args();
  std::vector<float> o(2 * problem.num_heads() * 64);
  layer.o = o.data();
  layer.o_strides = {problem.num_heads() * 64, 64};
  ASSERT_TRUE(attention->Run(layer).ok());
  llmd_data_error error;
  const absl::Status found = attention->Check(&error);
  EXPECT_EQ(found.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(found.message(), HasSubstr("request 0, index 2: bad page -9"));
  EXPECT_EQ(error.value, -9);
  EXPECT_TRUE(attention->Check().ok());
  EXPECT_EQ(ToStatus(*llmd_attention_cpu(), static_cast<llmd_code>(7)).code(), absl::StatusCode::kUnknown);
}

}  // namespace
}  // namespace llmd::attention
