#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "examples/trace_replay/report.h"

namespace llmd::replay {

std::string TextReport(const Report& report) {
  std::string out;
  for (const auto& [name, value] : DescribeSettings(report))
    absl::StrAppendFormat(&out, "%-12s %s\n", name, value);
  const double bound = report.bound->engine_blocks().token_rate();
  out += "\n";
  absl::StrAppendFormat(&out, "%-12s  %15s  %8s  %8s  %-31s  %15s  %9s\n", "", "hit rate %", "promised",
                        "of bound", "    time to first token, s", "imbalance", "preempted");
  absl::StrAppendFormat(&out, "%-12s  %7s %7s  %8s  %8s  %7s %7s %7s %7s  %7s %7s  %9s\n", "policy", "blocks",
                        "tokens", "tokens %", "%", "mean", "p50", "p90", "p99", "busy", "tokens", "");
  for (std::size_t i = 0; i < report.results.size(); ++i) {
    const PolicySummary& s = report.summaries[i];
    const std::string promised =
        report.results[i]->has_expectation ? absl::StrFormat("%.2f", 100 * s.expected_token_rate) : "-";
    absl::StrAppendFormat(&out, "%-12s  %7.2f %7.2f  %8s  %8.1f  %7.3f %7.3f %7.3f %7.3f  %7.3f %7.3f  %9d\n",
                          report.results[i]->policy, 100 * s.hits.block_rate(), 100 * s.hits.token_rate(),
                          promised, bound > 0 ? 100 * s.hits.token_rate() / bound : 0, s.ttft_s.mean,
                          s.ttft_s.p50, s.ttft_s.p90, s.ttft_s.p99, s.busy_imbalance, s.token_imbalance,
                          s.preemptions);
  }
  out += "\n";
  for (const PolicyResult* result : report.results) {
    absl::StrAppendFormat(&out, "%-12s %s\n", result->policy, result->description);
  }
  out +=
      "Promised: what the index expected of the chosen endpoints, as a share of prompt tokens.\n"
      "Imbalance: busiest endpoint / mean, by time in steps and by tokens of the requests routed there.\n"
      "Hit rates: what the simulated block pools reused, of full 16-token prompt blocks and of prompt "
      "tokens.\n";
  return out;
}

std::string WallText(const Report& report) {
  std::string out = absl::StrFormat("%-12s  %12s  %8s  %8s   (this machine)\n", "wall clock", "decisions/s",
                                    "p50 us", "p99 us");
  for (std::size_t i = 0; i < report.results.size(); ++i) {
    const WallSummary& wall = report.summaries[i].wall;
    absl::StrAppendFormat(&out, "%-12s  %12s  %8.2f  %8.2f\n", report.results[i]->policy,
                          WithCommas(static_cast<std::uint64_t>(wall.decisions_per_s)), wall.decision_p50_us,
                          wall.decision_p99_us);
  }
  return out;
}

}  // namespace llmd::replay
