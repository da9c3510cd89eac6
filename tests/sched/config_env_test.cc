// Environment variables of the first releases. Expectations follow spec: scheduling.md 3.6.
#include "llmd/sched/config_env.h"

#include <gmock/gmock.h>

#include "tests/sched/config_test_util.h"

namespace llmd::sched {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

using Variables = std::map<std::string, std::string>;
using Weights = std::vector<std::pair<std::string, double>>;

// Weight -1 for what has none.
Weights WeightsOf(const SchedulerConfig& config, const std::string& profile) {
  for (const ProfileSpec& spec : config.profiles) {
    if (spec.name != profile) continue;
    Weights weights;
    for (const PluginRef& ref : spec.plugins) weights.emplace_back(ref.plugin, ref.weight.value_or(-1));
    return weights;
  }
  ADD_FAILURE() << "no profile " << profile;
  return {};
}

const PluginSpec* FindSpec(const SchedulerConfig& config, const std::string& name) {
  for (const PluginSpec& plugin : config.plugins) {
    if (plugin.name == name) return &plugin;
  }
  return nullptr;
}

Value ParametersOf(const SchedulerConfig& config, const std::string& name) {
  const PluginSpec* plugin = FindSpec(config, name);
  EXPECT_NE(plugin, nullptr) << name;
  return plugin == nullptr ? Value() : plugin->parameters;
}

TEST(ConfigFromEnvironment, NothingSet) {
  std::vector<std::string> warnings;
  const SchedulerConfig config = ConfigFromEnvironment({{"PATH", "/bin"}, {"HOME", "/"}}, &warnings);
  EXPECT_THAT(warnings, IsEmpty());
  ASSERT_EQ(config.profiles.size(), 1u);
  EXPECT_THAT(WeightsOf(config, "default"),
              ElementsAre(Pair("decode-filter", -1), Pair("max-score-picker", -1)));
}

TEST(ConfigFromEnvironment, OnlyTrueIsOn) {
  std::vector<std::string> warnings;
  const SchedulerConfig config = ConfigFromEnvironment({{"ENABLE_GIE_QUEUE_SCORER", "true"},
                                                        {"ENABLE_LOAD_AWARE_SCORER", "True"},
                                                        {"ENABLE_PREFIX_AWARE_SCORER", "1"},
                                                        {"ENABLE_SESSION_AWARE_SCORER", "false"},
                                                        {"ENABLE_KVCACHE_AWARE_SCORER", ""}},
                                                       &warnings);
  EXPECT_THAT(WeightsOf(config, "default"),
              ElementsAre(Pair("decode-filter", -1), Pair("queue-scorer", 1), Pair("max-score-picker", -1)));
  EXPECT_THAT(warnings, UnorderedElementsAre(HasSubstr("ENABLE_LOAD_AWARE_SCORER: \"True\" is off"),
                                             HasSubstr("ENABLE_PREFIX_AWARE_SCORER: \"1\" is off")));
}

TEST(ConfigFromEnvironment, WeightsAreIntegers) {
  std::vector<std::string> warnings;
  const SchedulerConfig config = ConfigFromEnvironment({{"ENABLE_GIE_QUEUE_SCORER", "true"},
                                                        {"GIE_QUEUE_SCORER_WEIGHT", "-3"},
                                                        {"ENABLE_LOAD_AWARE_SCORER", "true"},
                                                        {"LOAD_AWARE_SCORER_WEIGHT", "2.5"},
                                                        {"LOAD_AWARE_SCORER_QUEUE_THRESHOLD", "64"},
                                                        {"ENABLE_GIE_KVCACHE_UTILIZATION_SCORER", "true"},
                                                        {"GIE_KVCACHE_UTILIZATION_SCORER_WEIGHT", "+4"}},
                                                       &warnings);
  EXPECT_THAT(WeightsOf(config, "default"),
              ElementsAre(Pair("decode-filter", -1), Pair("load-aware-scorer", 1),
                          Pair("kv-cache-utilization-scorer", 4), Pair("queue-scorer", -3),
                          Pair("max-score-picker", -1)));
  EXPECT_TRUE(Same(ParametersOf(config, "load-aware-scorer"), Parameters({{"threshold", 64}})));
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("LOAD_AWARE_SCORER_WEIGHT: \"2.5\" is no integer")));
}

