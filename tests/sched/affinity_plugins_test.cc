// Scorers and filters that match endpoints with the request: tables computed by hand from spec
// scheduling.md 2.1 and 2.4.
#include <gmock/gmock.h>

#include <limits>

#include "llmd/sched/encoder_cache.h"
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
constexpr auto kMaxInt = std::numeric_limits<std::int64_t>::max();

EndpointPool AdapterPool(const std::vector<AdapterState>& states, absl::Time at = kNow) {
  EndpointPool pool = MakePool(states.size());
  for (Position p = 0; p < states.size(); ++p) {
    MetricsAt(pool, p).adapters = {std::make_shared<const AdapterState>(states[p]), at};
  }
  return pool;
}

std::vector<double> Lora(const EndpointPool& pool, const Value& parameters = {},
                         const Compatibility& compatibility = {}) {
  PluginBench bench("lora-affinity-scorer", parameters, pool, compatibility);
  bench.request.model = "a";
  return bench.Scores();
}

TEST(LoraAffinityScorer, LoadedThenRoomThenWaitingThenFull) {
  EXPECT_THAT(Lora(AdapterPool({{1, {"a"}, {}},
                                {2, {"b"}, {}},
                                {2, {"b", "c"}, {"a"}},
                                {2, {"b", "c"}, {"d"}},
                                {2, {"b"}, {"c"}}})),
              ElementsAre(1.0, 0.8, 0.6, 0.0, 0.0));
  // Room counts before waiting, being loaded before everything.
  EXPECT_THAT(Lora(AdapterPool({{4, {}, {"a"}}, {0, {"a"}, {"a"}}})), ElementsAre(0.8, 1.0));
  // Base-model servers have no places; neither has one that reports nonsense.
  EXPECT_THAT(Lora(AdapterPool({{0, {}, {}}, {-1, {}, {}}, {-1, {}, {"a"}}})), ElementsAre(0.0, 0.0, 0.6));
  EXPECT_THAT(Lora(MakePool(0)), IsEmpty());
}

TEST(LoraAffinityScorer, NeverScrapedStaleAndWithoutAdapters) {
  EndpointPool pool = MakePool(2);
  MetricsAt(pool, 1).adapters = {nullptr, kNow};
  EXPECT_THAT(Lora(pool), ElementsAre(IsNan(), 0.0));
  EXPECT_THAT(Lora(pool, Parameters({{"unscraped", "idle"}})), ElementsAre(0.0, 0.0));
  const EndpointPool old = AdapterPool({{1, {"a"}, {}}}, kNow - absl::Seconds(5));
  EXPECT_THAT(Lora(old), ElementsAre(1.0));
  EXPECT_THAT(Lora(old, Parameters({{"metricsStalenessThreshold", "4s"}})), ElementsAre(IsNan()));
  EXPECT_THAT(Lora(old, {}, {.unscraped_looks_idle = true}), ElementsAre(1.0));
  EXPECT_THAT(ParameterError("lora-affinity-scorer", Parameters({{"x", 1}})), HasSubstr("x is unknown"));
}

std::vector<double> HeaderLabel(std::vector<Header> headers) {
  EndpointPool pool;
  AddEndpoint(pool, {{"tier", "gold"}});
  AddEndpoint(pool, {{"tier", "silver"}});
  AddEndpoint(pool, {{"tier", ""}});
  AddEndpoint(pool, {{"other", "gold"}});
  PluginBench bench("header-label-affinity-scorer",
                    Parameters({{"headerName", "X-Tier"}, {"labelKey", "tier"}}), pool);
  bench.request.headers = headers;
  return bench.Scores();
}

TEST(HeaderLabelAffinityScorer, OneForTheSameValue) {
  EXPECT_THAT(HeaderLabel({{"x-tier", "gold"}}), ElementsAre(1.0, 0.0, 0.0, 0.0));
  EXPECT_THAT(HeaderLabel({{"a", "b"}, {"x-tier", "silver"}, {"x-tier", "gold"}}),
              ElementsAre(0.0, 1.0, 0.0, 0.0));
  EXPECT_THAT(HeaderLabel({{"x-tier", "Gold"}}), ElementsAre(0.0, 0.0, 0.0, 0.0));
  EXPECT_THAT(HeaderLabel({{"x-tier", ""}}), ElementsAre(0.0, 0.0, 0.0, 0.0));
  EXPECT_THAT(HeaderLabel({}), ElementsAre(0.0, 0.0, 0.0, 0.0));
}

