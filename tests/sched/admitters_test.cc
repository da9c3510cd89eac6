// Admitters: golden probabilities, and the rules of the latency objective.
#include <gmock/gmock.h>

#include <limits>

#include "tests/sched/sched_test_util.h"

namespace llmd::sched {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

struct Load {
  std::optional<std::int64_t> queue;
  std::optional<double> kv;
};

EndpointPool PoolOf(const std::vector<Load>& loads, absl::Time at = kNow) {
  EndpointPool pool = MakePool(loads.size());
  for (Position p = 0; p < loads.size(); ++p) {
    if (loads[p].queue) MetricsAt(pool, p).waiting_requests = {*loads[p].queue, at};
    if (loads[p].kv) MetricsAt(pool, p).kv_cache_usage = {*loads[p].kv, at};
  }
  return pool;
}

// The share of 4000 seeds for which a request of this priority is refused.
double Refused(PluginUnderTest& plugin, const EndpointPool& pool, std::int32_t priority = -1) {
  EXPECT_TRUE(plugin.status.ok()) << plugin.status;
  const std::vector<Position> candidates = AllPositions(pool);
  Request request;
  request.priority = priority;
  int refused = 0;
  for (std::uint64_t seed = 0; seed < 4000; ++seed) {
    Random random(seed);
    Context context{request, pool, kNow, random, *plugin.columns};
    const absl::Status status = plugin.As<Admitter>().Admit(context, candidates);
    if (status.ok()) continue;
    ++refused;
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(GetDroppedReason(status), DroppedReason::kSaturated);
  }
  return refused / 4000.0;
}

TEST(ProbabilisticAdmitter, ProbabilityIsAPowerOfTheSaturation) {
  struct Case {
    std::vector<Load> loads;
    double probability;
  };
  const Case cases[] = {
      {{{0, 0.0}}, 0},                  // s = 0
      {{{1, 0.0}}, 0.096},              // s = 1/5: 0.2^5 * 300 = 0.00032 * 300
      {{{0, 0.16}}, 0.096},             // s = 0.16/0.8 = 0.2
      {{{1, 0.2}}, 0.29296875},         // s = max(0.2, 0.25): 0.25^5 * 300 = 0.0009765625 * 300
      {{{1, 0.0}, {2, 0.0}}, 0.729},    // s = (0.2 + 0.4) / 2 = 0.3: 0.00243 * 300
      {{{0, 0.0}, {2, 0.0}}, 0.096},    // s = (0 + 0.4) / 2 = 0.2
      {{{5, 0.0}}, 1},                  // s = 1: 300, cut to 1
      {{{1000000, 5.0}}, 1},            // beyond full
      {{{1, std::nullopt}}, 0.096},     // one of the values is enough
      {{{std::nullopt, 0.16}}, 0.096},  //
      {{{std::nullopt, std::nullopt}, {0, 0.0}, {0, 0.0}, {0, 0.0}, {0, 0.0}}, 0.096},  // s = 1/5
      {{{-7, -0.5}}, 0},                                                                // nonsense is no load
      {{{0, kNan}}, 0},
      {{{std::numeric_limits<std::int64_t>::min(), -kInf}}, 0},
      {{{0, kInf}}, 1},
      {{{std::numeric_limits<std::int64_t>::max(), 0.0}}, 1},
  };
  for (const Case& c : cases) {
    PluginUnderTest plugin("probabilistic-admitter", {});
    // Four standard deviations of a share of 4000 are below 0.032.
    const double tolerance = c.probability == 0 || c.probability == 1 ? 0 : 0.032;
    EXPECT_NEAR(Refused(plugin, PoolOf(c.loads)), c.probability, tolerance) << c.probability;
  }
}

TEST(ProbabilisticAdmitter, ParametersShapeTheCurve) {
  // s = max(4/8, 0.25/0.5) = 0.5; 0.5^2 * 2 = 0.5
  PluginUnderTest plugin(
      "probabilistic-admitter",
      Parameters({{"queueDepthThreshold", 8}, {"kvCacheUtilThreshold", 0.5}, {"power", 2}, {"k", 2}}));
  EXPECT_NEAR(Refused(plugin, PoolOf({{4, 0.25}})), 0.5, 0.032);
  EXPECT_EQ(Refused(plugin, PoolOf({{1000, 1.0}})), 1);
}

TEST(ProbabilisticAdmitter, LetsProtectedRequestsPass) {
  PluginUnderTest plugin("probabilistic-admitter", {});
  EXPECT_EQ(Refused(plugin, PoolOf({{1000, 1.0}}), 0), 0);
  EXPECT_EQ(Refused(plugin, PoolOf({{1000, 1.0}}), 7), 0);
  EXPECT_EQ(Refused(plugin, PoolOf({{1000, 1.0}}), std::numeric_limits<std::int32_t>::min()), 1);
  EXPECT_EQ(Refused(plugin, PoolOf({})), 0);  // nobody to be saturated
}

TEST(ProbabilisticAdmitter, WhatWasNeverReadOrIsStaleIsFull) {
  PluginUnderTest safe("probabilistic-admitter", {});
  EXPECT_EQ(Refused(safe, PoolOf({{}, {}})), 1);
  EXPECT_EQ(Refused(safe, PoolOf({{0, 0.0}}, kNow - absl::Hours(1))), 0);  // no limit of age by default
  PluginUnderTest strict("probabilistic-admitter", Parameters({{"metricsStalenessThreshold", "2s"}}));
  EXPECT_EQ(Refused(strict, PoolOf({{0, 0.0}}, kNow - absl::Milliseconds(2001))), 1);
  EXPECT_EQ(Refused(strict, PoolOf({{0, 0.0}}, kNow - absl::Seconds(2))), 0);
  PluginUnderTest idle("probabilistic-admitter", Parameters({{"unscraped", "idle"}}));
  EXPECT_EQ(Refused(idle, PoolOf({{}, {}})), 0);
  Compatibility compatibility;
  compatibility.unscraped_looks_idle = true;
  PluginUnderTest compatible("probabilistic-admitter", {}, {}, compatibility);
  EXPECT_EQ(Refused(compatible, PoolOf({{}, {}})), 0);
}

TEST(ProbabilisticAdmitter, ParameterErrors) {
  for (const char* field : {"queueDepthThreshold", "kvCacheUtilThreshold", "power", "k"}) {
    for (const double bad : {0.0, -1.0}) {
      PluginUnderTest plugin("probabilistic-admitter", Parameters({{field, bad}}));
      EXPECT_THAT(std::string(plugin.status.message()), HasSubstr(std::string(field) + " is ")) << bad;
      EXPECT_THAT(std::string(plugin.status.message()), HasSubstr("expected more than 0"));
    }
    EXPECT_FALSE(PluginUnderTest("probabilistic-admitter", Parameters({{field, "much"}})).status.ok());
  }
  EXPECT_THAT(std::string(PluginUnderTest("probabilistic-admitter", Parameters({{"K", 1}})).status.message()),
              HasSubstr("K is unknown"));
}

class LatencySloTest : public ::testing::Test {
 protected:
  LatencySloTest() {
    for (Position p = 0; p < 2; ++p) {
      MetricsAt(pool, p).running_requests = {3, kNow};
      MetricsAt(pool, p).kv_cache_usage = {0.5, kNow};
      predictions[p] = {.known = true, .ttft_valid = false, .tpot_valid = true};
    }
  }

