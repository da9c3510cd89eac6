// sample: the random generator, the order of the filters, ties, distributions, on both CPU backends.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>
#include <set>

#include "llmd/attention/backend.h"
#include "src/attention/numeric.h"
#include "src/attention/philox.h"

namespace llmd::attention {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(Philox, PublishedVectors) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr uint32_t kOnes = 0xffffffff;
  EXPECT_EQ(Philox4x32({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, DrawUsesAllWordsOfKeyAndCounter) {
  EXPECT_EQ(UniformDraw(0x299f31d0a4093822, 0x85a308d3243f6a88, 0x0370734413198a2e),
            static_cast<float>(0xd16cfe09u >> 8) / 16777216.0f);
}

class Sampling : public testing::TestWithParam<const llmd_attention_backend*> {
 protected:
  struct Row {
    float temperature = 1, min_p = 0, top_p = 1;
    int32_t top_k = 0;
  };

  // One row, drawn `count` times with steps 0, 1, ...
  std::vector<int32_t> Draw(std::vector<float> logits, Row row, int count, float* logprob = nullptr) const {
    std::vector<float> all, temperature(count, row.temperature), min_p(count, row.min_p),
        top_p(count, row.top_p), logprobs(count);
    std::vector<int32_t> top_k(count, row.top_k), tokens(count, -7);
    std::vector<uint64_t> ids(count, 12), steps(count);
    std::iota(steps.begin(), steps.end(), 0);
    for (int i = 0; i < count; ++i) all.insert(all.end(), logits.begin(), logits.end());
    llmd_sample_args args = {};
    args.logits = all.data();
    args.row_stride = args.vocab = static_cast<int32_t>(logits.size());
    args.batch = count;
    args.temperature = temperature.data();
    args.min_p = min_p.data();
    args.top_k = top_k.data();
    args.top_p = top_p.data();
    args.seed = 99;
    args.request_ids = ids.data();
    args.steps = steps.data();
    args.tokens = tokens.data();
    args.logprobs = logprobs.data();
    EXPECT_EQ(GetParam()->sample(&args, nullptr), LLMD_OK) << GetParam()->last_error();
    if (logprob != nullptr) *logprob = logprobs[0];
    return tokens;
  }

  std::set<int32_t> Seen(const std::vector<float>& probabilities, Row row) const {
    std::vector<float> logits;
    for (const float p : probabilities) logits.push_back(std::log(p));
    const std::vector<int32_t> tokens = Draw(logits, row, 400);
    return {tokens.begin(), tokens.end()};
  }
};
INSTANTIATE_TEST_SUITE_P(, Sampling, testing::Values(llmd_attention_reference(), llmd_attention_cpu()),
                         [](const auto& info) { return std::string(info.param->name); });

using Set = std::set<int32_t>;

TEST_P(Sampling, GreedyTakesTheLowestOfTheGreatest) {
  float logprob;
  EXPECT_EQ(Draw({1, 3, 2, 3}, {.temperature = 0}, 1, &logprob)[0], 1);
  const double total = std::exp(1 - 3.0) + 1 + std::exp(2 - 3.0) + 1;
  EXPECT_NEAR(logprob, -std::log(total), 1e-6);
  EXPECT_EQ(Draw({NAN, -kInfinity, -5}, {.temperature = 0}, 1)[0], 2);
}

TEST_P(Sampling, RowsWithoutAFiniteLogit) {
  float logprob;
  for (const float temperature : {0.0f, 1.0f}) {
    EXPECT_EQ(Draw({NAN, -kInfinity, NAN}, {.temperature = temperature}, 1, &logprob)[0], -1);
    EXPECT_TRUE(std::isnan(logprob));
  }
}

TEST_P(Sampling, FiltersOneByOne) {
  const std::vector<float> p = {0.1f, 0.4f, 0.05f, 0.3f, 0.15f};
  EXPECT_EQ(Seen(p, {}), (Set{0, 1, 2, 3, 4}));
  EXPECT_EQ(Seen(p, {.top_k = 2}), (Set{1, 3}));
  EXPECT_EQ(Seen(p, {.top_k = 100}), (Set{0, 1, 2, 3, 4}));
  EXPECT_EQ(Seen(p, {.top_k = -1}), (Set{0, 1, 2, 3, 4}));
  EXPECT_EQ(Seen(p, {.top_p = 0.6f}), (Set{1, 3}));
  EXPECT_EQ(Seen(p, {.top_p = 0.75f}), (Set{1, 3, 4}));
  EXPECT_EQ(Seen(p, {.top_p = 0.0f}), (Set{1}));  // at least one
  EXPECT_EQ(Seen(p, {.min_p = 0.3f}), (Set{1, 3, 4}));
  EXPECT_EQ(Seen(p, {.min_p = 0.74f}), (Set{1, 3}));
  EXPECT_EQ(Seen(p, {.min_p = 1.0f}), (Set{1}));
}

TEST_P(Sampling, FiltersInTheirOrder) {
  const std::vector<float> p = {0.1f, 0.4f, 0.05f, 0.3f, 0.15f};
  // top_p is of what top_k left: 0.4 / 0.7 < 0.6, so both stay.
  EXPECT_EQ(Seen(p, {.top_p = 0.6f, .top_k = 2}), (Set{1, 3}));
  EXPECT_EQ(Seen(p, {.top_p = 0.57f, .top_k = 2}), (Set{1}));
  // and of what min_p left.
  EXPECT_EQ(Seen(p, {.min_p = 0.7f, .top_p = 0.57f}), (Set{1}));
  EXPECT_EQ(Seen(p, {.min_p = 0.2f, .top_p = 0.8f}), (Set{1, 3, 4}));
  // min_p sees probabilities after temperature: at 2, 0.1 has half of the greatest's.
  EXPECT_EQ(Seen(p, {.temperature = 2, .min_p = 0.49f}), (Set{0, 1, 3, 4}));
  EXPECT_EQ(Seen(p, {.temperature = 0.5f, .min_p = 0.15f}), (Set{1, 3}));
}

TEST_P(Sampling, TiesGoToTheLowestIds) {
  const std::vector<float> p(10, 0.1f);
  EXPECT_EQ(Seen(p, {.top_k = 3}), (Set{0, 1, 2}));
  EXPECT_EQ(Seen(p, {.top_p = 0.35f}), (Set{0, 1, 2, 3}));
}

TEST_P(Sampling, ExtremeParameters) {
  const std::vector<float> p = {0.1f, 0.6f, 0.3f};
  EXPECT_EQ(Seen(p, {.min_p = 5.0f}), (Set{1}));  // never nothing
  EXPECT_EQ(Seen(p, {.min_p = NAN, .top_p = NAN}), (Set{0, 1, 2}));
  EXPECT_EQ(Seen(p, {.top_p = -1.0f}), (Set{1}));
  EXPECT_EQ(Seen(p, {.temperature = 1e-40f}), (Set{1}));
  EXPECT_EQ(Seen(p, {.temperature = NAN}), (Set{1}));  // greedy, as all that is not above 0
  EXPECT_EQ(Seen(p, {.temperature = -1.0f}), (Set{1}));
  EXPECT_EQ(Seen({0.5f, 0.0f, 0.01f}, {.temperature = kInfinity}), (Set{0, 2}));  // ln 0 is never drawn
}

TEST_P(Sampling, TheDrawIsTheInverseOfTheSumInIdOrder) {
  std::vector<float> logits = {0, 0, 0, 0};
  const std::vector<int32_t> tokens = Draw(logits, {}, 300);
  for (int step = 0; step < 300; ++step) {
    EXPECT_EQ(tokens[step], static_cast<int32_t>(UniformDraw(99, 12, step) * 4)) << step;
  }
}

// Pearson's statistic below the 99.9 % point of its distribution; the seed is fixed, so it is so always.
TEST_P(Sampling, FollowsTheDistribution) {
  constexpr int kDraws = 20'000;
  const std::vector<float> logits = {0.5f, -1.0f, 2.0f, 1.0f, -3.0f, 0.0f, 1.5f, -0.5f};
  const float temperature = 1.7f;
  const std::vector<int32_t> tokens = Draw(logits, {.temperature = temperature}, kDraws);
  double total = 0, statistic = 0;
  for (const float x : logits) total += std::exp(x / temperature);
  for (int i = 0; i < 8; ++i) {
    const double expected = kDraws * std::exp(logits[i] / temperature) / total;
    const double seen = std::count(tokens.begin(), tokens.end(), i);
    statistic += (seen - expected) * (seen - expected) / expected;
  }
  EXPECT_LT(statistic, 24.3);  // 7 degrees of freedom
}

TEST_P(Sampling, DependsOnRequestAndStepNotOnPlace) {
  constexpr int kBatch = 50, kVocab = 1000, kStride = 1003;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<BF16> logits(kBatch * kStride);
  for (BF16& x : logits) x = FromFloat<BF16>(normal(random) * 2);
  std::vector<uint64_t> ids(kBatch), steps(kBatch);
  for (int b = 0; b < kBatch; ++b) ids[b] = random(), steps[b] = random();
  std::vector<int32_t> tokens(kBatch);
  llmd_sample_args args = {};
  args.logits = logits.data();
  args.dtype = LLMD_BF16;
  args.row_stride = kStride;
  args.batch = kBatch;
  args.vocab = kVocab;
  args.seed = 5;
  args.request_ids = ids.data();
  args.steps = steps.data();
  args.tokens = tokens.data();
  ASSERT_EQ(GetParam()->sample(&args, nullptr), LLMD_OK);
  for (int b = 0; b < kBatch; ++b) {
    int32_t alone = -7;
    llmd_sample_args one = args;
    one.batch = 1;
    one.logits = logits.data() + b * kStride;
    one.request_ids = &ids[b];
    one.steps = &steps[b];
    one.tokens = &alone;
    ASSERT_EQ(GetParam()->sample(&one, nullptr), LLMD_OK);
    EXPECT_EQ(alone, tokens[b]);
  }
}

// Random rows and filters: float and double may differ only where a sum meets a bound within rounding.
TEST(SamplingBackends, AgreeOnRandomRows) {
  constexpr int kBatch = 300, kVocab = 2000;
  std::mt19937 random(8);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> uniform;
  std::vector<F16> logits(kBatch * kVocab);
  for (F16& x : logits) x = FromFloat<F16>(normal(random) * 3);
  std::vector<float> temperature, min_p, top_p;
  std::vector<int32_t> top_k, tokens[2];
  std::vector<float> logprobs[2];
  for (int b = 0; b < kBatch; ++b) {
    temperature.push_back(b % 5 == 0 ? 0.0f : uniform(random) * 2);
    min_p.push_back(b % 3 == 0 ? uniform(random) * 0.2f : 0.0f);
    top_p.push_back(b % 2 == 0 ? uniform(random) : 1.0f);
    top_k.push_back(b % 4 == 0 ? static_cast<int32_t>(random() % 100) : 0);
  }
  const llmd_attention_backend* backends[] = {llmd_attention_reference(), llmd_attention_cpu()};
  for (int i = 0; i < 2; ++i) {
    tokens[i].resize(kBatch);
    logprobs[i].resize(kBatch);
    llmd_sample_args args = {};
    args.logits = logits.data();
    args.dtype = LLMD_F16;
    args.row_stride = args.vocab = kVocab;
    args.batch = kBatch;
    args.temperature = temperature.data();
    args.min_p = min_p.data();
    args.top_k = top_k.data();
    args.top_p = top_p.data();
    args.tokens = tokens[i].data();
    args.logprobs = logprobs[i].data();
    ASSERT_EQ(backends[i]->sample(&args, nullptr), LLMD_OK);
  }
  int different = 0;
  for (int b = 0; b < kBatch; ++b) {
    if (tokens[0][b] != tokens[1][b]) {
      ++different;
    } else {
      EXPECT_NEAR(logprobs[0][b], logprobs[1][b], 1e-4 * std::max(1.0f, std::abs(logprobs[0][b])));
    }
  }
  EXPECT_LE(different, 1);
}

}  // namespace
}  // namespace llmd::attention
