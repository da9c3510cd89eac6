#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <map>

#include "tests/sched/sched_test_util.h"

namespace llmd::sched {
namespace {

using ::testing::ElementsAre;
using ::testing::UnorderedElementsAre;

std::vector<Position> Pick(const std::string& type, int k, const std::vector<double>& scores,
                           std::uint64_t seed, bool reversed = false) {
  PluginUnderTest plugin(type, Parameters({{"maxNumOfEndpoints", k}}));
  EXPECT_TRUE(plugin.status.ok()) << plugin.status;
  std::vector<ScoredEndpoint> scored;
  for (Position p = 0; p < scores.size(); ++p) scored.push_back({p, scores[p]});
  if (reversed) std::reverse(scored.begin(), scored.end());
  Request request;
  EndpointPool pool;
  Random random(1);
  Context context{request, pool, kNow, random, *plugin.columns};
  const std::size_t picked = plugin.As<Picker>().Pick(context, seed, scored);
  std::vector<Position> positions;
  for (std::size_t i = 0; i < picked; ++i) positions.push_back(scored[i].position);
  return positions;
}

TEST(MaxScorePicker, OrdersByScore) {
  EXPECT_THAT(Pick("max-score-picker", 1, {1, 5, 3}, 0), ElementsAre(1));
  EXPECT_THAT(Pick("max-score-picker", 3, {1, 5, 3}, 0), ElementsAre(1, 2, 0));
  EXPECT_THAT(Pick("max-score-picker", 2, {-4, -5, -3}, 0), ElementsAre(2, 0));
}

TEST(MaxScorePicker, LimitsOfK) {
  EXPECT_THAT(Pick("max-score-picker", 9, {1, 2}, 0), ElementsAre(1, 0));
  EXPECT_THAT(Pick("max-score-picker", 0, {1, 2}, 0), ElementsAre(1));
  EXPECT_THAT(Pick("max-score-picker", -3, {1, 2}, 0), ElementsAre(1));
  EXPECT_THAT(Pick("max-score-picker", 1, {7}, 0), ElementsAre(0));
}

class AllPickers : public ::testing::TestWithParam<const char*> {};

TEST_P(AllPickers, SameSeedSamePickWhateverTheOrderOfCandidates) {
  const std::vector<double> scores = {1, 2, 2, 1, 2, 0, 2};
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    for (const int k : {1, 3, 7}) {
      const std::vector<Position> picked = Pick(GetParam(), k, scores, seed);
      EXPECT_EQ(picked.size(), static_cast<std::size_t>(k));
      EXPECT_EQ(picked, Pick(GetParam(), k, scores, seed));
      EXPECT_EQ(picked, Pick(GetParam(), k, scores, seed, /*reversed=*/true));
      EXPECT_EQ(picked.front(), Pick(GetParam(), 1, scores, seed).front());
      std::set<Position> distinct(picked.begin(), picked.end());
      EXPECT_EQ(distinct.size(), picked.size());
    }
  }
}

TEST_P(AllPickers, EqualScoresArePickedEquallyOften) {
  std::map<Position, int> count;
  for (std::uint64_t seed = 0; seed < 4000; ++seed) ++count[Pick(GetParam(), 1, {2, 2, 2, 2}, seed).front()];
  for (Position p = 0; p < 4; ++p) EXPECT_NEAR(count[p], 1000, 120) << p;
}

INSTANTIATE_TEST_SUITE_P(Types, AllPickers,
                         ::testing::Values("max-score-picker", "random-picker", "weighted-random-picker"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(MaxScorePicker, TiesBreakAmongTheBestOnly) {
  std::set<Position> seen;
  for (std::uint64_t seed = 0; seed < 100; ++seed)
    seen.insert(Pick("max-score-picker", 1, {3, 1, 3, 2}, seed).front());
  EXPECT_THAT(seen, UnorderedElementsAre(0, 2));
}

TEST(RandomPicker, IgnoresScores) {
  std::map<Position, int> count;
  for (std::uint64_t seed = 0; seed < 3000; ++seed)
    ++count[Pick("random-picker", 1, {9, 0, -9}, seed).front()];
  for (Position p = 0; p < 3; ++p) EXPECT_NEAR(count[p], 1000, 120);
}

TEST(WeightedRandomPicker, FollowsTheWeights) {
  std::map<Position, int> count;
  for (std::uint64_t seed = 0; seed < 8000; ++seed) {
    ++count[Pick("weighted-random-picker", 1, {1, 2, 5, 0, -1}, seed).front()];
  }
  EXPECT_NEAR(count[0], 1000, 130);
  EXPECT_NEAR(count[1], 2000, 180);
  EXPECT_NEAR(count[2], 5000, 200);
  EXPECT_EQ(count[3] + count[4], 0);
}

TEST(WeightedRandomPicker, TinyScoresKeepTheirProportions) {
  std::map<Position, int> count;
  for (std::uint64_t seed = 0; seed < 3000; ++seed) {
    ++count[Pick("weighted-random-picker", 1, {1e-9, 2e-9}, seed).front()];
  }
  EXPECT_NEAR(count[0], 1000, 120);
}

TEST(WeightedRandomPicker, PositiveScoresComeFirstAndNonPositiveAloneAreRandom) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    const std::vector<Position> picked = Pick("weighted-random-picker", 4, {0, 0.5, -1, 0.1}, seed);
    EXPECT_THAT((std::vector<Position>{picked[0], picked[1]}), UnorderedElementsAre(1, 3));
  }
  std::set<Position> seen;
  for (std::uint64_t seed = 0; seed < 100; ++seed)
    seen.insert(Pick("weighted-random-picker", 1, {0, -1}, seed).front());
  EXPECT_THAT(seen, UnorderedElementsAre(0, 1));
}

// Tables. The numbers are from the definitions: k best by score, NaN last; A-Res draws one after the other
// with probability proportional to the score among those left.

TEST(MaxScorePicker, Table) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  constexpr double kInf = std::numeric_limits<double>::infinity();
  struct Case {
    std::vector<double> scores;
    int k;
    std::vector<Position> picked;
  };
  const Case cases[] = {
      {{0}, 1, {0}},
      {{-1}, 3, {0}},
      {{0, -1}, 2, {0, 1}},
      {{0, -0.5, 0.5}, 2, {2, 0}},
      {{0.1, 0.2, 0.30000000000000004, 0.3}, 4, {2, 3, 1, 0}},  // by the last bit
      {{kNan, -5}, 1, {1}},
      {{-kInf, 1, kNan, kInf}, 2, {3, 1}},
      {{kNan}, 1, {0}},
      {{2, 1, 3}, 1000000, {2, 0, 1}},
  };
  for (const Case& c : cases) {
    for (std::uint64_t seed = 0; seed < 20; ++seed) {
      EXPECT_EQ(Pick("max-score-picker", c.k, c.scores, seed), c.picked) << seed;
      EXPECT_EQ(Pick("max-score-picker", c.k, c.scores, seed, true), c.picked) << seed;
    }
  }
}

