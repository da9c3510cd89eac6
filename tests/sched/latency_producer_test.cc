// predicted-latency-producer; headrooms by hand from spec scheduling.md 2.5.
#include <gmock/gmock.h>

#include "llmd/sched/encoder_cache.h"
#include "llmd/sched/in_flight.h"
#include "llmd/sched/latency.h"
#include "tests/sched/plugin_rig.h"

namespace llmd::sched {
namespace {

using ::testing::DoubleEq;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kType[] = "predicted-latency-producer";
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

class LatencyProducerTest : public ::testing::Test {
 protected:
  void Make(const Value& parameters = {}) {
    const LatencyPredictor predictor = [this](std::span<const LatencyFeatures> given,
                                              std::span<LatencyEstimate> out) {
      ++calls;
      features.assign(given.begin(), given.end());
      for (std::size_t i = 0; i < out.size() && i < estimates.size(); ++i) out[i] = estimates[i];
      return answers;
    };
    rig = std::make_unique<PluginRig>(pool, kType, parameters, Resources{{}, {}, predictor});
  }
  void Begin(const std::vector<Header>& with,
             std::optional<std::vector<Position>> candidates = std::nullopt) {
    headers = with;
    prompts = {{.token_count = 1000}, {.token_count = 24}};
    request = {.prompts = prompts, .headers = headers};
    rig->Begin(request, std::move(candidates));
  }
  std::vector<LatencyPrediction> Predict(const std::vector<Header>& with) {
    Begin(with);
    rig->Produce();
    return rig->Read<LatencyPrediction>();
  }
  // "ttft headroom/valid tpot headroom/valid"
  static std::string Text(const LatencyPrediction& p) {
    const auto number = [](double d) { return std::to_string(static_cast<int>(d * 10)); };
    return number(p.ttft_headroom_ms) + (p.ttft_valid ? "+ " : "- ") + number(p.tpot_headroom_ms) +
           (p.tpot_valid ? "+" : "-");
  }
  std::vector<std::string> Texts(const std::vector<Header>& with) {
    std::vector<std::string> texts;
    for (const LatencyPrediction& p : Predict(with)) texts.push_back(p.known ? Text(p) : "unknown");
    return texts;
  }

