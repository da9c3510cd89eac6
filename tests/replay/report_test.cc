#include "examples/trace_replay/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "examples/trace_replay/svg_chart.h"
#include "tests/replay/replay_test_util.h"

namespace llmd::replay {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

struct Replayed {
  std::vector<std::unique_ptr<Simulation>> simulations;
  InfiniteCache bound;
  Report report;

  explicit Replayed(const std::vector<std::string>& policies) {
    Workload workload = SampleTrace();
    SpreadEqualArrivals(workload);
    report.settings.command = "trace_replay --trace a<b>.jsonl";
    report.settings.workload = "a<b>.jsonl";
    report.settings.simulation.endpoints = 3;
    report.settings.simulation.engine.capacity_blocks = 1'500;
    const PromptMaker maker = MakePromptMaker();
    for (std::size_t i = 0; i < workload.size(); ++i) {
      bound.Add(workload[i], *maker.Make(i, workload[i]));
      report.output_tokens += workload[i].output.tokens;
    }
    for (const std::string& name : policies) {
      simulations.push_back(RunSimulation(workload, *MakePolicy(name), report.settings.simulation));
      report.results.push_back(&simulations.back()->result());
      report.summaries.push_back(Summarize(simulations.back()->result()));
    }
    report.bound = &bound;
  }
};

TEST(ReportTest, PercentilesAreNearestRank) {
  std::vector<double> values;
  for (int i = 200; i >= 1; --i) values.push_back(i);
  const Distribution d = Describe(values);
  EXPECT_EQ(d.mean, 100.5);
  EXPECT_EQ(d.p50, 100);
  EXPECT_EQ(d.p90, 180);
  EXPECT_EQ(d.p99, 198);
  std::vector<double> one = {7};
  EXPECT_EQ(Describe(one).p99, 7);
  std::vector<double> none;
  EXPECT_EQ(Describe(none).p50, 0);
}

TEST(ReportTest, SummariesAddUp) {
  PolicyResult result;
  result.requests = {{.endpoint = 0,
                      .arrival = 0,
                      .first_token = kSecond,
                      .finished = 2 * kSecond,
                      .prompt_tokens = 100,
                      .hit_tokens = 32,
                      .expected_tokens = 48,
                      .preemptions = 1},
                     {.endpoint = 1,
                      .arrival = kSecond,
                      .first_token = 4 * kSecond,
                      .finished = 9 * kSecond,
                      .prompt_tokens = 60,
                      .hit_tokens = 0,
                      .expected_tokens = 0,
                      .preemptions = 0}};
  result.endpoints.resize(2);
  result.endpoints[0].totals.busy = 3 * kSecond;
  result.endpoints[1].totals.busy = 1 * kSecond;
  result.endpoints[0].totals.prompt_tokens = 100;
  result.endpoints[1].totals.prompt_tokens = 60;
  const PolicySummary summary = Summarize(result);
  EXPECT_DOUBLE_EQ(summary.hits.token_rate(), 0.2);
  EXPECT_DOUBLE_EQ(summary.hits.block_rate(), 2.0 / 9);
  EXPECT_DOUBLE_EQ(summary.expected_token_rate, 0.3);
  EXPECT_DOUBLE_EQ(summary.ttft_s.mean, 2);
  EXPECT_DOUBLE_EQ(summary.busy_imbalance, 1.5);
  EXPECT_DOUBLE_EQ(summary.token_imbalance, 1.25);
  EXPECT_EQ(summary.preemptions, 1u);
  EXPECT_DOUBLE_EQ(summary.makespan_s, 9);
}

TEST(ReportTest, NoPolicyReusesMoreThanTheBound) {
  const Replayed replayed(PolicyNames());
  for (const PolicySummary& summary : replayed.report.summaries) {
    EXPECT_LE(summary.hits.hit_tokens, replayed.bound.engine_blocks().hit_tokens);
    EXPECT_EQ(summary.hits.tokens, replayed.bound.engine_blocks().tokens);
    EXPECT_EQ(summary.hits.blocks, replayed.bound.engine_blocks().blocks);
  }
}

TEST(ReportTest, JsonHasEveryPolicyAndWallFiguresOnlyWhenAsked) {
  Replayed replayed({"random", "exact"});
  const nlohmann::json json = nlohmann::json::parse(JsonReport(replayed.report));
  ASSERT_EQ(json["policies"].size(), 2u);
  EXPECT_EQ(json["requests"], 48);
  EXPECT_EQ(json["policies"][1]["policy"], "exact");
  EXPECT_EQ(json["policies"][1]["endpoints"].size(), 3u);
  EXPECT_TRUE(json["policies"][1].contains("kv_events"));
  EXPECT_FALSE(json["policies"][0].contains("kv_events"));
  EXPECT_THAT(json.dump(), Not(HasSubstr("wall_")));
  replayed.report.settings.timing = true;
  EXPECT_THAT(JsonReport(replayed.report), HasSubstr("wall_decision_p99_us"));
}

TEST(ReportTest, TextHasBoundsAndPolicies) {
  const Replayed replayed({"round-robin", "exact"});
  const std::string text = TextReport(replayed.report);
  for (const char* part :
       {"infinite cache", "512-token blocks", "round-robin", "exact-prefix 3, queue 2, kv 2"}) {
    EXPECT_THAT(text, HasSubstr(part));
  }
  EXPECT_THAT(WallText(replayed.report), HasSubstr("decisions/s"));
}

TEST(ReportTest, PageIsSelfContainedEscapedAndLabelled) {
  const Replayed replayed(PolicyNames());
  const std::string page = HtmlReport(replayed.report);
  for (const char* external : {"http:", "https:", "src=", "<script", "@import", "url("}) {
    EXPECT_THAT(page, Not(HasSubstr(external)));
  }
  EXPECT_THAT(page, Not(HasSubstr("a<b>")));
  EXPECT_THAT(page, HasSubstr("a&lt;b&gt;.jsonl"));
  for (const char* part :
       {"role=\"img\" aria-labelledby=\"hit-rate-title hit-rate-desc\"", "id=\"ttft-title\"",
        "id=\"load-desc\"", "prefers-color-scheme:dark", "infinite cache", "</html>"}) {
    EXPECT_THAT(page, HasSubstr(part));
  }
  EXPECT_THAT(page, Not(HasSubstr("nan")));
  EXPECT_THAT(page, Not(HasSubstr("inf,")));
  EXPECT_EQ(page, HtmlReport(replayed.report));
}

TEST(ReportTest, RatesOverTimeAverageToTheTotal) {
  const Replayed replayed({"exact"});
  const RateOverTime one = MakeRateOverTime(replayed.report, 1);
  EXPECT_DOUBLE_EQ(one.policy_rates[0][0], replayed.report.summaries[0].hits.token_rate());
  EXPECT_DOUBLE_EQ(one.bound_rates[0], replayed.bound.engine_blocks().token_rate());
  EXPECT_EQ(MakeRateOverTime(replayed.report, 40).time_s.size(), 40u);
}

TEST(SvgChartTest, DegenerateDataStillDraws) {
  LineChart line{.text = {"x", "t", "d"},
                 .x_label = "x",
                 .y_label = "y",
                 .log_x = true,
                 .series = {{"a", "s0", {2}, {1}}}};
  EXPECT_THAT(line.ToSvg(), Not(HasSubstr("nan")));
  line.series = {{"a", "s0", {}, {}}};
  line.label_ends = true;
  EXPECT_THAT(line.ToSvg(), Not(HasSubstr("nan")));
  const BarRows bars{.text = {"b", "t", "d"},
                     .solid_unit = "",
                     .pale_unit = "",
                     .bar_name = "endpoint",
                     .rows = {{"a", "s0", "", {0, 0}, {0, 0}}}};
  EXPECT_THAT(bars.ToSvg(), Not(HasSubstr("nan")));
}

}  // namespace
}  // namespace llmd::replay
