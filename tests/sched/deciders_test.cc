// Deciders: thresholds at their boundaries, and whose prefix matches are read.
#include <gmock/gmock.h>

#include "tests/sched/sched_test_util.h"

namespace llmd::sched {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// What a decider says of a prompt of `tokens`, with `match` at endpoint 1 of 2.
struct Question {
  std::int64_t non_cached = 0;
  std::int64_t prompt_tokens = 0;
  std::size_t tokens = 0;
  std::optional<PrefixMatch> match = PrefixMatch{0, 1, 1, 0};
  std::optional<Position> endpoint = 1;
};

Verdict Ask(const Question& q) {
  PluginUnderTest plugin("prefix-based-pd-decider",
                         Parameters({{"nonCachedTokens", q.non_cached}, {"promptTokens", q.prompt_tokens}}));
  EXPECT_TRUE(plugin.status.ok()) << plugin.status;
  const EndpointPool pool = MakePool(2);
  const std::vector<Prompt> prompts = {{.token_count = q.tokens / 2},
                                       {.token_count = q.tokens - q.tokens / 2}};
  Request request;
  request.prompts = prompts;
  Random random(1);
  plugin.columns->Begin(pool.size());
  if (q.match) {
    plugin.columns->Publish(plugin.layout.Declare<PrefixMatch>("approx-prefix-cache-producer"))[1] = *q.match;
  }
  Context context{request, pool, kNow, random, *plugin.columns};
  return plugin.As<Decider>().Decide(context, q.endpoint);
}

TEST(PrefixBasedDecider, ThresholdOnTokensThatAreNotCached) {
  // 8 blocks of 64 are 512 tokens.
  const PrefixMatch cached{0, 16, 64, 8};
  EXPECT_FALSE(Ask({.non_cached = 512, .tokens = 1023, .match = cached}).run);  // 1023 - 512 = 511
  EXPECT_STREQ(Ask({.non_cached = 512, .tokens = 1023, .match = cached}).reason,
               "fewer than nonCachedTokens are not cached");
  EXPECT_TRUE(Ask({.non_cached = 512, .tokens = 1024, .match = cached}).run);  // 512
  EXPECT_TRUE(Ask({.non_cached = 512, .tokens = 1025, .match = cached}).run);  // 513
}

TEST(PrefixBasedDecider, CountsBlocksWithoutTheirTierWeights) {
  // matched 6 when weighted, 8 in fact.
  EXPECT_FALSE(Ask({.non_cached = 600, .tokens = 1024, .match = PrefixMatch{6, 16, 64, 8}}).run);
  EXPECT_TRUE(Ask({.non_cached = 600, .tokens = 1024, .match = PrefixMatch{8, 16, 64, 6}}).run);  // 640
}

TEST(PrefixBasedDecider, GatesOnTheLengthOfThePrompt) {
  EXPECT_FALSE(Ask({.non_cached = 100, .tokens = 99}).run);
  EXPECT_STREQ(Ask({.non_cached = 100, .tokens = 99}).reason, "the prompt is shorter than nonCachedTokens");
  EXPECT_TRUE(Ask({.non_cached = 100, .tokens = 100}).run);
  EXPECT_FALSE(Ask({.non_cached = 1, .prompt_tokens = 200, .tokens = 199}).run);
  EXPECT_STREQ(Ask({.non_cached = 1, .prompt_tokens = 200, .tokens = 199}).reason,
               "the prompt is shorter than promptTokens");
  EXPECT_TRUE(Ask({.non_cached = 1, .prompt_tokens = 200, .tokens = 200}).run);
  EXPECT_TRUE(Ask({.non_cached = 1, .prompt_tokens = 200, .tokens = 201}).run);
  EXPECT_FALSE(Ask({.non_cached = 1, .tokens = 0}).run);
}

TEST(PrefixBasedDecider, ZeroMeansNever) {
  EXPECT_FALSE(Ask({.non_cached = 0, .tokens = 100000}).run);
  EXPECT_STREQ(Ask({.non_cached = 0, .tokens = 100000}).reason, "nonCachedTokens is 0");
}

TEST(PrefixBasedDecider, NothingKnownMeansNo) {
  EXPECT_FALSE(Ask({.non_cached = 1, .tokens = 100, .match = std::nullopt}).run);
  EXPECT_STREQ(Ask({.non_cached = 1, .tokens = 100, .match = std::nullopt}).reason,
               "nothing is known of the cached prefix");
  EXPECT_FALSE(Ask({.non_cached = 1, .tokens = 100, .match = PrefixMatch{}}).run);
  EXPECT_FALSE(Ask({.non_cached = 1, .tokens = 100, .endpoint = std::nullopt}).run);
  EXPECT_STREQ(Ask({.non_cached = 1, .tokens = 100, .endpoint = std::nullopt}).reason,
               "no endpoint to look at");
}

TEST(PrefixBasedDecider, MoreCachedThanAsked) {
  EXPECT_FALSE(Ask({.non_cached = 1, .tokens = 100, .match = PrefixMatch{0, 2, 64, 2}}).run);  // 128 > 100
  EXPECT_FALSE(Ask({.non_cached = 1, .tokens = 128, .match = PrefixMatch{0, 2, 64, 2}}).run);
  EXPECT_TRUE(Ask({.non_cached = 1, .tokens = 129, .match = PrefixMatch{0, 2, 64, 2}}).run);
  const std::uint32_t huge = 0xFFFFFFFF;
  EXPECT_FALSE(Ask({.non_cached = 1, .tokens = 100, .match = PrefixMatch{huge, huge, huge, huge}}).run);
}

TEST(PrefixBasedDecider, ParameterErrors) {
  const auto message = [](const Value& parameters) {
    return std::string(PluginUnderTest("prefix-based-pd-decider", parameters).status.message());
  };
  EXPECT_THAT(message(Parameters({{"nonCachedTokens", -1}})),
              HasSubstr("nonCachedTokens is -1, expected at least 0"));
  EXPECT_THAT(message(Parameters({{"promptTokens", -5}})),
              HasSubstr("promptTokens is -5, expected at least 0"));
  EXPECT_THAT(message(Parameters({{"nonCachedTokens", "many"}})), HasSubstr("nonCachedTokens is a string"));
  EXPECT_THAT(message(Parameters({{"nonCachedTokens", 0.5}})), HasSubstr("nonCachedTokens is a number"));
  EXPECT_THAT(message(Parameters({{"threshold", 1}})), HasSubstr("threshold is unknown"));
}

// Which producers end up in a scheduler with this decider, and the warnings.
class ProducerChoice : public ::testing::Test {
 protected:
  // "" for a decider without the parameter.
  void Build(const std::string& named, std::vector<PluginSpec> others) {
    SchedulerConfig config;
    config.compatibility = compatibility;
    Value::Map parameters = {{"nonCachedTokens", 10}};
    if (!named.empty()) parameters.push_back({"prefixMatchInfoProducerName", named});
    config.plugins = std::move(others);
    config.plugins.insert(config.plugins.begin(),
                          {.type = "prefix-based-pd-decider", .parameters = Value::MakeMap(parameters)});
    config.plugins.push_back(handler);
    config.profiles = {{"decode", {}}, {"prefill", {}}};
    auto made =
        Scheduler::Create(config, PluginRegistry::Builtin(), {{exact.source(), approximate.source()}});
    ASSERT_TRUE(made.ok()) << made.status();
    scheduler = *std::move(made);
  }
  bool HasApproximate() const { return scheduler->FindPlugin("approx-prefix-cache-producer") != nullptr; }

