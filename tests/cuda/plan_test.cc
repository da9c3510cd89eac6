// The plan that the kernel makes is the host's (cuda/attention/host_plan.h), which the CPU suite examines.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "cuda/attention/host_plan.h"
#include "cuda/attention/workspace.h"
#include "tests/cuda/support.h"

namespace llmd::testing {
namespace {

struct PlanCase {
  llmd_attention_mode mode = LLMD_DECODE;
  std::vector<int32_t> lengths = {100, 0, 5000};
  std::vector<int32_t> rows = {};
  int kv_heads = 8, group = 4, head_dim = 128;
  int window = 0, fixed_split = 0;
  int64_t max_kv_tokens = 0;  // 0: the sum of the lengths
  bool csr = false;
};

class PlanTest : public DeviceTest {
 protected:
  static constexpr int kPageSize = 16;

  template <typename T>
  static std::unique_ptr<Buffer> Upload(const std::vector<T>& values) {
    auto buffer = std::make_unique<Buffer>(std::max<std::size_t>(values.size(), 1) * sizeof(T));
    std::copy(values.begin(), values.end(), buffer->template host<T>());
    buffer->Upload();
    return buffer;
  }

  void Check(const PlanCase& c) {
    const int batch = static_cast<int>(c.lengths.size());
    std::string name = "mode " + std::to_string(c.mode) + ", heads " + std::to_string(c.kv_heads) + ", W " +
                       std::to_string(c.window) + ", split " + std::to_string(c.fixed_split) +
                       (c.csr ? ", csr" : "") + ", batch " + std::to_string(batch) + ":";
    for (int b = 0; b < std::min(batch, 12); ++b) name += " " + std::to_string(c.lengths[b]);
    SCOPED_TRACE(name);
    std::vector<int32_t> indptr = {0}, last, q_start = {0};
    int64_t keys = 0;
    int most = 0;
    for (int b = 0; b < batch; ++b) {
      const int pages = (c.lengths[b] + kPageSize - 1) / kPageSize;
      indptr.push_back(indptr.back() + pages);
      last.push_back(pages == 0 ? 0 : c.lengths[b] - (pages - 1) * kPageSize);
      q_start.push_back(q_start.back() + (c.rows.empty() ? 1 : c.rows[b]));
      most = std::max(most, pages);
      keys += c.lengths[b];
    }
    const auto lengths_on = Upload(c.lengths), indptr_on = Upload(indptr), last_on = Upload(last),
               q_start_on = Upload(q_start);

    llmd_plan_args args{};
    args.shape.mode = c.mode;
    args.shape.max_batch = batch + 3;
    args.shape.max_tokens = q_start.back() + 1;
    args.shape.num_kv_heads = c.kv_heads;
    args.shape.num_q_heads = c.kv_heads * c.group;
    args.shape.head_dim = c.head_dim;
    args.shape.kv_dtype = LLMD_BF16;
    args.shape.page_size = kPageSize;
    args.shape.window = c.window;
    args.shape.fixed_split = c.fixed_split;
    args.shape.max_kv_tokens = c.max_kv_tokens > 0 ? c.max_kv_tokens : keys + 1;
    args.batch = batch;
    if (c.csr) {
      args.pages.indptr = indptr_on->as<int32_t>(Side::kDevice);
      args.pages.last_page_len = last_on->as<int32_t>(Side::kDevice);
      args.pages.max_pages = indptr.back();
    } else {
      args.pages.seq_lens = lengths_on->as<int32_t>(Side::kDevice);
      args.pages.max_pages = most;
      args.pages.row_stride = most;
    }
    args.pages.pages = lengths_on->as<int32_t>(Side::kDevice);  // which a plan does not read
    if (c.mode != LLMD_DECODE) args.q_start = q_start_on->as<int32_t>(Side::kDevice);
    Buffer workspace(cuda_->workspace_bytes(&args.shape));
    args.workspace = workspace.at(Side::kDevice);
    args.workspace_bytes = workspace.size();
    ASSERT_EQ(cuda_->init_workspace(args.workspace, args.workspace_bytes, stream_), LLMD_OK);
    ASSERT_EQ(cuda_->plan(&args, stream_), LLMD_OK) << cuda_->last_error();
    LLMD_MUST(cudaStreamSynchronize(stream_));

    int sms = 0;
    LLMD_MUST(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0));
    const cuda::WorkspaceLayout layout = cuda::LayoutOf(args.shape, std::min(sms, 1023));
    std::vector<unsigned char> bytes = workspace.Download();
    const cuda::Workspace got = cuda::WorkspaceAt(bytes.data(), layout);
    const cuda::HostPlan want = cuda::MakePlan({.mode = c.mode,
                                                .lengths = c.lengths,
                                                .rows = c.rows,
                                                .heads = layout.item_heads,
                                                .group = c.group,
                                                .window = c.window,
                                                .unit_keys = layout.unit_keys,
                                                .fixed_split = c.fixed_split > 0,
                                                .most_units = layout.slots * layout.item_heads / layout.heads,
                                                .grid = layout.grid});
    EXPECT_EQ(got.header->tokens, want.tokens);
    EXPECT_EQ(got.header->prefill_tiles, want.prefill[batch]);
    ASSERT_EQ(got.header->empty_rows, static_cast<int>(want.empty.size()));
    for (std::size_t i = 0; i < want.empty.size(); ++i) ASSERT_EQ(got.empty[i], want.empty[i]);
    for (int b = 0; b <= batch; ++b) {
      ASSERT_EQ(got.units[b], want.units[b]) << b;
      if (b < batch) {
        ASSERT_EQ(got.lengths[b], want.lengths[b]) << b;
      }
      if (c.mode != LLMD_DECODE) {
        ASSERT_EQ(got.prefill[b], want.prefill[b]) << b;
      }
    }
    for (int i = 0; i <= layout.grid; ++i) {
      const cuda::PieceStart &a = got.starts[i], &b = want.starts[i];
      ASSERT_TRUE(a.request == b.request && a.head == b.head && a.unit == b.unit &&
                  a.first_block == b.first_block && a.last_block == b.last_block && a.length == b.length)
          << "block " << i << ": " << a.request << ", " << a.head << ", " << a.unit << ", " << a.first_block
          << ", " << a.last_block << ", " << a.length;
    }
    const bool refused = !std::equal(want.lengths.begin(), want.lengths.end(), c.lengths.begin());
    EXPECT_EQ(got.header->error_kind, refused ? LLMD_BAD_LENGTH : LLMD_DATA_OK);
  }
};

TEST_F(PlanTest, Small) {
  Check({});
  Check({.mode = LLMD_MIXED, .lengths = {100, 70, 0, 5000}, .rows = {1, 30, 1, 1}});
}

TEST_F(PlanTest, SmallWithoutSlots) {
  Check({.lengths = {128, 640, 0, 64, 3000}, .fixed_split = 64, .max_kv_tokens = 200});
}

TEST_F(PlanTest, LargeBatches) {
  for (int batch : {31, 32, 33, 1023, 1024, 1025, 2047, 2048, 2049, 5000}) {
    std::vector<int32_t> lengths(batch), rows(batch, 1);
    for (int32_t& length : lengths) length = static_cast<int32_t>(random_() % 3 * (random_() % 900));
    Check({.lengths = lengths, .csr = batch % 2 == 0});
    for (int32_t& n : rows) n = random_() % 2 != 0 ? 1 : static_cast<int32_t>(random_() % 60);
    Check({.mode = LLMD_MIXED, .lengths = lengths, .rows = rows});
  }
}

TEST_F(PlanTest, RandomBatches) {
  const auto pick = [this](auto... values) {
    const auto list = {values...};
    return *(list.begin() + random_() % list.size());
  };
  for (int round = 0; round < 200 && !HasFailure(); ++round) {
    PlanCase c{.mode = pick(LLMD_DECODE, LLMD_DECODE, LLMD_MIXED, LLMD_PREFILL),
               .lengths = {},
               .kv_heads = pick(1, 2, 3, 8, 16),
               .group = static_cast<int>(random_() % 20) + 1,
               .head_dim = pick(64, 128),
               .window = pick(0, 0, 1, 128, 1000),
               .fixed_split = pick(0, 0, 64, 256, 2048),
               .csr = random_() % 2 == 0};
    unsigned longest = pick(2u, 70u, 5000u, 200000u), most = pick(4u, 40u, 300u);
    if (c.fixed_split > 0) {  // every part has a slot
      longest = std::min(longest, 40u * c.fixed_split);
      most = std::min(most, 20u);
      c.kv_heads = std::min(c.kv_heads, 2);
    }
    int64_t keys = 1;
    for (int n = static_cast<int>(random_() % most); n >= 0; --n) {
      c.lengths.push_back(random_() % 5 == 0 ? 0 : static_cast<int32_t>(random_() % longest));
      if (c.mode != LLMD_DECODE)
        c.rows.push_back(random_() % 2 != 0 ? 1 : static_cast<int32_t>(random_() % 500));
      keys += c.lengths.back();
    }
    if (random_() % 3 == 0) c.max_kv_tokens = keys / 2 + 1;
    Check(c);
  }
}

}  // namespace
}  // namespace llmd::testing
