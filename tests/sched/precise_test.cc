// precise-prefix-cache-producer: parameters, tiers, speculation; the deprecated scorer. (spec: scheduling.md
// 2.2, 3.5 B, 5)
#include <gmock/gmock.h>

#include <numeric>

#include "llmd/sched/prefix.h"
#include "tests/sched/plugin_rig.h"

namespace llmd::sched {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kType[] = "precise-prefix-cache-producer";
constexpr char kScorerType[] = "precise-prefix-cache-scorer";

Value Speculative(const char* ttl = "2s") {
  return Parameters({{"speculativeIndexing", true}, {"speculativeTTL", ttl}});
}
std::vector<BlockKey> Keys(std::size_t n) {
  std::vector<BlockKey> keys(n);
  std::iota(keys.begin(), keys.end(), 0);
  return keys;
}

class PreciseTest : public ::testing::Test {
 protected:
  std::unique_ptr<PluginRig> Make(const Value& parameters, const Compatibility& compatibility = {},
                                  const char* type = kType) {
    return std::make_unique<PluginRig>(pool, type, parameters, Resources{{exact.source()}}, compatibility);
  }
  void Bind(std::uint16_t slot, Position p, const char* tier) {
    ASSERT_TRUE(pool.BindHolder(kExactSource, {slot, 1}, pool[p].handle, tier).ok());
  }
  static std::vector<PrefixMatch> Match(PluginRig& rig, const Request& request) {
    rig.Begin(request);
    rig.Produce();
    return rig.Read<PrefixMatch>();
  }
  static std::vector<std::uint32_t> Blocks(PluginRig& rig, const Request& request) {
    std::vector<std::uint32_t> blocks;
    for (const PrefixMatch& match : Match(rig, request)) blocks.push_back(match.match_blocks);
    return blocks;
  }

