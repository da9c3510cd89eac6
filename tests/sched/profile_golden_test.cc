// Whole profiles on hostile and thin inputs, and edge cases of the older scorers and filters; all sums by
// hand. (spec: scheduling.md 1.3, 2.2, 2.4)
#include <gmock/gmock.h>

#include <limits>

#include "tests/sched/plugin_bench.h"

namespace llmd::sched {
namespace {

using ::testing::DoubleEq;
using ::testing::DoubleNear;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::IsNan;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

// The totals of a single profile, by position.
std::vector<double> Totals(const EndpointPool& pool, std::vector<PluginRef> refs,
                           absl::Status* status = nullptr, const Compatibility& compatibility = {}) {
  SchedulerConfig config;
  for (const PluginRef& ref : refs) config.plugins.push_back({.type = ref.plugin});
  config.profiles = {{"default", std::move(refs)}};
  config.allow_experimental = true;
  config.compatibility = compatibility;
  const auto scheduler = Scheduler::Create(config, PluginRegistry::Builtin(), {});
  EXPECT_TRUE(scheduler.ok()) << scheduler.status();
  Request request;
  Workspace workspace(**scheduler);
  Decision decision;
  const absl::Status scheduled =
      (*scheduler)->Schedule({.request = request, .pool = pool, .now = kNow}, workspace, decision);
  if (status != nullptr) {
    *status = scheduled;
  } else {
    EXPECT_TRUE(scheduled.ok()) << scheduled;
  }
  std::vector<double> totals;
  for (const ScoredEndpoint& scored : decision.primary_result().scored) totals.push_back(scored.score);
  return totals;
}

EndpointPool ThreeEndpoints() {
  EndpointPool pool = MakePool(3);
  const std::int64_t queue[] = {3, 0, 10};
  const double kv[] = {0.2, 0.1, 0.2};
  for (Position p = 0; p < 3; ++p) {
    MetricsAt(pool, p).waiting_requests = {queue[p], kNow};
    MetricsAt(pool, p).kv_cache_usage = {kv[p], kNow};
  }
  return pool;
}

TEST(GoldenProfile, WeightedSums) {
  // queue: (10 - q) / 10 = 0.7, 1, 0; load-aware: 0.5 (1 - q / 128); kv: 0.8, 0.9, 0.8
  EXPECT_THAT(Totals(ThreeEndpoints(), {{"queue-scorer", 2.0}, {"kv-cache-utilization-scorer", 1.0}}),
              ElementsAre(DoubleEq(2.2), DoubleEq(2.9), DoubleEq(0.8)));
  EXPECT_THAT(Totals(ThreeEndpoints(), {{"queue-scorer", 0.5}, {"load-aware-scorer", 4.0}}),
              ElementsAre(DoubleEq(0.35 + 2 * 125 / 128.0), DoubleEq(2.5), DoubleEq(2 * 118 / 128.0)));
}

TEST(GoldenProfile, ZeroAndNegativeWeights) {
  EXPECT_THAT(Totals(ThreeEndpoints(), {{"queue-scorer", 0.0}, {"load-aware-scorer", 0.0}}),
              ElementsAre(0.0, 0.0, 0.0));
  EXPECT_THAT(Totals(ThreeEndpoints(), {{"queue-scorer", -1.0}, {"kv-cache-utilization-scorer", 1.0}}),
              ElementsAre(DoubleNear(0.1, 1e-12), DoubleNear(-0.1, 1e-12), DoubleNear(0.8, 1e-12)));
}

TEST(GoldenProfile, ValuesBeyondTheRangeAreClampedBeforeTheWeight) {
  EndpointPool pool = MakePool(6);
  const double kv[] = {-kInf, -1, kInf, 7, kNaN, 0.25};
  for (Position p = 0; p < 6; ++p) MetricsAt(pool, p).kv_cache_usage = {kv[p], kNow};
  EXPECT_THAT(Totals(pool, {{"kv-cache-utilization-scorer", 2.0}}),
              ElementsAre(2.0, 2.0, 0.0, 0.0, 0.0, 1.5));
  EXPECT_THAT(Totals(pool, {{"kv-cache-utilization-scorer", -2.0}}),
              ElementsAre(-2.0, -2.0, 0.0, 0.0, 0.0, -1.5));
}

TEST(GoldenProfile, NeverScrapedEndpointsDoNotAttractTraffic) {
  EndpointPool pool = ThreeEndpoints();
  AddEndpoint(pool);
  const std::vector<PluginRef> refs = {{"queue-scorer", 1.0},
                                       {"load-aware-scorer", 1.0},
                                       {"kv-cache-utilization-scorer", 1.0},
                                       {"lora-affinity-scorer", 1.0}};
  const std::vector<double> safe = Totals(pool, refs);
  EXPECT_EQ(safe[3], 0.0);
  // llm-d: queue 1, load-aware 0.5, kv 1.
  const std::vector<double> idle = Totals(pool, refs, nullptr, {.unscraped_looks_idle = true});
  EXPECT_DOUBLE_EQ(idle[3], 2.5);
}

TEST(GoldenProfile, OneEndpoint) {
  EndpointPool pool = MakePool(1);
  MetricsAt(pool, 0).waiting_requests = {64, kNow};
  // 1 for queue-scorer whatever the queue, 0.25 for load-aware.
  EXPECT_THAT(
      Totals(pool, {{"queue-scorer", 1.0}, {"load-aware-scorer", 1.0}, {"context-length-aware", 1.0}}),
      ElementsAre(DoubleEq(1.75)));
}

TEST(GoldenProfile, EmptyPool) {
  absl::Status status;
  EXPECT_THAT(Totals(MakePool(0), {{"queue-scorer", 1.0}, {"load-aware-scorer", 1.0}}, &status), IsEmpty());
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
}

TEST(GoldenScorers, NoCandidates) {
  for (const char* type :
       {"queue-scorer", "running-requests-size-scorer", "kv-cache-utilization-scorer", "prefix-cache-scorer",
        "load-aware-scorer", "active-request-scorer", "token-load-scorer", "lora-affinity-scorer",
        "context-length-aware", "mm-embeddings-cache-scorer", "latency-scorer", "topology-affinity-scorer"}) {
    EXPECT_THAT(PluginBench(type, {}, MakePool(0)).Scores(), IsEmpty()) << type;
  }
}

TEST(GoldenFilters, NoCandidates) {
  for (const char* type : {"decode-filter", "prefill-filter", "encode-filter", "label-selector-filter",
                           "context-length-aware", "prefix-cache-affinity-filter", "slo-headroom-tier-filter",
                           "topology-affinity-filter", "load-outlier-filter", "utilization-detector"}) {
    EXPECT_THAT(PluginBench(type, {}, MakePool(0)).Kept(), IsEmpty()) << type;
  }
}

TEST(GoldenFilters, RolesOfASingleEndpoint) {
  EXPECT_THAT(PluginBench("decode-filter", {}, MakePool(1)).Kept(), ElementsAre(0));
  EXPECT_THAT(PluginBench("prefill-filter", {}, MakePool(1)).Kept(), IsEmpty());
  EXPECT_THAT(PluginBench("encode-filter", {}, MakePool(1)).Kept(), IsEmpty());
  EndpointPool pool;
  AddEndpoint(pool, {{std::string(kRoleLabel), ""}});
  AddEndpoint(pool, {{std::string(kRoleLabel), "Decode"}});
  EXPECT_THAT(PluginBench("decode-filter", {}, pool).Kept(), IsEmpty());
}

TEST(GoldenScorers, KvCacheUtilization) {
  const EndpointPool pool =
      PoolWithMetric<double>(&Metrics::kv_cache_usage, {kNaN, kInf, -kInf, 0.5}, kNow - absl::Seconds(1));
  EXPECT_THAT(PluginBench("kv-cache-utilization-scorer", {}, pool).Scores(),
              ElementsAre(IsNan(), -kInf, kInf, 0.5));
  EXPECT_THAT(
      PluginBench("kv-cache-utilization-scorer", Parameters({{"metricsStalenessThreshold", "999ms"}}), pool)
          .Scores(),
      ::testing::Each(IsNan()));
  EXPECT_THAT(
      PluginBench("kv-cache-utilization-scorer", {}, MakePool(1), {.unscraped_looks_idle = true}).Scores(),
      ElementsAre(1.0));
  EXPECT_THAT(ParameterError("kv-cache-utilization-scorer", Parameters({{"threshold", 1}})),
              HasSubstr("threshold is unknown"));
}

TEST(GoldenScorers, CountsWithLlmDsReading) {
  const EndpointPool pool =
      PoolWithMetric<std::int64_t>(&Metrics::waiting_requests, {4, std::nullopt, 8}, kNow - absl::Hours(1));
  // (8 - q) / 8 with 0 for the unread one; age does not matter.
  EXPECT_THAT(PluginBench("queue-scorer", {}, pool, {.unscraped_looks_idle = true}).Scores(),
              ElementsAre(0.5, 1.0, 0.0));
  PluginBench two("queue-scorer", {}, pool);
  two.candidates = {0, 2};
  EXPECT_THAT(two.Scores(), ElementsAre(1.0, 0.0));
}

TEST(GoldenScorers, PrefixMatchBeyondTheTotal) {
  PluginBench bench("prefix-cache-scorer", {}, MakePool(3));
  constexpr std::uint32_t kHuge = std::numeric_limits<std::uint32_t>::max();
  bench.Publish<PrefixMatch>("approx-prefix-cache-producer",
                             {{12, 10, 16, 12}, {kHuge, kHuge, kHuge, 0}, {1, kHuge, 1, 1}});
  EXPECT_THAT(bench.Scores(), ElementsAre(1.2, 1.0, DoubleEq(1.0 / kHuge)));
  // The length term saturates at 1: 0.5 + 0.5 x ratio.
  PluginBench length("prefix-cache-scorer", Parameters({{"matchLengthWeight", 0.5}}), MakePool(1));
  length.Publish<PrefixMatch>("approx-prefix-cache-producer", {{kHuge, kHuge, kHuge, 0}});
  EXPECT_THAT(length.Scores(), ElementsAre(1.0));
}

TEST(Stability, AlphaTypesAreExperimental) {
  const auto stability = [](const char* type) {
    const PluginRegistry::Entry* entry = PluginRegistry::Builtin().Find(type);
    EXPECT_NE(entry, nullptr) << type;
    return entry != nullptr ? entry->stability : Stability::kDeprecated;
  };
  for (const char* type : {"endpoint-attribute-filter", "endpoint-attribute-scorer", "utilization-filter",
                           "topology-affinity-filter", "topology-affinity-scorer", "topology-extractor",
                           "header-label-affinity-scorer"}) {
    EXPECT_EQ(stability(type), Stability::kExperimental) << type;
  }
  for (const char* type :
       {"load-aware-scorer", "active-request-scorer", "token-load-scorer", "lora-affinity-scorer",
        "context-length-aware", "latency-scorer", "mm-embeddings-cache-scorer",
        "prefix-cache-affinity-filter", "slo-headroom-tier-filter", "load-outlier-filter"}) {
    EXPECT_EQ(stability(type), Stability::kStable) << type;
  }
}

TEST(Warnings, ParametersWithoutEffect) {
  SchedulerConfig config;
  config.allow_experimental = true;
  config.plugins = {{"power", "endpoint-attribute-scorer",
                     Parameters({{"attributeKey", "power"},
                                 {"producer", "dcgm-extractor"},
                                 {"algorithm", Parameters({{"type", "linear_lower_is_better"}})}})}};
  const auto scheduler = Scheduler::Create(config, PluginRegistry::Builtin(), {});
  ASSERT_TRUE(scheduler.ok()) << scheduler.status();
  EXPECT_THAT((*scheduler)->warnings(), ElementsAre(HasSubstr("power: producer has no effect")));
}

}  // namespace
}  // namespace llmd::sched
