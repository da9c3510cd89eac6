// What is printed reads back as the same configuration.
#include <gmock/gmock.h>

#include <limits>

#include "llmd/base/random.h"
#include "tests/sched/config_test_util.h"
#include "tests/sched/sched_test_util.h"

namespace llmd::sched {
namespace {

void ExpectRoundTrip(const SchedulerConfig& config) {
  const std::string text = PrintConfig(config);
  const absl::StatusOr<SchedulerConfig> again = ParseConfig(text);
  ASSERT_TRUE(again.ok()) << again.status() << "\n" << text;
  EXPECT_TRUE(Same(config, *again)) << text;
  EXPECT_EQ(PrintConfig(*again), text);
}

class ConfigPrint : public ::testing::TestWithParam<std::string> {};

TEST_P(ConfigPrint, ReadsBack) {
  const absl::StatusOr<SchedulerConfig> config =
      ParseConfig(ReadFile(LLMD_SOURCE_DIR "/tests/sched/configs/" + GetParam()));
  ASSERT_TRUE(config.ok()) << config.status();
  ExpectRoundTrip(*config);
}

INSTANTIATE_TEST_SUITE_P(Files, ConfigPrint, ::testing::ValuesIn(FilesIn("configs")), TestName);

TEST(ConfigPrint, CompletedDefault) {
  FakeIndex index;
  const auto scheduler = LoadScheduler("", {}, PluginRegistry::Builtin(), {{index.source(), index.source()}});
  ASSERT_TRUE(scheduler.ok()) << scheduler.status();
  EXPECT_EQ(PrintConfig((*scheduler)->config()), R"(apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
  - type: queue-scorer
  - type: kv-cache-utilization-scorer
  - type: prefix-cache-scorer
  - type: single-profile-handler
  - type: max-score-picker
  - type: utilization-detector
  - type: openai-parser
  - type: anthropic-parser
  - type: vllmhttp-parser
  - type: passthrough-parser
  - type: metrics-data-source
  - type: core-metrics-extractor
  - type: approx-prefix-cache-producer
schedulingProfiles:
  - name: default
    plugins:
      - pluginRef: queue-scorer
        weight: 2.0
      - pluginRef: kv-cache-utilization-scorer
        weight: 2.0
      - pluginRef: prefix-cache-scorer
        weight: 3.0
      - pluginRef: max-score-picker
dataLayer:
  injectDefaults: true
  sources:
    - pluginRef: metrics-data-source
      extractors:
        - pluginRef: core-metrics-extractor
flowControl:
  saturationDetector:
    pluginRef: utilization-detector
requestHandler:
  parsers:
    - pluginRef: openai-parser
    - pluginRef: anthropic-parser
    - pluginRef: vllmhttp-parser
    - pluginRef: passthrough-parser
)");
  ExpectRoundTrip((*scheduler)->config());
}

// Random configurations, with texts that YAML could take for something else.
class RandomConfig {
 public:
  explicit RandomConfig(std::uint64_t seed) : random_(seed) {}

  SchedulerConfig Make() {
    SchedulerConfig config;
    for (int i = Below(4); i > 0; --i) {
      PluginSpec plugin{.name = Coin() ? Text() : "", .type = Text()};
      if (Coin()) plugin.parameters = MakeMap(3);
      config.plugins.push_back(std::move(plugin));
    }
    for (int i = Below(3); i > 0; --i) {
      ProfileSpec profile{.name = Text()};
      for (int j = Below(3); j > 0; --j) {
        PluginRef ref{.plugin = Text()};
        if (Coin()) ref.weight = Coin() ? Number() : Below(5) - 2;
        profile.plugins.push_back(std::move(ref));
      }
      config.profiles.push_back(std::move(profile));
    }
    config.feature_gates = {Coin(), Coin()};
    FlowControlConfig& flow = config.flow_control;
    if (Coin()) flow.max_requests = random_.Next() >> 1;
    if (Coin()) flow.default_request_ttl = absl::Nanoseconds(random_.Next() >> 8);
    if (Coin()) flow.no_endpoint_request_ttl = absl::Nanoseconds(random_.Next() >> 30);
    for (int i = Below(3); i > 0; --i) flow.bands.push_back(Band(i - 2));
    if (Coin()) flow.default_band = Band(0);
    if (Coin()) flow.default_negative_band = Band(-1);
    if (Coin()) flow.usage_limit_policy = Text();
    if (Coin()) flow.saturation_detector = Text();
    flow.enable_eviction = Coin();
    DataLayerConfig& layer = config.data_layer;
    layer.inject_defaults = Coin();
    for (int i = Below(3); i > 0; --i) {
      layer.sources.push_back({Text(), {}});
      for (int j = Below(3); j > 0; --j) layer.sources.back().extractors.push_back(Text());
    }
    if (Coin()) layer.discovery = Text();
    if (Coin()) layer.peer_discovery = Text();
    if (Coin()) layer.cross_replica_syncer = Text();
    if (Coin()) layer.cross_replica_sync_interval = absl::Microseconds(1 + Below(1000000));
    for (int i = Below(3); i > 0; --i) config.parsers.push_back(Text());
    const bool all = Below(4) == 0;
    for (const CompatibilityField& field : CompatibilityFields())
      config.compatibility.*field.member = all || Coin();
    return config;
  }

