// Reading configuration files, schedulers made from them, and reload.
#include "llmd/sched/config_file.h"

#include <gmock/gmock.h>

#include "tests/sched/config_test_util.h"
#include "tests/sched/sched_test_util.h"

namespace llmd::sched {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

std::string Fixture(const std::string& name) {
  return ReadFile(LLMD_SOURCE_DIR "/tests/sched/configs/" + name);
}

constexpr std::string_view kHeader = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n";

SchedulerConfig Parsed(const std::string& body, std::vector<std::string>* warnings = nullptr) {
  absl::StatusOr<SchedulerConfig> config = ParseConfig(std::string(kHeader) + body, {}, warnings);
  EXPECT_TRUE(config.ok()) << config.status();
  return config.ok() ? *std::move(config) : SchedulerConfig();
}

class ConfigFiles : public ::testing::TestWithParam<std::string> {
 protected:
  std::string text = Fixture(GetParam());
  ConfigTextOptions options{.source = GetParam(),
                            .allow_experimental = text.find("# needs: experimental") != std::string::npos};
};

TEST_P(ConfigFiles, IsRead) {
  const absl::StatusOr<SchedulerConfig> config = ParseConfig(text, options);
  EXPECT_TRUE(config.ok()) << config.status();
}

TEST_P(ConfigFiles, MakesAScheduler) {
  FakeIndex index;
  std::vector<std::string> warnings;
  const auto scheduler =
      LoadScheduler(text, options, PluginRegistry::Builtin(), {{index.source(), index.source()}}, &warnings);
  ASSERT_TRUE(scheduler.ok()) << scheduler.status();
  for (const std::string& warning : warnings) EXPECT_THAT(warning, StartsWith(GetParam() + ": "));
  // The completed configuration is a fixed point.
  const std::string completed = PrintConfig((*scheduler)->config());
  const auto again =
      LoadScheduler(completed, options, PluginRegistry::Builtin(), {{index.source(), index.source()}});
  ASSERT_TRUE(again.ok()) << again.status() << completed;
  EXPECT_EQ(PrintConfig((*again)->config()), completed);
}

INSTANTIATE_TEST_SUITE_P(Files, ConfigFiles, ::testing::ValuesIn(FilesIn("configs")), TestName);

TEST(ConfigFile, ReadsEveryField) {
  std::vector<std::string> warnings;
  const absl::StatusOr<SchedulerConfig> config =
      ParseConfig(Fixture("example_c_encode_prefill_decode.yaml"), {.source = "c.yaml"}, &warnings);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(warnings, IsEmpty());
  EXPECT_EQ(config->source, "c.yaml");
  EXPECT_FALSE(config->allow_experimental);
  EXPECT_TRUE(config->feature_gates.flow_control);
  ASSERT_EQ(config->plugins.size(), 11u);
  const PluginSpec& detector = config->plugins[6];
  EXPECT_EQ(detector.type, "concurrency-detector");
  EXPECT_EQ(detector.place.path, "plugins[6]");
  EXPECT_EQ(detector.place.line, 12u);
  EXPECT_TRUE(Same(detector.parameters, Parameters({{"maxConcurrency", 64},
                                                    {"concurrencyMode", "hybrid"},
                                                    {"maxTokenConcurrency", 500000},
                                                    {"headroom", 0.2}})));
  ASSERT_EQ(config->profiles.size(), 3u);
  EXPECT_EQ(config->profiles[1].name, "prefill");
  EXPECT_EQ(config->profiles[1].plugins[1].plugin, "prefix-cache-scorer");
  EXPECT_EQ(config->profiles[1].plugins[1].weight, 2.0);
  EXPECT_FALSE(config->profiles[1].plugins[0].weight.has_value());
  const FlowControlConfig& flow = config->flow_control;
  EXPECT_EQ(flow.max_requests, 10000u);
  EXPECT_EQ(flow.max_bytes, 0u);
  EXPECT_EQ(flow.default_request_ttl, absl::Seconds(30));
  EXPECT_EQ(flow.no_endpoint_request_ttl, absl::Minutes(5));
  EXPECT_EQ(flow.saturation_detector, "concurrency-detector");
  ASSERT_TRUE(flow.default_negative_band.has_value());
  EXPECT_EQ(flow.default_negative_band->max_requests, 50u);
  EXPECT_EQ(flow.default_negative_band->max_bytes, 1000000000u);
  ASSERT_EQ(flow.bands.size(), 1u);
  EXPECT_EQ(flow.bands[0].priority, 10);
  EXPECT_EQ(flow.bands[0].max_requests, 2000u);
  EXPECT_EQ(flow.bands[0].fairness_policy, "round-robin-fairness-policy");
}

TEST(ConfigFile, DataLayerAndParsers) {
  const absl::StatusOr<SchedulerConfig> config = ParseConfig(Fixture("without_kubernetes.yaml"));
  ASSERT_TRUE(config.ok()) << config.status();
  const DataLayerConfig& layer = config->data_layer;
  EXPECT_TRUE(layer.inject_defaults);
  EXPECT_EQ(layer.discovery, "file-discovery");
  EXPECT_EQ(layer.cross_replica_sync_interval, absl::Seconds(1));
  ASSERT_EQ(layer.sources.size(), 2u);
  EXPECT_EQ(layer.sources[1].plugin, "models-data-source");
  EXPECT_THAT(layer.sources[1].extractors, ElementsAre("models-data-extractor"));
  EXPECT_THAT(config->parsers, ElementsAre("vllmgrpc-parser", "passthrough-parser"));
  EXPECT_FALSE(config->feature_gates.ha_populate_non_leader_datastore);
  EXPECT_TRUE(config->compatibility.unscraped_looks_idle);
  EXPECT_FALSE(config->compatibility.stale_is_saturated);
}

TEST(ConfigFile, EmptyTextIsTheDefault) {
  for (const char* name : {"empty.yaml", "only_comments.yaml"}) {
    const absl::StatusOr<SchedulerConfig> config = ParseConfig(Fixture(name), {.allow_experimental = true});
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_TRUE(Same(*config, SchedulerConfig::Default()));
    EXPECT_TRUE(config->allow_experimental);
  }
}

TEST(ConfigFile, ReadsTheSameFromJson) {
  const absl::StatusOr<SchedulerConfig> json = ParseConfig(Fixture("as_json.yaml"));
  ASSERT_TRUE(json.ok()) << json.status();
  EXPECT_TRUE(
      Same(*json, Parsed("plugins: [{type: queue-scorer}, {type: kv-cache-utilization-scorer, name: kv}]\n"
                         "schedulingProfiles:\n"
                         "- name: default\n"
                         "  plugins: [{pluginRef: queue-scorer, weight: 10}, {pluginRef: kv}]\n")));
}

TEST(ConfigFile, AnchorsMergesAndTypes) {
  const absl::StatusOr<SchedulerConfig> config = ParseConfig(Fixture("anchors_and_merges.yaml"));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->plugins[1].name, "second");
  EXPECT_EQ(config->plugins[1].type, "queue-scorer");
  EXPECT_TRUE(Same(config->plugins[2].parameters,
                   Parameters({{"label", "pool"},
                               {"validValues", Value::MakeList({"llm-d.ai/v1alpha1", "5", "yes",
                                                                "folded text", "t\xC3\xA9l\xC3\xA9"})},
                               {"allowsNoLabel", true}})));
  EXPECT_TRUE(
      Same(config->plugins[3].parameters,
           Parameters({{"queueDepthThreshold", 16}, {"kvCacheUtilThreshold", 0.5}, {"headroom", 10}})));
  EXPECT_EQ(config->profiles[0].plugins[0].weight, -1.0);
  EXPECT_EQ(config->profiles[0].plugins[1].weight, 0.0);
}

