#include "examples/trace_replay/fit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/replay/replay_test_util.h"

namespace llmd::replay {
namespace {

using ::testing::HasSubstr;

// All prompts are one long instruction and a short question, and an engine serves 4 at a time. With the
// default weights a prefix of 98 % outweighs any queue (3 x 0.98 > 2 + the part of 2 that the caches differ
// by), so all wait for the endpoint that has it.
Workload Crowd() {
  Workload workload;
  for (std::size_t i = 0; i < 160; ++i) {
    WorkloadRequest request;
    request.arrival = static_cast<Nanos>(i) * 160'000'000;
    request.prompt = {{7, 4096}, {kGeneratedStreams + i, 64}};
    request.output = {kAnswerStreams + i, 150};
    workload.push_back(request);
  }
  return workload;
}

SimulationOptions Options() {
  SimulationOptions options;
  options.endpoints = 3;
  options.engine.capacity_blocks = 5'000;
  options.engine.max_running = 4;
  return options;
}

TEST(FitTest, FindsBetterWeightsWhereTheDefaultOnesCrowd) {
  const FitOptions options = {.evaluations = 24, .seeds = 2, .held_out_seeds = 3};
  std::size_t calls = 0;
  const absl::StatusOr<FitResult> fit = Fit(Crowd(), Options(), options, [&](const FitProgress& p) {
    ++calls;
    EXPECT_EQ(p.done, calls);
    EXPECT_LE(p.best, p.first);
  });
  ASSERT_TRUE(fit.ok()) << fit.status();
  EXPECT_EQ(calls, 24u);
  EXPECT_EQ(fit->evaluations, 24u);
  EXPECT_EQ(fit->fit_requests + fit->held_out_requests, 160u);
  EXPECT_NEAR(static_cast<double>(fit->fit_requests), 96, 2);
  ASSERT_EQ(fit->default_fit.size(), 2u);
  ASSERT_EQ(fit->fitted_held_out.size(), 3u);
  const auto objective = [](const std::vector<FitFigures>& runs) {
    return SpreadOf(runs, &FitFigures::objective).mean;
  };
  EXPECT_GT(SpreadOf(fit->default_fit, &FitFigures::imbalance).mean, 1.25);
  // Seeds move arrivals, so no setting is judged by a single course of events.
  EXPECT_GT(SpreadOf(fit->fitted_held_out, &FitFigures::ttft_mean_s).sd, 0);
  EXPECT_LT(objective(fit->fitted_fit), 0.7 * objective(fit->default_fit));
  EXPECT_LT(objective(fit->fitted_held_out), 0.7 * objective(fit->default_held_out));
}

TEST(FitTest, DoesNotDependOnThreads) {
  FitOptions options = {.evaluations = 8, .seeds = 3, .held_out_seeds = 2, .threads = 1};
  const absl::StatusOr<FitResult> one = Fit(Crowd(), Options(), options);
  options.threads = 3;
  const absl::StatusOr<FitResult> three = Fit(Crowd(), Options(), options);
  ASSERT_TRUE(one.ok() && three.ok());
  EXPECT_EQ(one->values, three->values);
  EXPECT_EQ(one->fitted_held_out[1].objective, three->fitted_held_out[1].objective);
}

TEST(FitTest, TheStartIsTheDefaultPolicy) {
  const std::vector<FitParameter> parameters = FitParameters();
  std::vector<double> start, off;
  for (const FitParameter& p : parameters) {
    EXPECT_LE(p.low, p.start);
    EXPECT_LE(p.start, p.high);
    start.push_back(p.start);
    off.push_back(p.off);
  }
  EXPECT_EQ(MakeFitPolicy("x", parameters, start).description, MakePolicy("exact")->description);
  EXPECT_EQ(MakeFitPolicy("x", parameters, off).description, "exact-prefix 3");
  std::vector<double> middle = start;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    if (parameters[i].name == "matchLengthWeight") middle[i] = 0.5;
    if (parameters[i].name == "queueDepthThreshold") middle[i] = 8;
  }
  const Policy policy = MakeFitPolicy("x", parameters, middle);
  EXPECT_THAT(policy.description, HasSubstr("matchLengthWeight 0.5, filter: queue below 8"));
  EXPECT_EQ(policy.config.profiles.front().plugins.front().plugin, "short-queue");
}

TEST(FitTest, SpreadOfKnownNumbers) {
  std::vector<FitFigures> runs(3);
  runs[0].objective = 1;
  runs[1].objective = 2;
  runs[2].objective = 6;
  const Spread spread = SpreadOf(runs, &FitFigures::objective);
  EXPECT_DOUBLE_EQ(spread.mean, 3);
  EXPECT_DOUBLE_EQ(spread.sd, std::sqrt((4.0 + 1 + 9) / 2));
}

TEST(FitTest, PartsWithoutRequestsAreRefused) {
  Workload one = Crowd();
  one.resize(1);
  EXPECT_THAT(std::string(Fit(one, Options(), {}).status().message()), HasSubstr("--fit-share: is 0.6"));
  EXPECT_FALSE(Fit({}, Options(), {}).ok());
}

}  // namespace
}  // namespace llmd::replay
