#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "examples/trace_replay/report.h"
#include "examples/trace_replay/svg_chart.h"

namespace llmd::replay {
namespace {

constexpr std::size_t kStyles = 8;  // s0 .. s7 below
constexpr std::size_t kSlices = 40;

// Colours differ in lightness as well as in hue, and lines in their dashes, so that they can be told apart
// without colour.
constexpr char kStyle[] = R"css(
:root{color-scheme:light dark;--page:#f9f9f7;--card:#fff;--ink:#16161a;--soft:#5a5a60;--grid:#e4e4df;
--edge:#d6d6d0;
--s0:#8a8a86;--s1:#b87400;--s2:#6b4fc4;--s3:#d1447f;--s4:#1769c9;--s5:#0b8a5f;--s6:#c4452c;--s7:#3d4a5c}
@media(prefers-color-scheme:dark){:root{--page:#131316;--card:#1c1c20;--ink:#f1f1ee;--soft:#a9a9ae;
--grid:#2e2e34;
--edge:#3a3a41;--s0:#9b9b98;--s1:#e2a13a;--s2:#a48df2;--s3:#f07bab;--s4:#5aa2f5;--s5:#3cc492;--s6:#f0795f;
--s7:#b9c4d6}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1060px;margin:0 auto;padding:32px 20px 56px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:18px;margin:0 0 2px}
p{margin:0 0 12px;color:var(--soft)}p.lead{font-size:16px;color:var(--ink);margin:10px 0 22px;max-width:80ch}
section{background:var(--card);border:1px solid var(--edge);border-radius:10px;padding:20px 22px;
margin:0 0 20px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:7px 8px;text-align:right;border-bottom:1px solid var(--grid);white-space:nowrap}
th{font-weight:600;color:var(--soft);font-size:13px}
tbody th,td.text,th.text{text-align:left;color:var(--ink)}tbody th{font-size:15px}
td.text{white-space:normal;color:var(--soft)}
tr.bound td,tr.bound th{color:var(--soft);font-weight:400;font-style:italic}
table.settings th,table.settings td{text-align:left;white-space:normal;vertical-align:top}
pre{background:var(--page);border:1px solid var(--edge);border-radius:6px;padding:10px 12px;overflow-x:auto;
margin:0 0 14px;
font:13px/1.5 ui-monospace,Menlo,Consolas,monospace}
ul.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 20px;margin:6px 0 10px;padding:0;font-size:14px}
ul.legend svg{width:34px;height:10px;display:inline-block;vertical-align:middle;margin-right:7px}
svg{display:block;width:100%;height:auto}
svg text{font:12.5px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--soft)}
svg text.name{fill:var(--ink);font-size:14px}
svg .grid{stroke:var(--grid);stroke-width:1}
svg .base{stroke:var(--edge);stroke-width:1}
svg .mean{stroke:var(--ink);stroke-width:1.2;stroke-dasharray:3 3}
svg .line{fill:none;stroke:var(--c);stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round}
svg .line.ref{stroke-width:1.6}
svg .bar{fill:var(--c)}svg .bar.pale{opacity:.38}svg text.end{fill:var(--c);font-weight:600}
svg .hover circle{fill:transparent;pointer-events:all}svg .hover circle:hover{fill:var(--c)}
.s0{--c:var(--s0)}.s1{--c:var(--s1)}.s2{--c:var(--s2)}.s3{--c:var(--s3)}
.s4{--c:var(--s4)}.s5{--c:var(--s5)}.s6{--c:var(--s6)}.s7{--c:var(--s7)}.ref{--c:var(--ink)}
svg .line.s0{stroke-dasharray:1 4.5}svg .line.s1{stroke-dasharray:7 4}svg .line.s2{stroke-dasharray:9 3 1.5 3}
svg .line.s3{stroke-dasharray:14 4}svg .line.s6{stroke-dasharray:4 4}svg .line.ref{stroke-dasharray:2 4}
@media print{section{break-inside:avoid}}
)css";

std::string CssClass(std::size_t policy) { return absl::StrCat("s", policy % kStyles); }

std::string Percent(double rate) { return absl::StrFormat("%.1f %%", 100 * rate); }
// At least three digits, never more than milliseconds.
std::string Time(double s) {
  return s < 1 ? absl::StrFormat("%.0f ms", 1e3 * s) : absl::StrFormat("%.2f s", s);
}

std::string Lead(const Report& report) {
  std::size_t best = 0, fastest = 0;
  for (std::size_t i = 1; i < report.summaries.size(); ++i) {
    if (report.summaries[i].hits.token_rate() > report.summaries[best].hits.token_rate()) best = i;
    if (report.summaries[i].ttft_s.p90 < report.summaries[fastest].ttft_s.p90) fastest = i;
  }
  const double rate = report.summaries[best].hits.token_rate();
  const double bound = report.bound->engine_blocks().token_rate();
  return absl::StrFormat(
      "Most reuse: %s, with %s of prompt tokens from cache, %s of what a cache without limit could give. "
      "Shortest waits: "
      "%s, with nine of ten first tokens within %s.",
      report.results[best]->policy, Percent(rate), bound > 0 ? Percent(rate / bound) : "all",
      report.results[fastest]->policy, Time(report.summaries[fastest].ttft_s.p90));
}

std::string Legend(const Report& report, bool with_bound) {
  std::string out = "<ul class=\"legend\" aria-hidden=\"true\">";
  const auto add = [&](const std::string& css, const std::string& name) {
    absl::StrAppend(&out, "<li><svg viewBox=\"0 0 34 10\"><line class=\"line ", css,
                    "\" x1=\"1\" y1=\"5\" x2=\"33\" y2=\"5\"/></svg>", EscapeHtml(name), "</li>");
  };
  for (std::size_t i = 0; i < report.results.size(); ++i) add(CssClass(i), report.results[i]->policy);
  if (with_bound) add("ref", "infinite cache");
  return out + "</ul>\n";
}

std::string ResultsTable(const Report& report) {
  const HitCount& bound = report.bound->engine_blocks();
  std::string out =
      "<div class=\"scroll\"><table><thead><tr><th class=\"text\" scope=\"col\">policy</th>"
      "<th scope=\"col\">block hits</th><th scope=\"col\">token hits</th><th scope=\"col\">of bound</th><th "
      "scope=\"col\">promised</th>"
      "<th scope=\"col\">TTFT mean</th><th scope=\"col\">p50</th><th scope=\"col\">p90</th><th "
      "scope=\"col\">p99</th>"
      "<th scope=\"col\">busy</th><th scope=\"col\">tokens</th><th scope=\"col\">preempted</th>";
  if (report.settings.timing) {
    out += "<th scope=\"col\">decisions/s</th><th scope=\"col\">p50</th><th scope=\"col\">p99</th>";
  }
  out += "</tr></thead><tbody>\n";
  for (std::size_t i = 0; i < report.results.size(); ++i) {
    const PolicySummary& s = report.summaries[i];
    absl::StrAppend(&out, "<tr><th scope=\"row\">", EscapeHtml(report.results[i]->policy), "</th>");
    for (const std::string& cell :
         {Percent(s.hits.block_rate()), Percent(s.hits.token_rate()),
          bound.hit_tokens > 0 ? Percent(s.hits.token_rate() / bound.token_rate()) : "-",
          report.results[i]->has_expectation ? Percent(s.expected_token_rate) : "-", Time(s.ttft_s.mean),
          Time(s.ttft_s.p50), Time(s.ttft_s.p90), Time(s.ttft_s.p99),
          absl::StrFormat("%.2f", s.busy_imbalance), absl::StrFormat("%.2f", s.token_imbalance),
          WithCommas(s.preemptions)}) {
      absl::StrAppend(&out, "<td>", cell, "</td>");
    }
    if (report.settings.timing) {
      absl::StrAppendFormat(&out, "<td>%s</td><td>%.1f us</td><td>%.1f us</td>",
                            WithCommas(static_cast<std::uint64_t>(s.wall.decisions_per_s)),
                            s.wall.decision_p50_us, s.wall.decision_p99_us);
    }
    out += "</tr>\n";
  }
  absl::StrAppend(&out, "<tr class=\"bound\"><th scope=\"row\">infinite cache</th><td>",
                  Percent(bound.block_rate()), "</td><td>", Percent(bound.token_rate()),
                  "</td><td>100.0 %</td><td colspan=\"", report.settings.timing ? 11 : 8,
                  "\"></td></tr>\n</tbody></table></div>\n");
  return out;
}

std::string HitRateChart(const Report& report) {
  const RateOverTime rates = MakeRateOverTime(report, kSlices);
  LineChart chart;
  chart.text = {
      "hit-rate", "Prompt tokens served from cache, over time",
      "One line for each policy and one for a cache without limit. Averages are in the table above."};
  chart.x_label = "time of arrival, s";
  chart.y_label = "token hit rate";
  chart.label_ends = true;
  double max = 0.05;
  chart.series.push_back({"infinite cache", "ref", rates.time_s, rates.bound_rates});
  for (std::size_t i = 0; i < report.results.size(); ++i) {
    chart.series.push_back({report.results[i]->policy, CssClass(i), rates.time_s, rates.policy_rates[i]});
  }
  for (const Series& series : chart.series)
    max = std::max(max, *std::max_element(series.y.begin(), series.y.end()));
  chart.y_max = std::min(1.0, std::ceil(max * 10) / 10);
  return chart.ToSvg();
}

std::string TtftChart(const Report& report) {
  LineChart chart;
  chart.text = {
      "ttft", "Distribution of the time to first token",
      "One line for each policy: the share of requests whose first token came within a time. Percentiles are "
      "in the table above."};
  chart.x_label = "time to first token, s (logarithmic)";
  chart.y_label = "share of requests";
  chart.log_x = true;
  for (std::size_t i = 0; i < report.results.size(); ++i) {
    std::vector<double> sorted;
    for (const RequestResult& r : report.results[i]->requests)
      sorted.push_back(Seconds(r.first_token - r.arrival));
    std::sort(sorted.begin(), sorted.end());
    Series series{report.results[i]->policy, CssClass(i), {}, {}};
    constexpr std::size_t kPoints = 200;
    for (std::size_t p = 1; p <= kPoints; ++p) {
      series.x.push_back(sorted[(sorted.size() * p + kPoints - 1) / kPoints - 1]);
      series.y.push_back(static_cast<double>(p) / kPoints);
    }
    chart.series.push_back(std::move(series));
  }
  return chart.ToSvg();
}

std::string LoadChart(const Report& report) {
  BarRows chart;
  chart.text = {
      "load", "Tokens of each endpoint",
      "A row of bars for each policy, one bar for each endpoint: millions of tokens computed and, on top, of "
      "tokens reused from cache; the dashed line is their mean."};
  chart.solid_unit = "M tokens computed";
  chart.pale_unit = "M reused";
  chart.bar_name = "endpoint";
  for (std::size_t i = 0; i < report.results.size(); ++i) {
    BarRows::Row row{report.results[i]->policy, CssClass(i), {}, {}, {}};
    for (const EndpointResult& endpoint : report.results[i]->endpoints) {
      const EngineTotals& t = endpoint.totals;
      row.solid.push_back(static_cast<double>(t.prompt_tokens + t.output_tokens - t.hit_tokens) * 1e-6);
      row.pale.push_back(static_cast<double>(t.hit_tokens) * 1e-6);
    }
    row.note = absl::StrFormat("max / mean: %.2f, busy %.2f", report.summaries[i].token_imbalance,
                               report.summaries[i].busy_imbalance);
    chart.rows.push_back(std::move(row));
  }
  return chart.ToSvg();
}

std::string SettingsTable(const Report& report) {
  std::string out = "<table class=\"settings\"><tbody>\n";
  const auto add = [&](const std::string& name, const std::string& value) {
    absl::StrAppend(&out, "<tr><th scope=\"row\">", EscapeHtml(name), "</th><td>", EscapeHtml(value),
                    "</td></tr>\n");
  };
  for (const auto& [name, value] : DescribeSettings(report)) add(name, value);
  for (const PolicyResult* result : report.results)
    add(absl::StrCat("policy ", result->policy), result->description);
  return out + "</tbody></table>\n";
}

}  // namespace

std::string HtmlReport(const Report& report) {
  std::string out = absl::StrCat(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<title>Trace replay: ",
      EscapeHtml(report.settings.workload), "</title>\n<style>", kStyle,
      "</style>\n</head>\n<body>\n<main>\n");
  absl::StrAppend(&out, "<h1>Trace replay</h1>\n<p>", EscapeHtml(DescribeSettings(report).front().second),
                  "; ", report.settings.simulation.endpoints, " endpoints</p>\n<p class=\"lead\">",
                  EscapeHtml(Lead(report)), "</p>\n");
  absl::StrAppend(
      &out,
      "<section aria-labelledby=\"h-results\"><h2 id=\"h-results\">Results</h2>\n"
      "<p>Hit rates are what the simulated block pools reused, in 16-token blocks. Promised is what the "
      "index expected of the chosen endpoints. TTFT is the time to "
      "first token. Busy and tokens tell the imbalance: the busiest endpoint over the mean, by time in steps "
      "and by "
      "tokens routed there.</p>\n",
      ResultsTable(report), "</section>\n");
  absl::StrAppend(
      &out,
      "<section><h2>Hit rate over time</h2>\n<p>Share of prompt tokens served from cache, by time of "
      "arrival.</p>\n",
      Legend(report, true), HitRateChart(report), "</section>\n");
  absl::StrAppend(
      &out,
      "<section><h2>Time to first token</h2>\n<p>Share of requests whose first token came within a "
      "time; further left is better.</p>\n",
      Legend(report, false), TtftChart(report), "</section>\n");
  absl::StrAppend(
      &out,
      "<section><h2>Load of each endpoint</h2>\n<p>Tokens of the requests routed there: computed (solid) and "
      "reused from cache (pale). The dashed line is the mean of the row.</p>\n",
      LoadChart(report), "</section>\n");
  absl::StrAppend(&out, "<section><h2>Command and configuration</h2>\n<pre>",
                  EscapeHtml(report.settings.command), "</pre>\n", SettingsTable(report),
                  "</section>\n</main>\n</body>\n</html>\n");
  return out;
}

}  // namespace llmd::replay