TEST(HeaderLabelAffinityScorer, BothParametersAreRequired) {
  EXPECT_THAT(ParameterError("header-label-affinity-scorer", Parameters({{"headerName", "x"}})),
              HasSubstr("labelKey is missing"));
  EXPECT_THAT(ParameterError("header-label-affinity-scorer", Parameters({{"labelKey", "x"}})),
              HasSubstr("headerName is missing"));
}

TEST(MmEmbeddingsCacheScorer, MatchedShareOfRequested) {
  PluginBench bench("mm-embeddings-cache-scorer", {}, MakePool(6));
  bench.Publish<EncoderCacheMatch>("mm-embeddings-cache-producer",
                                   {{0, 0}, {1, 4}, {4, 4}, {0, 4}, {3, 0}, {3, -1}});
  EXPECT_THAT(bench.Scores(), ElementsAre(0.0, 0.25, 1.0, 0.0, 0.0, 0.0));
}

TEST(MmEmbeddingsCacheScorer, HostileAndMissing) {
  PluginBench bench("mm-embeddings-cache-scorer", Parameters({{"producerName", "mine"}}), MakePool(3));
  EXPECT_THAT(bench.Scores(), ElementsAre(0.0, 0.0, 0.0));
  // The profile clamps what is beyond 0..1.
  bench.Publish<EncoderCacheMatch>("mine", {{5, 4}, {-1, 4}, {kMaxInt, kMaxInt}});
  EXPECT_THAT(bench.Scores(), ElementsAre(1.25, -0.25, 1.0));
  EXPECT_THAT(PluginBench("mm-embeddings-cache-scorer", {}, MakePool(0)).Scores(), IsEmpty());
  EXPECT_THAT(ParameterError("mm-embeddings-cache-scorer", Parameters({{"producerName", 1}})),
              HasSubstr("producerName is an integer"));
}

const char* const kRangeLabel = "llm-d.ai/context-length-range";

EndpointPool RangePool(const std::vector<const char*>& ranges) {
  EndpointPool pool;
  for (const char* range : ranges) {
    AddEndpoint(pool, range == nullptr ? Labels{} : Labels{{kRangeLabel, range}});
  }
  return pool;
}

std::vector<double> LengthScores(std::size_t tokens, const std::vector<const char*>& ranges,
                                 const Value& parameters = {}) {
  PluginBench bench("context-length-aware", parameters, RangePool(ranges));
  const Prompt prompts[] = {{.token_count = tokens}};
  bench.request.prompts = prompts;
  return bench.Scores();
}

TEST(ContextLengthAware, ScoresInsideTheRange) {
  // "0-2000":    raw = 0.7 / 1.2 + 0.3 x 1000 / 2000 = 0.73333; 0.3 + 0.7 raw = 0.81333
  // "0-10000":   raw = 0.7 / 2 + 0.3 x 9000 / 10000 = 0.62;     0.734
  // "0-1000":    raw = 0.7 / 1.1 + 0 = 0.63636;                 0.74545
  // "1000-2000": raw = 0.7 / 1.1 + 0.3 = 0.93636;               0.95545
  EXPECT_THAT(LengthScores(1000, {"0-2000", "0-10000", "0-1000", "1000-2000", "1000-1000", nullptr}),
              ElementsAre(DoubleNear(0.3 + 0.7 * (0.7 / 1.2 + 0.15), 1e-12), DoubleNear(0.734, 1e-12),
                          DoubleNear(0.3 + 0.7 * 0.7 / 1.1, 1e-12),
                          DoubleNear(0.3 + 0.7 * (0.7 / 1.1 + 0.3), 1e-12), 1.0, 0.5));
}

TEST(ContextLengthAware, ScoresOutsideFallWithTheDistance) {
  // 0.3 / (1 + 1000 / 1000), 0.3 / (1 + 500 / 1000), 0.3 / (1 + 1 / 1000) on both sides
  EXPECT_THAT(LengthScores(1000, {"2000-4000", "0-500", "0-999", "1001-2000"}),
              ElementsAre(DoubleEq(0.15), DoubleEq(0.3 / 1.5), DoubleEq(0.3 / 1.001), DoubleEq(0.3 / 1.001)));
}

TEST(ContextLengthAware, UnknownLengthIsZero) {
  // raw = 0.7 / 1.2 + 0.3 x 2000 / 2000; distance 100
  const std::vector<const char*> ranges = {"0-2000", "100-200", "0-0"};
  const auto expected =
      ElementsAre(DoubleNear(0.3 + 0.7 * (0.7 / 1.2 + 0.3), 1e-12), DoubleEq(0.3 / 1.1), 1.0);
  EXPECT_THAT(LengthScores(0, ranges), expected);
  EXPECT_THAT(PluginBench("context-length-aware", {}, RangePool(ranges)).Scores(), expected);
}