TEST(ConfigFromEnvironment, PrefixScorers) {
  std::vector<std::string> warnings;
  // 256 characters are 64 tokens.
  SchedulerConfig config = ConfigFromEnvironment({{"ENABLE_PREFIX_AWARE_SCORER", "true"}}, &warnings);
  EXPECT_TRUE(Same(ParametersOf(config, "approx-prefix-cache-producer"),
                   Parameters({{"autoTune", false}, {"blockSizeTokens", 64}})));
  EXPECT_EQ(FindSpec(config, "prefix-aware-scorer")->type, "prefix-cache-scorer");
  config = ConfigFromEnvironment({{"ENABLE_GIE_PREFIX_SCORER", "true"},
                                  {"PREFIX_CACHE_HASH_BLOCK_SIZE", "5"},
                                  {"PREFIX_CACHE_MAX_PREFIX_BLOCKS", "256"},
                                  {"PREFIX_CACHE_LRU_CAPACITY", "5000"}},
                                 &warnings);
  EXPECT_TRUE(Same(ParametersOf(config, "approx-prefix-cache-producer"),
                   Parameters({{"autoTune", false},
                               {"blockSizeTokens", 2},  // ceil(5 / 4)
                               {"maxPrefixTokensToMatch", 0},
                               {"maxPrefixBlocksToMatch", 256},
                               {"lruCapacityPerServer", 5000}})));
  EXPECT_THAT(warnings, IsEmpty());
  config = ConfigFromEnvironment({{"ENABLE_GIE_PREFIX_SCORER", "true"},
                                  {"ENABLE_PREFIX_AWARE_SCORER", "true"},
                                  {"PREFIX_SCORER_BLOCK_SIZE", "-1"}},
                                 &warnings);
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("PREFIX_SCORER_BLOCK_SIZE: -1 is not more than 0"),
                                    HasSubstr("PREFIX_CACHE_HASH_BLOCK_SIZE: gives way")));
}

TEST(ConfigFromEnvironment, Disaggregation) {
  std::vector<std::string> warnings;
  const SchedulerConfig config = ConfigFromEnvironment({{"PD_ENABLED", "true"}}, &warnings);
  EXPECT_THAT(warnings, IsEmpty());
  ASSERT_EQ(config.profiles.size(), 2u);
  EXPECT_THAT(
      WeightsOf(config, "decode"),
      ElementsAre(Pair("decode-filter", -1), Pair("prefix-aware-scorer", 0), Pair("max-score-picker", -1)));
  EXPECT_THAT(WeightsOf(config, "prefill"),
              ElementsAre(Pair("prefill-filter", -1), Pair("max-score-picker", -1)));
  // 100 characters by default.
  EXPECT_TRUE(Same(ParametersOf(config, "prefix-based-pd-decider"), Parameters({{"nonCachedTokens", 25}})));
  // Only that role, as v0.1.0 had it.
  EXPECT_EQ(FindSpec(config, "prefill-filter")->type, "label-selector-filter");
  EXPECT_TRUE(Same(ParametersOf(config, "prefill-filter"),
                   Parameters({{"matchLabels", Parameters({{"llm-d.ai/role", "prefill"}})}})));
}

TEST(ConfigFromEnvironment, ThresholdOfZeroMeansAlways) {
  const SchedulerConfig config =
      ConfigFromEnvironment({{"PD_ENABLED", "true"}, {"PD_PROMPT_LEN_THRESHOLD", "0"}});
  EXPECT_EQ(FindSpec(config, "prefix-based-pd-decider"), nullptr);
  EXPECT_NE(FindSpec(config, "always-disagg-pd-decider"), nullptr);
  EXPECT_TRUE(Same(ParametersOf(config, "disagg-profile-handler"),
                   Parameters({{"deciders", Parameters({{"prefill", "always-disagg-pd-decider"}})}})));
}

