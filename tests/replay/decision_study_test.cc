// Decisions of every policy, recorded in a simulation and taken again.
#include "examples/trace_replay/decision_study.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "examples/trace_replay/config_policy.h"
#include "llmd/sched/config_file.h"
#include "tests/replay/replay_test_util.h"

namespace llmd::replay {
namespace {

using ::testing::HasSubstr;

constexpr std::uint32_t kEndpoints = 4;

const Workload& Requests() {
  static const Workload& workload =
      *new Workload(Generate({.kind = WorkloadKind::kChat, .requests = 300, .rate = 8, .seed = 5}));
  return workload;
}

struct Recorded {
  std::vector<std::byte> log;
  std::unique_ptr<Simulation> simulation;
};

Recorded Record(Policy policy) {
  Recorded recorded;
  SimulationOptions options;
  options.endpoints = kEndpoints;
  options.engine.capacity_blocks = 4'000;
  options.record = [&](std::span<const std::byte> piece) {
    recorded.log.insert(recorded.log.end(), piece.begin(), piece.end());
    return absl::OkStatus();
  };
  recorded.simulation = RunSimulation(Requests(), std::move(policy), options);
  return recorded;
}

DecisionStudy Study(std::span<const std::byte> log, std::vector<Policy> others, StudyOptions options = {}) {
  absl::StatusOr<DecisionStudy> study = StudyDecisions(log, std::move(others), options);
  EXPECT_TRUE(study.ok()) << study.status();
  return study.ok() ? *std::move(study) : DecisionStudy();
}

constexpr char kExactConfig[] = R"(apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: precise-prefix-cache-producer
- name: exact-prefix
  type: prefix-cache-scorer
  parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}
- name: queue
  type: queue-scorer
- name: kv
  type: kv-cache-utilization-scorer
schedulingProfiles:
- name: default
  plugins:
  - {pluginRef: exact-prefix, weight: 3}
  - {pluginRef: queue, weight: 2}
  - {pluginRef: kv, weight: 2}
)";

TEST(DecisionStudyTest, EveryPolicyReplaysBitForBit) {
  std::vector<Policy> policies;
  for (const std::string& name : PolicyNames()) policies.push_back(*MakePolicy(name));
  policies.push_back(*MakeMix("exact-prefix=1.7,approx-prefix=0.3,queue=1,kv=-1,running=0.1"));
  policies.push_back(*MakeConfigPolicy(kExactConfig, "dir/exact.yaml"));
  for (const Policy& policy : policies) {
    const Recorded recorded = Record(policy);
    const DecisionStudy study = Study(recorded.log, {});
    EXPECT_EQ(study.decisions, Requests().size()) << policy.name;
    EXPECT_EQ(study.equal, study.decisions) << policy.name << ": " << study.difference;
    EXPECT_EQ(study.difference, "");
    EXPECT_EQ(study.verified_by, policy.name);
    EXPECT_EQ(study.endpoints, kEndpoints);
    EXPECT_EQ(study.has_matches, policy.uses_exact || policy.uses_approx);
    // Loads are those of the simulation.
    std::uint64_t prompt = 0, expected = 0;
    for (const RequestResult& request : recorded.simulation->result().requests) {
      prompt += request.prompt_tokens;
      expected += request.expected_tokens;
    }
    EXPECT_EQ(study.recorded.prompt_tokens, prompt);
    EXPECT_EQ(study.recorded.matched_tokens, expected) << policy.name;
    for (std::uint32_t i = 0; i < kEndpoints; ++i) {
      const EngineTotals& totals = recorded.simulation->result().endpoints[i].totals;
      const auto it = study.recorded.load.find("default/gpu-" + std::to_string(i));
      ASSERT_NE(it, study.recorded.load.end());
      EXPECT_EQ(it->second, totals.prompt_tokens + totals.output_tokens);
    }
  }
}

TEST(DecisionStudyTest, AnotherPolicyIsCounted) {
  const Recorded recorded = Record(*MakePolicy("exact"));
  const DecisionStudy study = Study(recorded.log,
                                    {*MakeConfigPolicy(kExactConfig, "same.yaml"), *MakePolicy("random"),
                                     *MakeMix("exact-prefix=1"), *MakePolicy("least-queue")},
                                    {.examples = 2});
  ASSERT_EQ(study.others.size(), 4u);
  // The same configuration as YAML changes nothing.
  EXPECT_EQ(study.others[0].changed, 0u);
  EXPECT_TRUE(study.others[0].examples.empty());
  EXPECT_EQ(study.others[0].matched_tokens, study.recorded.matched_tokens);
  EXPECT_EQ(study.others[0].load, study.recorded.load);
  // Random chooses another of 4 endpoints three times in four: 225 of 300, standard deviation 7.5.
  EXPECT_NEAR(static_cast<double>(study.others[1].changed), 225, 30);
  EXPECT_EQ(study.others[1].differs_first, study.others[1].changed);
  EXPECT_LT(study.others[1].hit_rate(), study.recorded.hit_rate());
  EXPECT_EQ(study.others[1].examples.size(), 2u);
  EXPECT_THAT(study.others[1].examples[0], HasSubstr("recorded default/gpu-"));
  // Prefix alone finds the most matches.
  EXPECT_GE(study.others[2].hit_rate(), study.recorded.hit_rate());
  for (const DecidedFigures& figures : study.others) {
    EXPECT_EQ(figures.failed, 0u);
    EXPECT_EQ(figures.prompt_tokens, study.recorded.prompt_tokens);
    EXPECT_GE(figures.imbalance(), 1);
  }
}

