// What Scheduler::Create() does to the flow control part of a configuration. (spec: scheduling.md 3.2, 3.3)
#include <gmock/gmock.h>

#include "llmd/sched/flow_control.h"
#include "tests/sched/sched_test_util.h"

namespace llmd::sched {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

SchedulerConfig On(FlowControlConfig flow = {}) {
  SchedulerConfig config;
  config.feature_gates.flow_control = true;
  config.flow_control = std::move(flow);
  return config;
}
std::string Complaint(const SchedulerConfig& config) {
  const auto scheduler = Scheduler::Create(config, PluginRegistry::Builtin(), {});
  return std::string(scheduler.status().message());
}

TEST(FlowConfig, DefaultPoliciesAreAdded) {
  auto scheduler = Scheduler::Create(On({.bands = {{.priority = 3}}}), PluginRegistry::Builtin(), {});
  ASSERT_TRUE(scheduler.ok()) << scheduler.status();
  for (const char* name :
       {"fcfs-ordering-policy", "global-strict-fairness-policy", "static-usage-limit-policy"}) {
    EXPECT_NE((*scheduler)->FindPlugin(name), nullptr) << name;
  }
  const FlowControlConfig& flow = (*scheduler)->config().flow_control;
  EXPECT_EQ(flow.bands[0].fairness_policy, "global-strict-fairness-policy");
  EXPECT_EQ(flow.bands[0].ordering_policy, "fcfs-ordering-policy");
  EXPECT_EQ(flow.default_band.fairness_policy, "global-strict-fairness-policy");
  EXPECT_EQ(flow.usage_limit_policy, "static-usage-limit-policy");
  EXPECT_THAT((*scheduler)->warnings(), IsEmpty());
  // What was completed can be given again.
  EXPECT_EQ(Complaint((*scheduler)->config()), "");
}

TEST(FlowConfig, GateOffAddsNothing) {
  auto scheduler = Scheduler::Create({}, PluginRegistry::Builtin(), {});
  ASSERT_TRUE(scheduler.ok());
  EXPECT_EQ((*scheduler)->FindPlugin("fcfs-ordering-policy"), nullptr);
  EXPECT_THAT((*scheduler)->warnings(), IsEmpty());
}

TEST(FlowConfig, GateOffWarnsOfSettings) {
  std::vector<FlowControlConfig> settings(10);
  settings[0].max_requests = 1;
  settings[1].max_bytes = 1;
  settings[2].default_request_ttl = absl::Seconds(1);
  settings[3].no_endpoint_request_ttl = absl::Seconds(1);
  settings[4].bands = {{.priority = 1}};
  settings[5].default_band.max_requests = 7;
  settings[6].default_negative_band.emplace();
  settings[7].usage_limit_policy = "nobody";  // not looked up
  settings[8].enable_eviction = true;
  settings[9].default_band.ordering_policy = "nobody";
  for (const FlowControlConfig& flow : settings) {
    SchedulerConfig config;
    config.flow_control = flow;
    auto scheduler = Scheduler::Create(config, PluginRegistry::Builtin(), {});
    ASSERT_TRUE(scheduler.ok()) << scheduler.status();
    EXPECT_THAT((*scheduler)->warnings(),
                ElementsAre("flowControl has settings without effect: the feature gate flowControl is off"));
  }
  SchedulerConfig config;
  config.flow_control.saturation_detector = "utilization-detector";  // has an effect
  auto scheduler = Scheduler::Create(config, PluginRegistry::Builtin(), {});
  ASSERT_TRUE(scheduler.ok());
  EXPECT_THAT((*scheduler)->warnings(), IsEmpty());
}

TEST(FlowConfig, References) {
  EXPECT_EQ(Complaint(On({.bands = {{.priority = 1, .fairness_policy = "nobody"}}})),
            "flowControl.priorityBands[0].fairnessPolicyRef is \"nobody\", expected the name of a plugin");
  EXPECT_EQ(Complaint(On({.bands = {{.priority = 1}, {.priority = 2, .ordering_policy = "nobody"}}})),
            "flowControl.priorityBands[1].orderingPolicyRef is \"nobody\", expected the name of a plugin");
  EXPECT_EQ(Complaint(On({.bands = {{.priority = 1, .fairness_policy = "fcfs-ordering-policy"}}})),
            "flowControl.priorityBands[0].fairnessPolicyRef is \"fcfs-ordering-policy\", expected a fairness "
            "policy, not a fcfs-ordering-policy");
  EXPECT_EQ(
      Complaint(On({.default_band = {.ordering_policy = "global-strict-fairness-policy"}})),
      "flowControl.defaultPriorityBand.orderingPolicyRef is \"global-strict-fairness-policy\", expected an "
      "ordering policy, not a global-strict-fairness-policy");
  EXPECT_EQ(
      Complaint(On({.default_negative_band = PriorityBandConfig{.fairness_policy = "x"}})),
      "flowControl.defaultNegativePriorityBand.fairnessPolicyRef is \"x\", expected the name of a plugin");
  EXPECT_EQ(
      Complaint(On({.usage_limit_policy = "fcfs-ordering-policy"})),
      "flowControl.usageLimitPolicyPluginRef is \"fcfs-ordering-policy\", expected a usage limit policy, "
      "not a fcfs-ordering-policy");
}

TEST(FlowConfig, PlacesInAFile) {
  SchedulerConfig config =
      On({.bands = {{.priority = 1, .fairness_policy = "x", .place = {"flowControl.priorityBands[0]", 12}}}});
  config.source = "epp.yaml";
  EXPECT_EQ(
      Complaint(config),
      "epp.yaml: line 12: flowControl.priorityBands[0].fairnessPolicyRef is \"x\", expected the name of a "
      "plugin");
}

TEST(FlowConfig, DuplicatePriorities) {
  EXPECT_EQ(
      Complaint(On({.bands = {{.priority = 1}, {.priority = 0}, {.priority = 1}}})),
      "flowControl.priorityBands[2].priority is 1 like that of another band, expected distinct priorities");
}

TEST(FlowConfig, NegativeTtl) {
  EXPECT_EQ(Complaint(On({.default_request_ttl = -absl::Seconds(1)})),
            "flowControl.defaultRequestTTL is -1s, expected at least 0");
  EXPECT_EQ(Complaint(On({.no_endpoint_request_ttl = -absl::Seconds(2)})),
            "flowControl.noEndpointRequestTTL is -2s, expected at least 0");
}

TEST(FlowConfig, ExperimentalPoliciesNeedTheFlag) {
  SchedulerConfig config = On({.usage_limit_policy = "soft-reflective-ceiling-policy"});
  config.plugins = {{.type = "soft-reflective-ceiling-policy"}};
  EXPECT_THAT(Complaint(config), HasSubstr("experimental"));
  config.allow_experimental = true;
  EXPECT_EQ(Complaint(config), "");
}

TEST(FlowConfig, EvictionNeedsNoPlugins) {
  auto scheduler = Scheduler::Create(On({.enable_eviction = true}), PluginRegistry::Builtin(), {});
  ASSERT_TRUE(scheduler.ok()) << scheduler.status();
  EXPECT_TRUE(FlowController::Create(**scheduler).ok());
}

}  // namespace
}  // namespace llmd::sched
