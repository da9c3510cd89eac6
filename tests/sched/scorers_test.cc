// Score tables computed by hand from the formulas of spec scheduling.md 2.4.
#include <gmock/gmock.h>

#include <limits>
#include <optional>

#include "tests/sched/sched_test_util.h"

namespace llmd::sched {
namespace {

using ::testing::DoubleEq;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsNan;

std::vector<double> Scores(const std::string& type, const Value& parameters, const EndpointPool& pool) {
  PluginUnderTest plugin(type, parameters);
  EXPECT_TRUE(plugin.status.ok()) << plugin.status;
  Request request;
  Random random(1);
  Context context{request, pool, kNow, random, *plugin.columns};
  const std::vector<Position> all = AllPositions(pool);
  std::vector<double> scores(all.size(), kNoScore);
  plugin.As<Scorer>().Score(context, all, scores);
  return scores;
}

using Counts = std::vector<std::optional<std::int64_t>>;

EndpointPool PoolWith(Sample<std::int64_t> Metrics::*member, const Counts& counts, absl::Time at = kNow) {
  EndpointPool pool = MakePool(counts.size());
  for (Position p = 0; p < counts.size(); ++p) {
    if (counts[p]) MetricsAt(pool, p).*member = {*counts[p], at};
  }
  return pool;
}

struct CountCase {
  const char* type;
  Sample<std::int64_t> Metrics::*member;
};

class CountScorers : public ::testing::TestWithParam<CountCase> {
 protected:
  std::vector<double> Run(const Counts& counts, const Value& parameters = {}, absl::Time at = kNow) {
    return Scores(GetParam().type, parameters, PoolWith(GetParam().member, counts, at));
  }
};

TEST_P(CountScorers, MinMaxOverCandidates) {
  EXPECT_THAT(Run({3, 0, 10}), ElementsAre(DoubleEq(0.7), 1.0, 0.0));
  EXPECT_THAT(Run({5, 9}), ElementsAre(1.0, 0.0));
}

TEST_P(CountScorers, EqualValuesAndSingleEndpointScoreOne) {
  EXPECT_THAT(Run({4, 4, 4}), ElementsAre(1.0, 1.0, 1.0));
  EXPECT_THAT(Run({0, 0}), ElementsAre(1.0, 1.0));
  EXPECT_THAT(Run({7}), ElementsAre(1.0));
  EXPECT_TRUE(Run({}).empty());
}

TEST_P(CountScorers, NeverScrapedDoesNotLookIdle) {
  EXPECT_THAT(Run({2, std::nullopt, 6}), ElementsAre(1.0, IsNan(), 0.0));
  EXPECT_THAT(Run({std::nullopt}), ElementsAre(IsNan()));
  EXPECT_THAT(Run({2, std::nullopt, 6}, Parameters({{"unscraped", "idle"}})),
              ElementsAre(DoubleEq(2.0 / 3), 1.0, 0.0));
}

TEST_P(CountScorers, StaleValuesCountAsUnknown) {
  const Value limit = Parameters({{"metricsStalenessThreshold", "200ms"}});
  EXPECT_THAT(Run({1, 2}, limit, kNow - absl::Milliseconds(200)), ElementsAre(1.0, 0.0));
  EXPECT_THAT(Run({1, 2}, limit, kNow - absl::Milliseconds(201)), ElementsAre(IsNan(), IsNan()));
}

TEST_P(CountScorers, HostileValuesStayInRange) {
  constexpr auto kMin = std::numeric_limits<std::int64_t>::min();
  constexpr auto kMax = std::numeric_limits<std::int64_t>::max();
  EXPECT_THAT(Run({kMin, kMax}), ElementsAre(1.0, 0.0));
  EXPECT_THAT(Run({-5, 5, 0}), ElementsAre(1.0, 0.0, 0.5));
}

TEST_P(CountScorers, BadParameters) {
  const auto message = [](const Value& p) {
    return std::string(PluginUnderTest(GetParam().type, p).status.message());
  };
  EXPECT_THAT(message(Parameters({{"unscraped", "busy"}})),
              HasSubstr("unscraped is busy, expected worst or idle"));
  EXPECT_THAT(message(Parameters({{"metricsStalenessThreshold", "0s"}})), HasSubstr("expected more than 0"));
  EXPECT_THAT(message(Parameters({{"metricsStalenessThreshold", "1s"}, {"unscraped", "idle"}})),
              HasSubstr("none with unscraped: idle"));
  EXPECT_THAT(message(Parameters({{"weight", 1}})), HasSubstr("weight is unknown"));
}

INSTANTIATE_TEST_SUITE_P(Types, CountScorers,
                         ::testing::Values(CountCase{"queue-scorer", &Metrics::waiting_requests},
                                           CountCase{"running-requests-size-scorer",
                                                     &Metrics::running_requests}),
                         [](const auto& info) { return std::string(info.index == 0 ? "queue" : "running"); });

TEST(KvCacheUtilizationScorer, OneMinusUsage) {
  EndpointPool pool = MakePool(6);
  const double usage[] = {0.0, 0.25, 1.0, 1.5, -0.5};
  for (Position p = 0; p < 5; ++p) MetricsAt(pool, p).kv_cache_usage = {usage[p], kNow};
  // Values outside 0..1 are clamped by the profile. The last endpoint was never scraped.
  EXPECT_THAT(Scores("kv-cache-utilization-scorer", {}, pool),
              ElementsAre(1.0, 0.75, 0.0, -0.5, 1.5, IsNan()));
  EXPECT_THAT(Scores("kv-cache-utilization-scorer", Parameters({{"unscraped", "idle"}}), pool),
              ElementsAre(1.0, 0.75, 0.0, -0.5, 1.5, 1.0));
}

}  // namespace
}  // namespace llmd::sched