// Counts how often each ordered result turns up.
std::map<std::vector<Position>, int> Histogram(const std::string& type, int k,
                                               const std::vector<double>& scores, int seeds) {
  std::map<std::vector<Position>, int> count;
  for (int seed = 0; seed < seeds; ++seed) ++count[Pick(type, k, scores, static_cast<std::uint64_t>(seed))];
  return count;
}

TEST(MaxScorePicker, OrdersOfEqualsAreEquallyLikely) {
  // Two slots for three equals behind a better one: 6 orders, 1000 each; a deviation of 29 is usual.
  const auto count = Histogram("max-score-picker", 3, {1, 1, 9, 1}, 6000);
  EXPECT_EQ(count.size(), 6u);
  for (const auto& [picked, n] : count) {
    EXPECT_EQ(picked[0], 2u);
    EXPECT_NEAR(n, 1000, 120);
  }
}

TEST(RandomPicker, EveryOrderIsEquallyLikely) {
  const auto count = Histogram("random-picker", 3, {5, 0, std::numeric_limits<double>::quiet_NaN()}, 6000);
  EXPECT_EQ(count.size(), 6u);
  for (const auto& [picked, n] : count) EXPECT_NEAR(n, 1000, 120);
}

TEST(WeightedRandomPicker, DrawsWithoutReplacement) {
  // Weights 1, 2, 5: P(i, j) = w_i / 8 * w_j / (8 - w_i), of 20000.
  const std::map<std::vector<Position>, int> expected = {
      {{0, 1}, 714},   // 1/8 * 2/7
      {{0, 2}, 1786},  // 1/8 * 5/7
      {{1, 0}, 833},   // 2/8 * 1/6
      {{1, 2}, 4167},  // 2/8 * 5/6
      {{2, 0}, 4167},  // 5/8 * 1/3
      {{2, 1}, 8333},  // 5/8 * 2/3
  };
  const auto count = Histogram("weighted-random-picker", 2, {1, 2, 5}, 20000);
  EXPECT_EQ(count.size(), expected.size());
  for (const auto& [picked, n] : expected) {
    // Four standard deviations, sqrt(n (1 - n / 20000)).
    EXPECT_NEAR(count.at(picked), n, 4 * std::sqrt(n * (1 - n / 20000.0))) << picked[0] << picked[1];
  }
}