TEST(ConfigFile, QuantitiesAndDurations) {
  SchedulerConfig config =
      Parsed("flowControl: {maxBytes: 1Gi, maxRequests: 1500m, defaultRequestTTL: 1m30s}\n");
  EXPECT_EQ(config.flow_control.max_bytes, 1073741824u);
  EXPECT_EQ(config.flow_control.max_requests, 2u);  // 1.5, rounded up
  EXPECT_EQ(config.flow_control.default_request_ttl, absl::Seconds(90));
  EXPECT_EQ(config.flow_control.no_endpoint_request_ttl, absl::Seconds(90));  // follows
  config = Parsed("flowControl: {noEndpointRequestTTL: 0s, maxBytes: 7}\n");
  EXPECT_EQ(config.flow_control.default_request_ttl, absl::Seconds(60));
  EXPECT_EQ(config.flow_control.no_endpoint_request_ttl, absl::ZeroDuration());
  EXPECT_EQ(config.flow_control.max_bytes, 7u);
  // 0 in a band means its default.
  config = Parsed("flowControl: {defaultPriorityBand: {maxRequests: 0, maxBytes: \"0\"}}\n");
  EXPECT_EQ(config.flow_control.default_band.max_requests, 5000u);
  EXPECT_EQ(config.flow_control.default_band.max_bytes, 1000000000u);
}

