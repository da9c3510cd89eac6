// A flow controller with everything around it: a scheduler whose saturation the test sets, a pool, a clock.
#ifndef TESTS_SCHED_FLOW_TEST_UTIL_H_
#define TESTS_SCHED_FLOW_TEST_UTIL_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "llmd/sched/flow_control.h"
#include "tests/sched/fake_detector.h"
#include "tests/sched/sched_test_util.h"

namespace llmd::sched {

struct FlowWorld {
  explicit FlowWorld(FlowControlConfig flow = {}, std::vector<PluginSpec> plugins = {},
                     const FlowControllerOptions& options = {}) {
    PluginRegistry registry = PluginRegistry::Builtin();
    EXPECT_TRUE(registry
                    .Register("fake-detector",
                              [this](PluginBuilder& b) -> absl::StatusOr<std::unique_ptr<Plugin>> {
                                return std::make_unique<FakeDetector>(b.type(), b.name(), detector);
                              })
                    .ok());
    SchedulerConfig config;
    config.plugins = std::move(plugins);
    config.plugins.push_back({.type = "fake-detector"});
    config.feature_gates.flow_control = true;
    config.allow_experimental = true;
    config.flow_control = std::move(flow);
    config.flow_control.saturation_detector = "fake-detector";
    auto made = Scheduler::Create(config, registry, {});
    EXPECT_TRUE(made.ok()) << made.status();
    if (!made.ok()) return;
    scheduler = *std::move(made);
    auto control = FlowController::Create(*scheduler, options);
    EXPECT_TRUE(control.ok()) << control.status();
    if (control.ok()) controller = *std::move(control);
    AddEndpoint(pool);
  }

  // Enqueues at `now` and returns what was answered at once.
  std::vector<FlowOutcome> Enqueue(const FlowItem& item) {
    std::vector<FlowOutcome> outcomes;
    EXPECT_TRUE(controller->Enqueue(item, now, outcomes).ok());
    return outcomes;
  }
  std::vector<FlowOutcome> Tick() {
    std::vector<FlowOutcome> outcomes;
    controller->Tick(now, pool, outcomes);
    return outcomes;
  }
  std::vector<FlowOutcome> Dispatch(std::size_t max = 1000000) {
    std::vector<FlowOutcome> outcomes;
    controller->Dispatch(now, pool, max, outcomes);
    return outcomes;
  }
  std::vector<std::uint64_t> DispatchIds(std::size_t max = 1000000) {
    std::vector<std::uint64_t> ids;
    for (const FlowOutcome& o : Dispatch(max)) {
      if (o.kind == FlowOutcome::Kind::kDispatched) ids.push_back(o.id);
    }
    return ids;
  }
  std::vector<FlowOutcome> Cancel(std::uint64_t id) {
    std::vector<FlowOutcome> outcomes;
    controller->Cancel(id, now, outcomes);
    return outcomes;
  }
  std::vector<FlowOutcome> Shutdown() {
    std::vector<FlowOutcome> outcomes;
    controller->Shutdown(now, outcomes);
    return outcomes;
  }
  void EmptyPool() {
    while (pool.size() > 0) pool.Remove(pool[0].handle);
  }

  FakeDetector::Control detector;
  std::unique_ptr<Scheduler> scheduler;
  std::unique_ptr<FlowController> controller;
  EndpointPool pool;
  absl::Time now = kNow;
};

inline std::vector<std::uint64_t> Ids(const std::vector<FlowOutcome>& outcomes) {
  std::vector<std::uint64_t> ids;
  for (const FlowOutcome& o : outcomes) ids.push_back(o.id);
  return ids;
}

}  // namespace llmd::sched

#endif  // TESTS_SCHED_FLOW_TEST_UTIL_H_