TEST(ContextLengthAware, PromptsAddUp) {
  PluginBench bench("context-length-aware", {}, RangePool({"1000-1000"}));
  const Prompt prompts[] = {{.token_count = 400}, {.token_count = 600}};
  bench.request.prompts = prompts;
  EXPECT_THAT(bench.Scores(), ElementsAre(1.0));
}

TEST(ContextLengthAware, LabelsThatDoNotParseScoreZero) {
  const std::vector<const char*> bad = {"",
                                        "-",
                                        "5",
                                        "abc",
                                        "1-",
                                        "-1",
                                        "10-5",
                                        "-5-10",
                                        "5--10",
                                        "0--0",
                                        "1-2-3",
                                        "1.0-2",
                                        "0x1-0x2",
                                        "1-2a",
                                        "0-9223372036854775808",
                                        "0-99999999999999999999999"};
  EXPECT_THAT(LengthScores(1, bad), ::testing::Each(0.0));
}

TEST(ContextLengthAware, OddLabelsAndLengths) {
  EXPECT_THAT(LengthScores(1000, {" 0 - 2000 "}), ElementsAre(DoubleNear(0.8133333333, 1e-9)));
  // The widest range: no share for being tight, all for room: 0.3 + 0.7 x 0.3.
  EXPECT_THAT(LengthScores(0, {"0-9223372036854775807"}), ElementsAre(DoubleNear(0.51, 1e-9)));
  EXPECT_THAT(LengthScores(std::numeric_limits<std::size_t>::max(), {"0-10", "0-9223372036854775807"}),
              ElementsAre(DoubleNear(0, 1e-12), DoubleNear(0.3, 1e-9)));
  EXPECT_THAT(LengthScores(5, {}), IsEmpty());
}

TEST(ContextLengthAware, AnotherLabel) {
  EndpointPool pool;
  AddEndpoint(pool, {{"len", "7-7"}, {kRangeLabel, "0-1"}});
  PluginBench bench("context-length-aware", Parameters({{"label", "len"}}), pool);
  const Prompt prompts[] = {{.token_count = 7}};
  bench.request.prompts = prompts;
  EXPECT_THAT(bench.Scores(), ElementsAre(1.0));
}

TEST(ContextLengthAware, FilteringMode) {
  const auto kept = [](const Value& parameters, std::vector<const char*> ranges) {
    PluginBench bench("context-length-aware", parameters, RangePool(ranges));
    static constexpr Prompt kPrompts[] = {{.token_count = 1000}};
    bench.request.prompts = kPrompts;
    return bench.Kept();
  };
  const Value on = Parameters({{"enableFiltering", true}});
  EXPECT_THAT(kept(on, {"0-1000", "1000-2000", "1001-2000", "0-999", "junk", nullptr}), ElementsAre(0, 1, 5));
  EXPECT_THAT(kept(on, {"0-1"}), IsEmpty());
  EXPECT_THAT(kept({}, {"0-1", "junk", nullptr}), ElementsAre(0, 1, 2));
}

TEST(ContextLengthAware, BadParameters) {
  EXPECT_THAT(ParameterError("context-length-aware", Parameters({{"label", ""}})),
              HasSubstr("label is empty"));
  EXPECT_THAT(ParameterError("context-length-aware", Parameters({{"enableFiltering", "yes"}})),
              HasSubstr("enableFiltering is a string"));
}

EndpointPool AttributePool(const std::vector<std::optional<double>>& values, absl::Time at = kNow) {
  EndpointPool pool = MakePool(values.size());
  for (Position p = 0; p < values.size(); ++p) {
    if (values[p]) {
      EXPECT_TRUE(pool.SetAttribute(pool[p].handle, "power", {*values[p], at}));
    }
  }
  return pool;
}

Value ScorerParameters(const char* type, std::optional<Value> normalization = std::nullopt) {
  Value::Map algorithm = {{"type", type}};
  if (normalization) algorithm.emplace_back("normalization", *normalization);
  return Parameters({{"attributeKey", "power"}, {"algorithm", Value::MakeMap(algorithm)}});
}
Value FixedRange(double min, double max) {
  return Parameters({{"fixedRange", Parameters({{"min", min}, {"max", max}})}});
}

std::vector<double> AttributeScores(const Value& parameters,
                                    const std::vector<std::optional<double>>& values) {
  return PluginBench("endpoint-attribute-scorer", parameters, AttributePool(values)).Scores();
}