TEST(ConfigFile, FeatureGates) {
  EXPECT_FALSE(Parsed("").feature_gates.flow_control);
  EXPECT_TRUE(Parsed("").feature_gates.ha_populate_non_leader_datastore);
  EXPECT_TRUE(Parsed("featureGates: [flowControl]").feature_gates.flow_control);
  EXPECT_TRUE(Parsed("featureGates: [flowControl=true]").feature_gates.flow_control);
  EXPECT_FALSE(Parsed("featureGates: [flowControl=false]").feature_gates.flow_control);
  std::vector<std::string> warnings;
  Parsed("featureGates: [dataLayer]", &warnings);
  EXPECT_THAT(warnings, ElementsAre("config: line 3: featureGates[0]: dataLayer is always on by now"));
}

TEST(ConfigFile, OldPlacesGiveWay) {
  std::vector<std::string> warnings;
  SchedulerConfig config =
      Parsed("saturationDetector: {pluginRef: old}\nparser: {pluginRef: old-parser}\n", &warnings);
  EXPECT_EQ(config.flow_control.saturation_detector, "old");
  EXPECT_THAT(config.parsers, ElementsAre("old-parser"));
  EXPECT_THAT(
      warnings,
      ElementsAre("config: line 3: saturationDetector is deprecated, use flowControl.saturationDetector",
                  "config: line 4: parser is deprecated, use requestHandler.parsers"));
  warnings.clear();
  config = Parsed(
      "saturationDetector: {pluginRef: old}\n"
      "parser: {pluginRef: old-parser}\n"
      "flowControl: {saturationDetector: {pluginRef: new}}\n"
      "requestHandler: {parsers: [{pluginRef: new-parser}]}\n",
      &warnings);
  EXPECT_EQ(config.flow_control.saturation_detector, "new");
  EXPECT_THAT(config.parsers, ElementsAre("new-parser"));
  EXPECT_THAT(warnings,
              ElementsAre(HasSubstr("given as well and wins"), HasSubstr("given as well and wins")));
}

TEST(ConfigFile, ApiVersions) {
  std::vector<std::string> warnings;
  ASSERT_TRUE(ParseConfig(kHeader, {}, &warnings).ok());
  EXPECT_THAT(warnings, IsEmpty());
  ASSERT_TRUE(ParseConfig("kind: EndpointPickerConfig\napiVersion: inference.networking.x-k8s.io/v1alpha1\n",
                          {.source = "f"}, &warnings)
                  .ok());
  EXPECT_THAT(warnings,
              ElementsAre(HasSubstr("f: line 2: apiVersion inference.networking.x-k8s.io/v1alpha1 is "
                                    "deprecated, use llm-d.ai/v1alpha1")));
}

