// Building schedulers: defaults, dependencies and every refusal.
#include <gmock/gmock.h>

#include <fstream>
#include <iterator>

#include "tests/sched/sched_test_util.h"

namespace llmd::sched {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Number {
  static constexpr std::string_view kDataType = "Number";
  double value = 0;
};
struct OtherNumber {
  static constexpr std::string_view kDataType = "Number";
  int value = 0;
};

// Publishes (the number of its input, or 0) + 1 for every endpoint.
class Adder final : public Plugin, public DataProducer {
 public:
  Adder(PluginBuilder& b, const std::string& input) : Plugin(b.type(), b.name()), out_(b.Produces<Number>()) {
    if (!input.empty()) in_ = b.Consumes<Number>(input);
  }
  void Produce(Context& context, ThreadState*) const override {
    const double base = in_ && !context.data.Read(*in_).empty() ? context.data.Read(*in_)[0].value : 0;
    for (Number& n : context.data.Publish(out_)) n.value = base + 1;
  }

 private:
  DataSlot<Number> out_;
  std::optional<DataSlot<Number>> in_;
};

template <typename T>
class NumberScorer final : public Plugin, public Scorer {
 public:
  NumberScorer(PluginBuilder& b, const std::string& input)
      : Plugin(b.type(), b.name()), slot_(b.Consumes<T>(input)) {}
  void Score(Context& context, std::span<const Position> candidates,
             std::span<double> scores) const override {
    for (std::size_t i = 0; i < candidates.size(); ++i)
      scores[i] = context.data.Read(slot_)[candidates[i]].value / 10;
  }

 private:
  DataSlot<T> slot_;
};

// Takes for a value of the request what is one of endpoints.
class RequestNumberScorer final : public Plugin, public Scorer {
 public:
  RequestNumberScorer(PluginBuilder& b, const std::string& input) : Plugin(b.type(), b.name()) {
    b.ConsumesOfRequest<Number>(input);
  }
  void Score(Context&, std::span<const Position>, std::span<double>) const override {}
};

template <typename PluginType>
PluginRegistry::Factory WithInput() {
  return [](PluginBuilder& b) -> absl::StatusOr<std::unique_ptr<Plugin>> {
    ParameterReader read(b.name(), b.parameters());
    std::string input;
    read.Optional("input", &input);
    if (absl::Status status = read.Finish(); !status.ok()) return status;
    return std::make_unique<PluginType>(b, input);
  };
}

PluginRegistry TestRegistry() {
  PluginRegistry registry = PluginRegistry::Builtin();
  EXPECT_TRUE(registry.Register("adder", WithInput<Adder>()).ok());
  EXPECT_TRUE(registry.Register("number-scorer", WithInput<NumberScorer<Number>>()).ok());
  EXPECT_TRUE(registry.Register("other-number-scorer", WithInput<NumberScorer<OtherNumber>>()).ok());
  EXPECT_TRUE(registry.Register("request-number-scorer", WithInput<RequestNumberScorer>()).ok());
  return registry;
}

Value Input(const char* name) { return Parameters({{"input", name}}); }

class ConfigTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<Scheduler>> Create(const SchedulerConfig& config) {
    return Scheduler::Create(config, TestRegistry(), {{index.source(), index.source()}});
  }
  std::string Complaint(const SchedulerConfig& config) {
    const auto scheduler = Create(config);
    EXPECT_FALSE(scheduler.ok());
    return std::string(scheduler.status().message());
  }

  FakeIndex index;
};

TEST_F(ConfigTest, EmptyConfigurationGetsEveryDefault) {
  const auto scheduler = Create({});
  ASSERT_TRUE(scheduler.ok()) << scheduler.status();
  EXPECT_THAT((*scheduler)->profiles(), ElementsAre("default"));
  EXPECT_NE((*scheduler)->FindPlugin("max-score-picker"), nullptr);
  EXPECT_NE((*scheduler)->FindPlugin("single-profile-handler"), nullptr);
  EXPECT_EQ((*scheduler)->FindPlugin("queue-scorer"), nullptr);
}

TEST_F(ConfigTest, BuiltInConfiguration) {
  const auto scheduler = Create(SchedulerConfig::Default());
  ASSERT_TRUE(scheduler.ok()) << scheduler.status();
  // Required by the prefix scorer, not configured.
  EXPECT_NE((*scheduler)->FindPlugin("approx-prefix-cache-producer"), nullptr);
}

TEST_F(ConfigTest, NoProfileMeansEveryPlugin) {
  const auto scheduler =
      Create({.plugins = {{"", "queue-scorer", {}}, {"", "decode-filter", {}}, {"r", "random-picker", {}}},
              .profiles = {}});
  ASSERT_TRUE(scheduler.ok()) << scheduler.status();
  EXPECT_EQ((*scheduler)->FindPlugin("max-score-picker"), nullptr);
  EXPECT_EQ((*scheduler)->FindPlugin("r")->type(), "random-picker");
  EndpointPool pool = MakePool(1);
  Workspace workspace(**scheduler);
  Decision decision;
  Explanation explanation;
  ASSERT_TRUE((*scheduler)->Schedule({.request = {}, .pool = pool}, workspace, decision, &explanation).ok());
  ASSERT_EQ(explanation.profiles[0].scorers.size(), 1u);
  EXPECT_EQ(explanation.profiles[0].scorers[0].weight, 1.0);
}