 private:
  int Below(int limit) { return static_cast<int>(random_.Next() % static_cast<std::uint64_t>(limit)); }
  bool Coin() { return Below(2) == 0; }
  double Number() {
    const double candidates[] = {
        0.1, -2.5e-300, 1e300, 1.0 / 3, 5, -0.0, std::numeric_limits<double>::denorm_min()};
    return candidates[Below(7)];
  }
  std::string Text() {
    static const char* const kTexts[] = {
        "true", "No",    "~",   "null", "5",  "1e3",  "0x1f", ".inf", "- a",       "a: b", "a #b", "#",
        "&a",   "*a",    "!a",  "%a",   "@a", "`a",   "[",    "}",    "a, b",      "?",    "\"",   "'",
        "\\",   "<<",    "=",   " a",   "a ", "a\nb", "a\tb", "\x01", "\x7f",      "---",  "...",  "é€😀",
        "a-b",  "x/y.z", "kv@", "|",    ">",  "a:",   ":a",   "-",    "2001-01-01"};
    constexpr int kCount = sizeof(kTexts) / sizeof(kTexts[0]);
    std::string text = kTexts[Below(kCount)];
    if (Coin()) text += kTexts[Below(kCount)];
    return text;
  }
  Value MakeValue(int depth) {
    switch (Below(depth > 0 ? 8 : 6)) {
      case 0:
        return {};
      case 1:
        return Coin();
      case 2:
        return static_cast<std::int64_t>(random_.Next());
      case 3:
        return Number();
      case 4:
      case 5:
        return Coin() ? "" : Text();
      case 6: {
        Value::List list;
        for (int i = Below(4); i > 0; --i) list.push_back(MakeValue(depth - 1));
        return Value::MakeList(std::move(list));
      }
      default:
        return MakeMap(depth - 1);
    }
  }
  Value MakeMap(int depth) {
    Value::Map map;
    for (int i = Below(4); i > 0; --i) {
      const std::string base = Text();
      // Distinct, without control characters.
      std::string key = std::to_string(i) + base;
      if (Coin()) key = base + std::to_string(i);
      std::erase_if(key, [](char c) { return (c >= 0 && c < 0x20) || c == 0x7F; });
      bool taken = false;
      for (const Value::Field& field : map) taken |= field.first == key;
      if (!taken) map.emplace_back(key, MakeValue(depth));
    }
    return Value::MakeMap(std::move(map));
  }
  PriorityBandConfig Band(int priority) {
    return {.priority = priority,
            .max_requests = 1 + (random_.Next() >> 2),
            .max_bytes = 1 + static_cast<std::uint64_t>(Below(100)),
            .fairness_policy = Coin() ? Text() : "",
            .ordering_policy = Coin() ? Text() : ""};
  }

  Random random_;
};

TEST(ConfigPrint, RandomConfigurationsReadBack) {
  for (std::uint64_t seed = 0; seed < 3000 && !::testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE(seed);
    ExpectRoundTrip(RandomConfig(seed).Make());
  }
}

}  // namespace
}  // namespace llmd::sched
