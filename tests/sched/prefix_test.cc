// Prefix producers and the scorer on their data; expected values by hand from spec scheduling.md 2.2.
#include "llmd/sched/prefix.h"

#include <gmock/gmock.h>

#include "llmd/sched/prefix_plan.h"
#include "tests/sched/sched_test_util.h"

namespace llmd::sched {
namespace {

using ::testing::DoubleEq;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsNan;

std::vector<BlockKey> Keys(std::size_t n) {
  std::vector<BlockKey> keys;
  for (std::size_t i = 0; i < n; ++i) keys.push_back(i);
  return keys;
}

class PrefixTest : public ::testing::Test {
 protected:
  // What the producer publishes; empty when nothing.
  std::vector<PrefixMatch> Produce(const std::string& type, const Request& request,
                                   const Value& parameters = {}) {
    const Resources resources{{exact.source(), approximate.source()}};
    PluginUnderTest plugin(type, parameters, resources);
    EXPECT_TRUE(plugin.status.ok()) << plugin.status;
    const DataSlot<PrefixMatch> slot = plugin.layout.Declare<PrefixMatch>(type);
    Random random(1);
    Context context{request, pool, kNow, random, *plugin.columns};
    plugin.columns->Begin(pool.size());
    const auto& producer = plugin.As<DataProducer>();
    const std::unique_ptr<ThreadState> state = producer.NewThreadState();
    producer.Produce(context, state.get());
    const std::span<const PrefixMatch> matches = plugin.columns->Read(slot);
    return {matches.begin(), matches.end()};
  }

  static std::vector<std::uint32_t> Blocks(const std::vector<PrefixMatch>& matches) {
    std::vector<std::uint32_t> blocks;
    for (const PrefixMatch& match : matches) blocks.push_back(match.match_blocks);
    return blocks;
  }

  void Bind(PrefixSource source, std::uint16_t slot, Position p, const char* tier = "gpu") {
    ASSERT_TRUE(pool.BindHolder(source, {slot, 1}, pool[p].handle, tier).ok());
  }