  EndpointPool pool = MakePool(3);
  std::vector<LatencyEstimate> estimates = {{100, 20}, {200, 30}, {300, 50}};
  std::vector<LatencyFeatures> features;
  bool answers = true;
  int calls = 0;
  std::unique_ptr<PluginRig> rig;
  std::vector<Header> headers;
  std::vector<Prompt> prompts;
  Request request;
};

const std::vector<Header> kSlo = {{"x-llm-d-slo-ttft-ms", "200"}, {"x-llm-d-slo-tpot-ms", "30"}};

TEST_F(LatencyProducerTest, HeadroomsInTenthsOfMilliseconds) {
  Make(Parameters({{"streamingMode", true}}));
  // 200 - ttft, 30 - tpot; equal is not within.
  EXPECT_THAT(Texts(kSlo), ElementsAre("1000+ 100+", "0- 0-", "-1000- -200-"));
  const std::vector<LatencyPrediction> predictions = Predict(kSlo);
  EXPECT_EQ(predictions[2].ttft_ms, 300);
  EXPECT_EQ(predictions[2].tpot_ms, 50);
  EXPECT_TRUE(predictions[0].valid());
  EXPECT_FALSE(predictions[1].valid());
}

TEST_F(LatencyProducerTest, WithoutStreamingOnlyTheFirstTokenCounts) {
  Make();
  EXPECT_THAT(Texts(kSlo), ElementsAre("1000+ 0+", "0- 0+", "-1000- 0+"));
}

TEST_F(LatencyProducerTest, BufferWidensTheObjective) {
  Make(Parameters({{"streamingMode", true}, {"sloBufferFactor", 1.5}}));
  EXPECT_THAT(Texts(kSlo), ElementsAre("1000+ 250+", "0- 150+", "-1000- -50-"));
}

TEST_F(LatencyProducerTest, PrefillersDoNotDecode) {
  pool = {};
  AddEndpoint(pool, {{"role", "prefill"}});
  AddEndpoint(pool, {{"role", "decode"}});
  AddEndpoint(pool, {});
  Make(Parameters({{"streamingMode", true}, {"endpointRoleLabel", "role"}}));
  EXPECT_THAT(Texts(kSlo), ElementsAre("1000+ 0+", "0- 0-", "-1000- -200-"));
  EXPECT_EQ(features[0].role, "prefill");
  EXPECT_EQ(features[1].role, "decode");
  EXPECT_EQ(features[2].role, "");
}

TEST_F(LatencyProducerTest, ObjectivesFromHeaders) {
  Make(Parameters({{"streamingMode", true}}));
  const auto first = [&](const std::vector<Header>& with) { return Texts(with)[0]; };
  EXPECT_EQ(first({}), "-1000- -200-");
  EXPECT_EQ(first({{"x-slo-ttft-ms", "200"}, {"x-slo-tpot-ms", "30"}}), "1000+ 100+");
  EXPECT_EQ(first({{"x-slo-ttft-ms", "900"}, {"x-llm-d-slo-ttft-ms", "150.5"}}), "505+ -200-");
  for (const char* bad : {"", "soon", "-5", "nan", "inf", "1e999", "12ms"}) {
    EXPECT_EQ(first({{"x-llm-d-slo-ttft-ms", bad}}), "-1000- -200-") << bad;
  }
}

TEST_F(LatencyProducerTest, TightestRunningRequestBoundsTheOthers) {
  Make(Parameters({{"streamingMode", true}, {"sloBufferFactor", 2}}));
  const auto send = [&](const char* tpot, Position target) {
    Predict({{"x-llm-d-slo-tpot-ms", tpot}});
    Dispatch dispatch;
    EXPECT_TRUE(rig->Decide({{"decode", {target}}, {"prefill", {2}}}, dispatch).ok());
    return dispatch;
  };
  const auto tpot = [&] {
    std::vector<int> headrooms;
    for (const LatencyPrediction& p : Predict(kSlo))
      headrooms.push_back(static_cast<int>(p.tpot_headroom_ms));
    return headrooms;
  };
  EXPECT_THAT(tpot(), ElementsAre(40, 30, 10));  // 60 - tpot
  Dispatch loose = send("80", 0);
  EXPECT_THAT(tpot(), ElementsAre(40, 30, 10));
  Dispatch tight = send("15", 0);
  Dispatch tighter = send("12", 0);
  Dispatch none = send("0", 0);
  EXPECT_THAT(tpot(), ElementsAre(2 * 12 - 20, 30, 10));
  EXPECT_EQ(Predict(kSlo)[0].dispatched_requests, 4);
  EXPECT_EQ(Predict(kSlo)[2].dispatched_requests, 0);
  tighter.flight.OnResponseBody({.first = true});
  EXPECT_THAT(tpot(), ElementsAre(4, 30, 10));
  tighter.flight.OnResponseBody({.last = true});
  tighter = {};
  EXPECT_THAT(tpot(), ElementsAre(2 * 15 - 20, 30, 10));
  tight = {};
  EXPECT_THAT(tpot(), ElementsAre(40, 30, 10));
  none = {};
  EXPECT_EQ(Predict(kSlo)[0].dispatched_requests, 1);

  // A successor of the endpoint has none of it, and late ends do not touch it.
  const EndpointMetadata metadata = pool[0].metadata();
  pool.Remove(pool[0].handle);
  ASSERT_TRUE(pool.Add(metadata).ok());
  EXPECT_EQ(Predict(kSlo)[2].dispatched_requests, 0);
  const Dispatch fresh = send("9", 2);
  rig->under_test.plugin.reset();  // flights outlive their plugin
  loose = {};
}

TEST_F(LatencyProducerTest, Features) {
  Make(Parameters({{"useEncoderCacheFeatures", true}}));
  MetricsAt(pool, 0).kv_cache_usage = {0.5, kNow};
  MetricsAt(pool, 0).waiting_requests = {4, kNow};
  MetricsAt(pool, 0).running_requests = {7, kNow};
  MetricsAt(pool, 1).kv_cache_usage = {kNan, kNow};
  MetricsAt(pool, 1).waiting_requests = {-4, kNow};
  MetricsAt(pool, 1).running_requests = {-7, kNow};
  MetricsAt(pool, 2).kv_cache_usage = {kInf, kNow};
  Predict({});
  ASSERT_EQ(features.size(), 3u);
  EXPECT_EQ(features[0].input_tokens, 1024);
  EXPECT_EQ(features[0].kv_cache_usage, 0.5);
  EXPECT_EQ(features[0].waiting_requests, 4);
  EXPECT_EQ(features[0].running_requests, 7);
  EXPECT_EQ(features[0].prefix_ratio, 0);
  EXPECT_EQ(features[0].prefill_tokens_in_flight, 0);
  EXPECT_EQ(features[1].kv_cache_usage, 0);
  EXPECT_EQ(features[1].waiting_requests, 0);
  EXPECT_EQ(features[1].running_requests, 0);
  EXPECT_EQ(features[2].kv_cache_usage, 1);

  Begin({}, std::vector<Position>{0, 2});
  rig->Publish<PrefixMatch>("approx-prefix-cache-producer", {{3, 4, 16, 3}, {}, {}});
  rig->Publish<InFlightLoad>("inflight-load-producer", {{2, 500}, {9, 9}, {0, 0}});
  rig->Publish<EncoderCacheMatch>("mm-embeddings-cache-producer", {{1, 3}, {}, {0, 3}});
  rig->Produce();
  ASSERT_EQ(features.size(), 2u);
  EXPECT_EQ(features[0].prefix_ratio, 0.75);
  EXPECT_EQ(features[0].running_requests, 2);  // counted, not scraped
  EXPECT_EQ(features[0].prefill_tokens_in_flight, 500);
  EXPECT_EQ(features[0].encoder_items, 3);
  EXPECT_EQ(features[0].encoder_items_cached, 1);
  EXPECT_EQ(features[1].prefix_ratio, 0);
  EXPECT_EQ(features[1].encoder_items, 3);
}

TEST_F(LatencyProducerTest, NoAnswerNoPrediction) {
  Make();
  answers = false;
  EXPECT_TRUE(Predict(kSlo).empty());
  answers = true;
  estimates = {{kNan, 20}, {kInf, 20}, {100, kNan}};
  EXPECT_THAT(Texts(kSlo), ElementsAre("unknown", "unknown", "1000+ 0+"));
  Make(Parameters({{"streamingMode", true}}));
  EXPECT_THAT(Texts(kSlo), ElementsAre("unknown", "unknown", "unknown"));
  const int before = calls;
  Make(Parameters({{"predictInProduce", false}}));
  EXPECT_TRUE(Predict(kSlo).empty());
  EXPECT_EQ(calls, before);

  PluginRig without(pool, kType);
  without.Begin(request);
  without.Produce();
  EXPECT_TRUE(without.Read<LatencyPrediction>().empty());
}

TEST_F(LatencyProducerTest, Parameters) {
  const auto message = [](const Value& p) { return std::string(PluginUnderTest(kType, p).status.message()); };
  const auto one = [](const char* field, Value value) {
    return sched::Parameters({{field, std::move(value)}});
  };
  EXPECT_THAT(message(one("sloBufferFactor", 0)), HasSubstr("sloBufferFactor is 0, expected more than 0"));
  EXPECT_THAT(message(one("samplingMean", -1)), HasSubstr("samplingMean is -1"));
  EXPECT_THAT(message(one("maxDecodeTokenSamplesForPrediction", -1)), HasSubstr("expected at least 0"));
  EXPECT_THAT(message(one("contextTTL", "0s")), HasSubstr("contextTTL is 0"));
  EXPECT_THAT(message(one("contextTTL", "later")), HasSubstr("contextTTL is \"later\""));
  EXPECT_THAT(message(one("streaming", true)), HasSubstr("streaming is unknown"));
  EXPECT_EQ(message(one("contextTTL", "10m")), "");

  SchedulerConfig config;
  config.plugins = {{.type = kType}};
  config.profiles = {{"default", {}}};
  const auto scheduler = Scheduler::Create(config, PluginRegistry::Builtin(), {});
  ASSERT_TRUE(scheduler.ok()) << scheduler.status();
  EXPECT_THAT((*scheduler)->warnings(), ElementsAre(HasSubstr("no latency predictor")));
  EXPECT_EQ(PluginRegistry::Builtin().DefaultProducer("LatencyPredictionInfo"), kType);
}

}  // namespace
}  // namespace llmd::sched
