// The attention kernels against the double reference (spec: paged-attention.md section 6). Runs on a GPU;
// without one every test is skipped with the reason.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "tests/cuda/attention_case.h"
#include "tests/cuda/support.h"

namespace llmd::testing {
namespace {

class AttentionTest : public DeviceTest {
 protected:
  void Check(const CaseOptions& options) {
    AttentionCase problem(options);
    ASSERT_EQ(problem.RunDevice(), LLMD_OK) << llmd_attention_cuda()->last_error() << " " << options.Name();
    EXPECT_EQ(problem.Compare(), "");
  }
};

TEST_F(AttentionTest, SmallDecode) { Check({.lengths = {70, 1}}); }

TEST_F(AttentionTest, SmallDecodeSplit) { Check({.kv_heads = 1, .lengths = {2000}}); }

TEST_F(AttentionTest, SmallDecodeFp8) { Check({.kv_dtype = LLMD_E4M3, .lengths = {70, 33}}); }

TEST_F(AttentionTest, SmallDecodeAnyPageSize) { Check({.page_size = 7, .lengths = {70, 33}}); }

TEST_F(AttentionTest, SmallPrefill) {
  Check({.mode = LLMD_PREFILL, .group = 2, .lengths = {90, 40}, .queries = {70, 3}});
}

TEST_F(AttentionTest, SmallPrefillWithoutKeys) {
  Check({.mode = LLMD_PREFILL, .lengths = {0, 40, 0}, .queries = {2, 3, 1}, .sinks = true});
}

TEST_F(AttentionTest, SmallMixed) {
  Check({.mode = LLMD_MIXED, .lengths = {90, 40, 17}, .queries = {1, 30, 1}});
}

TEST_F(AttentionTest, SmallPrefillFp8) {
  for (llmd_dtype q : {LLMD_BF16, LLMD_F16}) {
    Check({.mode = LLMD_PREFILL,
           .group = 2,
           .kv_dtype = LLMD_E4M3,
           .q_dtype = q,
           .lengths = {90, 40},
           .queries = {70, 3},
           .scale_per_head = true});
  }
}

TEST_F(AttentionTest, SmallMixedFp8) {
  Check({.mode = LLMD_MIXED, .kv_dtype = LLMD_E4M3, .lengths = {90, 40, 17}, .queries = {1, 30, 1}});
}

// Masked keys stay masked whatever the scale is.
TEST_F(AttentionTest, ScaleOfAnySign) {
  for (llmd_attention_mode mode : {LLMD_PREFILL, LLMD_DECODE}) {
    for (llmd_dtype dtype : {LLMD_BF16, LLMD_E4M3}) {
      for (float scale : {-0.1f, 0.0f}) {
        CaseOptions options{.mode = mode, .group = 10, .kv_dtype = dtype, .lengths = {90, 201}, .window = 50};
        if (mode == LLMD_PREFILL) options.queries = {70, 33};
        AttentionCase problem(options);
        problem.device().args.scale = problem.host().args.scale = scale;
        ASSERT_EQ(problem.RunDevice(), LLMD_OK);
        EXPECT_EQ(problem.Compare(), "");
      }
    }
  }
}

// Few rows over many keys: items are cut, and their parts merged.
TEST_F(AttentionTest, PrefillOverLongPrefix) {
  for (llmd_dtype dtype : {LLMD_BF16, LLMD_E4M3}) {
    for (int d : {64, 128}) {
      const bool sinks = d == 64;
      Check({.mode = LLMD_PREFILL,
             .kv_heads = 1,
             .head_dim = d,
             .kv_dtype = dtype,
             .lengths = {1500},
             .queries = {20},
             .sinks = sinks});
      Check({.mode = LLMD_MIXED,
             .group = 3,
             .head_dim = d,
             .kv_dtype = dtype,
             .lengths = {100, 700, 0, 40, 900, 300},
             .queries = {1, 45, 1, 40, 3, 1},
             .sinks = sinks,
             .lse = sinks});
    }
  }
  const CaseOptions window{
      .mode = LLMD_PREFILL, .group = 2, .lengths = {1000, 1500}, .queries = {100, 9}, .window = 700};
  Check(window);
  CaseOptions fixed = window;
  fixed.window = 0;
  fixed.fixed_split = 256;
  Check(fixed);
}

TEST_F(AttentionTest, EveryGroupSize) {
  for (int d : {64, 128}) {
    for (llmd_dtype dtype : {LLMD_BF16, LLMD_F16, LLMD_E4M3}) {
      for (int group = 1; group <= 16; ++group) {
        for (double peak : {1.0, 8.0}) {
          CaseOptions options{.kv_heads = 2,
                              .group = group,
                              .head_dim = d,
                              .kv_dtype = dtype,
                              .q_dtype = dtype == LLMD_F16 ? LLMD_F16 : LLMD_BF16,
                              .o_dtype = dtype == LLMD_F16 ? LLMD_F16 : LLMD_BF16,
                              .lengths = {190, 65, 16},
                              .peak = peak,
                              .seed = static_cast<unsigned>(group)};
          Check(options);
        }
      }
    }
  }
}

TEST_F(AttentionTest, MoreThanSixteenHeadsAGroup) {
  for (int group : {17, 24, 32, 40}) Check({.kv_heads = 1, .group = group, .lengths = {300, 45}});
}

TEST_F(AttentionTest, EdgeLengths) {
  for (int p : {16, 32, 5}) {
    std::vector<int> lengths;
    for (int length : {0, 1, p - 1, p, p + 1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1023, 1024, 1025})
      lengths.push_back(length);
    for (int window : {0, 1, 16, 64, 128, 1024}) {
      for (bool sinks : {false, true}) {
        Check({.page_size = p, .lengths = lengths, .window = window, .sinks = sinks});
      }
    }
  }
}

TEST_F(AttentionTest, NothingButEmptyRequests) { Check({.lengths = {0, 0, 0}, .sinks = true}); }

// The split of work depends on lengths alone; from one block a request to hundreds.
TEST_F(AttentionTest, LongAndUnequal) {
  for (int kv_heads : {1, 2, 8}) {
    for (llmd_dtype dtype : {LLMD_BF16, LLMD_E4M3}) {
      Check({.kv_heads = kv_heads, .kv_dtype = dtype, .lengths = {16384}});
      Check({.kv_heads = kv_heads, .kv_dtype = dtype, .lengths = {5000, 1, 64, 900, 0, 3000}});
    }
  }
}

TEST_F(AttentionTest, FixedSplit) {
  for (int split : {64, 256, 2048}) {
    Check({.lengths = {5000, 1, 64, 900, 0, 3000}, .fixed_split = split, .sinks = true});
  }
}

TEST_F(AttentionTest, FixedSplitDoesNotDependOnNeighbours) {
  CaseOptions alone{.lengths = {1500}, .fixed_split = 256};
  AttentionCase one(alone);
  ASSERT_EQ(one.RunDevice(), LLMD_OK);
  const std::vector<unsigned char> expected = one.DeviceOutput();
  CaseOptions crowd = alone;
  crowd.lengths = {1500, 700, 3000, 64, 0, 2500};
  AttentionCase many(crowd);
  // The same first request: its keys, values and query are drawn first only for keys, so copy what differs.
  const llmd_attention_args& a = one.device().args;
  const llmd_attention_args& b = many.device().args;
  const std::size_t row = static_cast<std::size_t>(a.shape.num_q_heads) * a.shape.head_dim * 2;
  ASSERT_EQ(cudaMemcpy(const_cast<void*>(b.q), a.q, row, cudaMemcpyDeviceToDevice), cudaSuccess);
  const std::size_t page = static_cast<std::size_t>(a.cache.k_strides.page) * 2;
  for (int i = 0; i < (1500 + 15) / 16; ++i) {
    const std::size_t from = one.host_pages()[i] * page, to = many.host_pages()[i] * page;
    for (auto pair : {std::pair(a.cache.k, b.cache.k), std::pair(a.cache.v, b.cache.v)}) {
      ASSERT_EQ(cudaMemcpy(static_cast<char*>(pair.second) + to, static_cast<const char*>(pair.first) + from,
                           page, cudaMemcpyDeviceToDevice),
                cudaSuccess);
    }
  }
  ASSERT_EQ(many.RunDevice(), LLMD_OK);
  const std::vector<unsigned char> got = many.DeviceOutput();
  EXPECT_TRUE(std::equal(got.begin(), got.begin() + static_cast<std::ptrdiff_t>(row), expected.begin()));
}

TEST_F(AttentionTest, RandomDecode) {
  std::mt19937 random(20240607);
  auto pick = [&random](auto... values) {
    auto list = {values...};
    return *(list.begin() + random() % list.size());
  };
  for (int i = 0; i < Repetitions(120); ++i) {
    CaseOptions options{.kv_heads = pick(1, 2, 4, 8),
                        .group = static_cast<int>(random() % 16) + 1,
                        .head_dim = pick(64, 128),
                        .page_size = pick(16, 32, 48, 64, 128, 1, 7, 24),
                        .layout = static_cast<Layout>(random() % 5),
                        .kv_dtype = pick(LLMD_BF16, LLMD_F16, LLMD_E4M3)};
    options.q_dtype = options.kv_dtype == LLMD_E4M3 ? pick(LLMD_BF16, LLMD_F16) : options.kv_dtype;
    options.o_dtype = pick(LLMD_BF16, LLMD_F16, LLMD_F32);
    options.lengths.clear();
    for (int n = static_cast<int>(random() % 10) + 1; n > 0; --n)
      options.lengths.push_back(static_cast<int>(random() % pick(40u, 600u, 3000u)));
    options.window = pick(0, 0, 1, 37, 128, 500);
    options.fixed_split = pick(0, 0, 0, 64, 512);
    options.sinks = random() % 3 == 0;
    options.lse = random() % 3 != 0;
    options.csr = random() % 2 == 0;
    options.validate = random() % 3 == 0;
    options.scale_per_head = random() % 2 == 0;
    options.peak = pick(0.1, 1.0, 10.0);
    options.max_batch = static_cast<int>(random() % 40);
    options.seed = static_cast<unsigned>(random());
    Check(options);
    if (HasFailure()) return;
  }
}

TEST_F(AttentionTest, RandomPrefillAndMixed) {
  std::mt19937 random(7);
  auto pick = [&random](auto... values) {
    auto list = {values...};
    return *(list.begin() + random() % list.size());
  };
  for (int i = 0; i < Repetitions(60); ++i) {
    CaseOptions options{.mode = pick(LLMD_PREFILL, LLMD_MIXED),
                        .kv_heads = pick(1, 2),
                        .group = static_cast<int>(random() % 9) + 1,
                        .head_dim = pick(64, 128),
                        .page_size = pick(16, 32, 64, 1, 7),
                        .layout = static_cast<Layout>(random() % 5),
                        .kv_dtype = pick(LLMD_BF16, LLMD_F16, LLMD_E4M3)};
    options.q_dtype = options.kv_dtype == LLMD_E4M3 ? pick(LLMD_BF16, LLMD_F16) : options.kv_dtype;
    options.o_dtype = pick(LLMD_BF16, LLMD_F16, LLMD_F32);
    options.lengths.clear();
    for (int n = static_cast<int>(random() % 6) + 1; n > 0; --n) {
      const int length = static_cast<int>(random() % pick(40u, 300u, 700u));
      options.lengths.push_back(length);
      options.queries.push_back(length == 0         ? static_cast<int>(random() % 2)
                                : random() % 3 == 0 ? 1
                                                    : static_cast<int>(random() % length) + 1);
    }
    options.window = pick(0, 0, 1, 37, 128);
    options.sinks = random() % 3 == 0;
    options.lse = random() % 3 != 0;
    options.csr = random() % 2 == 0;
    options.validate = random() % 3 == 0;
    options.scale_per_head = random() % 2 == 0;
    options.peak = pick(0.1, 1.0, 10.0);
    options.padding_rows = static_cast<int>(random() % 3);
    options.zero_padding = random() % 2 == 0;
    options.seed = static_cast<unsigned>(random());
    Check(options);
    if (HasFailure()) return;
  }
}

TEST_F(AttentionTest, ValidatedModeMasksAndReports) {
  for (int p : {16, 7}) {
    for (llmd_attention_mode mode : {LLMD_DECODE, LLMD_PREFILL}) {
      for (int bad : {-5, 1 << 20, 0x7FFFFFFF}) {
        CaseOptions options{.mode = mode, .page_size = p, .lengths = {200, 64}, .validate = true};
        if (mode == LLMD_PREFILL) options.queries = {50, 2};
        AttentionCase problem(options);
        problem.host_pages()[1] = bad;
        problem.UploadPages();
        ASSERT_EQ(problem.RunDevice(), LLMD_OK);
        EXPECT_EQ(problem.Compare(), "");
        llmd_data_error error{};
        EXPECT_EQ(
            llmd_attention_cuda()->check_workspace(problem.device().args.workspace, &error, problem.stream()),
            LLMD_BAD_DATA);
        EXPECT_EQ(error.kind, LLMD_BAD_PAGE);
        EXPECT_EQ(error.request, 0);
        EXPECT_EQ(error.index, 1);
        EXPECT_EQ(error.value, bad);
        EXPECT_EQ(
            llmd_attention_cuda()->check_workspace(problem.device().args.workspace, &error, problem.stream()),
            LLMD_OK);
      }
    }
  }
}

TEST_F(AttentionTest, ValidatedModeReportsBadLengths) {
  for (int bad : {-1, 1 << 20, 0x7FFFFFFF}) {
    AttentionCase problem({.lengths = {200, 64}, .validate = true});
    problem.ChangeLengths({bad, 64});
    ASSERT_EQ(problem.RunDevice(), LLMD_OK);
    llmd_data_error error{};
    EXPECT_EQ(
        llmd_attention_cuda()->check_workspace(problem.device().args.workspace, &error, problem.stream()),
        LLMD_BAD_DATA);
    EXPECT_EQ(error.kind, LLMD_BAD_LENGTH);
    EXPECT_EQ(error.value, bad);
  }
}

TEST_F(AttentionTest, RowsThatAreNotAlignedAreRefused) {
  for (const CaseOptions& options : {CaseOptions{.o_dtype = LLMD_BF16}, CaseOptions{.o_dtype = LLMD_F32},
                                     CaseOptions{.kv_dtype = LLMD_E4M3}, CaseOptions{.mode = LLMD_PREFILL},
                                     CaseOptions{.mode = LLMD_PREFILL, .kv_dtype = LLMD_E4M3}}) {
    AttentionCase problem(options);
    ASSERT_EQ(problem.RunDevice(), LLMD_OK);
    llmd_attention_args& args = problem.device().args;
    const llmd_attention_args good = args;
    const auto run = [&] { return llmd_attention_cuda()->attention(&args, problem.stream()); };
    args.o = static_cast<char*>(args.o) + (options.o_dtype == LLMD_F32 ? 4 : 2);
    EXPECT_EQ(run(), LLMD_UNSUPPORTED);
    args = good;
    ++args.o_strides.head;
    EXPECT_EQ(run(), LLMD_UNSUPPORTED);
    args = good;
    const int q_bytes = options.mode == LLMD_PREFILL ? 16 : options.kv_dtype == LLMD_E4M3 ? 8 : 4;
    args.q = static_cast<const char*>(args.q) + q_bytes / 2;
    EXPECT_EQ(run(), LLMD_UNSUPPORTED);
    args = good;
    args.q_strides.head += q_bytes / 4;
    EXPECT_EQ(run(), LLMD_UNSUPPORTED);
  }
}

TEST_F(AttentionTest, TwentyRunsAreBitEqual) {
  for (const CaseOptions& options :
       {CaseOptions{.kv_heads = 1, .lengths = {9000, 33, 400}},
        CaseOptions{.kv_dtype = LLMD_E4M3, .lengths = {9000, 33, 400}},
        CaseOptions{.mode = LLMD_PREFILL, .lengths = {600, 33}, .queries = {300, 33}},
        CaseOptions{.mode = LLMD_PREFILL, .kv_heads = 1, .lengths = {1500, 300}, .queries = {30, 7}}}) {
    AttentionCase problem(options);
    ASSERT_EQ(problem.RunDevice(), LLMD_OK);
    const std::vector<unsigned char> first = problem.DeviceOutput();
    for (int run = 0; run < Repetitions(20); ++run) {
      ASSERT_EQ(problem.RunDevice(), LLMD_OK);
      ASSERT_EQ(problem.DeviceOutput(), first) << "run " << run;
    }
  }
}

// Launches that may overlap share a workspace, and its slots are empty again each time.
TEST_F(AttentionTest, EarlyStartsOneAfterAnother) {
  for (const CaseOptions& options :
       {CaseOptions{.kv_heads = 1, .lengths = {3000, 33, 400, 0}},
        CaseOptions{.head_dim = 64, .kv_dtype = LLMD_E4M3, .lengths = {900, 33, 400}, .fixed_split = 64},
        CaseOptions{.mode = LLMD_MIXED, .lengths = {600, 33, 17}, .queries = {1, 33, 1}}}) {
    AttentionCase problem(options);
    ASSERT_EQ(problem.RunDevice(), LLMD_OK);
    const std::vector<unsigned char> first = problem.DeviceOutput();
    problem.PoisonOutputs();
    problem.device().args.flags |= LLMD_EARLY_START;
    for (int run = 0; run < 4; ++run) {
      ASSERT_EQ(llmd_attention_cuda()->attention(&problem.device().args, problem.stream()), LLMD_OK);
    }
    ASSERT_EQ(cudaStreamSynchronize(problem.stream()), cudaSuccess);
    EXPECT_EQ(problem.DeviceOutput(), first);
  }
}

// A part whose words are all ones, as a NaN may be, is not taken for one that has not come.
TEST_F(AttentionTest, PartsThatAreNoNumbersAreMerged) {
  AttentionCase problem({.kv_heads = 1, .kv_dtype = LLMD_E4M3, .o_dtype = LLMD_F32, .lengths = {2000}});
  Buffer scale(sizeof(float));
  *scale.host<std::uint32_t>() = ~0u;
  scale.Upload();
  problem.device().args.cache.v_scale = scale.as<float>(Side::kDevice);
  ASSERT_EQ(problem.RunDevice(), LLMD_OK);
  const std::vector<unsigned char> o = problem.DeviceOutput();
  EXPECT_TRUE(std::isnan(*reinterpret_cast<const float*>(o.data())));
}

// A captured graph stays right when lengths change, and its counters come back to zero every time.
void ReplayGraph(const CaseOptions& options, int rounds) {
  AttentionCase problem(options);
  const llmd_attention_backend* cuda = llmd_attention_cuda();
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  ASSERT_EQ(cudaStreamBeginCapture(problem.stream(), cudaStreamCaptureModeThreadLocal), cudaSuccess);
  ASSERT_EQ(cuda->plan(&problem.device().plan, problem.stream()), LLMD_OK);
  ASSERT_EQ(cuda->attention(&problem.device().args, problem.stream()), LLMD_OK);
  ASSERT_EQ(cudaStreamEndCapture(problem.stream(), &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  std::mt19937 random(5);
  for (int round = 0; round < Repetitions(rounds); ++round) {
    if (round % 50 == 0) {
      std::vector<int> lengths = options.lengths;
      for (std::size_t b = 0; b < lengths.size(); ++b) {
        const int least = options.queries.empty() ? 0 : options.queries[b];
        lengths[b] = least + static_cast<int>(random() % (lengths[b] - least + 1));
      }
      problem.ChangeLengths(lengths);
      problem.PoisonOutputs();
    }
    ASSERT_EQ(cudaGraphLaunch(executable, problem.stream()), cudaSuccess);
    if (round % 50 == 49) {
      ASSERT_EQ(cudaStreamSynchronize(problem.stream()), cudaSuccess);
      ASSERT_EQ(problem.Compare(), "") << "round " << round;
    }
  }
  ASSERT_EQ(cudaStreamSynchronize(problem.stream()), cudaSuccess);
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
}

TEST_F(AttentionTest, GraphReplays) { ReplayGraph({.kv_heads = 1, .lengths = {3000, 500, 70, 1200}}, 1000); }

TEST_F(AttentionTest, PrefillGraphReplays) {
  ReplayGraph({.mode = LLMD_MIXED, .kv_heads = 1, .lengths = {900, 500, 40, 500}, .queries = {10, 1, 30, 20}},
              100);
}

}  // namespace
}  // namespace llmd::testing
