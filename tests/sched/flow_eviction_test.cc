// Stopping running requests for the sake of a higher priority. (spec: scheduling.md 2.7)
#include <gmock/gmock.h>

#include "tests/sched/flow_test_util.h"

namespace llmd::sched {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using Kind = FlowOutcome::Kind;

class FlowEviction : public ::testing::Test {
 protected:
  static FlowControllerOptions Grace(absl::Duration grace) {
    FlowControllerOptions options;
    options.eviction_grace = grace;
    return options;
  }
  FlowEviction() : world({.enable_eviction = true}, {}, Grace(absl::Seconds(2))) {}

  // Puts a request on the way, a millisecond after the one before.
  void Run(std::uint64_t id, std::int32_t priority) {
    world.now += absl::Milliseconds(1);
    world.detector.saturation = 0;
    world.Enqueue({.id = id, .priority = priority});
    ASSERT_THAT(world.DispatchIds(), ElementsAre(id));
  }
  // Who is to be stopped in a cycle at that saturation.
  std::vector<std::uint64_t> Evicted(double saturation) {
    world.detector.saturation = saturation;
    std::vector<std::uint64_t> ids;
    for (const FlowOutcome& o : world.Dispatch()) {
      EXPECT_EQ(o.kind, Kind::kEvictRunning);
      ids.push_back(o.id);
    }
    return ids;
  }
  void Finish(std::uint64_t id) { EXPECT_TRUE(world.controller->OnFinished(id, world.now)); }

