// Cases with answers known without a reference, on both CPU backends; validated mode; workspaces.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cmath>

#include "src/attention/numeric.h"
#include "tests/attention/attention_problem.h"

namespace llmd::attention {
namespace {

using testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

class Attention : public testing::TestWithParam<const llmd_attention_backend*> {
 protected:
  const llmd_attention_backend& backend() const { return *GetParam(); }
};
INSTANTIATE_TEST_SUITE_P(, Attention, testing::Values(llmd_attention_reference(), llmd_attention_cpu()),
                         [](const auto& info) { return std::string(info.param->name); });

Case SmallCase(std::vector<Request32> requests) {
  Case c;
  c.group = 1;
  c.kv_heads = 1;
  c.head_dim = 64;
  c.page_size = 4;
  c.o_dtype = LLMD_F32;
  c.requests = std::move(requests);
  return c;
}

// Sets k or v of a key, by the request's position, to what f gives for (head, element).
template <typename F>
void SetKey(Problem& problem, bool k, size_t request, int32_t position, F&& f) {
  const llmd_kv_cache cache = problem.args().cache;
  const llmd_kv_strides& s = k ? cache.k_strides : cache.v_strides;
  const int32_t page = problem.pages(request)[position / cache.page_size];
  for (int32_t h = 0; h < cache.num_kv_heads; ++h) {
    for (int32_t d = 0; d < cache.head_dim; ++d) {
      StoreElement(cache.dtype, k ? cache.k : cache.v,
                   page * s.page + position % cache.page_size * s.token + h * s.head + d, f(h, d));
    }
  }
}

// Equal keys, and in v of key j a one at element j: O is the list of weights.
void ShowWeights(Problem& problem, size_t request, int32_t length) {
  for (int32_t j = 0; j < length; ++j) {
    SetKey(problem, true, request, j, [](int, int) { return 0.0f; });
    SetKey(problem, false, request, j, [j](int, int d) { return d == j ? 1.0f : 0.0f; });
  }
}

TEST_P(Attention, OneKeyGivesItsValue) {
  Problem problem(SmallCase({{1}}), 1);
  SetKey(problem, true, 0, 0, [](int, int) { return 0.5f; });
  SetKey(problem, false, 0, 0, [](int, int d) { return d * 0.25f; });
  const llmd_attention_args args = problem.args();
  double dot = 0;
  for (int d = 0; d < 64; ++d) dot += LoadElement(LLMD_BF16, args.q, d) * 0.5;
  const Result result = problem.Run(backend());
  for (int d = 0; d < 64; ++d) EXPECT_FLOAT_EQ(result.o[d], d * 0.25f);
  EXPECT_NEAR(result.lse[0], dot * args.scale, 1e-5);
}

TEST_P(Attention, EqualKeysShareTheWeight) {
  Problem problem(SmallCase({{10}}), 1);
  ShowWeights(problem, 0, 10);
  const Result result = problem.Run(backend());
  for (int d = 0; d < 64; ++d) EXPECT_FLOAT_EQ(result.o[d], d < 10 ? 0.1f : 0.0f);
  EXPECT_NEAR(result.lse[0], std::log(10.0), 1e-6);
}

TEST_P(Attention, WeightsAreExponentialsOfScores) {
  Problem problem(SmallCase({{2}}), 1);
  ShowWeights(problem, 0, 2);
  llmd_attention_args args = problem.args();
  double sum = 0;
  SetKey(problem, true, 0, 1, [](int, int d) { return d < 8 ? 1.0f : 0.0f; });
  for (int d = 0; d < 8; ++d) sum += LoadElement(LLMD_BF16, args.q, d);
  const double e = std::exp(sum * args.scale);
  const Result result = problem.Run(backend());
  EXPECT_NEAR(result.o[0], 1 / (1 + e), 1e-6);
  EXPECT_NEAR(result.o[1], e / (1 + e), 1e-6);
  EXPECT_NEAR(result.lse[0], std::log(1 + e), 1e-6);
}

TEST_P(Attention, RowsSeeTheirPositionAndWhatIsBefore) {
  for (const int32_t window : {0, 1, 3, 5, 9}) {
    Case c = SmallCase({{9, 4}});
    c.mode = LLMD_PREFILL;
    c.window = window;
    Problem problem(c, 1);
    const int32_t first = window > 0 ? std::max(0, 9 - 4 - window + 1) : 0;
    for (int32_t j = first; j < 9; ++j) {
      SetKey(problem, true, 0, j, [](int, int) { return 0.0f; });
      SetKey(problem, false, 0, j, [j](int, int d) { return d == j ? 1.0f : 0.0f; });
    }
    const Result result = problem.Run(backend());
    for (int i = 0; i < 4; ++i) {
      const int position = 5 + i;
      const int begin = window > 0 ? std::max(0, position - window + 1) : 0;
      for (int j = 0; j < 64; ++j) {
        const bool seen = j >= begin && j <= position;
        EXPECT_NEAR(result.o[i * 64 + j], seen ? 1.0f / (position - begin + 1) : 0.0f, 1e-6)
            << window << " " << i << " " << j;
      }
    }
  }
}

TEST_P(Attention, HeadsOfAGroupShareAKvHead) {
  Case c = SmallCase({{3}});
  c.group = 3;
  c.kv_heads = 2;
  Problem problem(c, 1);
  for (int j = 0; j < 3; ++j) SetKey(problem, false, 0, j, [](int h, int) { return h + 1.0f; });
  const Result result = problem.Run(backend());
  for (int h = 0; h < 6; ++h) EXPECT_NEAR(result.o[h * 64], h / 3 + 1, 1e-6);
}

TEST_P(Attention, ASinkIsMoreDenominator) {
  Case c = SmallCase({{4}, {0}});
  Problem problem(c, 1);
  ShowWeights(problem, 0, 4);
  for (const float sink : {-200.0f, -1.0f, 0.0f, 2.0f, 200.0f, -kInfinity}) {
    llmd_attention_args args = problem.args();
    std::vector<char> workspace = NewWorkspace(backend(), args.shape);
    std::vector<float> o(2 * 64), lse(2);
    args.sinks = &sink;
    args.o = o.data();
    args.o_strides = {64, 64};
    args.lse = lse.data();
    args.lse_strides = {1, 1};
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.size();
    ASSERT_EQ(backend().attention(&args, nullptr), LLMD_OK) << backend().last_error();
    const double total = 4 + std::exp(double{sink});
    EXPECT_NEAR(o[0], 1 / total, 1e-6);
    EXPECT_NEAR(lse[0], std::log(total), 1e-5);
    EXPECT_EQ(o[64], 0);
    EXPECT_EQ(lse[1], sink);  // an empty row
  }
}

TEST_P(Attention, ANaNThatARowSeesIsItsResult) {
  Case c = SmallCase({{9, 4}});
  c.mode = LLMD_PREFILL;
  for (const bool k : {false, true}) {
    Problem problem(c, 1);
    SetKey(problem, k, 0, 7, [](int, int) { return NAN; });  // seen by the last two rows
    const Result result = problem.Run(backend());
    for (int row = 0; row < 4; ++row) EXPECT_EQ(std::isnan(result.o[row * 64]), row >= 2) << k << row;
  }
}

TEST_P(Attention, ScalesOfAnFp8Cache) {
  Case c = SmallCase({{2}});
  c.kv_dtype = LLMD_E4M3;
  c.kv_heads = 2;
  c.head_scales = true;  // 0.02, 0.03 for k; 0.05, 0.07 for v
  Problem problem(c, 1);
  for (int j = 0; j < 2; ++j) {
    SetKey(problem, true, 0, j, [j](int, int) { return j == 0 ? 0.0f : 4.0f; });
    SetKey(problem, false, 0, j, [j](int, int) { return j == 0 ? 0.0f : 16.0f; });
  }
  const llmd_attention_args args = problem.args();
  const Result result = problem.Run(backend());
  for (int h = 0; h < 2; ++h) {
    double dot = 0;
    for (int d = 0; d < 64; ++d)
      dot += LoadElement(LLMD_BF16, args.q, h * 64 + d) * 4.0 * (h == 0 ? 0.02f : 0.03f);
    const double e = std::exp(dot * args.scale);
    EXPECT_NEAR(result.o[h * 64], e / (1 + e) * 16 * (h == 0 ? 0.05f : 0.07f), 1e-5);
  }
}

TEST_P(Attention, PaddingRowsAreLeftOrZeroed) {
  Case c = SmallCase({{5, 2}, {0, 1}});
  c.mode = LLMD_PREFILL;
  c.padding_rows = 2;
  for (const bool zero : {false, true}) {
    c.flags = zero ? LLMD_ZERO_PADDING : 0;
    const Result result = Problem(c, 1).Run(backend());
    EXPECT_EQ(result.error, "");
    EXPECT_EQ(result.o[2 * 64], 0);  // an empty row is no padding
    EXPECT_EQ(result.lse[2], -kInfinity);
    for (int row = 3; row < 5; ++row) {
      EXPECT_EQ(std::isnan(result.o[row * 64]), !zero);
      EXPECT_EQ(std::isnan(result.lse[row]), !zero);
      if (zero) {
        EXPECT_EQ(result.o[row * 64 + 63], 0);
        EXPECT_EQ(result.lse[row], -kInfinity);
      }
    }
  }
}

// --- validated mode ---

struct Checked {
  Result result;
  llmd_code code;
  llmd_data_error error;
};

Checked RunChecked(const llmd_attention_backend& backend, const Problem& problem) {
  std::vector<char> workspace = NewWorkspace(backend, problem.shape());
  Checked checked = {problem.Run(backend, workspace), LLMD_OK, {}};
  checked.code = backend.check_workspace(workspace.data(), &checked.error, nullptr);
  llmd_data_error again = {LLMD_BAD_PAGE, 1, 1, 1};
  EXPECT_EQ(backend.check_workspace(workspace.data(), &again, nullptr), LLMD_OK);  // cleared
  EXPECT_EQ(again.kind, LLMD_DATA_OK);
  return checked;
}

TEST_P(Attention, ABadPageIsMaskedAndReported) {
  for (const int32_t bad : {-1, 1 << 30, std::numeric_limits<int32_t>::min()}) {
    for (const bool csr : {false, true}) {
      Case c = SmallCase({{3}, {12}, {7}});
      c.flags = LLMD_VALIDATE;
      c.csr = csr;
      Problem problem(c, 1);
      ShowWeights(problem, 1, 12);
      problem.pages(1)[1] = bad;
      problem.pages(2)[0] = bad;  // not the first
      const Checked checked = RunChecked(backend(), problem);
      EXPECT_EQ(checked.code, LLMD_BAD_DATA);
      EXPECT_EQ(checked.error.kind, LLMD_BAD_PAGE);
      EXPECT_EQ(checked.error.request, 1);
      EXPECT_EQ(checked.error.index, 1);
      EXPECT_EQ(checked.error.value, bad);
      EXPECT_THAT(backend().last_error(), HasSubstr("page " + std::to_string(bad)));
      for (int j = 0; j < 12; ++j) {
        EXPECT_NEAR(checked.result.o[64 + j], j / 4 == 1 ? 0.0f : 1.0f / 8, 1e-6) << j;
      }
      EXPECT_NEAR(checked.result.lse[1], std::log(8.0), 1e-6);
    }
  }
}

TEST_P(Attention, PagesThatNoRowSeesMayBeAnything) {
  Case c = SmallCase({{50}});
  c.flags = LLMD_VALIDATE;
  c.window = 6;
  const Checked checked = RunChecked(backend(), Problem(c, 1));  // earlier pages are invalid in every problem
  EXPECT_EQ(checked.code, LLMD_OK);
}

TEST_P(Attention, ABadLengthEmptiesTheRequest) {
  for (const int32_t bad : {-1, 1 << 30}) {
    Case c = SmallCase({{3}, {12}});
    c.flags = LLMD_VALIDATE;
    Problem problem(c, 1);
    problem.seq_lens()[1] = bad;
    const Checked checked = RunChecked(backend(), problem);
    EXPECT_EQ(checked.code, LLMD_BAD_DATA);
    EXPECT_EQ(checked.error.kind, LLMD_BAD_LENGTH);
    EXPECT_EQ(checked.error.request, 1);
    EXPECT_EQ(checked.error.value, bad);
    EXPECT_EQ(checked.result.o[64], 0);
    EXPECT_EQ(checked.result.lse[1], -kInfinity);
    EXPECT_TRUE(std::isfinite(checked.result.lse[0]));
  }
}

TEST_P(Attention, BadCsrListsEmptyTheRequest) {
  const struct {
    const char* what;
    void (*spoil)(Problem&);
  } cases[] = {{"last page too long", [](Problem& p) { p.last_page_len()[1] = 5; }},
               {"last page empty", [](Problem& p) { p.last_page_len()[1] = 0; }},
               {"decreasing", [](Problem& p) { p.indptr()[2] = 0; }},
               {"past the end", [](Problem& p) { p.indptr()[2] = 1000; }}};
  for (const auto& one : cases) {
    SCOPED_TRACE(one.what);
    Case c = SmallCase({{3}, {12}});
    c.flags = LLMD_VALIDATE;
    c.csr = true;
    Problem problem(c, 1);
    one.spoil(problem);
    const Checked checked = RunChecked(backend(), problem);
    EXPECT_EQ(checked.error.kind, LLMD_BAD_LENGTH);
    EXPECT_EQ(checked.error.request, 1);
    EXPECT_EQ(checked.result.lse[1], -kInfinity);
  }
}

// --- workspaces and size ---

TEST_P(Attention, AWorkspaceMustBeLargeEnoughAndInitialized) {
  Problem problem(SmallCase({{5}}), 1);
  std::vector<char> small(16);
  EXPECT_EQ(problem.Run(backend(), small).code, LLMD_INVALID_ARGUMENT);
  EXPECT_THAT(backend().last_error(), HasSubstr("workspace_bytes is 16, must be at least "));
  EXPECT_EQ(backend().init_workspace(small.data(), small.size(), nullptr), LLMD_INVALID_ARGUMENT);
  const llmd_attention_shape shape = problem.shape();
  std::vector<char> fresh(backend().workspace_bytes(&shape));
  EXPECT_EQ(problem.Run(backend(), fresh).code, LLMD_INVALID_ARGUMENT);
  EXPECT_THAT(backend().last_error(), HasSubstr("was not initialized"));
  llmd_data_error error;
  EXPECT_EQ(backend().check_workspace(fresh.data(), &error, nullptr), LLMD_INVALID_ARGUMENT);
  EXPECT_EQ(backend().check_workspace(nullptr, &error, nullptr), LLMD_INVALID_ARGUMENT);
}

TEST_P(Attention, AnEmptyBatchIsFine) { EXPECT_EQ(Problem(SmallCase({}), 1).Run(backend()).code, LLMD_OK); }

// Pages that lie past 2^31 elements and 2^32 bytes; only a few of them are touched.
TEST_P(Attention, OffsetsHave64Bits) {
  constexpr int64_t kPageStride = int64_t{1} << 31;  // elements
  constexpr size_t kBytes = 3 * kPageStride * 2;
  void* pool =
      mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pool == MAP_FAILED) GTEST_SKIP() << "no address space for a large pool";
  Problem problem(SmallCase({{3}}), 1);
  llmd_attention_args args = problem.args();
  const int32_t page = 2;
  args.pages.pages = &page;
  args.pages.max_pages = args.pages.row_stride = 1;
  args.cache.k = pool;
  args.cache.v = static_cast<char*>(pool) + 4096;
  args.cache.k_strides.page = args.cache.v_strides.page = kPageStride;
  args.cache.num_pages = 3;
  for (int64_t j = 0; j < 3; ++j) {
    for (int d = 0; d < 64; ++d) {
      StoreElement(LLMD_BF16, args.cache.v, page * kPageStride + j * args.cache.v_strides.token + d,
                   d == j ? 1 : 0);
    }
  }
  std::vector<char> workspace = NewWorkspace(backend(), args.shape);
  std::vector<float> o(64);
  args.o = o.data();
  args.o_strides = {64, 64};
  args.workspace = workspace.data();
  args.workspace_bytes = workspace.size();
  EXPECT_EQ(backend().attention(&args, nullptr), LLMD_OK) << backend().last_error();
  for (int d = 0; d < 64; ++d) EXPECT_NEAR(o[d], d < 3 ? 1.0f / 3 : 0.0f, 1e-6);
  munmap(pool, kBytes);
}

}  // namespace
}  // namespace llmd::attention