TEST(ConfigFromEnvironment, WithoutEffect) {
  std::vector<std::string> warnings;
  ConfigFromEnvironment({{"PREFILL_ENABLE_LOAD_AWARE_SCORER", "true"},
                         {"PREFILL_LOAD_AWARE_SCORER_WEIGHT", "3"},
                         {"ENABLE_GIE_LOW_QUEUE_FILTER", "true"},
                         {"ENABLE_GIE_LEAST_QUEUE_FILTER", "false"},
                         {"DECODE_ENABLE_LOAD_AWARE_SCORER", "true"},
                         {"PREFILL_KVCACHE_INDEXER_REDIS_ADDR", "redis:8100"},
                         {"KVCACHE_INDEXER_REDIS_ADDR", "redis:8100"},
                         {"SESSION_MANAGER", "local"}},
                        &warnings);
  EXPECT_THAT(warnings, UnorderedElementsAre(
                            HasSubstr("PREFILL_ENABLE_LOAD_AWARE_SCORER: has no effect without PD_ENABLED"),
                            HasSubstr("ENABLE_GIE_LOW_QUEUE_FILTER: has no successor"),
                            HasSubstr("DECODE_ENABLE_LOAD_AWARE_SCORER: was read by releases 0.0.x only"),
                            HasSubstr("PREFILL_KVCACHE_INDEXER_REDIS_ADDR: is read by no release")));
}

// The demo's values.
const Variables& Demo() {
  static const Variables demo = {{"ENABLE_KVCACHE_AWARE_SCORER", "true"},
                                 {"KVCACHE_AWARE_SCORER_WEIGHT", "10"},
                                 {"ENABLE_LOAD_AWARE_SCORER", "true"},
                                 {"LOAD_AWARE_SCORER_WEIGHT", "1"},
                                 {"ENABLE_PREFIX_AWARE_SCORER", "true"},
                                 {"PREFIX_AWARE_SCORER_WEIGHT", "5"},
                                 {"ENABLE_SESSION_AWARE_SCORER", "true"},
                                 {"SESSION_AWARE_SCORER_WEIGHT", "20"},
                                 {"PREFILL_ENABLE_KVCACHE_AWARE_SCORER", "true"},
                                 {"PREFILL_KVCACHE_AWARE_SCORER_WEIGHT", "10"},
                                 {"PREFILL_ENABLE_LOAD_AWARE_SCORER", "true"},
                                 {"PREFILL_LOAD_AWARE_SCORER_WEIGHT", "1"},
                                 {"PREFILL_ENABLE_PREFIX_AWARE_SCORER", "true"},
                                 {"PREFILL_PREFIX_AWARE_SCORER_WEIGHT", "5"},
                                 {"PREFILL_ENABLE_SESSION_AWARE_SCORER", "true"},
                                 {"PREFILL_SESSION_AWARE_SCORER_WEIGHT", "15"},
                                 {"PD_ENABLED", "true"},
                                 {"PD_PROMPT_LEN_THRESHOLD", "10"},
                                 {"HF_TOKEN", "secret"},
                                 {"KVCACHE_INDEXER_REDIS_ADDR", "redis:8100"},
                                 {"SESSION_SCORING_ALGORITHM", "sticky_hash"},
                                 {"SESSION_HEADER_NAMES", "session-id,x-session-id,authorization"},
                                 {"SESSION_STICKY_DURATION", "3600"},
                                 {"SESSION_HASH_KEY_COUNT", "3"},
                                 {"KVCACHE_INDEX_UPDATE_INTERVAL", "500ms"},
                                 {"KVCACHE_INDEX_BATCH_SIZE", "10"},
                                 {"PD_CACHE_AWARE_ROUTING", "true"}};
  return demo;
}