  FlowWorld world;
};

TEST_F(FlowEviction, LowestPriorityThenNewestAtMostTwo) {
  Run(1, -1);
  Run(2, -2);
  Run(3, -2);
  Run(4, 0);
  Run(5, -1);
  world.Enqueue({.id = 10, .priority = 1});
  EXPECT_THAT(Evicted(100), ElementsAre(3, 2));
  Finish(3);
  Finish(2);
  world.now += absl::Seconds(2);
  EXPECT_THAT(Evicted(100), ElementsAre(5, 1));
  Finish(5);
  Finish(1);
  world.now += absl::Seconds(2);
  EXPECT_THAT(Evicted(100), IsEmpty());  // 4 may not be shed
}

TEST_F(FlowEviction, NoMoreThanTheExcessNeeds) {
  for (std::uint64_t id = 1; id <= 4; ++id) Run(id, -1);
  world.Enqueue({.id = 10, .priority = 1});
  // Each of four running requests counts for a quarter of the saturation. At the ceiling one must go.
  EXPECT_THAT(Evicted(1.0), ElementsAre(4));
  Finish(4);
  world.now += absl::Seconds(2);
  // Three, 1.5: each 0.5, the excess is 0.5: one.
  EXPECT_THAT(Evicted(1.5), ElementsAre(3));
  Finish(3);
  world.now += absl::Seconds(2);
  // Two, 2.5: each 1.25, the excess 1.5: two.
  EXPECT_THAT(Evicted(2.5), ElementsAre(2, 1));
}

TEST_F(FlowEviction, WaitsForConfirmationAndGrace) {
  for (std::uint64_t id = 1; id <= 4; ++id) Run(id, -1);
  world.Enqueue({.id = 10, .priority = 1});
  EXPECT_THAT(Evicted(3), ElementsAre(4, 3));
  world.now += absl::Seconds(5);
  EXPECT_THAT(Evicted(3), IsEmpty());
  Finish(4);
  world.now += absl::Seconds(3);
  EXPECT_THAT(Evicted(3), IsEmpty());  // 3 is not confirmed
  Finish(3);
  world.now += absl::Seconds(2) - absl::Nanoseconds(1);
  EXPECT_THAT(Evicted(3), IsEmpty());  // grace
  world.now += absl::Nanoseconds(1);
  EXPECT_THAT(Evicted(3), ElementsAre(2, 1));
}

TEST_F(FlowEviction, GivesUpOnAConfirmationAfterTenSeconds) {
  for (std::uint64_t id = 1; id <= 3; ++id) Run(id, -1);
  world.Enqueue({.id = 10, .priority = 1, .ttl = absl::Hours(1)});
  EXPECT_THAT(Evicted(3), ElementsAre(3, 2));
  world.now += absl::Seconds(10) - absl::Nanoseconds(1);
  EXPECT_THAT(Evicted(3), IsEmpty());
  EXPECT_EQ(world.controller->stats().unconfirmed_evictions, 0u);
  world.now += absl::Nanoseconds(1);
  EXPECT_THAT(Evicted(3), IsEmpty());
  EXPECT_EQ(world.controller->stats().unconfirmed_evictions, 2u);
  world.now += absl::Seconds(2);
  EXPECT_THAT(Evicted(3), ElementsAre(1));
  Finish(1);
  Finish(2);  // late, and no second order for it
  Finish(3);
  EXPECT_EQ(world.controller->stats().running, 0u);
}

TEST_F(FlowEviction, OnlyForAStrictlyHigherPriority) {
  Run(1, -1);
  world.Enqueue({.id = 10, .priority = -1});
  EXPECT_THAT(Evicted(5), IsEmpty());
  world.Enqueue({.id = 11, .priority = -3});
  EXPECT_THAT(Evicted(5), IsEmpty());
  world.Enqueue({.id = 12, .priority = 0});
  EXPECT_THAT(Evicted(5), ElementsAre(1));
}

TEST_F(FlowEviction, TheSecondVictimIsBelowTheBandToo) {
  Run(1, -1);
  Run(2, -3);
  world.Enqueue({.id = 10, .priority = -1});
  EXPECT_THAT(Evicted(100), ElementsAre(2));
}

TEST_F(FlowEviction, OnlyWhenSomethingIsQueuedAbove) {
  Run(1, -2);
  EXPECT_THAT(Evicted(5), IsEmpty());
  world.Enqueue({.id = 10, .priority = 3});
  world.Cancel(10);
  world.Enqueue({.id = 11, .priority = -2});
  EXPECT_THAT(Evicted(5), IsEmpty());
  world.Enqueue({.id = 12, .priority = -1});  // below the first blocked band, above the victim
  EXPECT_THAT(Evicted(5), ElementsAre(1));
}

TEST_F(FlowEviction, AFinishedRequestIsNoVictim) {
  Run(1, -1);
  Run(2, -1);
  Finish(2);
  world.Enqueue({.id = 10});
  EXPECT_THAT(Evicted(9), ElementsAre(1));
}

TEST_F(FlowEviction, WakeupTellsWhenTheNextDecisionIs) {
  FlowControllerOptions options = Grace(absl::Milliseconds(300));
  options.poll_interval = absl::InfiniteDuration();
  FlowWorld other({.default_request_ttl = absl::ZeroDuration(), .enable_eviction = true}, {}, options);
  for (std::uint64_t id = 1; id <= 3; ++id) other.Enqueue({.id = id, .priority = -1});
  other.Dispatch();
  other.Enqueue({.id = 10});
  other.detector.saturation = 1;
  other.Dispatch();
  EXPECT_EQ(other.controller->NextWakeup(other.now), other.now + absl::Seconds(10));
  other.controller->OnFinished(3, other.now);
  EXPECT_EQ(other.controller->NextWakeup(other.now), other.now + absl::Milliseconds(300));
}

TEST(FlowEvictionSettings, OffByDefault) {
  FlowWorld world;
  world.Enqueue({.id = 1, .priority = -1});
  world.Dispatch();
  EXPECT_EQ(world.controller->stats().running, 0u);  // nothing needs it
  EXPECT_FALSE(world.controller->OnFinished(1, world.now));
  world.Enqueue({.id = 10});
  world.detector.saturation = 5;
  EXPECT_THAT(world.Dispatch(), IsEmpty());
}

TEST(FlowEvictionSettings, ABandClosedByPolicyIsNoReason) {
  // A full pool gives all but the highest of three bands a ceiling of 0: stopping requests would not open
  // them.
  FlowWorld world({.bands = {{.priority = 1}, {.priority = -1}},
                   .usage_limit_policy = "soft-reflective-ceiling-policy",
                   .enable_eviction = true},
                  {{.type = "soft-reflective-ceiling-policy"}});
  world.Enqueue({.id = 1, .priority = -1});
  EXPECT_THAT(world.DispatchIds(), ElementsAre(1));
  world.detector.saturation = 1;
  world.Enqueue({.id = 10, .priority = 0});
  EXPECT_THAT(world.Dispatch(), IsEmpty());
  world.Enqueue({.id = 11, .priority = 1});
  EXPECT_THAT(Ids(world.Dispatch()), ElementsAre(1));
}

TEST(FlowEvictionSettings, WithoutGraceGivenItFollowsTheDetector) {
  FlowWorld world({.enable_eviction = true});
  for (std::uint64_t id = 1; id <= 2; ++id) world.Enqueue({.id = id, .priority = -1});
  world.Dispatch();
  world.Enqueue({.id = 10, .ttl = absl::Hours(1)});
  world.detector.saturation = 1;
  EXPECT_THAT(Ids(world.Dispatch()), ElementsAre(2));
  world.controller->OnFinished(2, world.now);
  // Metrics that are scraped: 50 ms + 2 s + 250 ms.
  world.now += absl::Milliseconds(2299);
  EXPECT_THAT(world.Dispatch(), IsEmpty());
  world.now += absl::Milliseconds(1);
  EXPECT_THAT(Ids(world.Dispatch()), ElementsAre(1));
}

TEST(FlowEvictionSettings, NoMoreIsRememberedThanAllowed) {
  FlowControllerOptions options;
  options.max_running = 2;
  FlowWorld world({.enable_eviction = true}, {}, options);
  for (std::uint64_t id = 1; id <= 3; ++id) world.Enqueue({.id = id, .priority = -1});
  EXPECT_THAT(world.DispatchIds(), ElementsAre(1, 2, 3));
  EXPECT_EQ(world.controller->stats().running, 2u);
  EXPECT_FALSE(world.controller->OnFinished(3, world.now));
  EXPECT_TRUE(world.controller->OnFinished(1, world.now));
}

// A filter and an order of the host's.
class OddOnly final : public Plugin, public EvictionFilter, public EvictionOrder {
 public:
  using Plugin::Plugin;
  bool MayEvict(const RunningRequest& request) const override { return request.id % 2 == 1; }
  OrderKey Key(const RunningRequest& request) const override {
    return {static_cast<std::int64_t>(request.id), 0};
  }
};

TEST(FlowEvictionSettings, ConfiguredPoliciesAreUsed) {
  PluginRegistry registry = PluginRegistry::Builtin();
  ASSERT_TRUE(registry
                  .Register("odd",
                            [](PluginBuilder& b) -> absl::StatusOr<std::unique_ptr<Plugin>> {
                              return std::make_unique<OddOnly>(b.type(), b.name());
                            })
                  .ok());
  SchedulerConfig config;
  config.plugins = {{.type = "odd"}};
  config.feature_gates.flow_control = true;
  config.flow_control.enable_eviction = true;
  auto scheduler = Scheduler::Create(config, registry, {});
  ASSERT_TRUE(scheduler.ok()) << scheduler.status();
  auto controller = FlowController::Create(**scheduler);
  ASSERT_TRUE(controller.ok());
  EndpointPool pool = MakePool(1);
  Metrics& metrics = MetricsAt(pool, 0);
  metrics.waiting_requests = {0, kNow};
  metrics.kv_cache_usage = {0, kNow};
  std::vector<FlowOutcome> outcomes;
  for (const std::uint64_t id : {4u, 5u, 3u, 7u}) {
    ASSERT_TRUE((*controller)->Enqueue({.id = id}, kNow, outcomes).ok());
  }
  ASSERT_EQ((*controller)->Dispatch(kNow, pool, 10, outcomes), 4u);
  outcomes.clear();
  metrics.waiting_requests = {50, kNow};  // 50 / 5 = 10
  ASSERT_TRUE((*controller)->Enqueue({.id = 8, .priority = 1}, kNow, outcomes).ok());
  (*controller)->Dispatch(kNow, pool, 10, outcomes);
  EXPECT_THAT(Ids(outcomes), ElementsAre(3, 5));
}

}  // namespace
}  // namespace llmd::sched
