// How long requests, flows and bands stay, when the host must come back, and items made of requests. (spec:
// scheduling.md 2.7)
#include <gmock/gmock.h>

#include "tests/sched/flow_test_util.h"

namespace llmd::sched {
namespace {

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

// Time to live.

class FlowTtl : public ::testing::Test {
 protected:
  FlowTtl()
      : world({.default_request_ttl = absl::Seconds(10), .no_endpoint_request_ttl = absl::Seconds(30)}) {
    world.detector.saturation = 2;
    world.Tick();
  }
  std::vector<FlowOutcome> At(double seconds) {
    world.now = kNow + absl::Seconds(seconds);
    return world.Tick();
  }
  FlowWorld world;
};

TEST_F(FlowTtl, ExpiresWhileThereAreEndpoints) {
  At(2.5);
  world.Enqueue(Item(1));
  EXPECT_THAT(At(12.4), IsEmpty());
  ExpectOutcome(At(13.5), 1, Kind::kEvictedTtl);
  EXPECT_THAT(At(100), IsEmpty());
}

TEST_F(FlowTtl, IsLookedAtOnceASecond) {
  world.Enqueue(Item(1));            // expires at 10
  EXPECT_THAT(At(9.5), IsEmpty());   // sweep
  EXPECT_THAT(At(10.4), IsEmpty());  // the next one is at 10.5
  ExpectOutcome(At(10.5), 1, Kind::kEvictedTtl);
}

TEST_F(FlowTtl, UntilTheSweepAnExpiredRequestCanGo) {
  world.Enqueue(Item(1));
  At(9.5);
  world.now = kNow + absl::Seconds(10.2);
  world.detector.saturation = 0;
  EXPECT_THAT(world.DispatchIds(), ::testing::ElementsAre(1));
}

TEST_F(FlowTtl, EmptyPoolStartsTheTimeAnew) {
  world.Enqueue(Item(1));
  world.EmptyPool();
  At(8);  // 8 seconds with endpoints do not count
  EXPECT_THAT(At(37.9), IsEmpty());
  ExpectOutcome(At(38.9), 1, Kind::kEvictedNoEndpoints);
}

TEST_F(FlowTtl, FilledPoolStartsTheTimeAnew) {
  world.EmptyPool();
  At(1);
  At(2);
  world.Enqueue(Item(1));
  AddEndpoint(world.pool);
  At(20);
  EXPECT_THAT(At(29.9), IsEmpty());
  world.now = kNow + absl::Seconds(29.95);
  world.Enqueue(Item(2));  // its time is charged from its own arrival
  ExpectOutcome(At(31), 1, Kind::kEvictedTtl);
  ExpectOutcome(At(41), 2, Kind::kEvictedTtl);
}

TEST_F(FlowTtl, OneOfItsOwn) {
  FlowItem item = Item(1);
  item.ttl = absl::Seconds(3);
  world.Enqueue(item);
  item.id = 2;
  item.ttl = absl::ZeroDuration();  // means the default
  world.Enqueue(item);
  item.id = 3;
  item.ttl = absl::InfiniteDuration();
  world.Enqueue(item);
  EXPECT_THAT(At(2.9), IsEmpty());
  ExpectOutcome(At(4), 1, Kind::kEvictedTtl);
  ExpectOutcome(At(11), 2, Kind::kEvictedTtl);
  EXPECT_THAT(At(1e9), IsEmpty());
}

TEST_F(FlowTtl, OneOfItsOwnDoesNotCountWithoutEndpoints) {
  FlowItem item = Item(1);
  item.ttl = absl::Seconds(3);
  world.Enqueue(item);
  world.EmptyPool();
  At(1);
  EXPECT_THAT(At(30.9), IsEmpty());
  ExpectOutcome(At(32), 1, Kind::kEvictedNoEndpoints);
}

TEST(FlowTtlOff, ZeroMeansNever) {
  FlowWorld world(
      {.default_request_ttl = absl::ZeroDuration(), .no_endpoint_request_ttl = absl::ZeroDuration()});
  world.detector.saturation = 2;
  world.Enqueue(Item(1));
  world.now += absl::Hours(10000);
  EXPECT_THAT(world.Tick(), IsEmpty());
  world.EmptyPool();
  world.now += absl::Hours(10000);
  EXPECT_THAT(world.Tick(), IsEmpty());
  EXPECT_EQ(world.controller->stats().queued_requests, 1u);
}

TEST(FlowController, TimeDoesNotRunBackwards) {
  FlowWorld world;
  world.Enqueue(Item(1));
  world.now = kNow - absl::Hours(1);
  const std::vector<FlowOutcome> outcomes = world.Dispatch();
  ExpectOutcome(outcomes, 1, Kind::kDispatched);
  EXPECT_EQ(outcomes[0].waited, absl::ZeroDuration());
}

// Bands and flows come and go.

TEST(FlowBands, DynamicBandsTakeTheirDefaults) {
  FlowWorld world(
      {.default_band = {.max_requests = 2}, .default_negative_band = PriorityBandConfig{.max_requests = 1}});
  world.Tick();
  EXPECT_EQ(world.controller->stats().bands, 1u);  // priority 0 always exists
  EXPECT_THAT(world.Enqueue(Item(1, 4)), IsEmpty());
  EXPECT_THAT(world.Enqueue(Item(2, 4)), IsEmpty());
  ExpectOutcome(world.Enqueue(Item(3, 4)), 3, Kind::kRejectedCapacity);
  EXPECT_THAT(world.Enqueue(Item(4, -4)), IsEmpty());
  ExpectOutcome(world.Enqueue(Item(5, -4)), 5, Kind::kRejectedCapacity);
  EXPECT_EQ(world.controller->stats().bands, 3u);
}

TEST(FlowBands, NegativePrioritiesWithoutADefaultOfTheirOwn) {
  FlowWorld world({.default_band = {.max_requests = 2}});
  EXPECT_THAT(world.Enqueue(Item(1, -4)), IsEmpty());
  EXPECT_THAT(world.Enqueue(Item(2, -4)), IsEmpty());
  EXPECT_THAT(world.Enqueue(Item(3, -4)), SizeIs(1));
}

TEST(FlowBands, ARejectedRequestMakesNoBand) {
  FlowWorld world({.max_requests = 1});
  world.Enqueue(Item(1));
  EXPECT_THAT(world.Enqueue(Item(2, 77)), SizeIs(1));
  EXPECT_EQ(world.controller->stats().bands, 1u);
  EXPECT_EQ(world.controller->stats().flows, 1u);
}

TEST(FlowBands, NoMoreThanAllowed) {
  FlowControllerOptions options;
  options.max_dynamic_bands = 2;
  FlowWorld world({}, {}, options);
  world.Tick();
  world.Enqueue(Item(1, 1));
  world.Enqueue(Item(2, 2));
  ExpectOutcome(world.Enqueue(Item(3, 3)), 3, Kind::kRejectedCapacity);
  EXPECT_THAT(world.Enqueue(Item(3, 2)), IsEmpty());
}

TEST(FlowBands, CollectedWhenIdle) {
  FlowWorld world({.bands = {{.priority = 1}}});
  world.Enqueue(Item(1, 5, "a"));
  world.Enqueue(Item(2, 1, "b"));
  EXPECT_EQ(world.controller->stats().flows, 2u);
  EXPECT_THAT(world.DispatchIds(), ::testing::ElementsAre(1, 2));
  const auto stats_at = [&world](absl::Duration later) {
    world.now = kNow + later;
    world.Tick();
    return world.controller->stats();
  };
  EXPECT_EQ(stats_at(absl::Minutes(5) - absl::Nanoseconds(1)).flows, 2u);
  EXPECT_EQ(stats_at(absl::Minutes(5)).flows, 0u);
  EXPECT_EQ(stats_at(absl::Minutes(10) - absl::Nanoseconds(1)).bands, 3u);
  EXPECT_EQ(stats_at(absl::Minutes(10)).bands, 2u);  // 1 is configured, 0 always there
  // A queued request keeps its flow and band.
  world.detector.saturation = 2;
  FlowItem item = Item(3, 5, "a");
  item.ttl = absl::InfiniteDuration();
  world.Enqueue(item);
  EXPECT_EQ(stats_at(absl::Hours(5)).bands, 3u);
  EXPECT_EQ(world.controller->stats().flows, 1u);
}

TEST(FlowBands, AFlowUsedAgainIsNotIdle) {
  FlowWorld world;
  world.Enqueue(Item(1, 0, "a"));
  world.Dispatch();
  world.now += absl::Minutes(4);
  world.Enqueue(Item(2, 0, "a"));
  world.Dispatch();
  world.now += absl::Minutes(4);
  world.Tick();
  EXPECT_EQ(world.controller->stats().flows, 1u);
  world.now += absl::Minutes(1);
  world.Tick();
  EXPECT_EQ(world.controller->stats().flows, 0u);
}

TEST(FlowBands, IdleFlowsAreLimited) {
  FlowControllerOptions options;
  options.max_idle_flows = 2;
  FlowWorld world({}, {}, options);
  for (std::uint64_t id = 0; id < 10; ++id) {
    world.Enqueue(Item(id, static_cast<std::int32_t>(id % 2), "f" + std::to_string(id)));
    world.Dispatch();
  }
  EXPECT_EQ(world.controller->stats().flows, 2u);
}

TEST(FlowBands, LongFlowIdsAreAbbreviatedAndStayDistinct) {
  FlowWorld world({.default_band = {.fairness_policy = "round-robin-fairness-policy"}},
                  {{.type = "round-robin-fairness-policy"}});
  const std::string a = std::string(100000, 'x') + "a";
  const std::string b = std::string(100000, 'x') + "b";
  const std::size_t before = world.controller->MemoryBytes();
  world.Enqueue(Item(1, 0, a));
  world.Enqueue(Item(2, 0, a));
  world.Enqueue(Item(3, 0, b));
  EXPECT_EQ(world.controller->stats().flows, 2u);
  EXPECT_LT(world.controller->MemoryBytes(), before + 10000);
  world.Dispatch();
}

// When to come back.

TEST(FlowWakeup, NothingToDo) {
  FlowWorld world;
  EXPECT_EQ(world.controller->NextWakeup(kNow), absl::InfiniteFuture());
  world.Tick();
  EXPECT_EQ(world.controller->NextWakeup(kNow), absl::InfiniteFuture());
}

TEST(FlowWakeup, PollsWhileSomethingIsQueued) {
  FlowWorld world;
  world.Enqueue(Item(1));
  EXPECT_EQ(world.controller->NextWakeup(kNow), kNow + absl::Milliseconds(1));
  world.Dispatch();
  EXPECT_EQ(world.controller->NextWakeup(kNow), kNow + absl::Minutes(5));  // the flow is collected
}

TEST(FlowWakeup, WithoutPollingTheFirstExpiry) {
  FlowControllerOptions options;
  options.poll_interval = absl::InfiniteDuration();
  FlowWorld world({.default_request_ttl = absl::Seconds(10)}, {}, options);
  world.detector.saturation = 2;
  world.Tick();  // sweeps are at 1, 2, ... seconds if somebody calls
  world.Enqueue(Item(1));
  FlowItem item = Item(2);
  item.ttl = absl::Milliseconds(500);
  world.Enqueue(item);
  EXPECT_EQ(world.controller->NextWakeup(kNow), kNow + absl::Seconds(1));
  world.now = world.controller->NextWakeup(kNow);
  ExpectOutcome(world.Tick(), 2, Kind::kEvictedTtl);
  EXPECT_EQ(world.controller->NextWakeup(world.now), kNow + absl::Seconds(10));
  world.now = kNow + absl::Seconds(10);
  ExpectOutcome(world.Tick(), 1, Kind::kEvictedTtl);
}

TEST(FlowItems, FromARequest) {
  FlowWorld world;
  std::vector<Header> headers = {{"x-slo-ttft-ms", "20"}, {"x-llm-d-inference-fairness-id", "tenant"}};
  Request request{.headers = headers, .priority = -3, .size_bytes = 42};
  FlowItem item = MakeFlowItem(7, request, *world.scheduler, kNow);
  EXPECT_EQ(item.id, 7u);
  EXPECT_EQ(item.flow, "tenant");
  EXPECT_EQ(item.priority, -3);
  EXPECT_EQ(item.bytes, 42u);
  EXPECT_EQ(item.received, kNow);
  EXPECT_EQ(item.slo_ttft, absl::Milliseconds(20));
  headers.push_back({"x-llm-d-slo-ttft-ms", " 300 "});  // the new name wins
  request.headers = headers;
  EXPECT_EQ(MakeFlowItem(7, request, *world.scheduler).slo_ttft, absl::Milliseconds(300));
  EXPECT_EQ(MakeFlowItem(7, Request{}, *world.scheduler).flow, "default-flow");
}

TEST(FlowItems, SloMilliseconds) {
  EXPECT_EQ(ParseSloMilliseconds("0"), absl::ZeroDuration());
  EXPECT_EQ(ParseSloMilliseconds("250"), absl::Milliseconds(250));
  EXPECT_EQ(ParseSloMilliseconds("9223372036854"), absl::Milliseconds(9223372036854));
  for (const char* bad : {"", " ", "-1", "1.5", "abc", "12x", "9223372036855", "99999999999999999999"}) {
    EXPECT_EQ(ParseSloMilliseconds(bad), std::nullopt) << bad;
  }
}

}  // namespace
}  // namespace llmd::sched
