// latency-scorer, prefix-cache-affinity-filter, slo-headroom-tier-filter: tables computed by hand from spec
// scheduling.md 2.3 and 2.5.
#include <gmock/gmock.h>

#include <limits>

#include "llmd/sched/in_flight.h"
#include "llmd/sched/latency.h"
#include "tests/sched/plugin_bench.h"

namespace llmd::sched {
namespace {

using ::testing::DoubleEq;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::IsNan;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();
const char* const kPredictor = "predicted-latency-producer";
const char* const kPrefix = "approx-prefix-cache-producer";
const char* const kInFlight = "inflight-load-producer";

LatencyPrediction Headroom(double ttft, double tpot, std::int64_t dispatched = 1) {
  return {
      .known = true, .ttft_headroom_ms = ttft, .tpot_headroom_ms = tpot, .dispatched_requests = dispatched};
}
const LatencyPrediction kUnknown = {};

std::vector<double> Latency(const std::vector<LatencyPrediction>& predictions, const Value& parameters = {}) {
  PluginBench bench("latency-scorer", parameters, MakePool(predictions.size()));
  bench.Publish(kPredictor, predictions);
  return bench.Scores();
}

const Value kMost = Parameters({{"headroomSelectionStrategy", "most"}});

TEST(LatencyScorer, LeastAndMostHeadroom) {
  // Both headrooms at 0, 1/2 and 1 of their ranges: c = 0, 0.5, 1. least: (floor((1 - c) 100) + 1) / 100.
  const std::vector<LatencyPrediction> all = {Headroom(100, 10), Headroom(200, 20), Headroom(300, 30)};
  EXPECT_THAT(Latency(all), ElementsAre(1.01, 0.51, 0.01));
  EXPECT_THAT(Latency(all, kMost), ElementsAre(0.01, 0.51, 1.01));
}

TEST(LatencyScorer, OneDimensionAloneDecides) {
  // Places 0, 1/4, 3/4, 1; the other dimension is flat.
  EXPECT_THAT(Latency({Headroom(100, 7), Headroom(200, 7), Headroom(400, 7), Headroom(500, 7)}),
              ElementsAre(1.01, 0.76, 0.26, 0.01));
  EXPECT_THAT(Latency({Headroom(7, 100), Headroom(7, 200), Headroom(7, 400), Headroom(7, 500)}, kMost),
              ElementsAre(0.01, 0.26, 0.76, 1.01));
  // Differences up to 1e-9 are none.
  EXPECT_THAT(Latency({Headroom(1, 100), Headroom(1 + 1e-10, 200)}), ElementsAre(1.01, 0.01));
}

TEST(LatencyScorer, EqualHeadroomsAndSingleEndpoint) {
  EXPECT_THAT(Latency({Headroom(5, 5), Headroom(5, 5)}), ElementsAre(0.51, 0.51));
  EXPECT_THAT(Latency({Headroom(0, 0)}, kMost), ElementsAre(0.51));
  EXPECT_THAT(Latency({}), IsEmpty());
}

TEST(LatencyScorer, Weights) {
  const std::vector<LatencyPrediction> all = {Headroom(0, 0), Headroom(100, 0), Headroom(100, 40)};
  const auto weights = [](double ttft, double tpot) {
    return Parameters({{"ttftWeight", ttft}, {"tpotWeight", tpot}});
  };
  // Places (0, 0), (1, 0), (1, 1).
  EXPECT_THAT(Latency(all, weights(3, 3)), ElementsAre(1.01, 0.51, 0.01));
  EXPECT_THAT(Latency(all, weights(1, 3)), ElementsAre(1.01, 0.76, 0.01));
  EXPECT_THAT(Latency(all, weights(0, 1)), ElementsAre(1.01, 1.01, 0.01));
  // A sum that is not positive leaves the first alone.
  EXPECT_THAT(Latency(all, weights(0, 0)), ElementsAre(1.01, 0.01, 0.01));
  EXPECT_THAT(Latency(all, weights(-1, -1)), ElementsAre(1.01, 0.01, 0.01));
}

TEST(LatencyScorer, WithinObjectivesFirst) {
  EXPECT_THAT(Latency({Headroom(100, 10), Headroom(-50, 10), Headroom(300, 10), Headroom(100, -1)}),
              ElementsAre(1.01, 0.0, 0.01, 0.0));
  // Exactly at the objective is within.
  EXPECT_THAT(Latency({Headroom(0, 0), Headroom(-1, 0)}), ElementsAre(0.51, 0.0));
}

TEST(LatencyScorer, WithoutPredictionIsWithinAtHeadroomZero) {
  EXPECT_THAT(Latency({kUnknown, Headroom(100, 0)}), ElementsAre(1.01, 0.01));
  EXPECT_THAT(Latency({kUnknown, Headroom(100, 0)}, kMost), ElementsAre(0.01, 1.01));
  EXPECT_THAT(Latency({kUnknown, Headroom(-100, 0)}), ElementsAre(0.51, 0.0));
}

TEST(LatencyScorer, AllMissIdleFirst) {
  // Among the idle: |headroom| 100 and 300.
  const std::vector<LatencyPrediction> all = {Headroom(-100, -10, 0), Headroom(-1, 5, 3),
                                              Headroom(-300, -10, 0)};
  EXPECT_THAT(Latency(all), ElementsAre(1.01, 0.0, 0.01));
  // "most" would prefer who misses by most.
  EXPECT_THAT(Latency(all, kMost), ElementsAre(1.01, 0.0, 0.01));
}

TEST(LatencyScorer, AllMissByWhatTheyMiss) {
  const LatencyPrediction tpot = Headroom(50, -10);
  const LatencyPrediction ttft = Headroom(-5, 10);
  const LatencyPrediction both = Headroom(-5, -5);
  EXPECT_THAT(Latency({both, ttft, tpot}), ElementsAre(0.0, 0.0, 0.51));
  EXPECT_THAT(Latency({both, ttft}), ElementsAre(0.0, 0.51));
  EXPECT_THAT(Latency({Headroom(-100, -1), Headroom(-300, -1)}, kMost), ElementsAre(1.01, 0.01));
}

TEST(LatencyScorer, HostileHeadrooms) {
  // NaN is no prediction; infinity is a very large headroom.
  EXPECT_THAT(Latency({Headroom(kNaN, 1), Headroom(100, 0)}), ElementsAre(1.01, 0.01));
  EXPECT_THAT(Latency({Headroom(kInf, 0), Headroom(100, 0)}), ElementsAre(0.01, 1.01));
  EXPECT_THAT(Latency({Headroom(-kInf, 0), Headroom(-100, 0)}), ElementsAre(0.01, 1.01));
  EXPECT_THAT(Latency({Headroom(-kInf, kInf), Headroom(-kInf, kInf)}), ElementsAre(0.51, 0.51));
  EXPECT_THAT(Latency({Headroom(1e308, 0), Headroom(-1e308, 0), Headroom(1, 0)}),
              ElementsAre(0.01, 0.0, 1.01));
}

struct Load {
  std::optional<double> kv;
  std::optional<std::int64_t> queue;
  PrefixMatch match = {};
};

std::vector<double> Composite(const std::vector<Load>& loads, const Value& parameters = {},
                              absl::Time at = kNow, const Compatibility& compatibility = {}) {
  EndpointPool pool = MakePool(loads.size());
  std::vector<PrefixMatch> matches;
  for (Position p = 0; p < loads.size(); ++p) {
    if (loads[p].kv) MetricsAt(pool, p).kv_cache_usage = {*loads[p].kv, at};
    if (loads[p].queue) MetricsAt(pool, p).waiting_requests = {*loads[p].queue, at};
    matches.push_back(loads[p].match);
  }
  PluginBench bench("latency-scorer", parameters, pool, compatibility);
  bench.Publish(kPrefix, matches);
  return bench.Scores();
}

constexpr PrefixMatch kHalf = {5, 10, 16, 5};

Value CompositeWeights(double kv, double queue, double prefix) {
  return Parameters(
      {{"compositeKVWeight", kv}, {"compositeQueueWeight", queue}, {"compositePrefixWeight", prefix}});
}

TEST(LatencyScorer, CompositeWithoutPredictions) {
  // (0.5 + 1 + 0.5) / 3 = 0.667; (0.8 + 0 + 0) / 3 = 0.267
  EXPECT_THAT(Composite({{0.5, 0, kHalf}, {0.2, 10}}), ElementsAre(0.67, 0.27));
  // No queue anywhere counts 1: (0 + 1 + 0) / 3, and (1 + 1 + 0.5) / 3 = 0.833.
  EXPECT_THAT(Composite({{1.0, 0}, {0.0, 0, kHalf}}), ElementsAre(0.33, 0.83));
  // (2 x 0.5 + 1 x 1 + 1 x 0.5) / 4 = 0.625 rounds away from 0.
  EXPECT_THAT(Composite({{0.5, 0, kHalf}, {1.0, 4}}, CompositeWeights(2, 1, 1)), ElementsAre(0.63, 0.0));
  EXPECT_THAT(Composite({{0.25, 7}}), ElementsAre(0.25));  // (0.75 + 0 + 0) / 3
  EXPECT_THAT(Composite({}), IsEmpty());
}

TEST(LatencyScorer, CompositeWeightsThatDoNotSumUp) {
  for (const Value& weights : {CompositeWeights(0, 0, 0), CompositeWeights(-3, 1, 1)}) {
    EXPECT_THAT(Composite({{0.5, 0, kHalf}, {0.2, 10}}, weights), ElementsAre(0.5, 0.8));
  }
}

TEST(LatencyScorer, CompositeOfWhatIsKnown) {
  // Never scraped: no score. One value unread: its term is 0: (0.8 + 0 + 0) / 3; (0 + 1 + 0.5) / 3.
  EXPECT_THAT(Composite({{{}, {}, kHalf}, {0.2, {}}, {{}, 0, kHalf}}), ElementsAre(IsNan(), 0.27, 0.5));
  // llm-d's reading: (1 + 1 + 0.5) / 3, (0.5 + 0 + 0) / 3.
  EXPECT_THAT(Composite({{{}, {}, kHalf}, {0.5, 4}}, Parameters({{"unscraped", "idle"}})),
              ElementsAre(0.83, 0.17));
  EXPECT_THAT(Composite({{{}, {}, kHalf}, {0.5, 4}}, {}, kNow, {.unscraped_looks_idle = true}),
              ElementsAre(0.83, 0.17));
  EXPECT_THAT(
      Composite({{0.5, 0}}, Parameters({{"metricsStalenessThreshold", "1s"}}), kNow - absl::Seconds(2)),
      ElementsAre(IsNan()));
}

TEST(LatencyScorer, CompositeOfHostileMetrics) {
  // Usage is clamped to 0..1, NaN is not known, a negative queue is empty: (0 + 1), (1 + 1), (0 + 1), each
  // / 3.
  EXPECT_THAT(Composite({{1.5, -5}, {-kInf, 0}, {kNaN, 0}, {1.0, 4}}), ElementsAre(0.33, 0.67, 0.33, 0.0));
  constexpr auto kMin = std::numeric_limits<std::int64_t>::min();
  constexpr auto kMax = std::numeric_limits<std::int64_t>::max();
  EXPECT_THAT(Composite({{1.0, kMin}, {1.0, kMax}}), ElementsAre(0.33, 0.0));
}

TEST(LatencyScorer, Parameters) {
  EXPECT_THAT(ParameterError("latency-scorer", Parameters({{"headroomSelectionStrategy", "some"}})),
              HasSubstr("headroomSelectionStrategy is \"some\", expected least or most"));
  EXPECT_THAT(ParameterError("latency-scorer", Parameters({{"ttftWeight", kInf}})),
              HasSubstr("ttftWeight is inf, expected a finite number"));
  EXPECT_THAT(ParameterError("latency-scorer", Parameters({{"kvWeight", 1}})),
              HasSubstr("kvWeight is unknown"));
  PluginBench renamed(
      "latency-scorer",
      Parameters({{"latencyPredictionInfoProducerName", "oracle"}, {"prefixMatchInfoProducerName", "exact"}}),
      MakePool(1));
  renamed.Publish<LatencyPrediction>("oracle", {Headroom(1, 1)});
  renamed.Publish<PrefixMatch>("exact", {kHalf});
  EXPECT_THAT(renamed.Scores(), ElementsAre(0.51));
}

std::vector<PrefixMatch> Matches(const std::vector<std::uint32_t>& blocks_of_ten) {
  std::vector<PrefixMatch> matches;
  for (const std::uint32_t blocks : blocks_of_ten) matches.push_back({blocks, 10, 16, blocks});
  return matches;
}

std::vector<Position> Sticky(const std::vector<std::uint32_t>& blocks_of_ten, const Value& parameters = {},
                             const std::vector<std::int64_t>& tokens = {}) {
  PluginBench bench("prefix-cache-affinity-filter", parameters, MakePool(blocks_of_ten.size()));
  bench.Publish(kPrefix, Matches(blocks_of_ten));
  if (!tokens.empty()) {
    std::vector<InFlightLoad> load;
    for (const std::int64_t t : tokens) load.push_back({.tokens = t});
    bench.Publish(kInFlight, load);
  }
  return bench.Kept();
}

TEST(PrefixCacheAffinityFilter, KeepsWhoHasMostOfThePrompt) {
  EXPECT_THAT(Sticky({8, 9, 7, 0}), ElementsAre(0, 1));
  EXPECT_THAT(Sticky({8, 9, 7, 0}, Parameters({{"affinityThreshold", 0.99}})), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Sticky({8, 10, 7, 0}, Parameters({{"affinityThreshold", 1}})), ElementsAre(1));
}

TEST(PrefixCacheAffinityFilter, NothingToChoose) {
  EXPECT_THAT(Sticky({}), IsEmpty());
  EXPECT_THAT(Sticky({0}), ElementsAre(0));
  EXPECT_THAT(Sticky({0, 7}), ElementsAre(0, 1));
  EXPECT_THAT(Sticky({8, 9, 10}), ElementsAre(0, 1, 2));
  EXPECT_THAT(Sticky({10, 0}, Parameters({{"affinityThreshold", 0}})), ElementsAre(0, 1));
  EXPECT_THAT(Sticky({10, 0}, Parameters({{"affinityThreshold", -1}})), ElementsAre(0, 1));
  PluginBench unpublished("prefix-cache-affinity-filter", {}, MakePool(2));
  EXPECT_THAT(unpublished.Kept(), ElementsAre(0, 1));
  PluginBench no_blocks("prefix-cache-affinity-filter", {}, MakePool(2));
  no_blocks.Publish<PrefixMatch>(kPrefix, {{3, 0, 16, 3}, {0, 0, 0, 0}});
  EXPECT_THAT(no_blocks.Kept(), ElementsAre(0, 1));
}

TEST(PrefixCacheAffinityFilter, LoadBreaksStickiness) {
  // 1000 tokens/s: shortest waits 6000 and 1000 ms, then 6001 and 1000.
  const Value limit = Parameters({{"peakPrefillThroughput", 1000}, {"maxTTFTPenaltyMs", 5000}});
  EXPECT_THAT(Sticky({9, 9, 0, 0}, limit, {6000, 9000, 1000, 2000}), ElementsAre(0, 1));
  EXPECT_THAT(Sticky({9, 9, 0, 0}, limit, {6001, 9000, 1000, 2000}), ElementsAre(0, 1, 2, 3));
  // The least busy sticky endpoint counts.
  EXPECT_THAT(Sticky({9, 9, 0, 0}, limit, {60000, 100, 0, 0}), ElementsAre(0, 1));
  // By default 18 s at 15928 tokens/s: 286704 tokens.
  EXPECT_THAT(Sticky({9, 0}, {}, {286704, 0}), ElementsAre(0));
  EXPECT_THAT(Sticky({9, 0}, {}, {286705, 0}), ElementsAre(0, 1));
  // No limit, no break, and no throughput needed.
  EXPECT_THAT(
      Sticky({9, 0}, Parameters({{"maxTTFTPenaltyMs", 0}, {"peakPrefillThroughput", 0}}), {1'000'000'000, 0}),
      ElementsAre(0));
}

TEST(PrefixCacheAffinityFilter, HostileLoad) {
  constexpr auto kMin = std::numeric_limits<std::int64_t>::min();
  constexpr auto kMax = std::numeric_limits<std::int64_t>::max();
  EXPECT_THAT(Sticky({9, 0}, {}, {kMax, kMin}), ElementsAre(0, 1));
  // Negative load is none: it does not make the other side look better.
  EXPECT_THAT(Sticky({9, 0}, {}, {0, kMin}), ElementsAre(0));
}

TEST(PrefixCacheAffinityFilter, PredictedWaits) {
  const auto kept = [](std::vector<double> ttft) {
    PluginBench bench("prefix-cache-affinity-filter",
                      Parameters({{"ttftSource", "latencyPredictor"}, {"maxTTFTPenaltyMs", 100}}),
                      MakePool(2));
    bench.Publish(kPrefix, Matches({9, 0}));
    std::vector<LatencyPrediction> predictions;
    for (const double ms : ttft) {
      predictions.push_back(ms < 0 ? kUnknown : LatencyPrediction{.known = true, .ttft_ms = ms});
    }
    bench.Publish(kPredictor, predictions);
    return bench.Kept();
  };
  EXPECT_THAT(kept({150, 50}), ElementsAre(0));
  EXPECT_THAT(kept({151, 50}), ElementsAre(0, 1));
  // Missing is infinite (-1 here).
  EXPECT_THAT(kept({-1, 50}), ElementsAre(0, 1));
  EXPECT_THAT(kept({50, -1}), ElementsAre(0));
  EXPECT_THAT(kept({-1, -1}), ElementsAre(0));
  EXPECT_THAT(kept({kNaN, 50}), ElementsAre(0, 1));
  EXPECT_THAT(kept({kInf, kInf}), ElementsAre(0));
}

TEST(PrefixCacheAffinityFilter, Exploration) {
  EXPECT_THAT(Sticky({9, 0}, Parameters({{"explorationProbability", 1}})), ElementsAre(0, 1));
  PluginBench bench("prefix-cache-affinity-filter", Parameters({{"explorationProbability", 0.25}}),
                    MakePool(2));
  bench.Publish(kPrefix, Matches({9, 0}));
  int explored = 0;
  for (bench.seed = 0; bench.seed < 4000; ++bench.seed) explored += bench.Kept().size() == 2;
  // 1000 expected, standard deviation 27.
  EXPECT_GT(explored, 860);
  EXPECT_LT(explored, 1140);
}

TEST(PrefixCacheAffinityFilter, RequiresOnlyWhatItReads) {
  const auto required = [](const Value& parameters) {
    const PluginUnderTest plugin("prefix-cache-affinity-filter", parameters);
    std::vector<std::string> names;
    for (const DataLayout::Entry& entry : plugin.layout.entries()) {
      if (entry.required) names.push_back(entry.data_type);
    }
    return names;
  };
  EXPECT_THAT(required({}), ElementsAre("PrefixCacheMatchInfo", "InFlightLoad"));
  EXPECT_THAT(required(Parameters({{"ttftSource", "latencyPredictor"}})),
              ElementsAre("PrefixCacheMatchInfo"));
  EXPECT_THAT(required(Parameters({{"maxTTFTPenaltyMs", 0}})), ElementsAre("PrefixCacheMatchInfo"));
}

TEST(PrefixCacheAffinityFilter, BadParameters) {
  const auto error = [](const Value& p) { return ParameterError("prefix-cache-affinity-filter", p); };
  EXPECT_THAT(error(Parameters({{"affinityThreshold", 1.01}})), HasSubstr("is 1.01, expected at most 1"));
  EXPECT_THAT(error(Parameters({{"explorationProbability", 1.5}})), HasSubstr("expected 0..1"));
  EXPECT_THAT(error(Parameters({{"explorationProbability", -0.5}})), HasSubstr("expected 0..1"));
  EXPECT_THAT(error(Parameters({{"maxTTFTPenaltyMs", -1}})), HasSubstr("expected at least 0"));
  EXPECT_THAT(error(Parameters({{"ttftSource", "guess"}})), HasSubstr("ttftSource is \"guess\""));
  EXPECT_THAT(error(Parameters({{"peakPrefillThroughput", 0}})), HasSubstr("expected more than 0"));
  EXPECT_THAT(error(Parameters({{"peakPrefillThroughput", -1}, {"maxTTFTPenaltyMs", 0}})),
              HasSubstr("expected at least 0"));
  EXPECT_EQ(error(Parameters({{"peakPrefillThroughput", 0}, {"ttftSource", "latencyPredictor"}})), "");
}

std::vector<Position> Tier(const std::vector<LatencyPrediction>& predictions, double epsilon) {
  PluginBench bench("slo-headroom-tier-filter", Parameters({{"epsilonExploreNeg", epsilon}}),
                    MakePool(predictions.size()));
  bench.Publish(kPredictor, predictions);
  return bench.Kept();
}

TEST(SloHeadroomTierFilter, KeepsWhoMeetsBothObjectives) {
  const std::vector<LatencyPrediction> all = {Headroom(10, 10), Headroom(-1, 10), Headroom(10, -1),
                                              Headroom(0, 0),   kUnknown,         Headroom(kNaN, 10)};
  EXPECT_THAT(Tier(all, 0), ElementsAre(0, 3));
  EXPECT_THAT(Tier(all, 1), ElementsAre(1, 2, 4, 5));
}

TEST(SloHeadroomTierFilter, OneTierStaysWhole) {
  for (const double epsilon : {0.0, 1.0}) {
    EXPECT_THAT(Tier({Headroom(1, 1), Headroom(2, 2)}, epsilon), ElementsAre(0, 1));
    EXPECT_THAT(Tier({Headroom(-1, 1), kUnknown}, epsilon), ElementsAre(0, 1));
    EXPECT_THAT(Tier({kUnknown, kUnknown}, epsilon), ElementsAre(0, 1));
    EXPECT_THAT(Tier({Headroom(-1, -1)}, epsilon), ElementsAre(0));
    EXPECT_THAT(Tier({}, epsilon), IsEmpty());
  }
  EXPECT_THAT(PluginBench("slo-headroom-tier-filter", {}, MakePool(2)).Kept(), ElementsAre(0, 1));
}

TEST(SloHeadroomTierFilter, ExploresOnceInAWhile) {
  PluginBench bench("slo-headroom-tier-filter", {}, MakePool(2));
  bench.Publish<LatencyPrediction>(kPredictor, {Headroom(1, 1), Headroom(-1, 1)});
  int explored = 0;
  for (bench.seed = 0; bench.seed < 20000; ++bench.seed) {
    const std::vector<Position> kept = bench.Kept();
    ASSERT_EQ(kept.size(), 1u);
    explored += kept[0] == 1;
  }
  // 0.01: 200 expected, standard deviation 14.
  EXPECT_GT(explored, 130);
  EXPECT_LT(explored, 270);
}

TEST(SloHeadroomTierFilter, BadParameters) {
  for (const double epsilon : {-0.01, 1.01}) {
    EXPECT_THAT(ParameterError("slo-headroom-tier-filter", Parameters({{"epsilonExploreNeg", epsilon}})),
                HasSubstr("expected 0..1"));
  }
}

}  // namespace
}  // namespace llmd::sched