TEST(WeightedRandomPicker, ScoresMayExceedOneAndScaleDoesNotMatter) {
  for (const double scale : {1e-6, 1.0, 1e6}) {
    // 3 : 1 of 4000; a deviation of 27 is usual.
    const auto count = Histogram("weighted-random-picker", 1, {3 * scale, 1 * scale}, 4000);
    EXPECT_NEAR(count.at({0}), 3000, 110) << scale;
  }
}

TEST(WeightedRandomPicker, ZeroNegativeAndNanComeLastInRandomOrder) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  const auto count = Histogram("weighted-random-picker", 9, {0, 0.001, -3, kNan}, 6000);
  EXPECT_EQ(count.size(), 6u);
  for (const auto& [picked, n] : count) {
    EXPECT_EQ(picked.size(), 4u);
    EXPECT_EQ(picked[0], 1u);
    EXPECT_NEAR(n, 1000, 120);
  }
  // Nobody above 0: all alike.
  const auto alike = Histogram("weighted-random-picker", 1, {0, -3, kNan}, 3000);
  EXPECT_EQ(alike.size(), 3u);
  for (const auto& [picked, n] : alike) EXPECT_NEAR(n, 1000, 120);
}

TEST(WeightedRandomPicker, AnInfiniteScoreWins) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    EXPECT_THAT(Pick("weighted-random-picker", 1, {1e300, std::numeric_limits<double>::infinity()}, seed),
                ElementsAre(1));
  }
}

TEST_P(AllPickers, LimitsOfK) {
  for (const int k : {0, -1, -1000000}) EXPECT_EQ(Pick(GetParam(), k, {1, 2, 3}, 7).size(), 1u) << k;
  EXPECT_EQ(Pick(GetParam(), 3, {1, 2, 3}, 7).size(), 3u);
  EXPECT_EQ(Pick(GetParam(), 4, {1, 2, 3}, 7).size(), 3u);
  EXPECT_THAT(Pick(GetParam(), 5, {1}, 7), ElementsAre(0));
  PluginUnderTest plugin(GetParam(), {});
  EXPECT_TRUE(plugin.status.ok());
  for (const Value& bad : {Value("many"), Value(1.5), Value(true)}) {
    EXPECT_FALSE(PluginUnderTest(GetParam(), Parameters({{"maxNumOfEndpoints", bad}})).status.ok());
  }
  EXPECT_FALSE(PluginUnderTest(GetParam(), Parameters({{"k", 1}})).status.ok());
}

}  // namespace
}  // namespace llmd::sched
