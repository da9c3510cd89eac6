// utilization-detector: golden saturations, and which endpoints have room.
#include <gmock/gmock.h>

#include <limits>

#include "tests/sched/sched_test_util.h"

namespace llmd::sched {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

struct Load {
  std::int64_t queue = 0;
  double kv = 0;
  absl::Duration age = absl::ZeroDuration();
  bool scraped = true;
};

EndpointPool PoolOf(const std::vector<Load>& loads) {
  EndpointPool pool = MakePool(loads.size());
  for (Position p = 0; p < loads.size(); ++p) {
    if (!loads[p].scraped) continue;
    MetricsAt(pool, p).waiting_requests = {loads[p].queue, kNow - loads[p].age};
    MetricsAt(pool, p).kv_cache_usage = {loads[p].kv, kNow - loads[p].age};
  }
  return pool;
}

double Saturation(const std::vector<Load>& loads, const Value& parameters = {},
                  const Compatibility& compatibility = {}) {
  PluginUnderTest plugin("utilization-detector", parameters, {}, compatibility);
  EXPECT_TRUE(plugin.status.ok()) << plugin.status;
  const EndpointPool pool = PoolOf(loads);
  return plugin.As<SaturationDetector>().Saturation(pool, AllPositions(pool), kNow);
}

std::vector<std::string> Dropped(const std::vector<Load>& loads, const Value& parameters = {}) {
  PluginUnderTest plugin("utilization-detector", parameters);
  EXPECT_TRUE(plugin.status.ok()) << plugin.status;
  const EndpointPool pool = PoolOf(loads);
  const std::vector<Position> candidates = AllPositions(pool);
  std::vector<DropReason> dropped(candidates.size());
  Request request;
  Random random(1);
  Context context{request, pool, kNow, random, *plugin.columns};
  plugin.As<Filter>().Apply(context, candidates, dropped);
  std::vector<std::string> reasons;
  for (const DropReason reason : dropped) reasons.push_back(reason == nullptr ? "" : reason);
  return reasons;
}

constexpr Load kStale{.queue = 0, .kv = 0, .age = absl::Milliseconds(201)};
constexpr Load kUnscraped{.scraped = false};

TEST(UtilizationDetector, SaturationIsTheMeanOfTheFullerResource) {
  EXPECT_DOUBLE_EQ(Saturation({}), 1.0);
  EXPECT_DOUBLE_EQ(Saturation({{0, 0.0}}), 0.0);
  EXPECT_DOUBLE_EQ(Saturation({{2, 0.0}}), 0.4);             // 2/5
  EXPECT_DOUBLE_EQ(Saturation({{0, 0.4}}), 0.5);             // 0.4/0.8
  EXPECT_DOUBLE_EQ(Saturation({{2, 0.4}}), 0.5);             // max(0.4, 0.5)
  EXPECT_DOUBLE_EQ(Saturation({{5, 0.0}}), 1.0);             // 5/5
  EXPECT_DOUBLE_EQ(Saturation({{20, 0.0}, {0, 0.0}}), 2.0);  // (4 + 0) / 2
  EXPECT_DOUBLE_EQ(Saturation({{1, 0.0}, {0, 0.2}, {3, 0.8}}), (0.2 + 0.25 + 1.0) / 3);
  EXPECT_DOUBLE_EQ(
      Saturation({{4, 0.3}}, Parameters({{"queueDepthThreshold", 8}, {"kvCacheUtilThreshold", 0.5}})),
      0.6);  // max(4/8, 0.3/0.5)
}

TEST(UtilizationDetector, StaleEndpointsDoNotStopTraffic) {
  EXPECT_DOUBLE_EQ(Saturation({{5, 0.0}, kStale, kUnscraped}), 1.0);
  EXPECT_DOUBLE_EQ(Saturation({{1, 0.0}, kStale, kUnscraped}), 0.2);
  EXPECT_DOUBLE_EQ(Saturation({kStale}), 0.0);
  EXPECT_DOUBLE_EQ(Saturation({kUnscraped}), 0.0);
  EXPECT_DOUBLE_EQ(Saturation({{1, 0.0, absl::Milliseconds(200)}}), 0.2);  // just fresh
  EXPECT_DOUBLE_EQ(Saturation({kStale}, Parameters({{"metricsStalenessThreshold", "1s"}})), 0.0);
}

TEST(UtilizationDetector, StaleEndpointsAreFullWhenCompatible) {
  // (0.2 + 1 + 1) / 3
  EXPECT_DOUBLE_EQ(Saturation({{1, 0.0}, kStale, kUnscraped}, {}, Compatibility::LlmD()), 2.2 / 3);
  EXPECT_DOUBLE_EQ(Saturation({kStale}, {}, Compatibility::LlmD()), 1.0);
  EXPECT_DOUBLE_EQ(Saturation({kStale}, Parameters({{"stalenessPolicy", "ignore"}}), Compatibility::LlmD()),
                   0.0);
  EXPECT_DOUBLE_EQ(Saturation({kUnscraped}, Parameters({{"stalenessPolicy", "saturated"}})), 1.0);
}

TEST(UtilizationDetector, NonsenseIsNoLoadAndNeverNan) {
  EXPECT_DOUBLE_EQ(Saturation({{-5, -1.0}}), 0.0);
  EXPECT_DOUBLE_EQ(Saturation({{2, kNan}}), 0.4);
  EXPECT_DOUBLE_EQ(Saturation({{0, kNan}}), 0.0);
  EXPECT_EQ(Saturation({{0, kInf}}), kInf);
  EXPECT_DOUBLE_EQ(Saturation({{0, -kInf}, {5, 0.0}}), 0.5);
  EXPECT_GT(Saturation({{std::numeric_limits<std::int64_t>::max(), 0.0}}), 1.0);
}

TEST(UtilizationDetector, FilterKeepsWhoHasRoom) {
  EXPECT_THAT(Dropped({{4, 0.79}, {5, 0.1}, {0, 0.8}, {9, 0.9}, kStale, kUnscraped}),
              ElementsAre("", "queue is full", "KV cache is full", "queue is full", "metrics are stale",
                          "metrics are stale"));
  // 20 % more: queue < 6, kv < 0.96
  EXPECT_THAT(Dropped({{5, 0.95}, {6, 0.1}, {0, 0.97}}, Parameters({{"headroom", 0.2}})),
              ElementsAre("", "queue is full", "KV cache is full"));
  EXPECT_THAT(Dropped({{4, kNan}, {0, 0.0}}), ElementsAre("KV cache is full", ""));
  EXPECT_THAT(Dropped({{-4, -1.0}}), ElementsAre(""));
}

TEST(UtilizationDetector, FilterLeavesAllWhenNobodyHas) {
  EXPECT_THAT(Dropped({{5, 0.1}, {0, 0.9}, kStale, kUnscraped}), ElementsAre("", "", "", ""));
  EXPECT_THAT(Dropped({kStale}), ElementsAre(""));
  EXPECT_THAT(Dropped({}), ElementsAre());
}

TEST(UtilizationDetector, ParameterErrors) {
  struct Case {
    const char* field;
    Value value;
    const char* message;
  };
  const Case cases[] = {
      {"queueDepthThreshold", 0, "queueDepthThreshold is 0, expected more than 0"},
      {"queueDepthThreshold", -1, "queueDepthThreshold is -1"},
      {"kvCacheUtilThreshold", 0, "kvCacheUtilThreshold is 0, expected more than 0 and at most 1"},
      {"kvCacheUtilThreshold", 1.01, "kvCacheUtilThreshold is 1.01"},
      {"metricsStalenessThreshold", "0s", "metricsStalenessThreshold is 0, expected more than 0"},
      {"metricsStalenessThreshold", "-1s", "metricsStalenessThreshold is -1s"},
      {"metricsStalenessThreshold", 200, "metricsStalenessThreshold is an integer"},
      {"headroom", -0.1, "headroom is -0.1, expected at least 0"},
      {"stalenessPolicy", "panic", "stalenessPolicy is panic, expected saturated or ignore"},
      {"threshold", 1, "threshold is unknown"},
  };
  for (const Case& c : cases) {
    const PluginUnderTest plugin("utilization-detector", Parameters({{c.field, c.value}}));
    EXPECT_THAT(std::string(plugin.status.message()), HasSubstr(c.message));
  }
}

}  // namespace
}  // namespace llmd::sched
