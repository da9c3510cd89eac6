// Encode, prefill and decode on endpoints of their own: whole decisions of the three-profile configuration
// (spec: scheduling.md 3.5, example C, without its flow control), with thresholds at their boundaries.
#include <gmock/gmock.h>

#include "llmd/sched/disagg.h"
#include "llmd/sched/result_headers.h"
#include "tests/sched/sched_test_util.h"

namespace llmd::sched {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr std::uint32_t kBlock = 64;

SchedulerConfig ExampleC() {
  const auto profile = [](const char* name, const char* filter, bool prefix) {
    ProfileSpec spec{name, {{filter, {}}}};
    if (prefix) spec.plugins.push_back({"prefix-cache-scorer", 2});
    spec.plugins.push_back({"queue-scorer", 1});
    spec.plugins.push_back({"max-score-picker", {}});
    return spec;
  };
  SchedulerConfig config;
  config.plugins = {
      {"", "queue-scorer", {}},
      {"", "prefix-cache-scorer", {}},
      {"", "encode-filter", {}},
      {"", "prefill-filter", {}},
      {"", "decode-filter", {}},
      {"", "always-disagg-multimodal-decider", {}},
      {"", "prefix-based-pd-decider", Parameters({{"nonCachedTokens", 512}, {"promptTokens", 1024}})},
      {"", "disagg-profile-handler",
       Parameters({{"stageOrder", "decode-first"},
                   {"deciders", Parameters({{"encode", "always-disagg-multimodal-decider"},
                                            {"prefill", "prefix-based-pd-decider"}})}})},
      {"", "max-score-picker", {}}};
  config.profiles = {profile("encode", "encode-filter", false), profile("prefill", "prefill-filter", true),
                     profile("decode", "decode-filter", true)};
  return config;
}

enum : Position { kEncode0, kEncode1, kPrefill0, kPrefill1, kDecode0, kDecode1, kUnlabelled };

class EpdTest : public ::testing::Test {
 protected:
  EpdTest() {
    for (const char* role : {"encode", "encode-prefill", "prefill", "prefill", "decode", "decode", ""}) {
      AddEndpoint(pool, *role == '\0' ? Labels{} : Labels{{std::string(kRoleLabel), role}});
    }
    // Queues: among encoders (0, 1) 1 is shorter, among prefillers (1, 2, 3) 3, among decoders (4, 5, 6) 5.
    const std::int64_t queues[] = {4, 2, 3, 1, 5, 3, 6};
    for (Position p = 0; p < pool.size(); ++p) {
      MetricsAt(pool, p).waiting_requests = {queues[p], kNow};
      EXPECT_TRUE(
          pool.BindHolder(kApproximateSource, {static_cast<std::uint16_t>(p), 1}, pool[p].handle).ok());
    }
    resources.prefix_sources = {{}, index.source()};
    resources.states = std::make_shared<PluginStates>();
    Create(ExampleC());
  }

  void Create(const SchedulerConfig& config) {
    auto made = Scheduler::Create(config, PluginRegistry::Builtin(), resources);
    ASSERT_TRUE(made.ok()) << made.status();
    scheduler = *std::move(made);
    workspace = std::make_unique<Workspace>(*scheduler);
  }

  // The endpoint has the first blocks of every prompt.
  void Cache(Position position, std::size_t blocks) {
    std::vector<BlockKey> keys;
    for (std::size_t i = 0; i < blocks; ++i) keys.push_back(i);
    index.Store(position, keys);
  }

  // Decides on a prompt, carries the decision out, and gives the status.
  absl::Status Run(std::size_t tokens, bool image = false) {
    TestRequest prompt(tokens / kBlock, kBlock);
    prompt.prompts[0].token_count = tokens;
    const MultimodalItem item{.modality = "image", .hash = "cafe", .offset = 0, .length = 10};
    if (image) prompt.prompts[0].items = {&item, 1};
    const std::vector<Header> headers = {{"x-prefiller-host-port", "6.6.6.6:66"}};
    prompt.request.headers = headers;
    const ScheduleInput input{.request = prompt.request, .pool = pool, .now = kNow, .seed = ++seed};
    const absl::Status status = scheduler->Schedule(input, *workspace, decision, &explanation);
    dispatch = {};
    if (status.ok() && carry_out) {
      EXPECT_TRUE(scheduler->RunPreRequest(input, *workspace, decision, dispatch).ok());
    }
    return status;
  }

  std::string Sent(const std::string& name) const {
    for (const HeaderEdit& edit : dispatch.headers) {
      if (edit.name == name) return edit.value.value_or("removed");
    }
    return "untouched";
  }
  std::string AddressOf(Position position) const { return pool[position].host_port(); }
  const ProfileResult& encode() const { return decision.profiles[0]; }
  const ProfileResult& prefill() const { return decision.profiles[1]; }
  std::uint64_t Count(DisaggKind kind) const {
    return DisaggCountersOf(*resources.states, "disagg-profile-handler")->decisions(kind);
  }