  FakeIndex exact;
  EndpointPool pool = MakePool(3);
};

TEST_F(PreciseTest, ParametersOfTheExample) {
  const Value parameters = Parameters(
      {{"tokenProcessorConfig", Parameters({{"blockSizeTokens", 64}, {"hashSeed", "42"}})},
       {"speculativeIndexing", true},
       {"speculativeTTL", "3s"},
       {"kvEventsConfig",
        Parameters({{"topicFilter", "kv@x"},
                    {"concurrency", 8},
                    {"discoverPods", false},
                    {"zmqEndpoint", "tcp://*:5557"},
                    {"podDiscoveryConfig", Parameters({{"socketPort", 5558}, {"replaySocketPort", 5560}})}})},
       {"indexerConfig",
        Parameters({{"kvBlockIndexConfig",
                     Parameters({{"enableMetrics", true},
                                 {"metricsLoggingInterval", 60'000'000'000},
                                 {"inMemoryConfig", Parameters({{"size", 1000}, {"podCacheSize", 5}})}})},
                    {"kvCacheBackendConfigs",
                     Value::MakeList({Parameters({{"name", "gpu"}, {"weight", 1.0}}),
                                      Parameters({{"name", "disk"}, {"weight", 0.25}})})}})}});
  const absl::StatusOr<PreciseOptions> options = ParsePreciseOptions(kType, parameters);
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->block_size, 64);
  EXPECT_EQ(options->hash_seed, "42");
  EXPECT_EQ(options->hash_algorithm, "cbor-fnv");
  EXPECT_TRUE(options->speculative_indexing);
  EXPECT_EQ(options->speculative_ttl, absl::Seconds(3));
  EXPECT_EQ(options->kv_events.topic_filter, "kv@x");
  EXPECT_EQ(options->kv_events.concurrency, 8);
  EXPECT_FALSE(options->kv_events.discover_pods);
  EXPECT_EQ(options->kv_events.zmq_endpoint, "tcp://*:5557");
  EXPECT_EQ(options->kv_events.socket_port, 5558);
  EXPECT_EQ(options->kv_events.replay_socket_port, 5560);
  EXPECT_EQ(options->blocks.store, PreciseOptions::Store::kMemory);
  EXPECT_EQ(options->blocks.max_keys, 1000);
  EXPECT_EQ(options->blocks.pods_per_key, 5);
  EXPECT_TRUE(options->blocks.enable_metrics);
  EXPECT_EQ(options->blocks.metrics_logging_interval, absl::Minutes(1));
  ASSERT_EQ(options->tiers.size(), 2u);
  EXPECT_EQ(options->tiers[1].name, "disk");
  EXPECT_EQ(options->tiers[1].weight, 0.25);
}

TEST_F(PreciseTest, DefaultsAndAlternatives) {
  const absl::StatusOr<PreciseOptions> options = ParsePreciseOptions(kType, {});
  ASSERT_TRUE(options.ok());
  EXPECT_EQ(options->block_size, 16);
  EXPECT_FALSE(options->speculative_indexing);
  EXPECT_EQ(options->speculative_ttl, absl::Seconds(2));
  EXPECT_EQ(options->kv_events.topic_filter, "kv@");
  EXPECT_EQ(options->kv_events.concurrency, 4);
  EXPECT_TRUE(options->kv_events.discover_pods);
  EXPECT_EQ(options->kv_events.socket_port, 5557);
  EXPECT_EQ(options->kv_events.replay_socket_port, 0);
  EXPECT_EQ(options->blocks.max_keys, 100'000'000);
  EXPECT_EQ(options->blocks.pods_per_key, 10);
  ASSERT_EQ(options->tiers.size(), 2u);
  EXPECT_EQ(options->tiers[1].weight, 0.8);

  const auto store = [](Value::Map blocks) {
    return ParsePreciseOptions(
               kType, Parameters({{"indexerConfig",
                                   Parameters({{"kvBlockIndexConfig", Value::MakeMap(std::move(blocks))}})}}))
        ->blocks.store;
  };
  const Value memory = Parameters({{"size", 5}});
  const Value cost = Parameters({{"size", "1GiB"}});
  const Value redis = Parameters({{"address", "redis://cache:6379"}});
  EXPECT_EQ(store({{"inMemoryConfig", memory}, {"redisConfig", redis}}), PreciseOptions::Store::kRedis);
  EXPECT_EQ(store({{"redisConfig", redis}, {"costAwareMemoryConfig", cost}}),
            PreciseOptions::Store::kCostAware);
  const auto block_size = [](Value::Map fields) {
    return ParsePreciseOptions(kType,
                               Parameters({{"tokenProcessorConfig", Value::MakeMap(std::move(fields))}}))
        ->block_size;
  };
  EXPECT_EQ(block_size({{"blockSize", 32}}), 32);
  EXPECT_EQ(block_size({{"blockSize", 32}, {"blockSizeTokens", 64}}), 64);
}

TEST_F(PreciseTest, BadParameters) {
  const auto message = [](Value::Map fields) {
    return std::string(ParsePreciseOptions("p", Value::MakeMap(std::move(fields))).status().message());
  };
  const auto one = [](const char* field, Value value) { return Parameters({{field, std::move(value)}}); };
  EXPECT_THAT(message({{"speculativeTTL", "0s"}}), HasSubstr("p: speculativeTTL is 0, expected more than 0"));
  EXPECT_THAT(message({{"speculativeTTL", 2}}), HasSubstr("speculativeTTL is an integer"));
  EXPECT_THAT(message({{"blockSizeTokens", 16}}), HasSubstr("blockSizeTokens is unknown"));
  EXPECT_THAT(message({{"tokenProcessorConfig", one("blockSizeTokens", 0)}}),
              HasSubstr("p: tokenProcessorConfig.blockSizeTokens is 0, expected at least 1"));
  EXPECT_THAT(message({{"tokenProcessorConfig", one("hashAlgorithm", "md5")}}),
              HasSubstr("hashAlgorithm is \"md5\", expected cbor-fnv or xxh64"));
  EXPECT_THAT(message({{"tokenProcessorConfig", one("seed", "1")}}),
              HasSubstr("tokenProcessorConfig.seed is unknown"));
  EXPECT_THAT(message({{"kvEventsConfig", one("concurrency", 0)}}), HasSubstr("concurrency is 0"));
  EXPECT_THAT(message({{"kvEventsConfig", one("podDiscoveryConfig", one("socketPort", 65536))}}),
              HasSubstr("kvEventsConfig.podDiscoveryConfig.socketPort is 65536, expected 1..65535"));
  EXPECT_THAT(message({{"kvEventsConfig", one("podDiscoveryConfig", one("port", 1))}}),
              HasSubstr("podDiscoveryConfig.port is unknown"));
  EXPECT_THAT(message({{"indexerConfig", one("kvBlockIndexConfig", one("inMemoryConfig", one("size", 0)))}}),
              HasSubstr("indexerConfig.kvBlockIndexConfig.inMemoryConfig.size is 0"));
  EXPECT_THAT(message({{"indexerConfig", one("kvBlockIndexConfig", one("metricsLoggingInterval", "soon"))}}),
              HasSubstr("metricsLoggingInterval is soon, expected nanoseconds"));
  const auto tier = [&](Value value) {
    return message({{"indexerConfig", one("kvCacheBackendConfigs", Value::MakeList({std::move(value)}))}});
  };
  EXPECT_THAT(tier(one("weight", 1)),
              HasSubstr("indexerConfig.kvCacheBackendConfigs[0].name is missing, expected a tier"));
  EXPECT_THAT(tier(Parameters({{"name", "gpu"}, {"weight", -1}})), HasSubstr("weight is -1"));
  EXPECT_THAT(tier(Parameters({{"name", "gpu"}, {"colour", 1}})), HasSubstr("colour is unknown"));
}

TEST_F(PreciseTest, WeightsAreMultipliedOrAdded) {
  Bind(0, 0, "cpu");
  Bind(1, 1, "gpu");
  Bind(2, 1, "cpu");
  exact.Store(0, Keys(10));
  exact.Store(1, Keys(2));
  exact.Store(2, Keys(10));
  const TestRequest request(10);
  // 10 x 0.8 = 8; 2 + 8 x 0.8 = 8.4.
  EXPECT_THAT(Blocks(*Make({}), request.request), ElementsAre(8, 8, 0));
  // Ten times 0.8 one after the other is 7.999999999999999; 2 and eight of them 8.4.
  EXPECT_THAT(Blocks(*Make({}, {.tier_weights_added_one_by_one = true}), request.request),
              ElementsAre(7, 8, 0));
}

TEST_F(PreciseTest, CpuTierIsToldApart) {
  Bind(0, 0, "gpu");
  Bind(1, 0, "cpu");
  Bind(2, 1, "gpu");
  exact.Store(0, Keys(6));
  exact.Store(1, Keys(4));
  exact.Store(2, Keys(5));
  TestRequest request(8);
  request.prompts.push_back(request.prompts[0]);
  request.request.prompts = request.prompts;
  const std::vector<PrefixMatch> matches = Match(*Make({}), request.request);
  EXPECT_TRUE(matches[0].tiers_known);
  EXPECT_EQ(matches[0].cached_blocks, 12u);
  EXPECT_EQ(matches[0].cpu_blocks, 8u);
  EXPECT_EQ(matches[1].cached_blocks, 10u);
  EXPECT_EQ(matches[1].cpu_blocks, 0u);
}

TEST_F(PreciseTest, WhatWasSentCountsForTheTtl) {
  const auto rig = Make(Speculative());
  const TestRequest request(10);
  EXPECT_THAT(Blocks(*rig, request.request), ElementsAre(0, 0, 0));
  Dispatch dispatch;
  ASSERT_TRUE(rig->Decide({{"decode", {1, 0}}, {"prefill", {2}}, {"encode", {0}}}, dispatch).ok());
  EXPECT_THAT(Blocks(*rig, request.request), ElementsAre(0, 10, 10));
  const TestRequest shorter(4);
  EXPECT_THAT(Blocks(*rig, shorter.request), ElementsAre(0, 4, 4));
  rig->now += absl::Milliseconds(1999);
  EXPECT_THAT(Blocks(*rig, request.request), ElementsAre(0, 10, 10));
  rig->now += absl::Milliseconds(1);
  EXPECT_THAT(Blocks(*rig, request.request), ElementsAre(0, 0, 0));
}

TEST_F(PreciseTest, RepeatedUseKeepsItAlive) {
  const auto rig = Make(Speculative("4s"));
  const TestRequest request(3);
  for (int i = 0; i < 10; ++i) {
    Match(*rig, request.request);
    rig->Decide(1);
    rig->now += absl::Seconds(3);
    EXPECT_THAT(Blocks(*rig, request.request), ElementsAre(0, 3, 0));
  }
}

// Another prompt to the same endpoint does not keep the first one alive.
TEST_F(PreciseTest, EachPromptExpiresByItself) {
  const auto rig = Make(Speculative());
  TestRequest first(3);
  TestRequest other(5);
  for (BlockKey& key : other.keys) key += 100;
  other.chains = {{{}, 16, other.keys}};
  other.prompts[0].chains = other.chains;
  Match(*rig, first.request);
  rig->Decide(1);
  rig->now += absl::Milliseconds(1500);
  Match(*rig, other.request);
  rig->Decide(1);
  rig->now += absl::Milliseconds(600);
  Match(*rig, other.request);
  rig->Decide(2);  // a later record, of any endpoint, forgets what is over
  EXPECT_THAT(Blocks(*rig, first.request), ElementsAre(0, 0, 0));
  EXPECT_THAT(Blocks(*rig, other.request), ElementsAre(0, 5, 5));
}

TEST_F(PreciseTest, BestOfConfirmedAndSpeculative) {
  Bind(0, 0, "cpu");
  Bind(1, 1, "gpu");
  Bind(2, 2, "cpu");
  const auto rig = Make(Speculative());
  const TestRequest four(4);
  Match(*rig, four.request);
  Dispatch dispatch;
  ASSERT_TRUE(rig->Decide({{"decode", {0}}, {"prefill", {1}}}, dispatch).ok());
  exact.Store(0, Keys(10));
  exact.Store(1, Keys(2));
  exact.Store(2, Keys(5));
  const TestRequest ten(10);
  const std::vector<PrefixMatch> matches = Match(*rig, ten.request);
  // 4 x 1.0 + 6 x 0.8 = 8.8; 4 x 1.0, two of them confirmed; 5 x 0.8 = 4.
  EXPECT_EQ(matches[0].match_blocks, 8u);
  EXPECT_EQ(matches[1].match_blocks, 4u);
  EXPECT_EQ(matches[2].match_blocks, 4u);
  EXPECT_EQ(matches[0].cached_blocks, 10u);
  EXPECT_EQ(matches[1].cached_blocks, 4u);
  EXPECT_EQ(matches[0].cpu_blocks, 10u);
  EXPECT_EQ(matches[1].cpu_blocks, 0u);
}

TEST_F(PreciseTest, OffByDefaultAndForgottenWithTheEndpoint) {
  const TestRequest request(3);
  const auto off = Make({});
  Match(*off, request.request);
  off->Decide(0);
  EXPECT_THAT(Blocks(*off, request.request), ElementsAre(0, 0, 0));

  const auto rig = Make(Speculative());
  Match(*rig, request.request);
  rig->Decide(0);
  const EndpointMetadata metadata = pool[0].metadata();
  pool.Remove(pool[0].handle);
  ASSERT_TRUE(pool.Add(metadata).ok());
  EXPECT_THAT(Blocks(*rig, request.request), ElementsAre(0, 0, 0));
  rig->Decide(2);  // the successor, in the slot of the former
  EXPECT_THAT(Blocks(*rig, request.request), ElementsAre(0, 0, 3));
}

TEST_F(PreciseTest, NothingToSpeculateOn) {
  const auto rig = Make(Speculative());
  const TestRequest empty(0);
  EXPECT_TRUE(Match(*rig, empty.request).empty());
  rig->Decide(0);
  const Request bare;
  EXPECT_TRUE(Match(*rig, bare).empty());
  rig->Decide(0);
}

TEST_F(PreciseTest, DeprecatedScorerBringsItsProducer) {
  Bind(0, 1, "gpu");
  exact.Store(0, Keys(5));
  const auto rig = Make(Speculative(), {}, kScorerType);
  const TestRequest request(10);
  rig->Begin(request.request);
  rig->Produce();
  EXPECT_THAT(rig->Score(), ElementsAre(0, 0.5, 0));
  rig->Decide(2);
  rig->Begin(request.request);
  rig->Produce();
  EXPECT_THAT(rig->Score(), ElementsAre(0, 0.5, 1));
}

class PreciseSchedulerTest : public PreciseTest {
 protected:
  absl::StatusOr<std::unique_ptr<Scheduler>> Create(const std::vector<PluginSpec>& plugins) {
    SchedulerConfig config;
    config.plugins = plugins;
    config.profiles = {{"default", {{.plugin = kScorerType}}}};
    return Scheduler::Create(config, PluginRegistry::Builtin(), resources);
  }
  Resources resources{{exact.source()}, std::make_shared<PluginStates>(), {}};
};

TEST_F(PreciseSchedulerTest, DeprecatedScorerReadsTheProducerThatIsThere) {
  Bind(0, 2, "gpu");
  exact.Store(0, Keys(5));
  for (const std::vector<PluginSpec>& plugins :
       {std::vector<PluginSpec>{{.type = kScorerType}},
        std::vector<PluginSpec>{{.type = kScorerType}, {.name = "mine", .type = kType}}}) {
    const auto scheduler = Create(plugins);
    ASSERT_TRUE(scheduler.ok()) << scheduler.status();
    EXPECT_THAT((*scheduler)->warnings(),
                ElementsAre(HasSubstr("precise-prefix-cache-scorer\" is deprecated")));
    const bool bound = plugins.size() == 2;
    EXPECT_EQ(dynamic_cast<const DataProducer*>((*scheduler)->FindPlugin(kScorerType)) == nullptr, bound);
    Workspace workspace(**scheduler);
    Decision decision;
    const TestRequest request(10);
    ASSERT_TRUE((*scheduler)
                    ->Schedule({.request = request.request, .pool = pool, .now = kNow, .seed = 3}, workspace,
                               decision)
                    .ok());
    EXPECT_EQ(decision.target(), 2u);
    EXPECT_EQ(decision.profiles[0].scored[2].score, 0.5);
  }
  EXPECT_THAT(Create({{.type = kScorerType}, {.name = "a", .type = kType}, {.name = "b", .type = kType}})
                  .status()
                  .message(),
              HasSubstr("plugins \"a\" and \"b\" are both precise-prefix-cache-producer"));
}

TEST_F(PreciseSchedulerTest, ReloadKeepsSpeculation) {
  std::vector<PluginSpec> plugins = {{.type = kScorerType, .parameters = Speculative()}};
  const TestRequest request(10);
  const ScheduleInput input{.request = request.request, .pool = pool, .now = kNow, .seed = 3};
  Decision decision;
  Position first = 0;
  {
    const auto scheduler = Create(plugins);
    ASSERT_TRUE(scheduler.ok());
    Workspace workspace(**scheduler);
    Dispatch dispatch;
    ASSERT_TRUE((*scheduler)->Schedule(input, workspace, decision).ok());
    ASSERT_TRUE((*scheduler)->RunPreRequest(input, workspace, decision, dispatch).ok());
    first = decision.target();
  }
  const auto scheduler = Create(plugins);
  ASSERT_TRUE(scheduler.ok());
  Workspace workspace(**scheduler);
  ASSERT_TRUE((*scheduler)->Schedule(input, workspace, decision).ok());
  EXPECT_EQ(decision.profiles[0].scored[first].score, 1.0);
}

}  // namespace
}  // namespace llmd::sched