  // Whether a prompt of 64 tokens, all of it held exactly and nothing approximately, is prefilled elsewhere.
  bool Prefills() const {
    EndpointPool pool = MakePool(1);
    EXPECT_TRUE(pool.BindHolder(kExactSource, {0, 1}, pool[0].handle).ok());
    const TestRequest request(4, 16);
    Workspace workspace(*scheduler);
    Decision decision;
    EXPECT_TRUE(scheduler
                    ->Schedule({.request = request.request, .pool = pool, .now = kNow, .seed = 1}, workspace,
                               decision)
                    .ok());
    return decision.profiles[1].state == ProfileState::kDone;
  }

  PluginSpec handler = {
      .type = "disagg-profile-handler",
      .parameters = Parameters({{"deciders", Parameters({{"prefill", "prefix-based-pd-decider"}})}})};
  Compatibility compatibility;
  FakeIndex exact, approximate;
  std::unique_ptr<Scheduler> scheduler;
};

TEST_F(ProducerChoice, TheParameterDecides) {
  exact.Store(0, {0, 1, 2, 3});
  Build("exact", {{"exact", "precise-prefix-cache-producer", {}}, {"", "approx-prefix-cache-producer", {}}});
  EXPECT_THAT(scheduler->warnings(), IsEmpty());
  EXPECT_FALSE(Prefills());
  Build("approx-prefix-cache-producer",
        {{"exact", "precise-prefix-cache-producer", {}}, {"", "approx-prefix-cache-producer", {}}});
  EXPECT_THAT(scheduler->warnings(), IsEmpty());
  EXPECT_TRUE(Prefills());
}

TEST_F(ProducerChoice, ElseTheOnlyProducerThatIsConfigured) {
  exact.Store(0, {0, 1, 2, 3});
  Build("", {{"exact", "precise-prefix-cache-producer", {}}});
  EXPECT_THAT(scheduler->warnings(), IsEmpty());
  EXPECT_FALSE(HasApproximate());
  EXPECT_FALSE(Prefills());
  Build("", {{"mine", "approx-prefix-cache-producer", {}}});
  EXPECT_FALSE(HasApproximate());
  EXPECT_TRUE(Prefills());
}

TEST_F(ProducerChoice, ElseTheApproximateOneAndNotInSilence) {
  Build("", {});
  EXPECT_THAT(scheduler->warnings(), IsEmpty());  // nothing else could be meant
  EXPECT_TRUE(HasApproximate());
  exact.Store(0, {0, 1, 2, 3});
  Build("", {{"exact", "precise-prefix-cache-producer", {}}, {"", "approx-prefix-cache-producer", {}}});
  EXPECT_THAT(
      scheduler->warnings(),
      ElementsAre("prefix-based-pd-decider: prefixMatchInfoProducerName is not given, so the decider reads "
                  "approx-prefix-cache-producer; configured are exact, approx-prefix-cache-producer"));
  EXPECT_TRUE(Prefills());
}

TEST_F(ProducerChoice, ElseThePdHandlersParameter) {
  exact.Store(0, {0, 1, 2, 3});
  handler = {.type = "pd-profile-handler",
             .parameters = Parameters({{"prefixMatchInfoProducerName", "exact"}})};
  Build("", {{"exact", "precise-prefix-cache-producer", {}}, {"", "approx-prefix-cache-producer", {}}});
  EXPECT_THAT(
      scheduler->warnings(),
      ElementsAre(HasSubstr("type \"pd-profile-handler\" is deprecated, use disagg-profile-handler")));
  EXPECT_FALSE(Prefills());
}

TEST_F(ProducerChoice, CompatibilityReadsTheApproximateOne) {
  exact.Store(0, {0, 1, 2, 3});
  compatibility.decider_reads_default_producer = true;
  Build("", {{"exact", "precise-prefix-cache-producer", {}}});
  EXPECT_TRUE(HasApproximate());
  EXPECT_TRUE(Prefills());
}

TEST_F(ProducerChoice, ANameThatNobodyProducesIsAnError) {
  SchedulerConfig config;
  config.plugins = {{"", "prefix-based-pd-decider",
                     Parameters({{"nonCachedTokens", 1}, {"prefixMatchInfoProducerName", "gone"}})}};
  const auto made =
      Scheduler::Create(config, PluginRegistry::Builtin(), {{exact.source(), approximate.source()}});
  EXPECT_THAT(std::string(made.status().message()),
              HasSubstr("no plugin named \"gone\" produces PrefixCacheMatchInfo"));
}

TEST_F(ProducerChoice, AZeroThresholdIsWarnedOf) {
  SchedulerConfig config;
  config.plugins = {{"", "prefix-based-pd-decider", {}}};
  const auto made =
      Scheduler::Create(config, PluginRegistry::Builtin(), {{exact.source(), approximate.source()}});
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_THAT((*made)->warnings(),
              ElementsAre("prefix-based-pd-decider: nonCachedTokens is 0, so it never says yes"));
}

TEST(AlwaysDeciders, SayYes) {
  PluginUnderTest always("always-disagg-pd-decider", {});
  PluginUnderTest multimodal("always-disagg-multimodal-decider", {});
  ASSERT_TRUE(always.status.ok() && multimodal.status.ok());
  const EndpointPool pool = MakePool(1);
  Random random(1);
  const std::vector<MultimodalItem> image = {{.modality = "image", .hash = "h", .offset = 3, .length = 9}};
  const std::vector<Prompt> text = {{.token_count = 5}, {.token_count = 5}};
  const std::vector<Prompt> mixed = {{.token_count = 5}, {.token_count = 5, .items = image}};
  Request request;
  const auto ask = [&](PluginUnderTest& plugin, std::span<const Prompt> prompts) {
    request.prompts = prompts;
    Context context{request, pool, kNow, random, *plugin.columns};
    const Verdict verdict = plugin.As<Decider>().Decide(context, std::nullopt);
    EXPECT_EQ(verdict.run, verdict.reason == nullptr);
    return verdict.run;
  };
  EXPECT_TRUE(ask(always, {}));
  EXPECT_TRUE(ask(always, text));
  EXPECT_FALSE(ask(multimodal, {}));
  EXPECT_FALSE(ask(multimodal, text));
  EXPECT_TRUE(ask(multimodal, mixed));
  for (const char* type : {"always-disagg-pd-decider", "always-disagg-multimodal-decider"}) {
    EXPECT_THAT(std::string(PluginUnderTest(type, Parameters({{"x", 1}})).status.message()),
                HasSubstr("x is unknown, expected no parameters"));
  }
}

}  // namespace
}  // namespace llmd::sched
