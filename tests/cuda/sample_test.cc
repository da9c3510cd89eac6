// sample against the reference: the same token, but for draws and thresholds that fall on the edge of
// rounding.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "src/attention/check.h"
#include "src/attention/numeric.h"
#include "tests/cuda/support.h"

namespace llmd::testing {
namespace {

struct SampleCase {
  llmd_dtype dtype = LLMD_F32;
  int batch = 8;
  int vocab = 1000;
  float deviation = 4;    // of the logits
  bool ties = false;      // logits are few different numbers
  float temperature = 1;  // 0: some rows each of several, greedy among them
  float min_p = 0;
  int top_k = 0;
  float top_p = 1;
  int shift = 0;  // elements by which rows begin past an aligned address
  bool logprobs = true;
  int live = 0;   // > 0: the logits of all but so many tokens of a row are -inf
  int above = 0;  // the first ids of each row stand far above the others
};

class SampleTest : public DeviceTest {
 protected:
  void Run(const SampleCase& c) {
    SCOPED_TRACE(std::string(attention::NameOf(c.dtype)) + " batch " + std::to_string(c.batch) + " vocab " +
                 std::to_string(c.vocab) + " deviation " + std::to_string(c.deviation) + " live " +
                 std::to_string(c.live) + " above " + std::to_string(c.above) +
                 (c.logprobs ? "" : " no logprobs") + (c.ties ? " ties" : "") + " temperature " +
                 std::to_string(c.temperature) + " min_p " + std::to_string(c.min_p) + " top_k " +
                 std::to_string(c.top_k) + " top_p " + std::to_string(c.top_p) + " shift " +
                 std::to_string(c.shift));
    const int64_t size = static_cast<int64_t>(attention::SizeOf(c.dtype)), stride = c.vocab + c.shift;
    Buffer logits((c.batch * stride + c.shift) * size), temperature(c.batch * 4), min_p(c.batch * 4);
    Buffer top_k(c.batch * 4), top_p(c.batch * 4), requests(c.batch * 8), steps(c.batch * 8),
        tokens(c.batch * 4);
    Buffer logprobs(c.batch * 4);
    FillNormal(logits, c.dtype, random_, c.deviation);
    const int64_t elements = c.batch * stride + c.shift;
    for (int64_t i = 0; c.ties && i < elements; ++i) {
      const float x = attention::LoadElement(c.dtype, logits.at(Side::kHost), i);
      attention::StoreElement(c.dtype, logits.at(Side::kHost), i, std::round(x));
    }
    for (int b = 0; b < c.batch; ++b) {
      const int64_t first = c.shift + b * stride;
      for (int i = 0; i < c.above; ++i) {
        const float x = attention::LoadElement(c.dtype, logits.at(Side::kHost), first + i);
        attention::StoreElement(c.dtype, logits.at(Side::kHost), first + i, x + 20);
      }
      if (c.live > 0) {
        const std::vector<int64_t> ids = Permutation(c.vocab, random_);
        for (int i = c.live; i < c.vocab; ++i) {
          attention::StoreElement(c.dtype, logits.at(Side::kHost), first + ids[i],
                                  -std::numeric_limits<float>::infinity());
        }
      }
      const float mixed[] = {0.0f, 0.3f, 0.8f, 1.0f, 1.7f};
      temperature.host<float>()[b] = c.temperature > 0 ? c.temperature : mixed[b % 5];
      min_p.host<float>()[b] = c.min_p;
      top_k.host<int32_t>()[b] = c.top_k;
      top_p.host<float>()[b] = c.top_p;
      requests.host<uint64_t>()[b] = random_();
      steps.host<uint64_t>()[b] = random_() % 1000;
    }
    for (Buffer* buffer : {&logits, &temperature, &min_p, &top_k, &top_p, &requests, &steps})
      buffer->Upload();
    RunBoth(&llmd_attention_backend::sample, [&](Side side) {
      llmd_sample_args args = {};
      args.logits = logits.as<char>(side) + c.shift * size;
      args.dtype = c.dtype;
      args.row_stride = stride;
      args.batch = c.batch;
      args.vocab = c.vocab;
      args.temperature = temperature.as<float>(side);
      if (c.min_p > 0) args.min_p = min_p.as<float>(side);
      if (c.top_k > 0) args.top_k = top_k.as<int32_t>(side);
      if (c.top_p < 1) args.top_p = top_p.as<float>(side);
      args.seed = 77;
      args.request_ids = requests.as<uint64_t>(side);
      args.steps = steps.as<uint64_t>(side);
      args.tokens = tokens.as<int32_t>(side);
      if (c.logprobs) args.logprobs = logprobs.as<float>(side);
      return args;
    });
    const std::vector<unsigned char> out = tokens.Download(), out_logprobs = logprobs.Download();
    for (int b = 0; b < c.batch; ++b) {
      const int32_t got = reinterpret_cast<const int32_t*>(out.data())[b];
      ASSERT_GE(got, 0);
      ASSERT_LT(got, c.vocab);
      ++drawn_;
      if (got != tokens.host<int32_t>()[b]) {
        ++different_;
        continue;
      }
      if (!c.logprobs) continue;
      const float expected = logprobs.host<float>()[b];
      EXPECT_NEAR(reinterpret_cast<const float*>(out_logprobs.data())[b], expected,
                  2e-5 * std::max(1.0f, std::abs(expected)));
    }
  }