TEST(ConfigFromEnvironment, TheDemo) {
  std::vector<std::string> warnings;
  const SchedulerConfig config = ConfigFromEnvironment(Demo(), &warnings);
  EXPECT_THAT(WeightsOf(config, "decode"),
              ElementsAre(Pair("decode-filter", -1), Pair("kvcache-aware-scorer", 10),
                          Pair("load-aware-scorer", 1), Pair("prefix-aware-scorer", 5),
                          Pair("session-affinity-scorer", 20), Pair("max-score-picker", -1)));
  EXPECT_THAT(WeightsOf(config, "prefill"),
              ElementsAre(Pair("prefill-filter", -1), Pair("kvcache-aware-scorer", 10),
                          Pair("load-aware-scorer", 1), Pair("prefix-aware-scorer", 5),
                          Pair("session-affinity-scorer", 15), Pair("max-score-picker", -1)));
  // ceil(10 / 4)
  EXPECT_TRUE(Same(ParametersOf(config, "prefix-based-pd-decider"), Parameters({{"nonCachedTokens", 3}})));
  EXPECT_TRUE(Same(ParametersOf(config, "kvcache-aware-scorer"),
                   Parameters({{"prefixMatchInfoProducerName", "precise-prefix-cache-producer"}})));
  EXPECT_TRUE(config.allow_experimental);
  // One for each of the seven names that no release reads.
  EXPECT_EQ(warnings.size(), 7u);
  EXPECT_THAT(warnings,
              Contains(AllOf(HasSubstr("SESSION_STICKY_DURATION"), HasSubstr("read by no release"))));

  const absl::StatusOr<SchedulerConfig> again = ParseConfig(PrintConfig(config));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(Same(config, *again));
}

TEST(ConfigFromEnvironment, TheIndexNeedsNoRedis) {
  std::vector<std::string> warnings;
  const SchedulerConfig config = ConfigFromEnvironment({{"ENABLE_KVCACHE_AWARE_SCORER", "true"}}, &warnings);
  EXPECT_NE(FindSpec(config, "kvcache-aware-scorer"), nullptr);
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("KVCACHE_INDEXER_REDIS_ADDR: is not set"),
                                    HasSubstr("HF_TOKEN: is not set")));
}

// The first version's preset: load 1 and prefix 2, and P/D.
TEST(ConfigFromEnvironment, ThePreset) {
  std::vector<std::string> warnings;
  const SchedulerConfig config = ConfigFromEnvironment({{"ENABLE_KVCACHE_AWARE_SCORER", "false"},
                                                        {"KVCACHE_AWARE_SCORER_WEIGHT", "1"},
                                                        {"ENABLE_LOAD_AWARE_SCORER", "true"},
                                                        {"LOAD_AWARE_SCORER_WEIGHT", "1"},
                                                        {"ENABLE_PREFIX_AWARE_SCORER", "true"},
                                                        {"PREFIX_AWARE_SCORER_WEIGHT", "2"},
                                                        {"ENABLE_SESSION_AWARE_SCORER", "false"},
                                                        {"PD_ENABLED", "true"},
                                                        {"PD_PROMPT_LEN_THRESHOLD", "10"},
                                                        {"PREFILL_ENABLE_LOAD_AWARE_SCORER", "true"},
                                                        {"PREFILL_ENABLE_PREFIX_AWARE_SCORER", "true"}},
                                                       &warnings);
  EXPECT_THAT(warnings, IsEmpty());
  EXPECT_FALSE(config.allow_experimental);
  EXPECT_THAT(WeightsOf(config, "decode"),
              ElementsAre(Pair("decode-filter", -1), Pair("load-aware-scorer", 1),
                          Pair("prefix-aware-scorer", 2), Pair("max-score-picker", -1)));
  EXPECT_THAT(WeightsOf(config, "prefill"),
              ElementsAre(Pair("prefill-filter", -1), Pair("load-aware-scorer", 1),
                          Pair("prefix-aware-scorer", 1), Pair("max-score-picker", -1)));
}

}  // namespace
}  // namespace llmd::sched