TEST(EndpointAttributeScorer, AdaptiveRange) {
  const Value lower = ScorerParameters("linear_lower_is_better");
  const Value higher =
      ScorerParameters("linear_higher_is_better", Parameters({{"adaptiveRange", Parameters({})}}));
  EXPECT_THAT(AttributeScores(lower, {10, 20, 40, std::nullopt}),
              ElementsAre(1.0, DoubleEq(2.0 / 3), 0.0, 0.0));
  EXPECT_THAT(AttributeScores(higher, {10, 20, 40, std::nullopt}),
              ElementsAre(0.0, DoubleEq(1.0 / 3), 1.0, 0.0));
  for (const Value& parameters : {lower, higher}) {
    EXPECT_THAT(AttributeScores(parameters, {7, 7, std::nullopt}), ElementsAre(1.0, 1.0, 0.0));
    EXPECT_THAT(AttributeScores(parameters, {0}), ElementsAre(1.0));
    EXPECT_THAT(AttributeScores(parameters, {std::nullopt, std::nullopt}), ElementsAre(0.0, 0.0));
    EXPECT_THAT(AttributeScores(parameters, {}), IsEmpty());
  }
}

TEST(EndpointAttributeScorer, FixedRangeClamps) {
  EXPECT_THAT(AttributeScores(ScorerParameters("linear_higher_is_better", FixedRange(0, 2)),
                              {0.5, -1, 3, 2, std::nullopt}),
              ElementsAre(0.25, 0.0, 1.0, 1.0, 0.0));
  EXPECT_THAT(AttributeScores(ScorerParameters("linear_lower_is_better", FixedRange(-1, 1)),
                              {0.5, -1, 3, std::nullopt}),
              ElementsAre(0.25, 1.0, 0.0, 0.0));
}

TEST(EndpointAttributeScorer, HostileValues) {
  const Value higher = ScorerParameters("linear_higher_is_better");
  // What is no number is missing and does not stretch the range.
  EXPECT_THAT(AttributeScores(higher, {kNaN, 1, kInf, 3, -kInf}), ElementsAre(0.0, 0.0, 0.0, 1.0, 0.0));
  EXPECT_THAT(AttributeScores(higher, {-1.7e308, 1.7e308, 0}), ElementsAre(0.0, 1.0, 0.5));
  EXPECT_THAT(
      AttributeScores(ScorerParameters("linear_higher_is_better", FixedRange(-1.7e308, 1.7e308)), {0}),
      ElementsAre(0.5));
}

TEST(EndpointAttributeScorer, OnlyCandidatesMakeTheRange) {
  PluginBench bench("endpoint-attribute-scorer", ScorerParameters("linear_lower_is_better"),
                    AttributePool({10, 1000, 20}));
  bench.candidates = {0, 2};
  EXPECT_THAT(bench.Scores(), ElementsAre(1.0, 0.0));
}

TEST(EndpointAttributeScorer, StaleIsMissing) {
  const Value parameters = Parameters({{"attributeKey", "power"},
                                       {"algorithm", Parameters({{"type", "linear_lower_is_better"}})},
                                       {"metricsStalenessThreshold", "1s"}});
  const auto scores = [&](absl::Duration age) {
    return PluginBench("endpoint-attribute-scorer", parameters, AttributePool({5}, kNow - age)).Scores();
  };
  EXPECT_THAT(scores(absl::Seconds(1)), ElementsAre(1.0));
  EXPECT_THAT(scores(absl::Seconds(2)), ElementsAre(0.0));
}

TEST(EndpointAttributeScorer, BadParameters) {
  const auto error = [](const Value& p) { return ParameterError("endpoint-attribute-scorer", p); };
  EXPECT_THAT(error({}), HasSubstr("attributeKey is missing"));
  EXPECT_THAT(error(Parameters({{"attributeKey", "x"}})), HasSubstr("algorithm.type is \"\""));
  EXPECT_THAT(error(ScorerParameters("cubic")), HasSubstr("algorithm.type is \"cubic\", expected linear_"));
  EXPECT_THAT(error(ScorerParameters("linear_lower_is_better", FixedRange(2, 2))),
              HasSubstr("algorithm.normalization.fixedRange.max is 2, expected more than min, 2"));
  EXPECT_THAT(error(ScorerParameters("linear_lower_is_better",
                                     Parameters({{"fixedRange", Parameters({{"min", 0}, {"max", 1}})},
                                                 {"adaptiveRange", Parameters({})}}))),
              HasSubstr("adaptiveRange is given, expected none beside fixedRange"));
  EXPECT_THAT(error(ScorerParameters("linear_lower_is_better", Parameters({{"range", 1}}))),
              HasSubstr("algorithm.normalization.range is unknown"));
  EXPECT_THAT(error(ScorerParameters("linear_lower_is_better",
                                     Parameters({{"adaptiveRange", Parameters({{"min", 1}})}}))),
              HasSubstr("adaptiveRange.min is unknown"));
}