  absl::Status Admit() {
    PluginUnderTest plugin("latency-slo-admitter", parameters, {}, compatibility);
    EXPECT_TRUE(plugin.status.ok()) << plugin.status;
    const auto slot = plugin.layout.Declare<LatencyPrediction>("predicted-latency-producer");
    plugin.columns = std::make_unique<DataColumns>(plugin.layout);  // also for a slot that it does not read
    plugin.columns->Begin(pool.size());
    if (published) {
      const std::span<LatencyPrediction> out = plugin.columns->Publish(slot);
      std::copy(predictions.begin(), predictions.end(), out.begin());
    }
    request.headers = headers;
    Random random(1);
    Context context{request, pool, kNow, random, *plugin.columns};
    return plugin.As<Admitter>().Admit(context, candidates);
  }

  Value parameters;
  Compatibility compatibility;
  EndpointPool pool = MakePool(2);
  std::vector<Position> candidates = {0, 1};
  std::vector<LatencyPrediction> predictions{2};
  bool published = true;
  std::vector<Header> headers = {{"x-llm-d-slo-ttft-ms", "200"}};
  Request request{.priority = -1};
};

TEST_F(LatencySloTest, RefusesWhenNobodyIsValidIdleOrCold) {
  const absl::Status status = Admit();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(GetDroppedReason(status), DroppedReason::kSaturated);
  EXPECT_THAT(std::string(status.message()), HasSubstr("latency-slo-admitter"));
}

TEST_F(LatencySloTest, OneValidEndpointIsEnough) {
  predictions[1].ttft_valid = true;
  EXPECT_TRUE(Admit().ok());
  predictions[1].tpot_valid = false;  // both must be
  EXPECT_FALSE(Admit().ok());
  predictions[1] = {.known = false, .ttft_valid = true, .tpot_valid = true};  // an empty promise
  EXPECT_FALSE(Admit().ok());
}

TEST_F(LatencySloTest, OneIdleEndpointIsEnough) {
  MetricsAt(pool, 1).running_requests.value = 0;
  EXPECT_TRUE(Admit().ok());
  MetricsAt(pool, 1).running_requests.value = 1;
  EXPECT_FALSE(Admit().ok());
  MetricsAt(pool, 1).running_requests.value = -4;
  EXPECT_FALSE(Admit().ok());
}

TEST_F(LatencySloTest, OneColdEndpointIsEnough) {
  for (const auto& [usage, admits] : std::vector<std::pair<double, bool>>{{0.0, true},
                                                                          {0.0199, true},
                                                                          {0.02, false},
                                                                          {0.03, false},
                                                                          {-1.0, false},
                                                                          {kNan, false},
                                                                          {kInf, false}}) {
    MetricsAt(pool, 1).kv_cache_usage.value = usage;
    EXPECT_EQ(Admit().ok(), admits) << usage;
  }
}

TEST_F(LatencySloTest, OnlyCandidatesCount) {
  MetricsAt(pool, 1).running_requests.value = 0;
  candidates = {0};
  EXPECT_FALSE(Admit().ok());
  candidates = {};
  EXPECT_TRUE(Admit().ok());
}

TEST_F(LatencySloTest, WhatWasNeverReadIsNeitherIdleNorCold) {
  MetricsAt(pool, 1) = {};
  EXPECT_FALSE(Admit().ok());
  compatibility.unscraped_looks_idle = true;
  EXPECT_TRUE(Admit().ok());
}

TEST_F(LatencySloTest, AdmitsWithoutPredictions) {
  published = false;
  EXPECT_TRUE(Admit().ok());
  published = true;
  predictions = {LatencyPrediction{}, LatencyPrediction{}};
  EXPECT_TRUE(Admit().ok());
  predictions[0].known = true;  // one is enough to judge by
  EXPECT_FALSE(Admit().ok());
}

TEST_F(LatencySloTest, OnlyRequestsThatMayBeShedAndHaveAnObjective) {
  request.priority = 0;
  EXPECT_TRUE(Admit().ok());
  request.priority = -1;
  struct Case {
    std::vector<Header> headers;
    bool admits;
  };
  const Case cases[] = {
      {{}, true},
      {{{"x-llm-d-slo-ttft-ms", "0"}}, true},
      {{{"x-llm-d-slo-ttft-ms", "-5"}}, true},
      {{{"x-llm-d-slo-ttft-ms", "soon"}}, true},
      {{{"x-llm-d-slo-ttft-ms", ""}}, true},
      {{{"x-llm-d-slo-ttft-ms", "nan"}}, true},
      {{{"x-llm-d-slo-ttft-ms", "0.5"}}, false},
      {{{"x-llm-d-slo-tpot-ms", "20"}}, false},
      {{{"x-slo-ttft-ms", "200"}}, false},
      {{{"x-slo-tpot-ms", "20"}}, false},
      {{{"x-slo-ttft-ms", "200"}, {"x-llm-d-slo-ttft-ms", "0"}}, true},  // the new name goes first
      {{{"x-llm-d-slo-ttft-ms", "0"}, {"x-llm-d-slo-tpot-ms", "20"}}, false},
  };
  for (const Case& c : cases) {
    headers = c.headers;
    EXPECT_EQ(Admit().ok(), c.admits) << (c.headers.empty() ? "none" : c.headers[0].value);
  }
}

TEST_F(LatencySloTest, Parameters) {
  parameters = Value::MakeMap({{"latencyPredictionInfoProducerName", "other"}});
  EXPECT_TRUE(Admit().ok());  // what is published is another producer's
  PluginUnderTest plugin("latency-slo-admitter", Value::MakeMap({{"threshold", 1}}));
  EXPECT_THAT(std::string(plugin.status.message()), HasSubstr("threshold is unknown"));
}

// In a scheduler.

TEST(AdmittersInAScheduler, ADenialKeepsItsCodeUnlessCompatible) {
  for (const bool internal : {false, true}) {
    SchedulerConfig config;
    config.feature_gates.flow_control = true;  // the admission by saturation is not what is tested
    config.compatibility.admission_denial_is_internal = internal;
    config.plugins = {{"shed", "probabilistic-admitter", {}}, {"", "queue-scorer", {}}};
    const auto scheduler = Scheduler::Create(config, PluginRegistry::Builtin(), {});
    ASSERT_TRUE(scheduler.ok()) << scheduler.status();
    const EndpointPool pool = PoolOf({{50, 1.0}, {60, 1.0}});
    Request request{.priority = -1};
    Workspace workspace(**scheduler);
    Decision decision;
    Explanation explanation;
    const auto schedule = [&] {
      return (*scheduler)
          ->Schedule({.request = request, .pool = pool, .now = kNow, .seed = 3}, workspace, decision,
                     &explanation);
    };
    const absl::Status status = schedule();
    EXPECT_EQ(status.code(), internal ? absl::StatusCode::kInternal : absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(GetDroppedReason(status), internal ? DroppedReason::kNone : DroppedReason::kSaturated);
    EXPECT_EQ(status.message(), "shed: rejected, saturation 11.000 gives probability 1.00");  // (10 + 12) / 2
    EXPECT_EQ(explanation.refused_by, "shed");
    EXPECT_EQ(decision.profiles[0].state, ProfileState::kPending);
    request.priority = 0;
    EXPECT_TRUE(schedule().ok());
    EXPECT_EQ(explanation.refused_by, "");
  }
}

}  // namespace
}  // namespace llmd::sched