TEST(ConfigFile, OldPrefixScorerIsSplit) {
  std::vector<std::string> warnings;
  const auto config = ParseConfig(Fixture("old_estimate_small_blocks.yaml"), {}, &warnings);
  ASSERT_TRUE(config.ok()) << config.status();
  ASSERT_EQ(config->plugins.size(), 5u);
  EXPECT_TRUE(config->plugins[1].parameters.is_null());
  EXPECT_EQ(config->plugins[4].type, "approx-prefix-cache-producer");
  EXPECT_TRUE(Same(config->plugins[4].parameters, Parameters({{"maxPrefixBlocksToMatch", 256},
                                                              {"lruCapacityPerServer", 31250},
                                                              {"autoTune", false},
                                                              {"blockSizeTokens", 2}})));
  EXPECT_THAT(warnings,
              Contains(HasSubstr("line 6: plugins[1]: prefix-cache-scorer: parameters of the index")));
  // The current apiVersion knows no such parameters.
  std::string text = Fixture("old_estimate_small_blocks.yaml");
  text.replace(text.find("inference.networking.x-k8s.io"), 29, "llm-d.ai");
  FakeIndex index;
  const auto scheduler =
      LoadScheduler(text, {}, PluginRegistry::Builtin(), {{index.source(), index.source()}});
  EXPECT_THAT(std::string(scheduler.status().message()),
              HasSubstr("plugins[1].parameters.hashBlockSize is unknown"));
}

TEST(ConfigFile, OldTrackingScorerGetsThePreciseProducer) {
  const auto config = ParseConfig(Fixture("old_tracking_with_unread_parameters.yaml"));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_TRUE(Same(config->plugins[1].parameters,
                   Parameters({{"prefixMatchInfoProducerName", "precise-prefix-cache-producer"}})));
  EXPECT_TRUE(config->plugins[3].parameters.is_null());  // the handler's
  ASSERT_EQ(config->plugins.size(), 5u);
  EXPECT_EQ(config->plugins[4].type, "precise-prefix-cache-producer");
  EXPECT_TRUE(Same(
      config->plugins[4].parameters,
      Parameters({{"tokenProcessorConfig", Parameters({{"hashSeed", "42"}, {"blockSizeTokens", 16}})}})));
}

TEST(ConfigFile, OldHandlerGetsADecider) {
  auto config = ParseConfig(Fixture("old_prefill_decode.yaml"));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_TRUE(
      Same(config->plugins[5].parameters, Parameters({{"deciderPluginName", "prefix-based-pd-decider"}})));
  EXPECT_EQ(config->plugins.back().type, "prefix-based-pd-decider");
  EXPECT_TRUE(Same(config->plugins.back().parameters, Parameters({{"nonCachedTokens", 3}})));  // ceil(10 / 4)
  config = ParseConfig(Fixture("old_prefill_always.yaml"));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_TRUE(
      Same(config->plugins[5].parameters, Parameters({{"deciderPluginName", "always-disagg-pd-decider"}})));
  EXPECT_EQ(config->plugins.back().type, "always-disagg-pd-decider");
}

// The YAML blocks of the page load; one that begins with "# refused" is refused with a message of the page.
TEST(ConfigurationPage, BlocksDoWhatTheySay) {
  const std::string page = ReadFile(LLMD_SOURCE_DIR "/docs/configuration.md");
  const std::string kFence = "```yaml\n";
  FakeIndex index;
  std::size_t blocks = 0;
  std::size_t refused = 0;
  for (std::size_t at = page.find(kFence); at != std::string::npos; at = page.find(kFence, at + 1)) {
    const std::size_t begin = at + kFence.size();
    const std::string text = page.substr(begin, page.find("```", begin) - begin);
    const auto scheduler = LoadScheduler(text, {.source = "epp.yaml"}, PluginRegistry::Builtin(),
                                         {{index.source(), index.source()}});
    ++blocks;
    if (text.starts_with("# refused")) {
      EXPECT_THAT(page, HasSubstr("    " + std::string(scheduler.status().message()) + "\n"));
      ++refused;
    } else {
      EXPECT_TRUE(scheduler.ok()) << scheduler.status() << text;
    }
  }
  EXPECT_GE(blocks, 3u);
  EXPECT_EQ(refused, 1u);
}