  // Of all tokens of a test; an edge is met perhaps once in ten thousand draws.
  void ExpectFewDifferences() { EXPECT_LE(different_, 1 + drawn_ / 1000) << "of " << drawn_ << " tokens"; }

  int64_t drawn_ = 0;
  int64_t different_ = 0;
};

TEST_F(SampleTest, Small) {
  Run({.top_k = 50, .top_p = 0.9f});
  EXPECT_EQ(different_, 0);
}

TEST_F(SampleTest, SmallBf16) {
  Run({.dtype = LLMD_BF16, .vocab = 333, .min_p = 0.05f, .top_p = 0.8f});
  EXPECT_EQ(different_, 0);
}

TEST_F(SampleTest, SmallNoFilter) {
  Run({.temperature = 0});
  EXPECT_EQ(different_, 0);
}

TEST_F(SampleTest, EveryFilter) {
  for (llmd_dtype dtype : {LLMD_F32, LLMD_F16, LLMD_BF16}) {
    for (int vocab : {1, 2, 31, 1000, 4097}) {
      for (bool ties : {false, true}) {
        for (float min_p : {0.0f, 0.02f, 1.0f}) {
          for (int top_k : {0, 1, 7, 500, 1000000}) {
            for (float top_p : {1.0f, 0.95f, 0.3f, 0.0f}) {
              if (random_() % 10 >= Repetitions(10)) continue;
              Run({.dtype = dtype,
                   .vocab = vocab,
                   .deviation = 2,
                   .ties = ties,
                   .temperature = 0,
                   .min_p = min_p,
                   .top_k = top_k,
                   .top_p = top_p});
            }
          }
        }
      }
    }
  }
  ExpectFewDifferences();
}

// Few tokens come into question, or so many that they do not fit where the few are gathered.
TEST_F(SampleTest, FewAndMany) {
  bool logprobs = false;
  for (llmd_dtype dtype : {LLMD_F32, LLMD_F16, LLMD_BF16}) {
    for (float top_p : {1.0f, 0.9f, 0.4f, 1e-6f, 0.0f}) {
      SampleCase c = {.dtype = dtype,
                      .batch = 5,
                      .vocab = 9001,
                      .deviation = 2,
                      .temperature = 0,
                      .top_k = 50,
                      .top_p = top_p,
                      .logprobs = (logprobs = !logprobs)};
      const auto run = [&](auto change) {
        SampleCase changed = c;
        change(changed);
        Run(changed);
      };
      run([](SampleCase&) {});
      run([](SampleCase& x) { x.ties = true; });
      run([](SampleCase& x) { x.deviation = 0; });
      run([](SampleCase& x) { x.min_p = 0.1f; });
      run([](SampleCase& x) { x.min_p = 0.001f, x.top_k = 0; });
      run([](SampleCase& x) { x.top_k = 300; });
      run([](SampleCase& x) { x.top_k = 1000; });
      run([](SampleCase& x) { x.live = 20; });
      run([](SampleCase& x) { x.live = 1, x.top_k = 1; });
      run([](SampleCase& x) { x.above = 700, x.top_k = 690; });
      run([](SampleCase& x) { x.above = 60; });
      run([](SampleCase& x) { x.vocab = 3, x.top_k = 2; });
      run([](SampleCase& x) { x.vocab = 100; });
      run([](SampleCase& x) { x.vocab = 1024, x.top_k = 1024; });
      run([](SampleCase& x) { x.vocab = 1025, x.deviation = 0, x.top_k = 1024; });
    }
  }
  ExpectFewDifferences();
}

// All blocks that a row can have.
TEST_F(SampleTest, FewOfManyBlocks) {
  for (llmd_dtype dtype : {LLMD_F32, LLMD_BF16}) {
    for (bool ties : {false, true}) {
      for (int above : {0, 300}) {
        Run({.dtype = dtype,
             .batch = 1,
             .vocab = 70001,
             .deviation = 2,
             .ties = ties,
             .top_k = 50,
             .top_p = 0.95f,
             .logprobs = above == 0,
             .above = above});
      }
    }
  }
  ExpectFewDifferences();
}

TEST_F(SampleTest, LargeVocabularies) {
  for (llmd_dtype dtype : {LLMD_F32, LLMD_BF16}) {
    for (int vocab : {32000, 128256, 151936, 262144}) {
      for (int shift : {0, 1}) {
        Run({.dtype = dtype, .batch = 4, .vocab = vocab, .deviation = 2, .shift = shift});
        Run({.dtype = dtype, .batch = 4, .vocab = vocab, .deviation = 3, .top_p = 0.9f, .shift = shift});
        Run({.dtype = dtype,
             .batch = 4,
             .vocab = vocab,
             .temperature = 0,
             .top_k = 40,
             .top_p = 0.95f,
             .shift = shift});
      }
    }
  }
  // A row that does not fit into the shared memory of its blocks, as long ones do not where there are no
  // clusters.
  Run({.batch = 2, .vocab = 500001, .deviation = 2, .top_k = 40, .top_p = 0.95f, .shift = 3});
  Run({.batch = 2, .vocab = 500001, .temperature = 0.8f, .min_p = 0.01f});
  ExpectFewDifferences();
}

TEST_F(SampleTest, LargeBatch) {
  Run({.dtype = LLMD_BF16,
       .batch = 1024,
       .vocab = 5000,
       .temperature = 0,
       .min_p = 0.01f,
       .top_k = 100,
       .top_p = 0.9f});
  ExpectFewDifferences();
}

TEST_F(SampleTest, SmallOddLogits) {
  const float infinity = std::numeric_limits<float>::infinity();
  const int batch = 6, vocab = 40;
  for (llmd_dtype dtype : {LLMD_F32, LLMD_F16, LLMD_BF16}) {
    Buffer logits(batch * vocab * attention::SizeOf(dtype)), tokens(batch * 4), logprobs(batch * 4);
    for (int i = 0; i < batch * vocab; ++i)
      attention::StoreElement(dtype, logits.at(Side::kHost), i, -infinity);
    const auto set = [&](int row, int id, float x) {
      attention::StoreElement(dtype, logits.at(Side::kHost), row * vocab + id, x);
    };
    // Row 0: nothing finite. 1: one finite among NaN. 2: an infinity. 3: zeros of both signs are equal. 4:
    // all equal.
    for (int i = 0; i < vocab; ++i) set(1, i, NAN);
    set(1, 17, -3);
    set(2, 5, infinity);
    set(2, 6, 1);
    set(3, 11, -0.0f);
    set(3, 12, 0.0f);
    for (int i = 0; i < vocab; ++i) set(4, i, -2.5f);
    for (int i = 0; i < vocab; ++i) set(5, i, i == 9 ? 100.0f : -100.0f);
    logits.Upload();
    for (bool greedy : {false, true}) {
      Buffer temperature(batch * 4);
      std::fill_n(temperature.host<float>(), batch, greedy ? 0.0f : 1.0f);
      temperature.Upload();
      RunBoth(&llmd_attention_backend::sample, [&](Side side) {
        llmd_sample_args args = {};
        args.logits = logits.at(side);
        args.dtype = dtype;
        args.row_stride = vocab;
        args.batch = batch;
        args.vocab = vocab;
        args.temperature = temperature.as<float>(side);
        args.tokens = tokens.as<int32_t>(side);
        args.logprobs = logprobs.as<float>(side);
        return args;
      });
      EXPECT_EQ(tokens.host<int32_t>()[0], -1);
      EXPECT_EQ(tokens.host<int32_t>()[1], 17);
      ExpectSame(tokens, "tokens");
      ExpectClose(logprobs, LLMD_F32, batch, {1e-5, 1e-5}, "logprobs");
    }
  }
}

TEST_F(SampleTest, SameTokenAtAnyPlace) {
  const int batch = 300, vocab = 3000;
  Buffer logits(batch * vocab * 4), requests(batch * 8), top_p(batch * 4), tokens(batch * 4);
  FillNormal(logits, LLMD_F32, random_, 1, 0, vocab);
  std::fill_n(top_p.host<float>(), batch, 0.9f);
  std::fill_n(requests.host<uint64_t>(), batch, 5);
  for (int b = 1; b < batch; ++b) std::copy_n(logits.host<float>(), vocab, logits.host<float>() + b * vocab);
  for (Buffer* buffer : {&logits, &requests, &top_p}) buffer->Upload();
  for (int i = 0; i < Repetitions(20); ++i) {
    RunDevice(&llmd_attention_backend::sample, [&](Side side) {
      llmd_sample_args args = {};
      args.logits = logits.at(side);
      args.dtype = LLMD_F32;
      args.row_stride = vocab;
      args.batch = batch;
      args.vocab = vocab;
      args.top_p = top_p.as<float>(side);
      args.seed = 3;
      args.request_ids = requests.as<uint64_t>(side);
      args.tokens = tokens.as<int32_t>(side);
      return args;
    });
    const std::vector<unsigned char> out = tokens.Download();
    const int32_t* got = reinterpret_cast<const int32_t*>(out.data());
    EXPECT_GE(got[0], 0);
    EXPECT_EQ(std::count(got, got + batch, got[0]), batch);
  }
}

// One row has several blocks on most devices, many rows have one each.
TEST_F(SampleTest, LargeSameTokenFromOneBlockOrMore) {
  const int batch = 300, vocab = 19001;
  Buffer logits(batch * vocab * 4), requests(batch * 8), top_k(batch * 4), top_p(batch * 4),
      tokens(batch * 4);
  FillNormal(logits, LLMD_F32, random_, 1, 0, vocab);
  std::fill_n(top_k.host<int32_t>(), batch, 3000);
  std::fill_n(top_p.host<float>(), batch, 0.9f);
  std::iota(requests.host<uint64_t>(), requests.host<uint64_t>() + batch, 0);
  for (int b = 1; b < batch; ++b) std::copy_n(logits.host<float>(), vocab, logits.host<float>() + b * vocab);
  for (Buffer* buffer : {&logits, &requests, &top_k, &top_p}) buffer->Upload();
  const auto draw = [&](int first, int rows) {
    RunDevice(&llmd_attention_backend::sample, [&](Side side) {
      llmd_sample_args args = {};
      args.logits = logits.at(side);
      args.dtype = LLMD_F32;
      args.row_stride = vocab;
      args.batch = rows;
      args.vocab = vocab;
      args.top_k = top_k.as<int32_t>(side);
      args.top_p = top_p.as<float>(side);
      args.seed = 3;
      args.request_ids = requests.as<uint64_t>(side) + first;
      args.tokens = tokens.as<int32_t>(side);
      return args;
    });
    const std::vector<unsigned char> out = tokens.Download();
    const auto* got = reinterpret_cast<const int32_t*>(out.data());
    return std::vector<int32_t>(got, got + rows);
  };
  const std::vector<int32_t> all = draw(0, batch);
  for (int b : {0, 1, 7, 100, 299}) EXPECT_EQ(draw(b, 1)[0], all[b]);
  EXPECT_EQ(draw(3, 2), std::vector<int32_t>(all.begin() + 3, all.begin() + 5));
}

TEST_F(SampleTest, GraphFollowsSteps) {
  const int batch = 16, vocab = 2000;
  Buffer logits(batch * vocab * 2), steps(batch * 8), top_k(batch * 4), tokens(batch * 4);
  FillNormal(logits, LLMD_BF16, random_, 2);
  std::fill_n(top_k.host<int32_t>(), batch, 60);
  logits.Upload();
  top_k.Upload();
  const auto make = [&](Side side) {
    llmd_sample_args args = {};
    args.logits = logits.at(side);
    args.dtype = LLMD_BF16;
    args.row_stride = vocab;
    args.batch = batch;
    args.vocab = vocab;
    args.top_k = top_k.as<int32_t>(side);
    args.steps = steps.as<uint64_t>(side);
    args.tokens = tokens.as<int32_t>(side);
    return args;
  };
  Capture([&] {
    const llmd_sample_args args = make(Side::kDevice);
    ASSERT_EQ(cuda_->sample(&args, stream_), LLMD_OK) << cuda_->last_error();
  });
  for (int step = 0; step < 10; ++step) {
    std::fill_n(steps.host<uint64_t>(), batch, step);
    steps.Upload();
    Replay();
    const llmd_sample_args args = make(Side::kHost);
    ASSERT_EQ(reference_->sample(&args, nullptr), LLMD_OK);
    const std::vector<unsigned char> out = tokens.Download();
    for (int b = 0; b < batch; ++b, ++drawn_) {
      different_ += reinterpret_cast<const int32_t*>(out.data())[b] != tokens.host<int32_t>()[b];
    }
  }
  ExpectFewDifferences();
}

}  // namespace
}  // namespace llmd::testing
