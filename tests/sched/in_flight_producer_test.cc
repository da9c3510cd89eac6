// inflight-load-producer; costs by hand from spec scheduling.md 4.4.
#include <gmock/gmock.h>

#include "llmd/sched/in_flight.h"
#include "tests/sched/plugin_rig.h"

namespace llmd::sched {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kType[] = "inflight-load-producer";
constexpr char kApprox[] = "approx-prefix-cache-producer";

class InFlightProducerTest : public ::testing::Test {
 protected:
  explicit InFlightProducerTest(const Value& parameters = {}) { Make(parameters); }

  void Make(const Value& parameters) {
    rig = std::make_unique<PluginRig>(pool, kType, parameters);
    table = rig->under_test.states.GetOrMake<InFlightTable>(kType,
                                                            [] { return std::make_shared<InFlightTable>(); });
  }
  // Sends a request of `tokens` tokens to the profiles' targets.
  Dispatch Send(std::size_t tokens, const std::vector<PluginRig::Ran>& profiles,
                std::optional<std::uint32_t> max_output = std::nullopt) {
    prompts = {{.token_count = tokens}};
    request = {.prompts = prompts, .max_output_tokens = max_output};
    rig->Begin(request);
    rig->Produce();
    Dispatch dispatch;
    EXPECT_TRUE(rig->Decide(profiles, dispatch).ok());
    return dispatch;
  }
  // "requests/tokens" of each endpoint.
  std::vector<std::string> Loads() {
    std::vector<std::string> loads;
    for (const Endpoint& endpoint : pool.endpoints()) {
      const InFlightLoad load = table->Get(endpoint.handle);
      loads.push_back(std::to_string(load.requests) + "/" + std::to_string(load.tokens));
    }
    return loads;
  }
  std::vector<std::int64_t> Costs(std::size_t tokens, const std::vector<PrefixMatch>& matches,
                                  std::optional<std::uint32_t> max_output = std::nullopt) {
    prompts = {{.token_count = tokens}};
    request = {.prompts = prompts, .max_output_tokens = max_output};
    rig->Begin(request);
    if (!matches.empty()) rig->Publish(kApprox, matches);
    rig->Produce();
    std::vector<std::int64_t> costs;
    for (const UncachedRequestTokens& cost : rig->Read<UncachedRequestTokens>()) costs.push_back(cost.tokens);
    return costs;
  }