class ReloadTest : public ::testing::Test {
 protected:
  FakeIndex index;
  Resources resources{{index.source(), index.source()}};
  std::string Queue(double weight) {
    return std::string(kHeader) +
           "plugins: [{type: queue-scorer}]\n"
           "schedulingProfiles: [{name: default, plugins: [{pluginRef: queue-scorer, weight: " +
           std::to_string(weight) + "}]}]\n";
  }
  double ScoreOf(Scheduler& scheduler) {
    EndpointPool pool = MakePool(1);
    MetricsAt(pool, 0).waiting_requests = {3, kNow};
    Workspace workspace(scheduler);
    Decision decision;
    EXPECT_TRUE(scheduler.Schedule({.request = {}, .pool = pool, .now = kNow}, workspace, decision).ok());
    return decision.profiles[0].scored[0].score;
  }
};

TEST_F(ReloadTest, BadTextLeavesTheOldScheduler) {
  ReloadableScheduler live(PluginRegistry::Builtin(), resources);
  EXPECT_EQ(live.Current().scheduler, nullptr);
  EXPECT_EQ(live.generation(), 0u);
  ASSERT_TRUE(live.Load(Queue(2), {.source = "a"}).ok());
  const ReloadableScheduler::Snapshot first = live.Current();
  EXPECT_EQ(first.generation, 1u);
  EXPECT_EQ(ScoreOf(*first.scheduler), 2.0);

  const absl::Status syntax = live.Load("plugins: [", {.source = "b"});
  EXPECT_THAT(std::string(syntax.message()), StartsWith("b: line 1: "));
  const absl::Status unknown =
      live.Load(std::string(kHeader) + "plugins: [{type: nothing}]", {.source = "c"});
  EXPECT_THAT(std::string(unknown.message()), HasSubstr("c: line 3: plugins[0]"));
  EXPECT_EQ(live.Current().scheduler, first.scheduler);
  EXPECT_EQ(live.generation(), 1u);
  EXPECT_EQ(ScoreOf(*live.Current().scheduler), 2.0);

  ASSERT_TRUE(live.Load(Queue(5), {.source = "d"}).ok());
  EXPECT_EQ(live.generation(), 2u);
  EXPECT_EQ(ScoreOf(*live.Current().scheduler), 5.0);
  EXPECT_EQ(ScoreOf(*first.scheduler), 2.0);  // ends in peace
}

TEST_F(ReloadTest, PluginsKeepTheirMemory) {
  // Counts in memory that is kept for it.
  class Counter final : public Plugin, public Scorer {
   public:
    explicit Counter(PluginBuilder& b) : Plugin(b.type(), b.name()), state_(b.State<double>(b.name(), 0.0)) {}
    void Score(Context&, std::span<const Position>, std::span<double> scores) const override {
      *state_ += 0.25;
      scores[0] = *state_;
    }

   private:
    std::shared_ptr<double> state_;
  };
  PluginRegistry registry = PluginRegistry::Builtin();
  ASSERT_TRUE(registry
                  .Register("counter",
                            [](PluginBuilder& b) -> absl::StatusOr<std::unique_ptr<Plugin>> {
                              return std::make_unique<Counter>(b);
                            })
                  .ok());
  ReloadableScheduler live(registry, resources);
  ASSERT_TRUE(live.Load(std::string(kHeader) + "plugins: [{type: counter}]", {}).ok());
  EXPECT_EQ(ScoreOf(*live.Current().scheduler), 0.25);
  ASSERT_TRUE(live.Load(std::string(kHeader) + "plugins: [{type: counter}, {type: decode-filter}]", {}).ok());
  EXPECT_EQ(ScoreOf(*live.Current().scheduler), 0.5);
  // Under another name it is another one, and the first one's memory is given up.
  ASSERT_TRUE(live.Load(std::string(kHeader) + "plugins: [{type: counter, name: other}]", {}).ok());
  EXPECT_EQ(ScoreOf(*live.Current().scheduler), 0.25);
  ASSERT_TRUE(live.Load(std::string(kHeader) + "plugins: [{type: counter}]", {}).ok());
  EXPECT_EQ(ScoreOf(*live.Current().scheduler), 0.25);
}