TEST(DecisionStudyTest, ExamplesAreExplainedWhenAskedFor) {
  const Recorded recorded = Record(*MakePolicy("exact"));
  const DecisionStudy study = Study(recorded.log, {*MakePolicy("random")}, {.examples = 1, .explain = true});
  ASSERT_EQ(study.others[0].examples.size(), 1u);
  EXPECT_THAT(study.others[0].examples[0], HasSubstr("exact-prefix x3"));
}

TEST(DecisionStudyTest, MissingDataAreNamed) {
  const Recorded recorded = Record(*MakePolicy("exact"));
  const DecisionStudy study = Study(recorded.log, {*MakePolicy("approx")});
  ASSERT_EQ(study.others[0].missing.size(), 1u);
  EXPECT_EQ(study.others[0].missing[0], "PrefixCacheMatchInfo/approx-prefix-cache-producer");
}

TEST(DecisionStudyTest, DamageIsRefused) {
  Recorded recorded = Record(*MakePolicy("exact"));
  for (std::size_t i = 0; i < recorded.log.size(); i += 1009) {
    std::vector<std::byte> log = recorded.log;
    log[i] ^= std::byte{4};
    EXPECT_EQ(StudyDecisions(log, {}, {}).status().code(), absl::StatusCode::kInvalidArgument) << i;
  }
  recorded.log.pop_back();
  EXPECT_THAT(std::string(StudyDecisions(recorded.log, {}, {}).status().message()), HasSubstr("cut short"));
}

TEST(DecisionStudyTest, ALogOfAnotherConfigurationIsFoundOut) {
  // Recorded under one set of weights, with the text of another.
  Policy policy = *MakeMix("exact-prefix=3,queue=2,kv=2.5");
  policy.text = "policy exact";
  const DecisionStudy study = Study(Record(std::move(policy)).log, {});
  EXPECT_LT(study.equal, study.decisions);
  EXPECT_THAT(study.difference, HasSubstr("decision 0 (request-0): profile default: "));
  EXPECT_THAT(study.difference, HasSubstr("weighted score of kv for default/gpu-0 is 2, recorded 2.5"));
}

TEST(DecisionStudyTest, APolicyBesideTheLogVerifiesOneWithoutAName) {
  Policy policy = *MakePolicy("exact");
  policy.text = "something else";
  const Recorded recorded = Record(std::move(policy));
  EXPECT_EQ(Study(recorded.log, {}).verified_by, "");
  const DecisionStudy study = Study(recorded.log, {*MakePolicy("random"), *MakePolicy("exact")});
  EXPECT_EQ(study.verified_by, "exact");
  EXPECT_EQ(study.equal, study.decisions);
}

TEST(ConfigPolicyTest, NeedsAreFoundOut) {
  const Policy exact = *MakeConfigPolicy(kExactConfig, "dir/exact.yaml");
  EXPECT_EQ(exact.name, "exact");
  EXPECT_TRUE(exact.uses_exact);
  EXPECT_FALSE(exact.uses_approx);
  const auto make = [](const std::string& plugins) {
    return MakeConfigPolicy("apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n" + plugins,
                            "a.yaml");
  };
  const absl::StatusOr<Policy> implied = make("plugins: [{type: prefix-cache-scorer}, {type: queue-scorer}]");
  ASSERT_TRUE(implied.ok()) << implied.status();
  EXPECT_TRUE(implied->uses_approx);
  EXPECT_FALSE(implied->uses_exact);
  const auto message = [&](const std::string& plugins) {
    return std::string(make(plugins).status().message());
  };
  EXPECT_THAT(message("plugins: [{type: no-such}]"), HasSubstr("a.yaml"));
  EXPECT_THAT(message("plugins: [{type: no-such}]"), HasSubstr("no-such"));
  EXPECT_THAT(message("plugins: ["), HasSubstr("a.yaml: line 3"));
  EXPECT_THAT(message("plugins: [{type: approx-prefix-cache-producer, parameters: {autoTune: false, "
                      "blockSizeTokens: 128}}, {type: prefix-cache-scorer}]"),
              HasSubstr("blocks of 128 tokens, expected 64"));
  EXPECT_EQ(ReadConfigPolicy("/no/such.yaml").status().code(), absl::StatusCode::kNotFound);
}

TEST(ConfigPolicyTest, TextsMakeTheirPolicyAgain) {
  for (const Policy& policy :
       {*MakePolicy("exact"), *MakeMix("kv=1"), *MakeConfigPolicy(kExactConfig, "dir/exact.yaml")}) {
    const absl::StatusOr<Policy> again = MakePolicyFromText(policy.text);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(again->name, policy.name);
    EXPECT_EQ(again->text, policy.text);
    EXPECT_EQ(again->description, policy.description);
  }
  EXPECT_FALSE(MakePolicyFromText("").ok());
  EXPECT_FALSE(MakePolicyFromText("policy best").ok());
  // What is written is read.
  const std::string text = sched::PrintConfig(MakePolicy("exact")->config);
  const absl::StatusOr<sched::SchedulerConfig> config = sched::ParseConfig(text, {.source = "x"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->plugins.size(), MakePolicy("exact")->config.plugins.size());
  EXPECT_EQ(config->profiles.front().plugins[0].weight, 3.0);
}

}  // namespace
}  // namespace llmd::replay
