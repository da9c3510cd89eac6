// What happens to a request around the profiles, and to a configuration before there is a scheduler:
// admission by saturation, conditional requests, flows, stability of types, circular references.
#include <gmock/gmock.h>

#include <functional>

#include "llmd/sched/disagg.h"
#include "llmd/sched/result_headers.h"
#include "tests/sched/sched_test_util.h"

namespace llmd::sched {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class LifecycleTest : public ::testing::Test {
 protected:
  LifecycleTest() { config.plugins = {{"", "queue-scorer", {}}}; }

  void Create() {
    auto made = Scheduler::Create(config, registry, {{index.source(), index.source()}});
    ASSERT_TRUE(made.ok()) << made.status();
    scheduler = *std::move(made);
    workspace = std::make_unique<Workspace>(*scheduler);
  }
  std::string CreateError() {
    return std::string(
        Scheduler::Create(config, registry, {{index.source(), index.source()}}).status().message());
  }
  absl::Status Run(std::optional<std::span<const Position>> candidates = std::nullopt) {
    if (scheduler == nullptr) Create();
    return scheduler->Schedule(
        {.request = request, .pool = pool, .candidates = candidates, .now = kNow, .seed = 1}, *workspace,
        decision);
  }
  void SetLoad(Position position, std::int64_t queue, double kv, absl::Time at = kNow) {
    MetricsAt(pool, position).waiting_requests = {queue, at};
    MetricsAt(pool, position).kv_cache_usage = {kv, at};
  }

  PluginRegistry registry = PluginRegistry::Builtin();
  SchedulerConfig config;
  FakeIndex index;
  EndpointPool pool = MakePool(2);
  Request request;
  std::unique_ptr<Scheduler> scheduler;
  std::unique_ptr<Workspace> workspace;
  Decision decision;
};

// Admission without flow control.

TEST_F(LifecycleTest, AFullPoolShedsWhatMayBeShed) {
  SetLoad(0, 10, 0.0);  // 10 / 5 = 2
  SetLoad(1, 0, 0.0);   // 0; the mean is 1
  request.priority = -1;
  const absl::Status status = Run();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(), "system saturated, sheddable request dropped");
  EXPECT_EQ(ToString(GetDroppedReason(status)), "rejected-saturated");
  EXPECT_EQ(HttpStatus(status.code()), 429);
  EXPECT_EQ(decision.profiles[0].state, ProfileState::kPending);
  request.priority = 0;
  EXPECT_TRUE(Run().ok());
  request.priority = -1;
  SetLoad(0, 9, 0.0);  // 9 / 5 = 1.8; the mean is 0.9
  EXPECT_TRUE(Run().ok());
}

