// Joint placement of a burst, and the producer that reports it; by hand from spec scheduling.md 2.2.
#include <gmock/gmock.h>

#include "llmd/sched/burst_placement.h"
#include "tests/sched/plugin_rig.h"

namespace llmd::sched {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Prompts = std::vector<std::vector<BlockKey>>;

// The replicas of each request as text: "0 0 1 -".
std::string Place(const std::vector<Prompts>& batch, const std::vector<BurstReplica>& replicas,
                  const BurstOptions& options) {
  std::vector<std::vector<BlockKeySpan>> spans;
  for (const Prompts& prompts : batch) spans.emplace_back(prompts.begin(), prompts.end());
  std::vector<BurstRequest> requests;
  for (const std::vector<BlockKeySpan>& prompts : spans) requests.push_back({prompts});
  std::string text;
  for (const std::optional<std::size_t>& place : PlaceBurst(requests, replicas, options)) {
    text += (text.empty() ? "" : " ") + (place ? std::to_string(*place) : "-");
  }
  return text;
}

const std::vector<BurstReplica> kTwo = {{"a", 0}, {"b", 0}};
const std::vector<BurstReplica> kThree = {{"a", 0}, {"b", 0}, {"c", 0}};
const Prompts kP = {{1, 2, 3}};
const Prompts kQ = {{7, 8}};

TEST(BurstPlacement, SamePromptSameReplica) {
  EXPECT_EQ(Place({kP, kQ, kP, kP, kQ}, kTwo, {}), "0 1 0 0 1");
  // The longer prompt is placed first.
  EXPECT_EQ(Place({kQ, kP, kQ, kP}, kTwo, {}), "1 0 1 0");
  // Three requests on a, so two groups of two fill b.
  EXPECT_EQ(Place({kP, kP, kP, kQ, kQ, {{9}}, {{9}}}, kTwo, {}), "0 0 0 1 1 1 1");
}

TEST(BurstPlacement, LonersAndEmptyPromptsGetNoPlace) {
  EXPECT_EQ(Place({kP, kQ, {}, {{}}}, kTwo, {}), "- - - -");
  EXPECT_EQ(Place({{}, {}, {{}}, {{}}}, kTwo, {}), "- - - -");
  EXPECT_EQ(Place({}, kTwo, {}), "");
  EXPECT_EQ(Place({kP, kP}, {}, {}), "- -");
}

TEST(BurstPlacement, TiesGoToTheIdleThenByName) {
  EXPECT_EQ(Place({kP, kP}, {{"a", 5}, {"b", 3}, {"c", 3}}, {}), "1 1");
  EXPECT_EQ(Place({kP, kP}, {{"c", 3}, {"b", 3}, {"a", 5}}, {}), "1 1");
}

TEST(BurstPlacement, GroupsAreSplitAtTheLimit) {
  EXPECT_EQ(Place({kP, kP, kP, kP, kP}, kThree, {.max_per_replica = 2}), "0 0 1 1 2");
  // All at the limit: one at a time, to the least loaded.
  EXPECT_EQ(Place({kP, kP, kP, kP, kP}, kTwo, {.max_per_replica = 1}), "0 1 0 1 0");
}

TEST(BurstPlacement, SharedPrefixesGoTogetherUpToTheFairShare) {
  const Prompts p4 = {{1, 2, 3, 4}}, p5 = {{1, 2, 3, 5}}, other = {{9, 8, 7}};
  // Off by default: single requests have no place.
  EXPECT_EQ(Place({kP, kP, p4, p5}, kTwo, {}), "0 0 - -");
  // Fair share ceil(4/2) = 2: the group fills a; the singles go to b, where the second finds the first.
  EXPECT_EQ(Place({kP, kP, p4, p5}, kTwo, {.min_colocate_blocks = 3}), "0 0 1 1");
  // Fair share ceil(4/1): all on one. And a prompt that shares less than three blocks stays alone.
  EXPECT_EQ(Place({kP, p4, p5, other}, {{"a", 0}}, {.min_colocate_blocks = 3}), "0 0 0 -");
  // Two groups with a common prefix of 3, share ceil(4/2) = 2: the second does not fit beside the first.
  EXPECT_EQ(Place({p4, p5, p4, p5}, kTwo, {.min_colocate_blocks = 3}), "0 1 0 1");
  // Share ceil(6/2) = 3: the second group starts on a, below its share, and stays whole.
  EXPECT_EQ(Place({p4, p5, p4, p5, other, other}, kTwo, {.min_colocate_blocks = 3}), "0 0 0 0 1 1");
  // Shorter than what is asked for.
  EXPECT_EQ(Place({{{1, 2}}, kP}, kTwo, {.min_colocate_blocks = 3}), "- -");
}

TEST(BurstPlacement, LongestSharedPrefixWins) {
  // Groups of 5 blocks on a, 4 on b (least loaded); then one of 3 that shares 2 with a's and 3 with b's.
  const Prompts long_a = {{1, 2, 30, 31, 32}}, long_b = {{1, 2, 3, 4}}, mine = {{1, 2, 3}};
  EXPECT_EQ(Place({long_a, long_a, long_b, long_b, mine, mine}, kTwo, {.min_colocate_blocks = 3}),
            "0 0 1 1 1 1");
  // With 2 blocks required, b's group already joins a's: share is 3, a has 2.
  EXPECT_EQ(Place({long_a, long_a, long_b, long_b, mine, mine}, kTwo, {.min_colocate_blocks = 2}),
            "0 0 0 0 1 1");
}

TEST(BurstPlacement, LoadInTokens) {
  const Prompts eight = {{1, 2, 3, 4, 5, 6, 7, 8}};
  // 2 x 8 blocks on a; 2 x 3 and 2 x 2 on b, which has 10 then.
  const std::vector<Prompts> batch = {eight, eight, kP, kP, kQ, kQ};
  EXPECT_EQ(Place(batch, kTwo, {.balance_by_tokens = true}), "0 0 1 1 1 1");
  // By requests the third group finds two on each, and goes to the first by name.
  EXPECT_EQ(Place(batch, kTwo, {}), "0 0 1 1 0 0");
}

TEST(BurstPlacement, PromptsOfARequest) {
  // Two prompts are not one prompt with the same keys.
  EXPECT_EQ(Place({{{1, 2}, {3}}, {{1, 2, 3}}, {{1, 2}, {3}}}, kTwo, {}), "0 - 0");
  // Only the leading tokens take part: 128 / 64 = 2 blocks.
  EXPECT_EQ(Place({{{1, 2, 3}}, {{1, 2, 4}}}, kTwo, {}), "- -");
  EXPECT_EQ(Place({{{1, 2, 3}}, {{1, 2, 4}}}, kTwo, {.max_prefix_tokens = 128}), "0 0");
}

TEST(BurstPlacement, RandomBatchesKeepTheRules) {
  Random random(7);
  for (int round = 0; round < 200; ++round) {
    std::vector<Prompts> batch;
    for (std::uint64_t i = random.Below(40); i > 0; --i) {
      Prompts prompts(1);
      for (std::uint64_t b = random.Below(5); b > 0; --b) {
        prompts[0].push_back(prompts[0].empty() ? random.Between(1, 3)
                                                : prompts[0].back() * 3 + random.Below(3));
      }
      batch.push_back(prompts);
    }
    std::vector<std::vector<BlockKeySpan>> spans;
    for (const Prompts& prompts : batch) spans.emplace_back(prompts.begin(), prompts.end());
    std::vector<BurstRequest> requests;
    for (const auto& prompts : spans) requests.push_back({prompts});
    const auto places = PlaceBurst(requests, kThree, {});
    ASSERT_EQ(places.size(), batch.size());
    for (std::size_t i = 0; i < batch.size(); ++i) {
      const auto twins = std::count(batch.begin(), batch.end(), batch[i]);
      EXPECT_EQ(places[i].has_value(), twins > 1 && !batch[i][0].empty());
      for (std::size_t j = 0; j < i; ++j) {
        if (batch[i] != batch[j]) continue;
        EXPECT_EQ(places[i], places[j]);
      }
    }
  }
}

constexpr char kType[] = "burst-prefix-cache-producer";

TEST(BurstProducer, FullMatchWhereTheHostSays) {
  EndpointPool pool = MakePool(3);
  PluginRig rig(pool, kType, Parameters({{"maxPrefixTokensToMatch", 192}}));
  const auto assignments = rig.under_test.states.GetOrMake<BurstAssignments>(kType, [] { return nullptr; });
  ASSERT_NE(assignments, nullptr);
  assignments->Assign("r1", pool[0].handle, kNow);
  assignments->Assign("r1", pool[1].handle, kNow);  // the host changed its mind
  const std::vector<Prompt> prompts = {{.token_count = 65}, {.token_count = 1000}};
  const auto produce = [&](std::string_view id, std::span<const Prompt> of) {
    const Request request{.id = id, .prompts = of};
    rig.Begin(request);
    rig.Produce();
    return rig.Read<PrefixMatch>();
  };
  const std::vector<PrefixMatch> matches = produce("r1", prompts);
  ASSERT_EQ(matches.size(), 3u);
  // ceil(65 / 64) = 2, and 192 / 64 = 3 of the second prompt.
  for (const PrefixMatch& match : matches) EXPECT_EQ(match.total_blocks, 5u);
  EXPECT_EQ(matches[0].match_blocks, 0u);
  EXPECT_EQ(matches[1].match_blocks, 5u);
  EXPECT_EQ(matches[1].cached_blocks, 5u);
  EXPECT_EQ(matches[2].match_blocks, 0u);
  EXPECT_EQ(matches[2].block_size, 64u);
  EXPECT_TRUE(produce("r2", prompts).empty());
  EXPECT_TRUE(produce("", prompts).empty());
  EXPECT_TRUE(produce("r1", {}).empty());
  rig.now += absl::Seconds(61);
  EXPECT_TRUE(produce("r1", prompts).empty());
  rig.now = kNow;
  pool.Remove(pool[1].handle);
  EXPECT_TRUE(produce("r1", prompts).empty());
}

TEST(BurstProducer, Parameters) {
  const absl::StatusOr<BurstOptions> defaults = ParseBurstOptions("b", {});
  ASSERT_TRUE(defaults.ok());
  EXPECT_EQ(defaults->window, absl::Milliseconds(100));
  EXPECT_EQ(defaults->max_per_replica, -1);
  EXPECT_EQ(defaults->block_size, 64);
  EXPECT_EQ(defaults->max_batch_size, 1000);
  EXPECT_FALSE(defaults->balance_by_tokens);
  EXPECT_TRUE(ParseBurstOptions("b", sched::Parameters({{"balanceBy", "tokens"}}))->balance_by_tokens);

  const auto message = [](const char* field, Value value) {
    return std::string(
        ParseBurstOptions("b", sched::Parameters({{field, std::move(value)}})).status().message());
  };
  EXPECT_THAT(message("windowDurationMs", 10'001),
              HasSubstr("b: windowDurationMs is 10001, expected 1..10000"));
  EXPECT_THAT(message("windowDurationMs", 0), HasSubstr("expected 1..10000"));
  EXPECT_THAT(message("maxPerReplica", 0), HasSubstr("maxPerReplica is 0"));
  EXPECT_THAT(message("blockSizeTokens", 0), HasSubstr("blockSizeTokens is 0"));
  EXPECT_THAT(message("maxPrefixTokensToMatch", -1), HasSubstr("expected at least 0"));
  EXPECT_THAT(message("minColocateBlocks", -1), HasSubstr("expected at least 0"));
  EXPECT_THAT(message("maxBatchSize", 0), HasSubstr("expected at least 1"));
  EXPECT_THAT(message("balanceBy", "luck"), HasSubstr("balanceBy is \"luck\", expected requests or tokens"));
  EXPECT_THAT(message("window", 5), HasSubstr("window is unknown"));
  EXPECT_EQ(PluginRegistry::Builtin().Find(kType)->stability, Stability::kExperimental);
}

}  // namespace
}  // namespace llmd::sched
