#include <gmock/gmock.h>

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

}  // namespace
}  // namespace llmd::sched