  EndpointPool pool;
  FakeIndex index;
  Resources resources;
  std::unique_ptr<Scheduler> scheduler;
  std::unique_ptr<Workspace> workspace;
  Decision decision;
  Explanation explanation;
  Dispatch dispatch;
  std::uint64_t seed = 0;
  bool carry_out = true;
};

TEST_F(EpdTest, AllThreeStages) {
  ASSERT_TRUE(Run(2048, true).ok());
  EXPECT_THAT(scheduler->warnings(), IsEmpty());
  EXPECT_THAT(encode().targets, ElementsAre(kEncode1));
  EXPECT_THAT(prefill().targets, ElementsAre(kPrefill1));
  EXPECT_EQ(decision.target(), kDecode1);
  EXPECT_EQ(DestinationEndpoint(decision, pool), AddressOf(kDecode1));
  EXPECT_EQ(Sent("x-prefiller-host-port"), AddressOf(kPrefill1));
  EXPECT_EQ(Sent("x-encoder-hosts-ports"), AddressOf(kEncode1));
  EXPECT_EQ(Count(DisaggKind::kEncodePrefillDecode), 1u);
  // Queue scores (max - q) / (max - min), weight 1; nothing is cached.
  const auto scores = [](const ProfileResult& result) {
    std::vector<std::pair<Position, double>> rows;
    for (const ScoredEndpoint& s : result.scored) rows.push_back({s.position, s.score});
    return rows;
  };
  using Row = std::pair<Position, double>;
  EXPECT_THAT(scores(encode()), ElementsAre(Row{kEncode0, 0.0}, Row{kEncode1, 1.0}));
  EXPECT_THAT(scores(prefill()), ElementsAre(Row{kEncode1, 0.5}, Row{kPrefill0, 0.0}, Row{kPrefill1, 1.0}));
  EXPECT_THAT(scores(decision.primary_result()),
              ElementsAre(Row{kDecode0, 1.0 / 3}, Row{kDecode1, 1.0}, Row{kUnlabelled, 0.0}));
}

TEST_F(EpdTest, ThresholdsAtTheirBoundaries) {
  struct Case {
    std::size_t tokens;
    std::size_t cached_blocks;  // at the decode endpoint
    bool prefills;
    const char* reason;
  };
  const Case cases[] = {
      {1023, 0, false, "the prompt is shorter than promptTokens"},
      {1024, 0, true, nullptr},
      {1025, 0, true, nullptr},
      // 8 blocks are 512 tokens; 9 are 576, 16 are 1024.
      {1024, 8, true, nullptr},                                        // 512 left
      {1087, 9, false, "fewer than nonCachedTokens are not cached"},   // 511
      {1088, 9, true, nullptr},                                        // 512
      {1089, 9, true, nullptr},                                        // 513
      {1535, 16, false, "fewer than nonCachedTokens are not cached"},  // 511
      {1536, 16, true, nullptr},                                       // 512
      {1537, 16, true, nullptr},                                       // 513
      {2048, 32, false, "fewer than nonCachedTokens are not cached"},  // all of it
  };
  carry_out = false;  // so that nothing is learned
  for (const Case& c : cases) {
    SCOPED_TRACE(std::to_string(c.tokens) + " tokens, " + std::to_string(c.cached_blocks) + " blocks");
    index = {};
    resources.prefix_sources = {{}, index.source()};
    Create(ExampleC());
    Cache(kDecode1, c.cached_blocks);
    ASSERT_TRUE(Run(c.tokens).ok());
    EXPECT_EQ(decision.target(), kDecode1);
    EXPECT_EQ(prefill().state, c.prefills ? ProfileState::kDone : ProfileState::kSkipped);
    EXPECT_STREQ(prefill().skip_reason, c.reason);
    EXPECT_EQ(encode().state, ProfileState::kSkipped);
    EXPECT_STREQ(encode().skip_reason, "the request has no multimodal items");
  }
}

TEST_F(EpdTest, TheChosenDecodeEndpointCountsNotTheBestCache) {
  // Its cache is no use to a prefiller's work elsewhere: 20 of 32 blocks give 2 * 20/32 = 1.25 > 1.
  Cache(kDecode0, 20);
  ASSERT_TRUE(Run(2048).ok());
  EXPECT_EQ(decision.target(), kDecode0);           // 1.25 + 1/3 against 1
  EXPECT_EQ(prefill().state, ProfileState::kDone);  // 2048 - 1280 = 768
  Cache(kPrefill0, 32);                             // a prefiller that has it all does not make the decision
  Cache(kDecode0, 25);
  ASSERT_TRUE(Run(2048).ok());
  EXPECT_EQ(decision.target(), kDecode0);
  EXPECT_EQ(prefill().state, ProfileState::kSkipped);  // 2048 - 1600 = 448
}

TEST_F(EpdTest, PrefillGoesWhereThePrefixIs) {
  Cache(kPrefill0, 32);
  ASSERT_TRUE(Run(2048).ok());
  EXPECT_THAT(prefill().targets, ElementsAre(kPrefill0));  // 2 + 0 against 0 + 1
  EXPECT_EQ(Sent("x-prefiller-host-port"), AddressOf(kPrefill0));
  EXPECT_EQ(Sent("x-encoder-hosts-ports"), "removed");
}

TEST_F(EpdTest, WhatIsPrefilledOnceIsCachedTheNextTime) {
  ASSERT_TRUE(Run(1280).ok());
  EXPECT_EQ(Sent("x-prefiller-host-port"), AddressOf(kPrefill1));
  EXPECT_EQ(index.Depth(kDecode1, TestRequest(20).keys), 20u);  // both learned it
  EXPECT_EQ(index.Depth(kPrefill1, TestRequest(20).keys), 20u);
  ASSERT_TRUE(Run(1280).ok());
  EXPECT_EQ(decision.target(), kDecode1);
  EXPECT_EQ(prefill().state, ProfileState::kSkipped);
  EXPECT_EQ(Sent("x-prefiller-host-port"), "removed");  // the client's own does not pass
  EXPECT_EQ(Count(DisaggKind::kPrefillDecode), 1u);
  EXPECT_EQ(Count(DisaggKind::kDecodeOnly), 1u);
  ASSERT_TRUE(Run(1280, true).ok());
  EXPECT_EQ(Count(DisaggKind::kEncodeDecode), 1u);
  const auto absences =
      DisaggCountersOf(*resources.states, "disagg-profile-handler")->absences(DisaggStage::kPrefill);
  ASSERT_EQ(absences.size(), 1u);
  EXPECT_EQ(absences[0].reason, "fewer than nonCachedTokens are not cached");
  EXPECT_EQ(absences[0].count, 2u);
}

TEST_F(EpdTest, WithoutPrefillersOrEncodersDecodeServesAlone) {
  for (const Position p : {kPrefill1, kPrefill0, kEncode1, kEncode0})
    ASSERT_TRUE(pool.Remove(pool[p].handle));
  ASSERT_TRUE(Run(2048, true).ok());
  EXPECT_EQ(prefill().state, ProfileState::kFailed);
  EXPECT_EQ(encode().state, ProfileState::kFailed);
  EXPECT_EQ(DestinationEndpoint(decision, pool), "10.0.0.5:8000");
  EXPECT_EQ(Sent("x-prefiller-host-port"), "removed");
  EXPECT_EQ(Sent("x-encoder-hosts-ports"), "removed");
  EXPECT_EQ(Count(DisaggKind::kDecodeOnly), 1u);
}

TEST_F(EpdTest, WithoutDecodersTheRequestFails) {
  ASSERT_TRUE(Run(10).ok());
  EXPECT_NE(prefill().skip_reason, nullptr);
  for (const Position p : {kUnlabelled, kDecode1, kDecode0}) ASSERT_TRUE(pool.Remove(pool[p].handle));
  const absl::Status status = Run(2048, true);
  // Nobody can decode: not a matter of waiting.
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(status.message(),
            "no candidate endpoint decodes; profile decode: no endpoints available for the given request");
  EXPECT_EQ(GetDroppedReason(status), DroppedReason::kNoEndpoints);
  EXPECT_EQ(prefill().state, ProfileState::kPending);
  EXPECT_EQ(prefill().skip_reason, nullptr);  // nothing is left of the decision before
  EXPECT_EQ(Run(0).code(), absl::StatusCode::kUnavailable);
  pool = {};
  EXPECT_EQ(Run(2048).code(), absl::StatusCode::kUnavailable);
}

TEST_F(EpdTest, PrefillFirst) {
  SchedulerConfig config = ExampleC();
  for (PluginSpec& plugin : config.plugins) {
    if (plugin.type != "disagg-profile-handler") continue;
    plugin.parameters =
        Parameters({{"stageOrder", "prefill-first"},
                    {"deciders", Parameters({{"encode", "always-disagg-multimodal-decider"}})}});
  }
  Create(config);
  ASSERT_TRUE(Run(10).ok());  // however short
  EXPECT_THAT(prefill().targets, ElementsAre(kPrefill1));
  EXPECT_EQ(encode().state, ProfileState::kSkipped);
  EXPECT_EQ(Sent("x-prefiller-host-port"), AddressOf(kPrefill1));
  ASSERT_TRUE(Run(10, true).ok());
  EXPECT_THAT(encode().targets, ElementsAre(kEncode1));
  EXPECT_EQ(Count(DisaggKind::kEncodePrefillDecode), 1u);
}

TEST_F(EpdTest, SameInputSameDecision) {
  for (Position p = 0; p < pool.size(); ++p)
    MetricsAt(pool, p).waiting_requests.value = 0;  // ties everywhere
  carry_out = false;
  std::set<std::vector<Position>> seen;
  for (std::uint64_t s = 0; s < 100; ++s) {
    std::vector<Position> picked[2];
    for (auto& targets : picked) {
      seed = s;
      ASSERT_TRUE(Run(2048, true).ok());
      for (const ProfileResult& result : decision.profiles) targets.push_back(result.targets.front());
    }
    EXPECT_EQ(picked[0], picked[1]);
    seen.insert(picked[0]);
  }
  EXPECT_EQ(seen.size(), 2u * 3u * 3u);  // every combination turns up
}

}  // namespace
}  // namespace llmd::sched
