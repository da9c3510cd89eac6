// no-hit-lru-scorer; scores by hand from spec scheduling.md 2.4.
#include <gmock/gmock.h>

#include <list>

#include "src/sched/recency.h"
#include "tests/sched/plugin_rig.h"

namespace llmd::sched {
namespace {

using ::testing::DoubleEq;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kType[] = "no-hit-lru-scorer";
constexpr char kApprox[] = "approx-prefix-cache-producer";

class NoHitLruTest : public ::testing::Test {
 protected:
  void Make(const Value& parameters, const Compatibility& compatibility = {}) {
    rig = std::make_unique<PluginRig>(pool, kType, parameters, Resources{}, compatibility);
  }
  void Begin(const std::vector<PrefixMatch>& matches = {}) {
    if (rig == nullptr) Make({});
    rig->Begin(request);
    if (!matches.empty()) rig->Publish(kApprox, matches);
    rig->Produce();
  }
  std::vector<double> Cold(const std::vector<Position>& candidates) {
    Begin();
    return rig->Score(candidates);
  }
  // Cold prompts sent to these, in order.
  void Use(const std::vector<Position>& targets) {
    for (const Position target : targets) {
      Cold(AllPositions(pool));
      rig->Decide(target);
    }
  }

  EndpointPool pool = MakePool(5);
  Request request;
  std::unique_ptr<PluginRig> rig;
};

TEST_F(NoHitLruTest, NeverUsedInOrder) {
  EXPECT_THAT(Cold({0, 1, 2, 3, 4}), ElementsAre(1, 0.75, 0.5, 0.25, 0));
  EXPECT_THAT(Cold({3, 4}), ElementsAre(1, 0));
  EXPECT_THAT(Cold({3}), ElementsAre(1));
  EXPECT_THAT(Cold({}), ElementsAre());
}

TEST_F(NoHitLruTest, UsedComeAfterOldestFirst) {
  Use({3, 0, 4});
  // Never used: 1, 2 -> 1, 3/4. Used: 3, 0, 4 at 2, 3, 4 of 4.
  EXPECT_THAT(Cold({0, 1, 2, 3, 4}), ElementsAre(0.25, 1, 0.75, 0.5, 0));
  Use({3});
  EXPECT_THAT(Cold({0, 1, 2, 3, 4}), ElementsAre(0.5, 1, 0.75, 0, 0.25));
  Use({1, 2});  // all used: 0, 4, 3, 1, 2
  EXPECT_THAT(Cold({0, 1, 2, 3, 4}), ElementsAre(1, 0.25, 0, 0.5, 0.75));
}

TEST_F(NoHitLruTest, RankIsAmongCandidates) {
  Use({0, 1, 2, 3, 4});
  // Of 3 and 4, 3 is older, whatever lies before it in the memory.
  EXPECT_THAT(Cold({3, 4}), ElementsAre(1, 0));
  EXPECT_THAT(Cold({2, 3, 4}), ElementsAre(1, 0.5, 0));
}

TEST_F(NoHitLruTest, GlobalPositionOfLlmD) {
  Make({}, {.lru_position_is_global = true});
  Use({0, 1, 2, 3, 4});
  // Positions 3 and 4 of 5, divided by N - 1 = 1: both collapse. Positions 0 and 1 do not.
  EXPECT_THAT(Cold({3, 4}), ElementsAre(0, 0));
  EXPECT_THAT(Cold({0, 1}), ElementsAre(1, 0));
  // Positions 1, 3, 4 by 2.
  EXPECT_THAT(Cold({1, 3, 4}), ElementsAre(0.5, 0, 0));
  EXPECT_THAT(Cold({0, 1, 2, 3, 4}), ElementsAre(1, 0.75, 0.5, 0.25, 0));
  // A removed endpoint keeps its place in the memory: 1..4 are at 1, 2, 3, 4 of N - 1 = 3.
  pool.Remove(pool[0].handle);
  EXPECT_THAT(Cold({0, 1, 2, 3}), ElementsAre(DoubleEq(1 - 1.0 / 3), DoubleEq(1 - 2.0 / 3), 0, 0));
  // One that is added is never used: |U| = 1, so the others are at 2, 3, 4, 5 of N - 1 = 4.
  ASSERT_TRUE(pool.Add({.name = "new", .address = "10.0.0.9", .port = 8000}).ok());
  EXPECT_THAT(Cold({0, 1, 2, 3, 4}), ElementsAre(0.5, 0.25, 0, 0, 1));
}

TEST_F(NoHitLruTest, HitsAreNeutralAndNotRecorded) {
  Begin({{}, {}, {1, 4, 16, 1}, {}, {}});
  EXPECT_THAT(rig->Score(), ElementsAre(0.5, 0.5, 0.5, 0.5, 0.5));
  rig->Decide(0);
  EXPECT_THAT(Cold({0, 1}), ElementsAre(1, 0));
  // The endpoint with a hit is no candidate of the profile.
  Begin({{}, {}, {1, 4, 16, 1}, {}, {}});
  EXPECT_THAT(rig->Score({0, 1}), ElementsAre(1, 0));
  rig->Decide(0);
  EXPECT_THAT(Cold({0, 1}), ElementsAre(0, 1));
  // Blocks without a match, or an empty prompt, are cold.
  Begin({{0, 4, 16, 0}, {0, 4, 16, 0}, {}, {}, {}});
  EXPECT_THAT(rig->Score({0, 1}), ElementsAre(0, 1));
}

TEST_F(NoHitLruTest, OneWarmProfileMakesTheRequestWarm) {
  for (const auto& order : {std::vector<std::vector<Position>>{{0, 1}, {2, 3}}, {{2, 3}, {0, 1}}}) {
    Begin({{}, {}, {1, 4, 16, 1}, {}, {}});
    for (const std::vector<Position>& candidates : order) rig->Score(candidates);
    rig->Decide(0);
    EXPECT_THAT(Cold({0, 1}), ElementsAre(1, 0));
  }
}

TEST_F(NoHitLruTest, PrefillTargetCountsToo) {
  Begin();
  rig->Score();
  Dispatch dispatch;
  ASSERT_TRUE(rig->Decide({{"prefill", {1, 3}}, {"decode", {0, 2}}, {"encode", {4}}}, dispatch, 1).ok());
  // Primary first: 0 is older than 1. 2, 3, 4 were not used.
  EXPECT_THAT(Cold({0, 1, 2, 3, 4}), ElementsAre(0.25, 0, 1, 0.75, 0.5));
  // Without a score nothing is known.
  Begin();
  ASSERT_TRUE(rig->Decide({{"decode", {2}}}, dispatch).ok());
  EXPECT_THAT(Cold({0, 1, 2, 3, 4}), ElementsAre(0.25, 0, 1, 0.75, 0.5));
}

TEST_F(NoHitLruTest, MemoryIsBounded) {
  Make(Parameters({{"lruSize", 2}}));
  Use({0, 1, 2});
  EXPECT_THAT(Cold({0, 1, 2}), ElementsAre(1, 0.5, 0));  // 0 is forgotten, so never used
  Use({0});
  EXPECT_THAT(Cold({0, 1, 2}), ElementsAre(0, 1, 0.5));  // and now 1
}

TEST_F(NoHitLruTest, SuccessorIsNeverUsed) {
  Use({0, 1, 2, 3, 4});
  const EndpointMetadata metadata = pool[1].metadata();
  pool.Remove(pool[1].handle);
  ASSERT_TRUE(pool.Add(metadata).ok());  // in the slot of the former, at position 4
  EXPECT_THAT(Cold({0, 1, 2, 3, 4}), ElementsAre(0.75, 0.5, 0.25, 0, 1));
}

TEST_F(NoHitLruTest, Parameters) {
  const auto warnings = [](const Value& parameters) {
    SchedulerConfig config;
    config.plugins = {{.type = kType, .parameters = parameters}, {.type = kApprox}};
    FakeIndex index;
    const auto scheduler =
        Scheduler::Create(config, PluginRegistry::Builtin(), {{index.source(), index.source()}});
    EXPECT_TRUE(scheduler.ok()) << scheduler.status();
    return (*scheduler)->warnings();
  };
  EXPECT_THAT(warnings({}), ElementsAre());
  EXPECT_THAT(warnings(sched::Parameters({{"lruSize", 0}})), ElementsAre());
  EXPECT_THAT(warnings(sched::Parameters({{"prefixPluginType", "a"}, {"prefixPluginName", "b"}})),
              ElementsAre(HasSubstr("prefixPluginType is without effect"),
                          HasSubstr("prefixPluginName is without effect")));
  EXPECT_THAT(PluginUnderTest(kType, sched::Parameters({{"lruSize", "many"}})).status.message(),
              HasSubstr("lruSize is a string, expected an integer"));
}

// The list against a literal one.
TEST(Recency, EqualsALiteralList) {
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    Random random(seed);
    Recency recency;
    std::size_t capacity = 20;
    recency.SetCapacity(capacity);
    std::list<EndpointHandle> literal;  // oldest first
    std::vector<std::uint32_t> generations(40, 1);
    for (int step = 0; step < 5000; ++step) {
      const auto slot = static_cast<std::uint32_t>(random.Below(generations.size()));
      if (random.Chance(0.02)) ++generations[slot];
      if (random.Chance(0.005)) {
        capacity = random.Between(1, 30);
        recency.SetCapacity(capacity);
        while (literal.size() > capacity) literal.pop_front();
      }
      const EndpointHandle endpoint{slot, generations[slot]};
      recency.Use(endpoint);
      literal.remove(endpoint);
      if (literal.size() == capacity) literal.pop_front();
      literal.push_back(endpoint);

      std::vector<EndpointHandle> current;
      for (std::uint32_t s = 0; s < generations.size(); ++s) {
        if (recency.LastUse({s, generations[s]}) != 0) current.push_back({s, generations[s]});
      }
      std::sort(current.begin(), current.end(),
                [&](auto a, auto b) { return recency.LastUse(a) < recency.LastUse(b); });
      std::vector<EndpointHandle> expected;
      for (const EndpointHandle e : literal) {
        if (e.generation == generations[e.slot]) expected.push_back(e);
      }
      // An endpoint whose slot has a successor is not asked for any more, unless the successor was not used
      // yet.
      ASSERT_EQ(current.size(), expected.size()) << "seed " << seed << " step " << step;
      ASSERT_TRUE(std::equal(current.begin(), current.end(), expected.begin()));
      std::size_t all = 0;
      recency.ForEachUse([&](std::uint64_t) { ++all; });
      ASSERT_EQ(all, literal.size());
    }
  }
}

}  // namespace
}  // namespace llmd::sched