  FakeIndex exact;
  FakeIndex approximate;
  EndpointPool pool = MakePool(3);
};

TEST_F(PrefixTest, PreciseCountsLeadingBlocksByEndpoint) {
  Bind(kExactSource, 7, 0);
  Bind(kExactSource, 2, 2);
  exact.Store(7, Keys(3));
  exact.Store(2, {0, 2, 3});  // a hole at 1
  exact.Store(5, Keys(9));    // nobody's
  const TestRequest request(10);
  const std::vector<PrefixMatch> matches = Produce("precise-prefix-cache-producer", request.request);
  EXPECT_THAT(Blocks(matches), ElementsAre(3, 0, 1));
  EXPECT_EQ(matches[0].total_blocks, 10u);
  EXPECT_EQ(matches[0].cached_blocks, 3u);
  EXPECT_EQ(matches[0].block_size, 16u);
}

TEST_F(PrefixTest, TiersAreWeightedAndTruncated) {
  Bind(kExactSource, 0, 0, "gpu");
  Bind(kExactSource, 1, 0, "cpu");
  Bind(kExactSource, 2, 1, "cpu");
  Bind(kExactSource, 3, 2, "disk");
  exact.Store(0, Keys(4));
  exact.Store(1, Keys(7));
  exact.Store(2, Keys(1));
  exact.Store(3, Keys(5));
  const TestRequest request(10);
  const std::vector<PrefixMatch> matches = Produce("precise-prefix-cache-producer", request.request);
  // 4 x 1.0 + 3 x 0.8 = 6.4; 1 x 0.8; 5 x 1.0 because an unknown tier weighs 1.
  EXPECT_THAT(Blocks(matches), ElementsAre(6, 0, 5));
  EXPECT_EQ(matches[0].cached_blocks, 7u);
  EXPECT_EQ(matches[1].cached_blocks, 1u);

  const Value weights = Parameters(
      {{"indexerConfig", Parameters({{"kvCacheBackendConfigs",
                                      Value::MakeList({Parameters({{"name", "gpu"}, {"weight", 0.5}}),
                                                       Parameters({{"name", "disk"}, {"weight", 0}})})}})}});
  // The endpoint's cpu tier, now unknown, weighs more than its gpu tier: 7 x 1.0.
  EXPECT_THAT(Blocks(Produce("precise-prefix-cache-producer", request.request, weights)),
              ElementsAre(7, 1, 0));
}

TEST_F(PrefixTest, PromptsAddUp) {
  Bind(kExactSource, 0, 1);
  exact.Store(0, Keys(2));
  TestRequest request(5);
  request.prompts.push_back(request.prompts[0]);
  request.request.prompts = request.prompts;
  const std::vector<PrefixMatch> matches = Produce("precise-prefix-cache-producer", request.request);
  EXPECT_THAT(Blocks(matches), ElementsAre(0, 4, 0));
  EXPECT_EQ(matches[1].total_blocks, 10u);
}

TEST_F(PrefixTest, NothingIsPublishedWithoutKeys) {
  const TestRequest empty(0);
  EXPECT_TRUE(Produce("precise-prefix-cache-producer", empty.request).empty());
  EXPECT_TRUE(Produce("approx-prefix-cache-producer", Request{}).empty());
  // A miss everywhere is knowledge, too.
  const TestRequest request(4);
  EXPECT_THAT(Blocks(Produce("precise-prefix-cache-producer", request.request)), ElementsAre(0, 0, 0));
}

TEST_F(PrefixTest, HoldersOfRemovedEndpointsAreIgnored) {
  Bind(kExactSource, 0, 0);
  Bind(kExactSource, 1, 1);
  exact.Store(0, Keys(4));
  exact.Store(1, Keys(2));
  pool.Remove(pool[0].handle);
  const TestRequest request(4);
  EXPECT_THAT(Blocks(Produce("precise-prefix-cache-producer", request.request)), ElementsAre(2, 0));
}

TEST_F(PrefixTest, ApproximateCutsLongPrompts) {
  Bind(kApproximateSource, 0, 1);
  approximate.Store(0, Keys(10));
  const TestRequest request(10, 64);
  const auto run = [&](const Value& parameters) {
    return Produce("approx-prefix-cache-producer", request.request, parameters);
  };
  EXPECT_THAT(Blocks(run({})), ElementsAre(0, 10, 0));
  const std::vector<PrefixMatch> cut = run(Parameters({{"maxPrefixTokensToMatch", 64 * 3 + 1}}));
  EXPECT_THAT(Blocks(cut), ElementsAre(0, 3, 0));
  EXPECT_EQ(cut[0].total_blocks, 3u);
  EXPECT_TRUE(run(Parameters({{"maxPrefixTokensToMatch", 63}})).empty());
  EXPECT_THAT(Blocks(run(Parameters({{"maxPrefixTokensToMatch", 0}, {"maxPrefixBlocksToMatch", 4}}))),
              ElementsAre(0, 4, 0));
  EXPECT_THAT(Blocks(run(Parameters({{"maxPrefixTokensToMatch", 0}, {"maxPrefixBlocksToMatch", 0}}))),
              ElementsAre(0, 10, 0));
}

TEST_F(PrefixTest, ApproximateSizes) {
  const ApproxPrefixOptions options;
  EXPECT_EQ(options.BlockSize(0), 64u);
  EXPECT_EQ(options.BlockSize(16), 64u);
  EXPECT_EQ(options.BlockSize(128), 128u);
  EXPECT_EQ(options.LruCapacity(0), 31250u);
  EXPECT_EQ(options.LruCapacity(5000), 5000u);
  EXPECT_EQ((ApproxPrefixOptions{.auto_tune = false, .block_size = 256}.BlockSize(128)), 256u);
  EXPECT_EQ((ApproxPrefixOptions{.auto_tune = false, .lru_capacity = 10}.LruCapacity(5000)), 10u);

  const auto parse = [](const Value& p) { return ParseApproxPrefixOptions("approx", p); };
  EXPECT_EQ(parse(Parameters({{"blockSize", 128}}))->block_size, 128);
  EXPECT_EQ(parse(Parameters({{"blockSize", 128}, {"blockSizeTokens", 256}}))->block_size, 256);
  EXPECT_FALSE(parse(Parameters({{"autoTune", false}, {"blockSizeTokens", 0}})).ok());
  EXPECT_TRUE(parse(Parameters({{"autoTune", true}, {"blockSizeTokens", 0}})).ok());
}

TEST_F(PrefixTest, PlansSayWhichChainsAreWanted) {
  SchedulerConfig config;
  config.plugins = {{.type = "queue-scorer"}};
  EXPECT_FALSE(PrefixPlan::From(config)->wants_tokens());
  config.plugins.push_back({.name = "p", .type = "precise-prefix-cache-producer"});
  config.plugins.push_back(
      {.type = "approx-prefix-cache-producer", .parameters = Parameters({{"blockSizeTokens", 256}})});
  const PrefixPlan plan = *PrefixPlan::From(config);
  EXPECT_TRUE(plan.wants_tokens());
  EXPECT_EQ(plan.precise->block_size, 16);
  EXPECT_EQ(plan.approx->block_size, 256);
  config.plugins.back().parameters = Parameters({{"blockSizeTokens", "x"}});
  EXPECT_EQ(PrefixPlan::From(config).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(PrefixTest, ProducersNeedAnIndex) {
  EXPECT_EQ(PluginUnderTest("precise-prefix-cache-producer", {}).status.code(),
            absl::StatusCode::kFailedPrecondition);
  const Resources exact_only{{exact.source()}};
  EXPECT_THAT(PluginUnderTest("approx-prefix-cache-producer", {}, exact_only).status.message(),
              HasSubstr("no index as prefix source 1"));
}

std::vector<double> PrefixScores(const Value& parameters, const std::vector<PrefixMatch>& matches,
                                 bool publish = true) {
  PluginUnderTest plugin("prefix-cache-scorer", parameters);
  EXPECT_TRUE(plugin.status.ok()) << plugin.status;
  const DataSlot<PrefixMatch> slot = plugin.layout.Declare<PrefixMatch>("approx-prefix-cache-producer");
  const EndpointPool pool = MakePool(matches.size());
  Request request;
  Random random(1);
  Context context{request, pool, kNow, random, *plugin.columns};
  plugin.columns->Begin(pool.size());
  if (publish) std::copy(matches.begin(), matches.end(), plugin.columns->Publish(slot).begin());
  std::vector<double> scores(matches.size(), kNoScore);
  plugin.As<Scorer>().Score(context, AllPositions(pool), scores);
  return scores;
}

TEST(PrefixCacheScorer, RatioIsAbsolute) {
  EXPECT_THAT(PrefixScores({}, {{5, 10, 16, 5}, {10, 10, 16, 10}, {0, 10, 16, 0}, {3, 0, 16, 3}}),
              ElementsAre(0.5, 1.0, 0.0, 0.0));
  EXPECT_THAT(PrefixScores({}, {{5, 10, 16, 5}}), ElementsAre(0.5));
}

TEST(PrefixCacheScorer, NoInformationNoScore) {
  EXPECT_THAT(PrefixScores({}, {{}, {}}, /*publish=*/false), ElementsAre(IsNan(), IsNan()));
  EXPECT_THAT(PrefixScores({}, {{}, {}}), ElementsAre(0.0, 0.0));
}

TEST(PrefixCacheScorer, MatchLength) {
  const Value half = Parameters({{"matchLengthWeight", 0.5}, {"matchLengthScaleTokens", 1600}});
  // 50 blocks of 16 tokens are half of the scale: length 0.25, ratio 0.5. Beyond the scale length is 1.
  EXPECT_THAT(PrefixScores(half, {{50, 100, 16, 50}, {200, 200, 16, 200}, {50, 100, 0, 50}}),
              ElementsAre(DoubleEq(0.375), DoubleEq(1.0), DoubleEq(0.25)));
  const Value whole = Parameters({{"matchLengthWeight", 1}});
  EXPECT_THAT(PrefixScores(whole, {{256, 256, 16, 256}}), ElementsAre(DoubleEq(0.25)));
}

TEST(PrefixCacheScorer, BadParameters) {
  const auto message = [](const Value& p) {
    return std::string(PluginUnderTest("prefix-cache-scorer", p).status.message());
  };
  EXPECT_THAT(message(Parameters({{"matchLengthWeight", 1.1}})),
              HasSubstr("matchLengthWeight is 1.1, expected 0..1"));
  EXPECT_THAT(message(Parameters({{"matchLengthWeight", -0.1}})), HasSubstr("expected 0..1"));
  EXPECT_THAT(message(Parameters({{"matchLengthWeight", 0.1}, {"matchLengthScaleTokens", 0}})),
              HasSubstr("matchLengthScaleTokens is 0"));
  EXPECT_EQ(message(Parameters({{"matchLengthScaleTokens", 0}})), "");
}

}  // namespace
}  // namespace llmd::sched
