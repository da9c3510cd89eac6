// A small simulation: every request ends exactly once, in every way that there is, and runs repeat.
#include "bench/sched/flow_simulation.h"

#include <gtest/gtest.h>

#include <numeric>

namespace llmd::sched {
namespace {

SimulationReport RunSmall(std::uint64_t seed) {
  SimulationOptions options;
  options.requests = 20000;
  options.seed = seed;
  options.flows = 500;
  options.endpoints = 12;
  absl::StatusOr<SimulationReport> report = Simulate(options);
  EXPECT_TRUE(report.ok()) << report.status();
  return report.ok() ? *report : SimulationReport{};
}

TEST(FlowSimulation, EveryRequestEndsOnce) {
  std::array<std::uint64_t, kFates> fates = {};
  for (std::uint64_t seed = 1; seed <= 3; ++seed) {
    const SimulationReport report = RunSmall(seed);
    EXPECT_EQ(std::accumulate(report.fates.begin(), report.fates.end(), std::uint64_t{0}), 20000u);
    for (std::size_t i = 0; i < kFates; ++i) fates[i] += report.fates[i];
    EXPECT_LT(report.controller_end, 8u << 20);
  }
  for (std::size_t i = 0; i < kFates; ++i) EXPECT_GT(fates[i], 0u) << ToString(static_cast<Fate>(i));
}

TEST(FlowSimulation, RunsRepeat) {
  const SimulationReport a = RunSmall(7);
  const SimulationReport b = RunSmall(7);
  EXPECT_EQ(a.fates, b.fates);
  EXPECT_EQ(a.cycles, b.cycles);
  EXPECT_EQ(a.simulated, b.simulated);
  EXPECT_NE(a.fates, RunSmall(8).fates);
}

}  // namespace
}  // namespace llmd::sched