TEST_F(ConfigTest, ProducersRunInOrderOfDependency) {
  const auto scheduler = Create({.plugins = {{"c", "adder", Input("b")},
                                             {"", "number-scorer", Input("c")},
                                             {"b", "adder", Input("a")},
                                             {"a", "adder", {}}},
                                 .profiles = {}});
  ASSERT_TRUE(scheduler.ok()) << scheduler.status();
  EndpointPool pool = MakePool(2);
  Workspace workspace(**scheduler);
  Decision decision;
  ASSERT_TRUE((*scheduler)->Schedule({.request = {}, .pool = pool}, workspace, decision).ok());
  EXPECT_EQ(decision.profiles[0].scored[0].score, 0.3);
}

TEST_F(ConfigTest, DataErrors) {
  EXPECT_THAT(Complaint({.plugins = {{"", "number-scorer", Input("x")}}, .profiles = {}}),
              HasSubstr("no plugin named \"x\" produces Number"));
  EXPECT_THAT(
      Complaint({.plugins = {{"a", "adder", Input("b")}, {"b", "adder", Input("a")}}, .profiles = {}}),
      HasSubstr("in a circle"));
  EXPECT_THAT(
      Complaint({.plugins = {{"a", "adder", {}}, {"", "other-number-scorer", Input("a")}}, .profiles = {}}),
      HasSubstr("two types"));
  EXPECT_THAT(
      Complaint({.plugins = {{"a", "adder", {}}, {"", "request-number-scorer", Input("a")}}, .profiles = {}}),
      HasSubstr("for endpoints and for the request"));
  // A producer named in vain is an error, not a silent fall-back to the approximate one.
  const Value named = Parameters({{"prefixMatchInfoProducerName", "precise-prefix-cache-producer"}});
  EXPECT_THAT(Complaint({.plugins = {{"", "prefix-cache-scorer", named}}, .profiles = {}}),
              HasSubstr("no plugin named \"precise-prefix-cache-producer\" produces PrefixCacheMatchInfo"));
  // A plugin that has the default producer's name and is none.
  EXPECT_THAT(Complaint({.plugins = {{"", "prefix-cache-scorer", {}},
                                     {"approx-prefix-cache-producer", "queue-scorer", {}}},
                         .profiles = {}}),
              HasSubstr("no plugin named \"approx-prefix-cache-producer\" produces"));
}

TEST_F(ConfigTest, PluginErrors) {
  EXPECT_THAT(Complaint({.plugins = {{"x", "", {}}}, .profiles = {}}), HasSubstr("missing a type"));
  EXPECT_THAT(Complaint({.plugins = {{"", "queue-scorer", {}}, {"", "queue-scorer", {}}}, .profiles = {}}),
              HasSubstr("\"queue-scorer\" is used twice"));
  EXPECT_THAT(Complaint({.plugins = {{"", "least-queue", {}}}, .profiles = {}}),
              HasSubstr("\"least-queue\" is not registered"));
  EXPECT_THAT(Complaint({.plugins = {{"q", "queue-scorer", Parameters({{"x", 1}})}}, .profiles = {}}),
              HasSubstr("q: x is unknown"));
}

TEST_F(ConfigTest, ProfileErrors) {
  const std::vector<PluginSpec> plugins = {{"", "queue-scorer", {}},
                                           {"", "max-score-picker", {}},
                                           {"", "random-picker", {}},
                                           {"", "single-profile-handler", {}}};
  const auto complaint = [&](std::vector<ProfileSpec> profiles) {
    return Complaint({.plugins = plugins, .profiles = std::move(profiles)});
  };
  EXPECT_THAT(complaint({{"", {}}}), HasSubstr("missing a name"));
  EXPECT_THAT(complaint({{"a", {}}, {"a", {}}}), HasSubstr("\"a\" is used twice"));
  EXPECT_THAT(complaint({{"a", {{"", {}}}}}), HasSubstr("missing pluginRef"));
  EXPECT_THAT(complaint({{"a", {{"x", {}}}}}), HasSubstr("plugin \"x\" is not defined"));
  EXPECT_THAT(complaint({{"a", {{"single-profile-handler", {}}}}}),
              HasSubstr("expected a filter, scorer or picker"));
  EXPECT_THAT(complaint({{"a", {{"max-score-picker", {}}, {"random-picker", {}}}}}),
              HasSubstr("second picker"));
  EXPECT_THAT(complaint({{"a", {{"queue-scorer", std::nan("")}}}}),
              HasSubstr("weight of \"queue-scorer\" is nan"));
  EXPECT_THAT(complaint({{"a", {}}, {"b", {}}}), HasSubstr("2 profiles, expected 1"));
  EXPECT_THAT(Complaint({.plugins = {}, .profiles = {{"a", {}}, {"b", {}}}}),
              HasSubstr("no profile handler, expected one for 2"));
  EXPECT_THAT(
      Complaint({.plugins = {{"h", "single-profile-handler", {}}, {"i", "single-profile-handler", {}}},
                 .profiles = {}}),
      HasSubstr("second profile handler"));
}

TEST(PluginRegistry, EveryTypeIsDocumented) {
  std::string text;
  for (const char* page : {"scheduling.md", "configuration.md"}) {
    std::ifstream file(std::string(LLMD_SOURCE_DIR "/docs/") + page);
    text.append(std::istreambuf_iterator<char>(file), {});
  }
  for (const std::string& type : PluginRegistry::Builtin().Types()) {
    EXPECT_NE(text.find(type), std::string::npos) << type;
  }
}

TEST(PluginRegistry, NamesAreUnique) {
  PluginRegistry registry = PluginRegistry::Builtin();
  EXPECT_EQ(registry.Register("queue-scorer", nullptr).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(registry.Register("", nullptr).code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(registry.Register("a-type-of-mine", nullptr).ok());
  EXPECT_THAT(registry.Types(), Contains("a-type-of-mine"));
  EXPECT_THAT(registry.Types(), Contains("queue-scorer").Times(1));
}

}  // namespace
}  // namespace llmd::sched
