// Warm flow control does not allocate for a request, whatever becomes of it.
#include <cstddef>

#include "tests/sched/flow_test_util.h"
#include "tests/support/allocation_count.h"

namespace llmd::sched {

namespace {

class FlowAllocation : public ::testing::TestWithParam<const char*> {};

TEST_P(FlowAllocation, NoneOnceWarm) {
  FlowWorld world({.bands = {{.priority = 1, .max_requests = 300}, {.priority = -1}},
                   .default_band = {.fairness_policy = GetParam()},
                   .enable_eviction = true},
                  {{.type = GetParam()}});
  FlowController& controller = *world.controller;
  std::vector<FlowOutcome> outcomes;
  std::vector<std::string> flows;
  for (int i = 0; i < 200; ++i) flows.push_back("some-tenant-of-the-service-" + std::to_string(i));
  std::uint64_t next = 0;
  bool ok = true;
  const auto round = [&] {
    const std::uint64_t first = next;
    for (int i = 0; i < 1000; ++i, ++next) {
      ok &= controller
                .Enqueue({.id = next,
                          .flow = flows[next % flows.size()],
                          .priority = static_cast<std::int32_t>(next % 3) - 1},
                         world.now, outcomes)
                .ok();
    }
    for (std::uint64_t id = first; id < next; id += 17) controller.Cancel(id, world.now, outcomes);
    world.detector.saturation = 0;
    controller.Dispatch(world.now, world.pool, 700, outcomes);
    ok &= controller.Enqueue({.id = next++, .flow = flows[0], .priority = 1}, world.now, outcomes).ok();
    world.detector.saturation = 2;  // evicts a running one
    controller.Dispatch(world.now, world.pool, 500, outcomes);
    world.now += absl::Seconds(61);  // expires the rest
    controller.Tick(world.now, world.pool, outcomes);
    for (std::uint64_t id = first; id < next; ++id) {
      controller.OnFinished(id, world.now, TokenUsage{100, 10});
    }
    ok &= controller.stats().queued_requests == 0 && controller.stats().running == 0;
    outcomes.clear();
  };
  for (int i = 0; i < 20; ++i) round();
  const std::size_t before = AllocationCount();
  ASSERT_GT(before, 0u);
  for (int i = 0; i < 20; ++i) round();
  const std::size_t during = AllocationCount() - before;
  EXPECT_TRUE(ok);
  EXPECT_EQ(during, 0u);
  for (const FlowOutcome::Kind kind :
       {FlowOutcome::Kind::kDispatched, FlowOutcome::Kind::kRejectedCapacity, FlowOutcome::Kind::kEvictedTtl,
        FlowOutcome::Kind::kEvictedCancelled, FlowOutcome::Kind::kEvictRunning}) {
    EXPECT_GT(controller.stats().outcomes[static_cast<std::size_t>(kind)], 0u) << ToString(kind);
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, FlowAllocation,
                         ::testing::Values("global-strict-fairness-policy", "round-robin-fairness-policy",
                                           "program-aware-fairness"));

}  // namespace
}  // namespace llmd::sched