Value FilterParameters(const char* op, double value, std::vector<Value::Field> more = {}) {
  Value::Map map = {
      {"attribute", "power"},
      {"algorithm",
       Parameters({{"type", "threshold"}, {"threshold", Parameters({{"operator", op}, {"value", value}})}})}};
  map.insert(map.end(), more.begin(), more.end());
  return Value::MakeMap(map);
}

std::vector<Position> AttributeKept(const Value& parameters,
                                    const std::vector<std::optional<double>>& values) {
  return PluginBench("endpoint-attribute-filter", parameters, AttributePool(values)).Kept();
}

TEST(EndpointAttributeFilter, Operators) {
  const std::vector<std::optional<double>> values = {5, 10, 15};
  EXPECT_THAT(AttributeKept(FilterParameters("LessThan", 10), values), ElementsAre(0));
  EXPECT_THAT(AttributeKept(FilterParameters("LessThanOrEqual", 10), values), ElementsAre(0, 1));
  EXPECT_THAT(AttributeKept(FilterParameters("GreaterThan", 10), values), ElementsAre(2));
  EXPECT_THAT(AttributeKept(FilterParameters("GreaterThanOrEqual", 10), values), ElementsAre(1, 2));
  EXPECT_THAT(AttributeKept(FilterParameters("Equal", 10), values), ElementsAre(1));
  EXPECT_THAT(AttributeKept(FilterParameters("NotEqual", 10), values), ElementsAre(0, 2));
}

TEST(EndpointAttributeFilter, Missing) {
  const std::vector<std::optional<double>> values = {std::nullopt, 5, kNaN, 15, -kInf};
  EXPECT_THAT(AttributeKept(FilterParameters("LessThan", 10), values), ElementsAre(0, 1, 2, 4));
  EXPECT_THAT(AttributeKept(FilterParameters("LessThan", 10, {{"onMissing", "Pass"}}), values),
              ElementsAre(0, 1, 2, 4));
  EXPECT_THAT(AttributeKept(FilterParameters("LessThan", 10, {{"onMissing", "Fail"}}), values),
              ElementsAre(1));
  const Value stale =
      FilterParameters("LessThan", 10, {{"onMissing", "Fail"}, {"metricsStalenessThreshold", "1s"}});
  EXPECT_THAT(
      PluginBench("endpoint-attribute-filter", stale, AttributePool({5}, kNow - absl::Seconds(2))).Kept(),
      IsEmpty());
}

TEST(EndpointAttributeFilter, EmptyResultAndFallback) {
  EXPECT_THAT(AttributeKept(FilterParameters("LessThan", 1), {5, 6}), IsEmpty());
  EXPECT_THAT(AttributeKept(FilterParameters("LessThan", 1, {{"fallbackOnEmpty", true}}), {5, 6}),
              ElementsAre(0, 1));
  EXPECT_THAT(AttributeKept(FilterParameters("LessThan", 6, {{"fallbackOnEmpty", true}}), {5, 6}),
              ElementsAre(0));
  EXPECT_THAT(AttributeKept(FilterParameters("LessThan", 1), {}), IsEmpty());
}

TEST(EndpointAttributeFilter, BadParameters) {
  const auto error = [](const Value& p) { return ParameterError("endpoint-attribute-filter", p); };
  EXPECT_THAT(error({}), HasSubstr("attribute is missing"));
  EXPECT_THAT(error(Parameters({{"attribute", "x"}})),
              HasSubstr("algorithm.type is \"\", expected threshold"));
  EXPECT_THAT(error(Parameters({{"attribute", "x"}, {"algorithm", Parameters({{"type", "threshold"}})}})),
              HasSubstr("algorithm.threshold.operator is \"\""));
  EXPECT_THAT(error(FilterParameters("Less", 1)), HasSubstr("operator is \"Less\", expected LessThan"));
  EXPECT_THAT(error(FilterParameters("LessThan", 1, {{"onMissing", "Drop"}})),
              HasSubstr("onMissing is \"Drop\", expected Pass or Fail"));
  EXPECT_EQ(error(FilterParameters("LessThan", 1, {{"producer", "dcgm-extractor"}})), "");
}

}  // namespace
}  // namespace llmd::sched