TEST(HostPlugins, CarryTheirParameters) {
  FakeIndex index;
  std::vector<std::string> warnings;
  const auto scheduler =
      LoadScheduler(Fixture("without_kubernetes.yaml"), {.source = "w"}, PluginRegistry::Builtin(),
                    {{index.source(), index.source()}}, &warnings);
  ASSERT_TRUE(scheduler.ok()) << scheduler.status();
  const auto host = [&](const char* name) {
    return dynamic_cast<const HostPlugin*>((*scheduler)->FindPlugin(name));
  };
  ASSERT_NE(host("file-discovery"), nullptr);
  EXPECT_EQ(host("file-discovery")->kind(), HostPlugin::Kind::kDiscovery);
  EXPECT_TRUE(Same(host("file-discovery")->parameters(),
                   Parameters({{"path", "/etc/epp/endpoints.yaml"}, {"watchFile", true}})));
  EXPECT_EQ(host("metrics-data-source")->kind(), HostPlugin::Kind::kDataSource);
  EXPECT_EQ(host("core-metrics-extractor")->kind(), HostPlugin::Kind::kExtractor);
  EXPECT_EQ(host("vllmgrpc-parser")->kind(), HostPlugin::Kind::kParser);
  EXPECT_EQ(host("openai-parser"), nullptr);  // parsers were chosen
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("request-attribute-reporter does nothing unless the host")));
}

TEST(HostPlugins, ParsersBehindOneThatTakesAllAreIdle) {
  FakeIndex index;
  std::vector<std::string> warnings;
  const std::string text = std::string(kHeader) +
                           "plugins: [{type: openai-parser}, {type: passthrough-parser}]\n"
                           "requestHandler:\n"
                           "  parsers:\n"
                           "  - pluginRef: passthrough-parser\n"
                           "  - pluginRef: openai-parser\n";
  ASSERT_TRUE(LoadScheduler(text, {.source = "p"}, PluginRegistry::Builtin(),
                            {{index.source(), index.source()}}, &warnings)
                  .ok());
  EXPECT_THAT(warnings,
              ElementsAre(HasSubstr("p: line 6: requestHandler.parsers[0].pluginRef claims every request")));
}

TEST(HostPlugins, DefaultsAreLeftOutOnRequest) {
  FakeIndex index;
  const Resources resources{{index.source(), index.source()}};
  const auto load = [&](const std::string& body) {
    auto scheduler = LoadScheduler(std::string(kHeader) + body, {}, PluginRegistry::Builtin(), resources);
    EXPECT_TRUE(scheduler.ok()) << scheduler.status();
    return *std::move(scheduler);
  };
  EXPECT_EQ(load("")->config().data_layer.sources.size(), 1u);
  EXPECT_THAT(load("")->config().parsers,
              ElementsAre("openai-parser", "anthropic-parser", "vllmhttp-parser", "passthrough-parser"));
  EXPECT_THAT(load("dataLayer: {injectDefaults: false}")->config().data_layer.sources, IsEmpty());
  // A source of that name is the user's own, even without an extractor.
  const auto own = load(
      "plugins: [{type: metrics-data-source}]\n"
      "dataLayer: {sources: [{pluginRef: metrics-data-source}]}");
  ASSERT_EQ(own->config().data_layer.sources.size(), 1u);
  EXPECT_THAT(own->config().data_layer.sources[0].extractors, IsEmpty());
  // Others are added to.
  const auto others = load(
      "plugins: [{type: endpoint-notification-source}]\n"
      "dataLayer: {sources: [{pluginRef: endpoint-notification-source}]}");
  EXPECT_EQ(others->config().data_layer.sources.size(), 2u);
}

}  // namespace
}  // namespace llmd::sched
