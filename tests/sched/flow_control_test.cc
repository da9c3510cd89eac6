// The flow controller's rules, one by one; expectations follow from the text of scheduling.md 2.7.
#include "llmd/sched/flow_control.h"

#include <gmock/gmock.h>

#include "tests/sched/flow_test_util.h"

namespace llmd::sched {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using Kind = FlowOutcome::Kind;

FlowItem Item(std::uint64_t id, std::int32_t priority = 0, std::string_view flow = "f",
              std::uint64_t bytes = 1) {
  return {.id = id, .flow = flow, .priority = priority, .bytes = bytes};
}

void ExpectOutcome(const std::vector<FlowOutcome>& outcomes, std::uint64_t id, Kind kind) {
  ASSERT_EQ(outcomes.size(), 1u);
  EXPECT_EQ(outcomes[0].id, id);
  EXPECT_EQ(ToString(outcomes[0].kind), ToString(kind));
}

TEST(FlowOutcomes, StatusAndDroppedReason) {
  struct Row {
    Kind kind;
    absl::StatusCode code;
    const char* reason;
  };
  // 429 is ResourceExhausted, 503 Unavailable.
  const Row rows[] = {
      {Kind::kRejectedCapacity, absl::StatusCode::kResourceExhausted, "rejected-saturated"},
      {Kind::kRejectedNoEndpoints, absl::StatusCode::kUnavailable, "rejected-no-endpoints"},
      {Kind::kRejectedShuttingDown, absl::StatusCode::kUnavailable, "rejected-shutting-down"},
      {Kind::kEvictedTtl, absl::StatusCode::kResourceExhausted, "rejected-ttl-expired"},
      {Kind::kEvictedNoEndpoints, absl::StatusCode::kUnavailable, "rejected-no-endpoints"},
      {Kind::kEvictedCancelled, absl::StatusCode::kUnavailable, "rejected-context-cancelled"},
      {Kind::kEvictedShuttingDown, absl::StatusCode::kUnavailable, "rejected-shutting-down"},
      {Kind::kEvictRunning, absl::StatusCode::kResourceExhausted, "evicted"},
  };
  for (const Row& row : rows) {
    const absl::Status status = ToStatus({.id = 1, .kind = row.kind});
    EXPECT_EQ(status.code(), row.code) << ToString(row.kind);
    EXPECT_EQ(ToString(GetDroppedReason(status)), row.reason);
    EXPECT_EQ(GetDroppedReason(row.kind), GetDroppedReason(status));
  }
  EXPECT_TRUE(ToStatus({.kind = Kind::kDispatched}).ok());
  EXPECT_EQ(GetDroppedReason(Kind::kDispatched), DroppedReason::kNone);
}

TEST(FlowController, NeedsTheFeatureGate) {
  auto scheduler = Scheduler::Create({}, PluginRegistry::Builtin(), {});
  ASSERT_TRUE(scheduler.ok());
  EXPECT_EQ(FlowController::Create(**scheduler).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(FlowController, OptionsAreChecked) {
  FlowWorld world;
  FlowControllerOptions options;
  options.poll_interval = absl::ZeroDuration();
  const auto made = FlowController::Create(*world.scheduler, options);
  EXPECT_EQ(made.status().message(), "poll_interval is 0, expected more than 0");
  options = {};
  options.eviction_grace = -absl::Seconds(1);
  EXPECT_THAT(FlowController::Create(*world.scheduler, options).status().message(),
              HasSubstr("eviction_grace is -1s"));
}

TEST(FlowController, DispatchesOneForEachCycle) {
  FlowWorld world;
  for (std::uint64_t id = 1; id <= 5; ++id) EXPECT_THAT(world.Enqueue(Item(id)), IsEmpty());
  EXPECT_EQ(world.controller->stats().queued_requests, 5u);
  EXPECT_EQ(world.controller->stats().queued_bytes, 5u);
  std::vector<FlowOutcome> outcomes;
  EXPECT_TRUE(world.controller->Step(world.now, world.pool, outcomes));
  ExpectOutcome(outcomes, 1, Kind::kDispatched);
  EXPECT_THAT(world.DispatchIds(3), ElementsAre(2, 3, 4));
  EXPECT_THAT(world.DispatchIds(), ElementsAre(5));
  outcomes.clear();
  EXPECT_FALSE(world.controller->Step(world.now, world.pool, outcomes));
  EXPECT_THAT(outcomes, IsEmpty());
  EXPECT_EQ(world.controller->stats().outcomes[static_cast<std::size_t>(Kind::kDispatched)], 5u);
}

TEST(FlowController, TellsHowLongARequestWaited) {
  FlowWorld world;
  world.Enqueue(Item(1, 7));
  world.now += absl::Milliseconds(250);
  const std::vector<FlowOutcome> outcomes = world.Dispatch();
  ExpectOutcome(outcomes, 1, Kind::kDispatched);
  EXPECT_EQ(outcomes[0].waited, absl::Milliseconds(250));
  EXPECT_EQ(outcomes[0].priority, 7);
}

TEST(FlowController, HigherPrioritiesFirst) {
  FlowWorld world({.bands = {{.priority = 10}, {.priority = -5}}});
  world.Enqueue(Item(1, -5));
  world.Enqueue(Item(2, 0));
  world.Enqueue(Item(3, 10));
  world.Enqueue(Item(4, 3));  // dynamic
  world.Enqueue(Item(5, 10));
  EXPECT_THAT(world.DispatchIds(), ElementsAre(3, 5, 4, 2, 1));
}

TEST(FlowController, SaturationHoldsAllBack) {
  FlowWorld world;
  world.Enqueue(Item(1, 5));
  world.detector.saturation = 1.0;  // at the ceiling is too much
  EXPECT_THAT(world.Dispatch(), IsEmpty());
  EXPECT_EQ(world.controller->stats().saturation, 1.0);
  world.detector.saturation = 0.999;
  EXPECT_THAT(world.DispatchIds(), ElementsAre(1));
}

TEST(FlowController, AnUnknownSaturationCountsAsFull) {
  FlowWorld world;
  world.Enqueue(Item(1));
  world.detector.saturation = std::nan("");
  EXPECT_THAT(world.Dispatch(), IsEmpty());
  world.detector.saturation = std::numeric_limits<double>::infinity();
  EXPECT_THAT(world.Dispatch(), IsEmpty());
  world.detector.saturation = -3;
  EXPECT_THAT(world.DispatchIds(), ElementsAre(1));
}

// Holdback with three bands 2, 0, -1: ceilings 1.0, 0.75, 0.5.
FlowControlConfig Holdback() {
  return {.bands = {{.priority = 2}, {.priority = -1}}, .usage_limit_policy = "priority-holdback-policy"};
}
std::vector<PluginSpec> HoldbackPlugins(double min = 0.5) {
  return {{.type = "priority-holdback-policy", .parameters = Parameters({{"minCeiling", min}})}};
}

TEST(FlowController, ABlockedBandEndsTheCycleEvenWhenEmpty) {
  FlowWorld world(Holdback(), HoldbackPlugins());
  world.Enqueue(Item(1, -1));
  world.Enqueue(Item(2, 0));
  world.Enqueue(Item(3, 2));
  world.detector.saturation = 0.6;  // -1 is held back
  EXPECT_THAT(world.DispatchIds(), ElementsAre(3, 2));
  world.detector.saturation = 0.8;  // 0 is held back too, and has nothing queued
  EXPECT_THAT(world.DispatchIds(), IsEmpty());
  world.detector.saturation = 0.5;
  EXPECT_THAT(world.DispatchIds(), IsEmpty());
  world.detector.saturation = 0.49;
  EXPECT_THAT(world.DispatchIds(), ElementsAre(1));
}

TEST(FlowController, SaturationIsThatOfTheFullerStage) {
  FlowWorld world;
  world.EmptyPool();
  const auto add = [&world](const char* role) {
    AddEndpoint(world.pool, role == nullptr ? Labels{} : Labels{{std::string(kRoleLabel), role}});
  };
  const auto saturation = [&world](std::vector<double> by_position) {
    world.detector.by_position = std::move(by_position);
    world.Enqueue(Item(1));
    world.Dispatch();
    world.Cancel(1);
    return world.controller->stats().saturation;
  };
  add("prefill");
  add("decode");
  add(nullptr);
  EXPECT_DOUBLE_EQ(saturation({0.5, 0.1, 0.2}), 0.5);  // prefill 0.5, decode 0.15
  EXPECT_DOUBLE_EQ(saturation({0.1, 0.9, 0.5}), 0.7);  // decode (0.9 + 0.5) / 2
  add("encode");                                       // no stage of its own
  EXPECT_DOUBLE_EQ(saturation({0.1, 0.9, 0.5, 5}), 0.7);
  add("both");                                                 // in both
  EXPECT_DOUBLE_EQ(saturation({0.1, 0.9, 0.5, 5, 1.6}), 1.0);  // decode 3 / 3, prefill 1.7 / 2
  add("encode-prefill");
  EXPECT_DOUBLE_EQ(saturation({0.4, 0.3, 0.3, 5, 0.3, 1.1}), 0.6);  // prefill (0.4 + 0.3 + 1.1) / 3
  world.EmptyPool();
  add("encode");
  add("encode");
  EXPECT_DOUBLE_EQ(saturation({0.2, 0.6}), 0.4);  // no stage: the whole pool
}

TEST(FlowController, NothingIsDispatchedIntoAnEmptyPool) {
  // Even under a ceiling that a full pool does not reach.
  FlowWorld world({.usage_limit_policy = "static-usage-limit-policy"},
                  {{.type = "static-usage-limit-policy", .parameters = Parameters({{"threshold", 2}})}});
  world.EmptyPool();
  world.Enqueue(Item(1));
  EXPECT_THAT(world.Dispatch(), IsEmpty());
  AddEndpoint(world.pool);
  world.detector.saturation = 1.5;
  EXPECT_THAT(world.DispatchIds(), ElementsAre(1));
}

TEST(FlowController, LimitsOfABand) {
  FlowWorld world({.bands = {{.priority = 1, .max_requests = 2, .max_bytes = 100}}});
  world.Tick();
  EXPECT_THAT(world.Enqueue(Item(1, 1, "a", 60)), IsEmpty());
  ExpectOutcome(world.Enqueue(Item(2, 1, "b", 41)), 2, Kind::kRejectedCapacity);
  EXPECT_THAT(world.Enqueue(Item(2, 1, "b", 40)), IsEmpty());  // 100 is allowed; a rejected id is free again
  ExpectOutcome(world.Enqueue(Item(3, 1, "c", 0)), 3, Kind::kRejectedCapacity);  // two requests
  EXPECT_THAT(world.Enqueue(Item(4, 0, "c", 1000)), IsEmpty());                  // another band
  EXPECT_THAT(world.DispatchIds(1), ElementsAre(1));
  EXPECT_THAT(world.Enqueue(Item(5, 1, "c", 60)), IsEmpty());
  ExpectOutcome(world.Enqueue(Item(6, 1, "c", ~std::uint64_t{0})), 6, Kind::kRejectedCapacity);
}

TEST(FlowController, LimitsOfAllBands) {
  FlowWorld world({.max_requests = 3, .max_bytes = 10});
  world.Tick();
  world.Enqueue(Item(1, 1, "a", 5));
  world.Enqueue(Item(2, -1, "a", 4));
  ExpectOutcome(world.Enqueue(Item(3, 0, "a", 2)), 3, Kind::kRejectedCapacity);  // 11 bytes
  EXPECT_THAT(world.Enqueue(Item(3, 0, "a", 1)), IsEmpty());
  ExpectOutcome(world.Enqueue(Item(4, 0, "a", 0)), 4, Kind::kRejectedCapacity);  // the fourth
  ExpectOutcome(world.Cancel(2), 2, Kind::kEvictedCancelled);
  EXPECT_THAT(world.Enqueue(Item(4, 0, "a", 4)), IsEmpty());
}

TEST(FlowController, ZeroLimitsOfABandAreTheDefaults) {
  FlowWorld world({.bands = {{.priority = 1, .max_requests = 0, .max_bytes = 0}}});
  world.Tick();
  ExpectOutcome(world.Enqueue(Item(1, 1, "a", 1'000'000'001)), 1, Kind::kRejectedCapacity);
  for (std::uint64_t id = 1; id <= 5000; ++id) ASSERT_THAT(world.Enqueue(Item(id, 1)), IsEmpty());
  ExpectOutcome(world.Enqueue(Item(5001, 1)), 5001, Kind::kRejectedCapacity);
}

TEST(FlowController, FullQueueAndNoEndpoints) {
  FlowWorld world({.max_requests = 1});
  world.Enqueue(Item(1));
  // Before the first Tick() no endpoint is known.
  ExpectOutcome(world.Enqueue(Item(2)), 2, Kind::kRejectedNoEndpoints);
  world.Tick();
  ExpectOutcome(world.Enqueue(Item(3)), 3, Kind::kRejectedCapacity);
  world.EmptyPool();
  world.Tick();
  ExpectOutcome(world.Enqueue(Item(4)), 4, Kind::kRejectedNoEndpoints);
}

TEST(FlowController, DuplicateIds) {
  FlowWorld world({.enable_eviction = true});
  std::vector<FlowOutcome> outcomes;
  world.Enqueue(Item(1));
  EXPECT_EQ(world.controller->Enqueue(Item(1), world.now, outcomes).code(), absl::StatusCode::kAlreadyExists);
  world.Dispatch();  // running, which eviction remembers
  EXPECT_EQ(world.controller->Enqueue(Item(1), world.now, outcomes).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(world.controller->OnFinished(1, world.now));
  EXPECT_FALSE(world.controller->OnFinished(1, world.now));
  EXPECT_TRUE(world.controller->Enqueue(Item(1), world.now, outcomes).ok());
  EXPECT_THAT(outcomes, IsEmpty());
}

TEST(FlowController, CancelAtEveryState) {
  FlowWorld world({.enable_eviction = true});
  EXPECT_THAT(world.Cancel(1), IsEmpty());  // unknown
  for (std::uint64_t id = 1; id <= 3; ++id) world.Enqueue(Item(id));
  ExpectOutcome(world.Cancel(2), 2, Kind::kEvictedCancelled);  // in the middle
  EXPECT_THAT(world.Cancel(2), IsEmpty());
  EXPECT_THAT(world.DispatchIds(1), ElementsAre(1));
  EXPECT_THAT(world.Cancel(1), IsEmpty());  // running
  world.controller->OnFinished(1, world.now);
  EXPECT_THAT(world.Cancel(1), IsEmpty());  // finished
  world.Shutdown();
  EXPECT_THAT(world.Cancel(3), IsEmpty());
}

TEST(FlowController, Shutdown) {
  FlowWorld world({.enable_eviction = true});
  for (std::uint64_t id = 1; id <= 4; ++id) world.Enqueue(Item(id, static_cast<std::int32_t>(id) - 2));
  EXPECT_THAT(world.DispatchIds(1), ElementsAre(4));
  const std::vector<FlowOutcome> outcomes = world.Shutdown();
  EXPECT_THAT(Ids(outcomes), ElementsAre(1, 2, 3));
  for (const FlowOutcome& o : outcomes) EXPECT_EQ(o.kind, Kind::kEvictedShuttingDown);
  EXPECT_THAT(world.Shutdown(), IsEmpty());
  ExpectOutcome(world.Enqueue(Item(9)), 9, Kind::kRejectedShuttingDown);
  EXPECT_THAT(world.Dispatch(), IsEmpty());
  EXPECT_EQ(world.controller->stats().running, 1u);
  EXPECT_TRUE(world.controller->OnFinished(4, world.now));
  EXPECT_EQ(world.controller->stats().queued_bytes, 0u);
}

}  // namespace
}  // namespace llmd::sched