  EndpointPool pool = MakePool(3);
  std::unique_ptr<PluginRig> rig;
  std::shared_ptr<InFlightTable> table;
  std::vector<Prompt> prompts;
  Request request;
};

TEST_F(InFlightProducerTest, CostOfThePromptAtHand) {
  // Nothing known: the whole prompt.
  EXPECT_THAT(Costs(100, {}), ElementsAre(100, 100, 100));
  // 6 blocks of 16 = 96 of 100 tokens are indexed; 4 blocks matched: 96 - 64 + 4; all: 0 + 4; none: 100.
  EXPECT_THAT(Costs(100, {{4, 6, 16, 4}, {6, 6, 16, 6}, {0, 6, 16, 0}}), ElementsAre(36, 4, 100));
  // The last partial block is indexed as a whole: 7 x 16 = 112 > 100, so 112 - 64; more matched than indexed:
  // 0; no block size: the whole prompt.
  EXPECT_THAT(Costs(100, {{4, 7, 16, 4}, {9, 7, 16, 9}, {4, 7, 0, 4}}), ElementsAre(48, 0, 100));
  EXPECT_THAT(Costs(0, {}), ElementsAre(0, 0, 0));
  // Absurd numbers do not overflow: the cost is cut at 2^40.
  const std::uint32_t most = ~std::uint32_t{0};
  EXPECT_THAT(Costs(~std::size_t{0}, {{0, most, most, 0}, {most, most, most, most}, {}}),
              ElementsAre(std::int64_t{1} << 40, 0, std::int64_t{1} << 40));
}

TEST_F(InFlightProducerTest, OutputIsEstimatedOnRequest) {
  Make(Parameters({{"addEstimatedOutputTokens", true}}));
  EXPECT_THAT(Costs(101, {}), ElementsAre(253, 253, 253));  // 101 + round(151.5)
  EXPECT_THAT(Costs(100, {{4, 6, 16, 4}, {}, {}}, 50), ElementsAre(36 + 50, 150, 150));
  Make(Parameters(
      {{"addEstimatedOutputTokens", true}, {"outputRatio", 0.25}, {"maxEstimatedOutputTokens", 20}}));
  EXPECT_THAT(Costs(40, {}), ElementsAre(50, 50, 50));
  EXPECT_THAT(Costs(100, {}, 30), ElementsAre(120, 120, 120));
  Make(Parameters({{"outputRatio", 3}, {"maxEstimatedOutputTokens", 20}}));  // not asked for
  EXPECT_THAT(Costs(40, {}), ElementsAre(40, 40, 40));
}

TEST_F(InFlightProducerTest, LoadIsPublishedForCandidates) {
  const Dispatch one = Send(100, {{"default", {1, 0}}});
  const Dispatch two = Send(50, {{"default", {1}}});
  rig->Begin(request, std::vector<Position>{0, 1});
  rig->Produce();
  const std::vector<InFlightLoad> loads = rig->Read<InFlightLoad>();
  EXPECT_EQ(loads[0].requests, 0);  // a fallback target is not served
  EXPECT_EQ(loads[1].requests, 2);
  EXPECT_EQ(loads[1].tokens, 150);
}

TEST_F(InFlightProducerTest, ChunksReleaseTokensThenRequests) {
  Dispatch dispatch = Send(100, {{"decode", {0}}, {"prefill", {1}}, {"encode", {2}}});
  EXPECT_THAT(Loads(), ElementsAre("1/100", "1/100", "1/100"));
  dispatch.flight.OnResponseHeaders(kNow, dispatch.headers);
  EXPECT_THAT(Loads(), ElementsAre("1/100", "1/100", "1/100"));
  dispatch.flight.OnResponseBody({.first = true});
  EXPECT_THAT(Loads(), ElementsAre("1/0", "0/0", "1/0"));
  dispatch.flight.OnResponseBody({.first = true});  // a confused host
  dispatch.flight.OnResponseBody({});
  EXPECT_THAT(Loads(), ElementsAre("1/0", "0/0", "1/0"));
  dispatch.flight.OnResponseBody({.last = true});
  EXPECT_THAT(Loads(), ElementsAre("0/0", "0/0", "0/0"));
  dispatch.flight.OnResponseBody({.last = true});
  EXPECT_THAT(Loads(), ElementsAre("0/0", "0/0", "0/0"));
}

TEST_F(InFlightProducerTest, EstimatedOutputStaysUntilTheEnd) {
  Make(Parameters({{"addEstimatedOutputTokens", true}}));
  Dispatch dispatch = Send(100, {{"decode", {0}}, {"prefill", {1}}});
  EXPECT_THAT(Loads(), ElementsAre("1/250", "1/250", "0/0"));
  dispatch.flight.OnResponseBody({.first = true});
  EXPECT_THAT(Loads(), ElementsAre("1/250", "0/0", "0/0"));
  dispatch.flight.OnResponseBody({.last = true});
  EXPECT_THAT(Loads(), ElementsAre("0/0", "0/0", "0/0"));
}

TEST_F(InFlightProducerTest, OnlyChunkAndAbort) {
  const Dispatch other = Send(7, {{"decode", {0}}});
  {
    Dispatch whole = Send(100, {{"decode", {0}}, {"prefill", {1}}});
    whole.flight.OnResponseBody({.first = true, .last = true});
    EXPECT_THAT(Loads(), ElementsAre("1/7", "0/0", "0/0"));
  }
  {
    Dispatch aborted = Send(100, {{"decode", {0}}, {"prefill", {1}}});
    EXPECT_THAT(Loads(), ElementsAre("2/107", "1/100", "0/0"));
  }
  EXPECT_THAT(Loads(), ElementsAre("1/7", "0/0", "0/0"));
  {
    Dispatch cut = Send(100, {{"decode", {0}}, {"prefill", {1}}});
    cut.flight.OnResponseBody({.first = true});
    Dispatch moved = std::move(cut);
    EXPECT_THAT(Loads(), ElementsAre("2/7", "0/0", "0/0"));
  }
  EXPECT_THAT(Loads(), ElementsAre("1/7", "0/0", "0/0"));
}

TEST_F(InFlightProducerTest, ProfilesWithoutTargetCostNothing) {
  const Dispatch dispatch = Send(100, {{"decode", {2}}, {"prefill", {}}});
  EXPECT_THAT(Loads(), ElementsAre("0/0", "0/0", "1/100"));
  EXPECT_TRUE(Send(100, {{"decode", {}}}).flight.empty());
}

TEST_F(InFlightProducerTest, SuccessorUnderTheSameNameIsNotCharged) {
  Dispatch late = Send(100, {{"default", {0}}});
  const EndpointHandle old = pool[0].handle;
  const EndpointMetadata metadata = pool[0].metadata();
  ASSERT_TRUE(pool.Remove(old));
  const absl::StatusOr<EndpointHandle> again = pool.Add(metadata);
  ASSERT_TRUE(again.ok());
  ASSERT_EQ(again->slot, old.slot);
  EXPECT_EQ(table->Get(*again).requests, 0);
  const Dispatch fresh = Send(30, {{"default", {*pool.Find(*again)}}});
  late.flight = {};
  EXPECT_EQ(table->Get(*again).requests, 1);
  EXPECT_EQ(table->Get(*again).tokens, 30);
  EXPECT_EQ(table->Get(old).requests, 0);
}

TEST_F(InFlightProducerTest, BadParameters) {
  const auto message = [](const Value& p) { return std::string(PluginUnderTest(kType, p).status.message()); };
  EXPECT_THAT(message(Parameters({{"outputRatio", -1}})),
              HasSubstr("outputRatio is -1, expected at least 0"));
  EXPECT_THAT(message(Parameters({{"maxEstimatedOutputTokens", -5}})),
              HasSubstr("maxEstimatedOutputTokens is -5"));
  EXPECT_THAT(message(Parameters({{"syncCrossReplicaState", "yes"}})), HasSubstr("expected a boolean"));
  EXPECT_THAT(message(Parameters({{"outputRatios", 1}})), HasSubstr("outputRatios is unknown"));
  EXPECT_EQ(message(Parameters({{"syncCrossReplicaState", false}})), "");
}

// Two schedulers with the same states, and what outlives them.
TEST(InFlightReload, CountsSurviveAndFlightsOutliveTheScheduler) {
  SchedulerConfig config;
  config.plugins = {{.name = "load", .type = kType}};
  config.profiles = {{"default", {}}};
  const Resources resources{.states = std::make_shared<PluginStates>()};
  const EndpointPool pool = MakePool(1);
  const std::vector<Prompt> prompts = {{.token_count = 64}};
  const Request request{.prompts = prompts};
  const ScheduleInput input{.request = request, .pool = pool, .now = kNow, .seed = 1};
  const auto send = [&](Scheduler& scheduler) {
    Workspace workspace(scheduler);
    Decision decision;
    Dispatch dispatch;
    EXPECT_TRUE(scheduler.Schedule(input, workspace, decision).ok());
    EXPECT_TRUE(scheduler.RunPreRequest(input, workspace, decision, dispatch).ok());
    return dispatch;
  };
  auto old = Scheduler::Create(config, PluginRegistry::Builtin(), resources);
  ASSERT_TRUE(old.ok()) << old.status();
  Dispatch first = send(**old);
  auto next = Scheduler::Create(config, PluginRegistry::Builtin(), resources);
  ASSERT_TRUE(next.ok());
  old->reset();
  Dispatch second = send(**next);
  const auto table = resources.states->GetOrMake<InFlightTable>("load", [] { return nullptr; });
  EXPECT_EQ(table->Get(pool[0].handle).requests, 2);
  EXPECT_EQ(table->Get(pool[0].handle).tokens, 128);
  next->reset();
  first.flight.OnResponseBody({.first = true, .last = true});
  EXPECT_EQ(table->Get(pool[0].handle).requests, 1);
  second = {};
  EXPECT_EQ(table->Get(pool[0].handle).requests, 0);
  EXPECT_EQ(table->Get(pool[0].handle).tokens, 0);
}

// The default producer is made for whoever needs its data.
TEST(InFlightDefault, IsTheDefaultProducer) {
  const PluginRegistry& registry = PluginRegistry::Builtin();
  EXPECT_EQ(registry.DefaultProducer("InFlightLoad"), kType);
  EXPECT_EQ(registry.DefaultProducer("UncachedRequestTokens"), kType);
}

// A prefix producer that is named must exist; the default one need not.
TEST(InFlightDefault, NamedPrefixProducerMustExist) {
  SchedulerConfig config;
  config.plugins = {{.type = kType, .parameters = Parameters({{"prefixMatchInfoProducerName", "precise"}})}};
  config.profiles = {{"default", {}}};
  EXPECT_THAT(Scheduler::Create(config, PluginRegistry::Builtin(), {}).status().message(),
              HasSubstr("\"precise\" produces PrefixCacheMatchInfo"));
}

}  // namespace
}  // namespace llmd::sched
