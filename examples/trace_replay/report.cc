#include "examples/trace_replay/report.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace llmd::replay {

double MaxOverMean(const std::vector<double>& values) {
  double sum = 0, max = 0;
  for (const double v : values) {
    sum += v;
    max = std::max(max, v);
  }
  return sum > 0 ? max * static_cast<double>(values.size()) / sum : 1;
}

Distribution Describe(std::vector<double>& values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  double sum = 0;
  for (const double v : values) sum += v;
  const auto rank = [&](std::size_t percent) { return values[(values.size() * percent + 99) / 100 - 1]; };
  return {sum / static_cast<double>(values.size()), rank(50), rank(90), rank(99)};
}

PolicySummary Summarize(const PolicyResult& result) {
  PolicySummary summary;
  std::vector<double> ttft;
  std::uint64_t expected = 0;
  Nanos last = 0;
  for (const RequestResult& request : result.requests) {
    summary.hits.hit_tokens += request.hit_tokens;
    summary.hits.tokens += request.prompt_tokens;
    summary.hits.hit_blocks += request.hit_tokens / kBlockTokens;
    summary.hits.blocks += request.prompt_tokens / kBlockTokens;
    summary.preemptions += request.preemptions;
    expected += request.expected_tokens;
    ttft.push_back(Seconds(request.first_token - request.arrival));
    last = std::max(last, request.finished);
  }
  summary.ttft_s = Describe(ttft);
  summary.makespan_s = Seconds(last);
  if (summary.hits.tokens > 0) {
    summary.expected_token_rate = static_cast<double>(expected) / static_cast<double>(summary.hits.tokens);
  }
  std::vector<double> busy, tokens;
  for (const EndpointResult& endpoint : result.endpoints) {
    busy.push_back(Seconds(endpoint.totals.busy));
    tokens.push_back(static_cast<double>(endpoint.totals.prompt_tokens + endpoint.totals.output_tokens));
  }
  summary.busy_imbalance = MaxOverMean(busy);
  summary.token_imbalance = MaxOverMean(tokens);

  std::vector<double> wall_us;
  for (const std::uint32_t ns : result.wall.decision_ns) wall_us.push_back(ns * 1e-3);
  const Distribution wall = Describe(wall_us);
  summary.wall = {wall.mean > 0 ? 1e6 / wall.mean : 0, wall.p50, wall.p99};
  return summary;
}

RateOverTime MakeRateOverTime(const Report& report, std::size_t slices) {
  RateOverTime out;
  const auto span = static_cast<double>(report.results.front()->requests.back().arrival) + 1;
  for (std::size_t i = 0; i < slices; ++i) {
    out.time_s.push_back(span * 1e-9 * (static_cast<double>(i) + 0.5) / static_cast<double>(slices));
  }
  const auto rates = [&](const auto& hit_tokens) {
    std::vector<double> hits(slices), tokens(slices), rate(slices);
    const std::vector<RequestResult>& requests = report.results.front()->requests;
    for (std::size_t i = 0; i < requests.size(); ++i) {
      const double at = static_cast<double>(requests[i].arrival) / span * static_cast<double>(slices);
      const std::size_t slice = std::min(static_cast<std::size_t>(at), slices - 1);
      hits[slice] += hit_tokens(i);
      tokens[slice] += requests[i].prompt_tokens;
    }
    for (std::size_t s = 0; s < slices; ++s) {
      rate[s] = tokens[s] > 0 ? hits[s] / tokens[s] : s > 0 ? rate[s - 1] : 0;
    }
    return rate;
  };
  for (const PolicyResult* result : report.results) {
    out.policy_rates.push_back(
        rates([&](std::size_t i) { return double{1} * result->requests[i].hit_tokens; }));
  }
  out.bound_rates = rates([&](std::size_t i) { return double{1} * report.bound->hit_tokens()[i]; });
  return out;
}

std::string WithCommas(std::uint64_t value) {
  const std::string digits = absl::StrCat(value);
  std::string text;
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

std::vector<std::pair<std::string, std::string>> DescribeSettings(const Report& report) {
  const ReportSettings& settings = report.settings;
  const EngineOptions& engine = settings.simulation.engine;
  const LatencyModel& latency = engine.latency;
  const HitCount& hits = report.bound->engine_blocks();
  const std::size_t n = report.num_requests();
  const auto mean = [n](std::uint64_t sum) { return WithCommas((sum + n / 2) / n); };
  std::string workload =
      absl::StrFormat("%s: %s requests in %.0f s, mean %s prompt + %s output tokens", settings.workload,
                      WithCommas(n), report.span_s(), mean(hits.tokens), mean(report.output_tokens));
  if (settings.speed != 1) absl::StrAppend(&workload, ", arrivals ", settings.speed, " x as fast");
  if (settings.skipped_lines > 0)
    absl::StrAppend(&workload, ", ", settings.skipped_lines, " bad lines skipped");

  std::vector<std::pair<std::string, std::string>> rows = {
      {"workload", workload},
      {"endpoints",
       absl::StrFormat("%d, each %s blocks of %d tokens (%s tokens)", settings.simulation.endpoints,
                       WithCommas(engine.capacity_blocks), kBlockTokens,
                       WithCommas(std::uint64_t{engine.capacity_blocks} * kBlockTokens))},
      {"engine",
       absl::StrFormat("prefill %s tokens/s, weights %.2f ms, attention %.3f ns/pair, KV read %.1f ns/token, "
                       "at most %d running and %s tokens a step",
                       WithCommas(static_cast<std::uint64_t>(latency.prefill_tokens_per_s)),
                       latency.weight_read_ms, latency.attention_ns, latency.kv_read_ns, engine.max_running,
                       WithCommas(engine.max_batched_tokens))},
      {"router", absl::StrFormat("metrics scraped every %d ms, seed %d",
                                 settings.simulation.scrape_interval / 1'000'000, settings.simulation.seed)},
      {"bound", absl::StrFormat("infinite cache: %.2f %% of full 16-token blocks, %.2f %% of tokens",
                                100 * hits.block_rate(), 100 * hits.token_rate())}};
  if (const HitCount& trace = report.bound->trace_blocks(); trace.blocks > 0) {
    rows.emplace_back(
        "trace bound",
        absl::StrFormat("infinite cache, in the trace's own 512-token blocks: %.2f %% of blocks, "
                        "%.2f %% of tokens",
                        100 * trace.block_rate(), 100 * trace.token_rate()));
  }
  return rows;
}

}  // namespace llmd::replay
