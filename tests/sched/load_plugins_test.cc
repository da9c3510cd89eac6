// Scorers and filters of load: tables computed by hand from spec scheduling.md 2.3, 2.4 and 8.1.
#include <gmock/gmock.h>

#include <limits>

#include "llmd/sched/in_flight.h"
#include "tests/sched/plugin_bench.h"

namespace llmd::sched {
namespace {

using ::testing::DoubleEq;
using ::testing::DoubleNear;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::IsNan;

constexpr auto kMin = std::numeric_limits<std::int64_t>::min();
constexpr auto kMax = std::numeric_limits<std::int64_t>::max();
const char* const kProducer = "inflight-load-producer";

using Counts = std::vector<std::optional<std::int64_t>>;

std::vector<double> LoadAware(const Counts& queue, const Value& parameters = {}, absl::Time at = kNow,
                              const Compatibility& compatibility = {}) {
  return PluginBench("load-aware-scorer", parameters, PoolWithMetric(&Metrics::waiting_requests, queue, at),
                     compatibility)
      .Scores();
}

TEST(LoadAwareScorer, HalfFallingToZeroAtTheThreshold) {
  // 0.5 * (1 - min(q, 128) / 128)
  EXPECT_THAT(LoadAware({0, 32, 64, 128, 1000}), ElementsAre(0.5, 0.375, 0.25, 0.0, 0.0));
  EXPECT_THAT(LoadAware({3}, Parameters({{"threshold", 10}})), ElementsAre(DoubleEq(0.35)));
  EXPECT_THAT(LoadAware({64, 64}), ElementsAre(0.25, 0.25));
  EXPECT_THAT(LoadAware({}), IsEmpty());
}

TEST(LoadAwareScorer, SenselessThresholdsGiveTheDefault) {
  EXPECT_THAT(LoadAware({64}, Parameters({{"threshold", 0}})), ElementsAre(0.25));
  EXPECT_THAT(LoadAware({64}, Parameters({{"threshold", -5}})), ElementsAre(0.25));
}

TEST(LoadAwareScorer, HostileQueuesStayInRange) {
  EXPECT_THAT(LoadAware({-5, kMin, kMax}), ElementsAre(0.5, 0.5, 0.0));
  EXPECT_THAT(LoadAware({kMax - 1}, Parameters({{"threshold", kMax}})), ElementsAre(DoubleNear(0, 1e-9)));
}

TEST(LoadAwareScorer, NeverScrapedAndStaleGetNoScore) {
  EXPECT_THAT(LoadAware({std::nullopt, 64}), ElementsAre(IsNan(), 0.25));
  EXPECT_THAT(LoadAware({std::nullopt, 64}, Parameters({{"unscraped", "idle"}})), ElementsAre(0.5, 0.25));
  EXPECT_THAT(LoadAware({std::nullopt, 64}, {}, kNow, {.unscraped_looks_idle = true}),
              ElementsAre(0.5, 0.25));
  const Value limit = Parameters({{"metricsStalenessThreshold", "1s"}});
  EXPECT_THAT(LoadAware({64}, limit, kNow - absl::Seconds(1)), ElementsAre(0.25));
  EXPECT_THAT(LoadAware({64}, limit, kNow - absl::Milliseconds(1001)), ElementsAre(IsNan()));
}

TEST(LoadAwareScorer, BadParameters) {
  EXPECT_THAT(ParameterError("load-aware-scorer", Parameters({{"threshold", "many"}})),
              HasSubstr("threshold is a string, expected an integer"));
  EXPECT_THAT(ParameterError("load-aware-scorer", Parameters({{"unscraped", "x"}})),
              HasSubstr("worst or idle"));
  EXPECT_THAT(ParameterError("load-aware-scorer", Parameters({{"depth", 1}})), HasSubstr("depth is unknown"));
}

std::vector<InFlightLoad> Requests(const std::vector<std::int64_t>& counts) {
  std::vector<InFlightLoad> load;
  for (const std::int64_t count : counts) load.push_back({.requests = count});
  return load;
}

std::vector<double> ActiveRequest(const std::vector<std::int64_t>& counts, const Value& parameters = {}) {
  PluginBench bench("active-request-scorer", parameters, MakePool(counts.size()));
  bench.Publish(kProducer, Requests(counts));
  return bench.Scores();
}

TEST(ActiveRequestScorer, ComparedWithTheBusiest) {
  // M = 8: (8 - c) / 8
  EXPECT_THAT(ActiveRequest({0, 2, 4, 8}), ElementsAre(1.0, 0.75, 0.5, 0.0));
  EXPECT_THAT(ActiveRequest({3, 3}), ElementsAre(0.0, 0.0));
  EXPECT_THAT(ActiveRequest({0, 0}), ElementsAre(1.0, 1.0));
  EXPECT_THAT(ActiveRequest({5}), ElementsAre(0.0));
  EXPECT_THAT(ActiveRequest({0}), ElementsAre(1.0));
  EXPECT_THAT(ActiveRequest({}), IsEmpty());
}

TEST(ActiveRequestScorer, IdleThresholdAndBusyScore) {
  EXPECT_THAT(ActiveRequest({0, 2, 4, 8}, Parameters({{"idleThreshold", 2}})),
              ElementsAre(1.0, 1.0, 0.5, 0.0));
  EXPECT_THAT(ActiveRequest({0, 2, 8}, Parameters({{"maxBusyScore", 0.5}})), ElementsAre(1.0, 0.375, 0.0));
  EXPECT_THAT(ActiveRequest({0, 2, 8}, Parameters({{"maxBusyScore", 0}})), ElementsAre(1.0, 0.0, 0.0));
  EXPECT_THAT(ActiveRequest({1, 2}, Parameters({{"idleThreshold", 9}})), ElementsAre(1.0, 1.0));
}

TEST(ActiveRequestScorer, SenselessParametersGiveTheDefault) {
  EXPECT_THAT(ActiveRequest({0, 1, 2}, Parameters({{"idleThreshold", -7}})), ElementsAre(1.0, 0.5, 0.0));
  EXPECT_THAT(ActiveRequest({0, 1, 2}, Parameters({{"maxBusyScore", 1.5}})), ElementsAre(1.0, 0.5, 0.0));
  EXPECT_THAT(ActiveRequest({0, 1, 2}, Parameters({{"maxBusyScore", -0.1}})), ElementsAre(1.0, 0.5, 0.0));
}

TEST(ActiveRequestScorer, HostileCounts) {
  EXPECT_THAT(ActiveRequest({-3, kMin, 4}), ElementsAre(1.0, 1.0, 0.0));
  EXPECT_THAT(ActiveRequest({kMax, kMax / 2, kMin}), ElementsAre(0.0, DoubleNear(0.5, 1e-9), 1.0));
}

TEST(ActiveRequestScorer, OnlyCandidatesAreCompared) {
  PluginBench bench("active-request-scorer", {}, MakePool(3));
  bench.Publish(kProducer, Requests({2, 100, 4}));
  bench.candidates = {0, 2};
  EXPECT_THAT(bench.Scores(), ElementsAre(0.5, 0.0));
}

TEST(ActiveRequestScorer, NothingTrackedIsIdle) {
  EXPECT_THAT(PluginBench("active-request-scorer", {}, MakePool(2)).Scores(), ElementsAre(1.0, 1.0));
}

TEST(ActiveRequestScorer, ProducerByName) {
  PluginBench bench("active-request-scorer", Parameters({{"inFlightLoadProducerName", "mine"}}), MakePool(2));
  bench.Publish("mine", Requests({1, 2}));
  EXPECT_THAT(bench.Scores(), ElementsAre(0.5, 0.0));
  EXPECT_TRUE(bench.plugin.layout.entries()[0].required);
}

TEST(ActiveRequestScorer, Parameters) {
  EXPECT_EQ(ParameterError("active-request-scorer", Parameters({{"requestTimeout", "2m"}})), "");
  EXPECT_THAT(ParameterError("active-request-scorer", Parameters({{"maxBusyScore", "x"}})),
              HasSubstr("maxBusyScore is a string"));
  EXPECT_THAT(ParameterError("active-request-scorer",
                             Parameters({{"maxBusyScore", std::numeric_limits<double>::quiet_NaN()}})),
              HasSubstr("expected a finite number"));
}

struct Tokens {
  std::int64_t in_flight;
  std::int64_t cost;
};

std::vector<double> TokenLoad(const std::vector<Tokens>& tokens, const Value& parameters = {}) {
  PluginBench bench("token-load-scorer", parameters, MakePool(tokens.size()));
  std::vector<InFlightLoad> load;
  std::vector<UncachedRequestTokens> cost;
  for (const Tokens& t : tokens) {
    load.push_back({.tokens = t.in_flight});
    cost.push_back({t.cost});
  }
  bench.Publish(kProducer, load);
  bench.Publish(kProducer, cost);
  return bench.Scores();
}

TEST(TokenLoadScorer, SumOfLoadAndCost) {
  // T = 4194304 = 4 x 1048576
  EXPECT_THAT(TokenLoad({{0, 0}, {1048576, 0}, {1048576, 1048576}, {4194304, 0}, {9000000, 1}}),
              ElementsAre(1.0, 0.75, 0.5, 0.0, 0.0));
  EXPECT_THAT(TokenLoad({{100, 150}}, Parameters({{"queueThresholdTokens", 1000}})), ElementsAre(0.75));
  EXPECT_THAT(TokenLoad({{7, 0}, {7, 0}}, Parameters({{"queueThresholdTokens", 7}})), ElementsAre(0.0, 0.0));
  EXPECT_THAT(TokenLoad({}), IsEmpty());
}

TEST(TokenLoadScorer, SenselessThresholdsGiveTheDefault) {
  EXPECT_THAT(TokenLoad({{1048576, 0}}, Parameters({{"queueThresholdTokens", 0}})), ElementsAre(0.75));
  EXPECT_THAT(TokenLoad({{1048576, 0}}, Parameters({{"queueThresholdTokens", -1}})), ElementsAre(0.75));
}

TEST(TokenLoadScorer, HostileSumsDoNotOverflow) {
  EXPECT_THAT(TokenLoad({{kMax, kMax}, {kMin, kMin}, {-500, 100}, {kMax, kMin}}),
              ElementsAre(0.0, 1.0, 1.0, 1.0));
}

TEST(TokenLoadScorer, MissingPartsAreZero) {
  PluginBench nothing("token-load-scorer", {}, MakePool(2));
  EXPECT_THAT(nothing.Scores(), ElementsAre(1.0, 1.0));
  PluginBench cost_only("token-load-scorer", Parameters({{"queueThresholdTokens", 100}}), MakePool(2));
  cost_only.Publish<UncachedRequestTokens>(kProducer, {{25}, {50}});
  EXPECT_THAT(cost_only.Scores(), ElementsAre(0.75, 0.5));
}

Value Condition(const char* metric, Value max) {
  return Parameters({{"metric", metric}, {"maxValue", std::move(max)}});
}
Value Conditions(std::initializer_list<Value> conditions, bool fallback = false) {
  return Parameters({{"conditions", Value::MakeList(conditions)}, {"fallbackOnEmpty", fallback}});
}

TEST(UtilizationFilter, LimitsAreInclusive) {
  EXPECT_THAT(PluginBench("utilization-filter", Conditions({Condition("waiting-queue", 5)}),
                          PoolWithMetric(&Metrics::waiting_requests, Counts{4, 5, 6}))
                  .Kept(),
              ElementsAre(0, 1));
  EXPECT_THAT(PluginBench("utilization-filter", Conditions({Condition("running-requests", 0)}),
                          PoolWithMetric(&Metrics::running_requests, Counts{0, 1, -1}))
                  .Kept(),
              ElementsAre(0, 2));
  EXPECT_THAT(PluginBench("utilization-filter", Conditions({Condition("kv-cache-utilization", 0.9)}),
                          PoolWithMetric<double>(&Metrics::kv_cache_usage, {0.9, 0.91, 1.5}))
                  .Kept(),
              ElementsAre(0));
  PluginBench active("utilization-filter", Conditions({Condition("active-requests", 10)}), MakePool(3));
  active.Publish(kProducer, Requests({10, 11, 0}));
  EXPECT_THAT(active.Kept(), ElementsAre(0, 2));
}

TEST(UtilizationFilter, EveryConditionMustHold) {
  EndpointPool pool = MakePool(4);
  for (Position p = 0; p < 4; ++p) {
    MetricsAt(pool, p).waiting_requests = {p % 2 == 0 ? 1 : 9, kNow};
    MetricsAt(pool, p).kv_cache_usage = {p < 2 ? 0.5 : 0.95, kNow};
  }
  const Value both = Conditions({Condition("waiting-queue", 5), Condition("kv-cache-utilization", 0.9)});
  EXPECT_THAT(PluginBench("utilization-filter", both, pool).Kept(), ElementsAre(0));
}

TEST(UtilizationFilter, EmptyResultAndFallback) {
  const EndpointPool full = PoolWithMetric(&Metrics::waiting_requests, Counts{8, 9});
  EXPECT_THAT(PluginBench("utilization-filter", Conditions({Condition("waiting-queue", 5)}), full).Kept(),
              IsEmpty());
  EXPECT_THAT(
      PluginBench("utilization-filter", Conditions({Condition("waiting-queue", 5)}, true), full).Kept(),
      ElementsAre(0, 1));
  EXPECT_THAT(
      PluginBench("utilization-filter", Conditions({Condition("waiting-queue", 5)}), MakePool(0)).Kept(),
      IsEmpty());
}

TEST(UtilizationFilter, WhatIsNotKnownIsWithinTheLimits) {
  const Value all = Conditions({Condition("active-requests", 0), Condition("running-requests", 0),
                                Condition("waiting-queue", 0), Condition("kv-cache-utilization", 0)});
  EXPECT_THAT(PluginBench("utilization-filter", all, MakePool(2)).Kept(), ElementsAre(0, 1));
  EXPECT_THAT(
      PluginBench("utilization-filter", Conditions({Condition("kv-cache-utilization", 0.5)}),
                  PoolWithMetric<double>(&Metrics::kv_cache_usage, {std::numeric_limits<double>::quiet_NaN(),
                                                                    std::numeric_limits<double>::infinity()}))
          .Kept(),
      ElementsAre(0));
  // Stale values count as they stand.
  EXPECT_THAT(PluginBench("utilization-filter", Conditions({Condition("waiting-queue", 5)}),
                          PoolWithMetric(&Metrics::waiting_requests, Counts{9, 1}, kNow - absl::Hours(1)))
                  .Kept(),
              ElementsAre(1));
}

TEST(UtilizationFilter, NeedsTheProducerOnlyForActiveRequests) {
  const PluginUnderTest scraped("utilization-filter", Conditions({Condition("waiting-queue", 5)}));
  EXPECT_FALSE(scraped.layout.entries()[0].required);
  const PluginUnderTest active("utilization-filter", Conditions({Condition("active-requests", 5)}));
  EXPECT_TRUE(active.layout.entries()[0].required);
}

TEST(UtilizationFilter, BadParameters) {
  const auto error = [](const Value& p) { return ParameterError("utilization-filter", p); };
  EXPECT_THAT(error({}), HasSubstr("conditions is empty, expected at least one condition"));
  EXPECT_THAT(error(Parameters({{"conditions", 1}})), HasSubstr("conditions is an integer"));
  EXPECT_THAT(error(Conditions({Condition("queue", 1)})), HasSubstr("conditions[0].metric is \"queue\""));
  EXPECT_THAT(error(Conditions({Condition("waiting-queue", 1), Condition("kv-cache-utilization", 1.1)})),
              HasSubstr("conditions[1].maxValue is 1.1, expected at most 1"));
  EXPECT_THAT(error(Conditions({Condition("waiting-queue", -1)})), HasSubstr("expected at least 0"));
  EXPECT_THAT(error(Conditions({Parameters({{"metric", "waiting-queue"}})})),
              HasSubstr("conditions[0].maxValue is missing"));
  EXPECT_THAT(error(Conditions({Parameters({{"metric", "waiting-queue"}, {"maxValue", 1}, {"min", 0}})})),
              HasSubstr("conditions[0].min is unknown"));
  EXPECT_THAT(error(Conditions({Value(3)})), HasSubstr("conditions[0] is an integer"));
}

std::vector<Position> Outliers(const std::vector<std::int64_t>& counts, const Value& parameters = {}) {
  PluginBench bench("load-outlier-filter", parameters, MakePool(counts.size()));
  bench.Publish(kProducer, Requests(counts));
  return bench.Kept();
}

TEST(LoadOutlierFilter, MeanPlusDeviations) {
  // Mean 3, variance (4 + 4 + 4 + 36) / 4 = 12, deviation 3.46: the limit is 6.46, with two of them 9.93.
  EXPECT_THAT(Outliers({1, 1, 1, 9}), ElementsAre(0, 1, 2));
  EXPECT_THAT(Outliers({1, 1, 1, 9}, Parameters({{"standardDeviations", 2}})), ElementsAre(0, 1, 2, 3));
  // Mean 5, deviation 5: exactly at the limit stays.
  EXPECT_THAT(Outliers({0, 10}), ElementsAre(0, 1));
  EXPECT_THAT(Outliers({0, 10}, Parameters({{"standardDeviations", 0}})), ElementsAre(0));
}

TEST(LoadOutlierFilter, NeverLeavesNothing) {
  EXPECT_THAT(Outliers({}), IsEmpty());
  EXPECT_THAT(Outliers({7}), ElementsAre(0));
  const Value strict = Parameters({{"standardDeviations", 0}});
  EXPECT_THAT(Outliers({7, 7, 7}, strict), ElementsAre(0, 1, 2));
  EXPECT_THAT(Outliers({kMax, kMax, kMax}, strict), ElementsAre(0, 1, 2));
  const std::int64_t odd = (std::int64_t{1} << 53) - 1;
  EXPECT_THAT(Outliers({odd, odd, odd}, strict), ElementsAre(0, 1, 2));
  // From the lowest: 0, 2^64, 2^63; mean 2^63, deviation 0.816 x 2^63, limit 1.816 x 2^63.
  EXPECT_THAT(Outliers({kMin, kMax, 0}), ElementsAre(0, 2));
}

TEST(LoadOutlierFilter, ScrapedMetrics) {
  for (const auto& [name, member] : {std::pair("running-requests", &Metrics::running_requests),
                                     std::pair("waiting-queue", &Metrics::waiting_requests)}) {
    const Value parameters = Parameters({{"metric", name}});
    EXPECT_THAT(PluginBench("load-outlier-filter", parameters,
                            PoolWithMetric(member, Counts{1, 1, 1, 9, std::nullopt}))
                    .Kept(),
                ElementsAre(0, 1, 2, 4));
    // Without news all stay, and with llm-d's reading the unread one is a 0: 0, 8: mean 4, deviation 4.
    EXPECT_THAT(
        PluginBench("load-outlier-filter", parameters, PoolWithMetric(member, Counts{8, std::nullopt}))
            .Kept(),
        ElementsAre(0, 1));
    EXPECT_THAT(
        PluginBench("load-outlier-filter",
                    Parameters({{"metric", name}, {"standardDeviations", 0.5}, {"unscraped", "idle"}}),
                    PoolWithMetric(member, Counts{8, std::nullopt}))
            .Kept(),
        ElementsAre(1));
    EXPECT_THAT(PluginBench("load-outlier-filter",
                            Parameters({{"metric", name}, {"metricsStalenessThreshold", "1s"}}),
                            PoolWithMetric(member, Counts{1, 1, 1, 9}, kNow - absl::Seconds(2)))
                    .Kept(),
                ElementsAre(0, 1, 2, 3));
  }
}

TEST(LoadOutlierFilter, BadParameters) {
  const auto error = [](const Value& p) { return ParameterError("load-outlier-filter", p); };
  EXPECT_THAT(error(Parameters({{"metric", "kv-cache-utilization"}})),
              HasSubstr("metric is \"kv-cache-utilization\", expected active-requests, running-requests"));
  EXPECT_THAT(error(Parameters({{"metric", "x"}})), HasSubstr("metric is \"x\""));
  EXPECT_THAT(error(Parameters({{"standardDeviations", -0.5}})), HasSubstr("expected at least 0"));
}

}  // namespace
}  // namespace llmd::sched
