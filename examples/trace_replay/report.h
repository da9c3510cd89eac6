// What is reported of a replay: figures of each policy, and three ways to print them.
//
// The text and JSON forms and the page depend on the requests, options and seed alone. Figures of this
// machine's speed (WallSummary) appear only where they are asked for.
#ifndef LLMD_EXAMPLES_TRACE_REPLAY_REPORT_H_
#define LLMD_EXAMPLES_TRACE_REPLAY_REPORT_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "examples/trace_replay/bound.h"
#include "examples/trace_replay/simulation.h"
#include "examples/trace_replay/workload.h"

namespace llmd::replay {

// Nearest-rank percentiles.
struct Distribution {
  double mean = 0;
  double p50 = 0;
  double p90 = 0;
  double p99 = 0;
};
// Sorts `values`.
Distribution Describe(std::vector<double>& values);

struct WallSummary {
  double decisions_per_s = 0;  // 1 / mean time of a decision
  double decision_p50_us = 0;
  double decision_p99_us = 0;
};

struct PolicySummary {
  HitCount hits;  // of the engines' pools, rules of InfiniteCache::engine_blocks()
  // Tokens that the index promised at the chosen endpoints, as a share of prompt tokens; for policies with an
  // index.
  double expected_token_rate = 0;
  Distribution ttft_s;         // arrival to the end of the step that gives the first token
  double busy_imbalance = 0;   // busiest endpoint / mean, by time in steps
  double token_imbalance = 0;  // the same by prompt and output tokens of the requests routed there
  std::uint64_t preemptions = 0;
  double makespan_s = 0;  // until the last token
  WallSummary wall;
};

PolicySummary Summarize(const PolicyResult& result);

struct ReportSettings {
  std::string command;
  std::string workload;  // where the requests come from
  double speed = 1;
  std::size_t skipped_lines = 0;
  bool timing = false;  // with WallSummary
  SimulationOptions simulation;
};

struct Report {
  ReportSettings settings;
  std::uint64_t output_tokens = 0;
  const InfiniteCache* bound = nullptr;
  std::vector<const PolicyResult*> results;
  std::vector<PolicySummary> summaries;  // of results

  std::size_t num_requests() const { return bound->hit_tokens().size(); }
  double span_s() const { return Seconds(results.front()->requests.back().arrival); }
};

// Token hit rate in equal slices of the time of arrival; the last point of a slice without requests is kept.
struct RateOverTime {
  std::vector<double> time_s;                     // middle of each slice
  std::vector<std::vector<double>> policy_rates;  // [policy][slice], 0..1
  std::vector<double> bound_rates;
};
RateOverTime MakeRateOverTime(const Report& report, std::size_t slices);

std::string TextReport(const Report& report);
std::string WallText(const Report& report);
std::string JsonReport(const Report& report);
// One page, complete in itself.
std::string HtmlReport(const Report& report);

// Settings as (name, value) for people; shared by the text and the page.
std::vector<std::pair<std::string, std::string>> DescribeSettings(const Report& report);
// The greatest of `values` over their mean; 1 when all are 0.
double MaxOverMean(const std::vector<double>& values);
// 1234567 -> "1,234,567".
std::string WithCommas(std::uint64_t value);

}  // namespace llmd::replay

#endif  // LLMD_EXAMPLES_TRACE_REPLAY_REPORT_H_