TEST_F(LifecycleTest, SaturationIsThatOfTheCandidates) {
  SetLoad(0, 10, 0.0);
  SetLoad(1, 0, 0.0);
  request.priority = -1;
  const std::vector<Position> full = {0}, empty = {1}, none;
  EXPECT_EQ(Run(full).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(Run(empty).ok());
  EXPECT_EQ(GetDroppedReason(Run(none)), DroppedReason::kNoEndpoints);  // comes before
}

TEST_F(LifecycleTest, FlowControlTakesTheAdmissionOver) {
  SetLoad(0, 10, 0.0);
  SetLoad(1, 10, 0.0);
  request.priority = -1;
  config.feature_gates.flow_control = true;
  EXPECT_TRUE(Run().ok());
}

TEST_F(LifecycleTest, TheDetectorIsTheOneThatTheConfigurationNames) {
  SetLoad(0, 10, 0.0);
  SetLoad(1, 10, 0.0);
  request.priority = -1;
  config.plugins.push_back({"deep", "utilization-detector", Parameters({{"queueDepthThreshold", 20}})});
  config.profiles = {{"default", {{"queue-scorer", {}}}}};
  config.flow_control.saturation_detector = "deep";
  EXPECT_TRUE(Run().ok());  // 10 / 20
}

// Conditional requests.

class ConditionalTest : public LifecycleTest {
 protected:
  ConditionalTest() {
    config = {};
    config.plugins = {{"", "prefix-cache-scorer", {}}};
    EXPECT_TRUE(pool.BindHolder(kApproximateSource, {0, 1}, pool[0].handle).ok());
    EXPECT_TRUE(pool.BindHolder(kApproximateSource, {1, 1}, pool[1].handle).ok());
  }
  absl::StatusCode Prefer(const std::vector<std::string>& values) {
    std::vector<Header> headers;
    for (const std::string& value : values) headers.push_back({"prefer", value});
    const TestRequest prompt(4, 64);
    request.prompts = prompt.prompts;
    request.headers = headers;
    const absl::Status status = Run();
    request.prompts = {};
    request.headers = {};
    return status.code();
  }
};

TEST_F(ConditionalTest, IfAvailableNeedsABlockAtTheTarget) {
  EXPECT_EQ(Prefer({"if-available"}), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(HttpStatus(absl::StatusCode::kFailedPrecondition), 412);
  EXPECT_EQ(Prefer({}), absl::StatusCode::kOk);
  index.Store(1, {0});
  EXPECT_EQ(Prefer({"if-available"}), absl::StatusCode::kOk);
  EXPECT_EQ(decision.target(), 1u);
}

TEST_F(ConditionalTest, TheHeaderIsAListOfPreferences) {
  constexpr auto kNo = absl::StatusCode::kFailedPrecondition;
  constexpr auto kYes = absl::StatusCode::kOk;
  EXPECT_EQ(Prefer({"If-Available"}), kNo);
  EXPECT_EQ(Prefer({"respond-async, if-available"}), kNo);
  EXPECT_EQ(Prefer({" if-available ;q=1 , wait=10"}), kNo);
  EXPECT_EQ(Prefer({"wait=10", "if-available"}), kNo);  // repeated header
  EXPECT_EQ(Prefer({"if-available2"}), kYes);
  EXPECT_EQ(Prefer({"not-if-available"}), kYes);
  EXPECT_EQ(Prefer({"wait=10; if-available"}), kYes);  // a parameter
  EXPECT_EQ(Prefer({"\"if-available\""}), kYes);
  EXPECT_EQ(Prefer({"", ",", ";"}), kYes);
}

TEST_F(ConditionalTest, OnlyTheDefaultKeyCounts) {
  config.plugins = {{"exact", "precise-prefix-cache-producer", {}},
                    {"", "prefix-cache-scorer", Parameters({{"prefixMatchInfoProducerName", "exact"}})}};
  ASSERT_TRUE(pool.BindHolder(kExactSource, {0, 1}, pool[0].handle).ok());
  index.Store(0, {0, 1});
  EXPECT_EQ(Prefer({"if-available"}), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(decision.target(), 0u);
}

// Flows.

class NamingAgent final : public Plugin, public AgentIdentity {
 public:
  using Plugin::Plugin;
  std::string_view Identify(const Request& request) const override {
    return request.FindHeader("session-id").value_or("");
  }
};

TEST_F(LifecycleTest, FairnessId) {
  ASSERT_TRUE(registry
                  .Register("naming-agent",
                            [](PluginBuilder& b) -> absl::StatusOr<std::unique_ptr<Plugin>> {
                              return std::make_unique<NamingAgent>(b.type(), b.name());
                            })
                  .ok());
  const auto id = [&](const std::vector<Header>& headers) {
    request.headers = headers;
    return std::string(scheduler->FairnessId(request));
  };
  Create();
  EXPECT_EQ(id({}), "default-flow");
  EXPECT_EQ(id({{"session-id", "s"}}), "default-flow");
  config.plugins.push_back({"", "naming-agent", {}});
  Create();
  EXPECT_EQ(id({}), "default-flow");
  EXPECT_EQ(id({{"session-id", "s"}}), "s");
  EXPECT_EQ(id({{"session-id", "s"}, {"x-gateway-inference-fairness-id", "old"}}), "old");
  EXPECT_EQ(id({{"x-gateway-inference-fairness-id", "old"}, {"x-llm-d-inference-fairness-id", "new"}}),
            "new");
  EXPECT_EQ(id({{"session-id", "s"}, {"x-llm-d-inference-fairness-id", ""}}), "s");
}

// Configurations.

class Plain final : public Plugin, public Scorer {
 public:
  using Plugin::Plugin;
  void Score(Context&, std::span<const Position>, std::span<double>) const override {}
};

// Refers to the plugin in its parameter "next".
absl::StatusOr<std::unique_ptr<Plugin>> MakeLinked(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  std::string next;
  read.Optional("next", &next);
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  if (!next.empty()) {
    const auto found = builder.Reference<Scorer>("next", next);
    if (!found.ok()) return found.status();
  }
  return std::make_unique<Plain>(builder.type(), builder.name());
}

TEST_F(LifecycleTest, ReferencesMayPointForwardButNotInACircle) {
  ASSERT_TRUE(registry.Register("linked", MakeLinked).ok());
  const auto next = [](const char* name) { return Parameters({{"next", name}}); };
  config.plugins = {{"a", "linked", next("b")}, {"b", "linked", next("c")}, {"c", "linked", {}}};
  Create();
  EXPECT_NE(scheduler->FindPlugin("c"), nullptr);
  config.plugins[2].parameters = next("a");
  EXPECT_THAT(CreateError(), HasSubstr("plugins refer to each other in a circle"));
  config.plugins[2].parameters = next("c");
  EXPECT_THAT(CreateError(),
              AllOf(HasSubstr("c: next is \"c\""), HasSubstr("plugins refer to each other in a circle")));
  config.plugins[2].parameters = next("d");
  EXPECT_THAT(CreateError(), HasSubstr("c: next is \"d\", expected the name of a plugin (no such plugin)"));
  config.plugins = {{"a", "linked", next("b")}, {"b", "max-score-picker", {}}};
  EXPECT_THAT(CreateError(),
              HasSubstr("a: next is \"b\", expected a plugin of another kind than max-score-picker"));
}

TEST_F(LifecycleTest, ExperimentalTypesNeedPermission) {
  const auto make = [](PluginBuilder& b) -> absl::StatusOr<std::unique_ptr<Plugin>> {
    return std::make_unique<Plain>(b.type(), b.name());
  };
  ASSERT_TRUE(registry.Register("young", make, Stability::kExperimental).ok());
  config.plugins = {{"mine", "young", {}}};
  EXPECT_EQ(
      CreateError(),
      "plugin \"mine\": type \"young\" is experimental, expected one that is not, or experimental plugins "
      "allowed");
  config.allow_experimental = true;
  Create();
  EXPECT_THAT(scheduler->warnings(), IsEmpty());
}

TEST_F(LifecycleTest, DeprecatedTypesAreWarnedOf) {
  const auto make = [](PluginBuilder& b) -> absl::StatusOr<std::unique_ptr<Plugin>> {
    b.Warn("it creaks");
    return std::make_unique<Plain>(b.type(), b.name());
  };
  ASSERT_TRUE(registry.Register("old", make, Stability::kDeprecated, "new-scorer").ok());
  ASSERT_TRUE(registry.Register("older", make, Stability::kDeprecated).ok());
  config.plugins = {{"mine", "old", {}}, {"", "older", {}}};
  Create();
  EXPECT_THAT(scheduler->warnings(),
              ElementsAre("plugin \"mine\": type \"old\" is deprecated, use new-scorer", "it creaks",
                          "plugin: type \"older\" is deprecated", "it creaks"));
}

TEST_F(LifecycleTest, DeprecatedTypesOfTheLibrarySayWhatToUse) {
  config.plugins = {
      {"", "always-disagg-pd-decider", {}},
      {"", "pd-profile-handler", Parameters({{"deciderPluginName", "always-disagg-pd-decider"}})},
      {"", "prefill-header-handler", {}},
      {"", "disagg-headers-handler", {}}};
  config.profiles = {{"decode", {}}, {"prefill", {}}};
  Create();
  EXPECT_THAT(
      scheduler->warnings(),
      ElementsAre("plugin: type \"pd-profile-handler\" is deprecated, use disagg-profile-handler",
                  HasSubstr("type \"prefill-header-handler\" is deprecated, use disagg-profile-handler"),
                  HasSubstr("type \"disagg-headers-handler\" is deprecated, use disagg-profile-handler")));
}

TEST_F(LifecycleTest, AFailedReloadLeavesTheOldSchedulerRunning) {
  Create();
  SchedulerConfig bad = config;
  bad.plugins.push_back({"", "no-such-type", {}});
  EXPECT_FALSE(Scheduler::Create(bad, registry, {{index.source(), index.source()}}).ok());
  EXPECT_TRUE(Run().ok());
}

TEST_F(LifecycleTest, CountersOutliveAScheduler) {
  config.plugins = {{"", "always-disagg-pd-decider", {}},
                    {"pd", "disagg-profile-handler",
                     Parameters({{"deciders", Parameters({{"prefill", "always-disagg-pd-decider"}})}})}};
  config.profiles = {{"decode", {}}, {"prefill", {}}};
  Resources resources;
  resources.states = std::make_shared<PluginStates>();
  for (int i = 0; i < 2; ++i) {
    const auto made = Scheduler::Create(config, registry, resources);
    ASSERT_TRUE(made.ok()) << made.status();
    Workspace own(**made);
    ASSERT_TRUE((*made)->Schedule({.request = request, .pool = pool, .now = kNow}, own, decision).ok());
  }
  EXPECT_EQ(DisaggCountersOf(*resources.states, "pd")->decisions(DisaggKind::kPrefillDecode), 2u);
}

}  // namespace
}  // namespace llmd::sched
