// Time of one request through flow control, by the number of flows that wait.
//
//   bench_flow [--json]
//
// Inside the clock: an Enqueue() to a random flow and the cycle that dispatches another request. Two requests
// of each flow wait all the time; one endpoint, a detector that always says 0.
#include <array>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "bench/bench_util.h"
#include "llmd/base/random.h"
#include "llmd/sched/flow_control.h"

namespace llmd::sched {
namespace {

const absl::Time kNow = absl::FromUnixSeconds(1'700'000'000);

class IdleDetector final : public Plugin, public SaturationDetector {
 public:
  using Plugin::Plugin;
  double Saturation(const EndpointPool&, std::span<const Position>, absl::Time) const override { return 0; }
};

std::unique_ptr<Scheduler> MakeScheduler(const std::string& fairness) {
  PluginRegistry registry = PluginRegistry::Builtin();
  registry
      .Register("idle-detector",
                [](PluginBuilder& b) -> absl::StatusOr<std::unique_ptr<Plugin>> {
                  return std::make_unique<IdleDetector>(b.type(), b.name());
                })
      .IgnoreError();
  SchedulerConfig config;
  config.plugins = {{.type = "idle-detector"}, {.type = fairness}};
  config.feature_gates.flow_control = true;
  config.flow_control.saturation_detector = "idle-detector";
  config.flow_control.default_band = {.max_requests = 1000000, .fairness_policy = fairness};
  return *Scheduler::Create(config, registry, {});
}

double NsPerRequest(const std::string& fairness, std::size_t flows) {
  const auto scheduler = MakeScheduler(fairness);
  const auto control = *FlowController::Create(*scheduler);
  EndpointPool pool;
  pool.Add({.name = "pod", .address = "10.0.0.1", .port = 8000}).IgnoreError();
  std::vector<std::string> ids;
  for (std::size_t i = 0; i < flows; ++i) ids.push_back("tenant-" + std::to_string(i));
  std::vector<FlowOutcome> outcomes;
  std::uint64_t next = 0;
  Random random(1);
  absl::Time now = kNow;
  const auto enqueue = [&](std::size_t flow) {
    now += absl::Microseconds(1);
    control->Enqueue({.id = next++, .flow = ids[flow], .bytes = 1}, now, outcomes).IgnoreError();
  };
  for (std::size_t i = 0; i < 2 * flows; ++i) enqueue(i % flows);
  const std::size_t rounds = fairness == "program-aware-fairness" ? 2000000 / (flows + 1000) : 200000;
  std::array<double, 5> times;
  for (double& time : times) {
    const std::int64_t start = bench::NowNs();
    for (std::size_t i = 0; i < rounds; ++i) {
      enqueue(random.Below(flows));
      control->Step(now, pool, outcomes);
      outcomes.clear();
    }
    time = static_cast<double>(bench::NowNs() - start) / static_cast<double>(rounds);
  }
  return bench::Median({times.begin(), times.end()});
}

int Main(bool json) {
  const bench::Reporter reporter("bench_flow", json);
  for (const char* fairness :
       {"global-strict-fairness-policy", "round-robin-fairness-policy", "program-aware-fairness"}) {
    for (const std::size_t flows : {1, 100, 1000, 10000}) {
      reporter.Report(std::string(fairness) + "_f" + std::to_string(flows), "enqueue_and_dispatch_ns",
                      NsPerRequest(fairness, flows), "ns", true);
    }
  }
  return 0;
}

}  // namespace
}  // namespace llmd::sched

int main(int argc, char** argv) { return llmd::sched::Main(argc > 1 && std::strcmp(argv[1], "--json") == 0); }
