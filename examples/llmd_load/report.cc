#include "examples/llmd_load/report.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

namespace llmd::load {
namespace {

constexpr std::size_t kTrendRequests = 3;  // at the beginning and end of a session

double At(const std::vector<double>& sorted, double q) {
  return sorted[static_cast<std::size_t>(q * static_cast<double>(sorted.size() - 1) + 0.5)];
}

std::vector<Stickiness> StickinessOf(const std::vector<RequestRecord>& records) {
  std::map<std::string, std::map<std::string, std::size_t>> hosts;
  for (const RequestRecord& record : records) {
    if (!record.session.empty() && !record.upstream.empty()) ++hosts[record.session][record.upstream];
  }
  std::vector<Stickiness> out;
  for (const auto& [session, counts] : hosts) {
    Stickiness& sticky = out.emplace_back();
    sticky.session = session;
    std::size_t most = 0;
    for (const auto& [host, count] : counts) {
      sticky.requests += count;
      if (count > most) {
        most = count;
        sticky.top = host;
      }
    }
    sticky.share = static_cast<double>(most) / static_cast<double>(sticky.requests);
  }
  return out;
}

// The mean time to the first token at both ends of sessions.
void Trend(const std::vector<RequestRecord>& records, Report& report) {
  std::map<std::string, std::vector<const RequestRecord*>> sessions;
  for (const RequestRecord& record : records) {
    if (!record.session.empty() && record.ok() && record.first_token)
      sessions[record.session].push_back(&record);
  }
  double first = 0, last = 0;
  std::size_t count = 0;
  for (auto& [session, of] : sessions) {
    if (of.size() < 2 * kTrendRequests) continue;
    std::sort(of.begin(), of.end(), [](auto* a, auto* b) { return a->sent < b->sent; });
    for (std::size_t i = 0; i < kTrendRequests; ++i) {
      const RequestRecord &early = *of[i], &late = *of[of.size() - 1 - i];
      first += *early.first_token - early.sent;
      last += *late.first_token - late.sent;
      ++count;
    }
  }
  if (count == 0) return;
  report.ttft_first3_ms = first / static_cast<double>(count) * 1e3;
  report.ttft_last3_ms = last / static_cast<double>(count) * 1e3;
}

Verdict Judge(std::string name, const Criterion& criterion, std::optional<double> value) {
  Verdict verdict{std::move(name), *criterion.limit, value, Verdict::State::kPass, criterion.required};
  if (!value) {
    verdict.state = Verdict::State::kNotMeasured;
  } else if (*value < *criterion.limit - 1e-12) {
    verdict.state = Verdict::State::kMissed;
  }
  return verdict;
}

}  // namespace

Summary Summarize(std::vector<double> samples) {
  Summary summary;
  if (samples.empty()) return summary;
  std::sort(samples.begin(), samples.end());
  summary.count = samples.size();
  summary.mean = std::accumulate(samples.begin(), samples.end(), 0.0) / static_cast<double>(samples.size());
  summary.p50 = At(samples, 0.5);
  summary.p90 = At(samples, 0.9);
  summary.p99 = At(samples, 0.99);
  summary.max = samples.back();
  return summary;
}

std::vector<WorkerDelta> Delta(const std::vector<WorkerCounters>& before,
                               const std::vector<WorkerCounters>& after) {
  std::vector<WorkerDelta> out;
  for (const WorkerCounters& now : after) {
    if (!now.queries || !now.hits) continue;
    WorkerDelta& delta = out.emplace_back();
    delta.worker = now.worker;
    double queries = 0, hits = 0;
    for (const WorkerCounters& then : before) {
      if (then.worker != now.worker) continue;
      queries = then.queries.value_or(0);
      hits = then.hits.value_or(0);
    }
    delta.restarted = *now.queries < queries || *now.hits < hits;
    delta.queries = delta.restarted ? *now.queries : *now.queries - queries;
    delta.hits = delta.restarted ? *now.hits : *now.hits - hits;
  }
  return out;
}

Report MakeReport(const RunResult& result, const Sources& sources, const Criteria& criteria) {
  Report report;
  report.requests = result.records.size();
  report.seconds = result.seconds;
  report.most_in_flight = result.most_in_flight;
  report.interrupted = result.interrupted;
  std::vector<double> ttft, total, due, late;
  for (const RequestRecord& record : result.records) {
    late.push_back((record.sent - record.due) * 1e3);
    if (!record.upstream.empty()) ++report.upstreams[record.upstream];
    if (!record.ok()) {
      ++report.errors[record.error];
      if (!record.reason.empty()) ++report.refusal_reasons[record.reason];
      continue;
    }
    ++report.succeeded;
    total.push_back((record.end - record.sent) * 1e3);
    if (record.first_token) {
      ttft.push_back((*record.first_token - record.sent) * 1e3);
      due.push_back((*record.first_token - record.due) * 1e3);
    }
    if (!record.has_usage) continue;
    ++report.with_usage;
    report.prompt_tokens += record.prompt_tokens;
    report.completion_tokens += record.completion_tokens;
    report.cached_tokens += record.cached_tokens;
  }
  if (report.seconds > 0) report.requests_per_s = static_cast<double>(report.succeeded) / report.seconds;
  report.ttft_ms = Summarize(std::move(ttft));
  report.total_ms = Summarize(std::move(total));
  report.ttft_from_due_ms = Summarize(std::move(due));
  report.late_ms = Summarize(std::move(late));
  report.gap_ms = Summarize({result.gaps_ms.begin(), result.gaps_ms.end()});
  Trend(result.records, report);

  report.workers = sources.workers;
  double queries = 0, hits = 0, most = 0;
  for (const WorkerDelta& worker : sources.workers) {
    queries += worker.queries;
    hits += worker.hits;
    most = std::max(most, worker.queries);
  }
  if (queries > 0 && sources.complete) {
    report.hit_rate = hits / queries;
    report.hit_rate_source = sources.name;
  } else if (sources.workers.empty() && report.cached_tokens > 0) {
    report.hit_rate = static_cast<double>(report.cached_tokens) / static_cast<double>(report.prompt_tokens);
    report.hit_rate_source = "usage";
  }
  report.sessions = StickinessOf(result.records);
  if (!report.sessions.empty()) {
    report.stickiness_source = "headers";
    report.stickiness = 1;
    for (const Stickiness& session : report.sessions) {
      report.stickiness = std::min(*report.stickiness, session.share);
    }
  } else if (queries > 0 && sources.complete) {
    std::string only;
    bool one = true;
    for (const RequestRecord& record : result.records) {
      if (only.empty()) only = record.session;
      one &= !record.session.empty() && record.session == only;
    }
    if (one) {
      report.stickiness_source = "metrics";
      report.stickiness = most / queries;
    }
  }

  if (report.requests > 0) {
    Verdict errors{"error_rate", criteria.max_error_rate, {}, Verdict::State::kPass, true};
    errors.value =
        static_cast<double>(report.requests - report.succeeded) / static_cast<double>(report.requests);
    if (*errors.value > criteria.max_error_rate) errors.state = Verdict::State::kMissed;
    report.verdicts.push_back(errors);
  }
  if (criteria.min_hit_rate.limit) {
    report.verdicts.push_back(Judge("hit_rate", criteria.min_hit_rate, report.hit_rate));
  }
  if (criteria.min_stickiness.limit) {
    report.verdicts.push_back(Judge("stickiness", criteria.min_stickiness, report.stickiness));
  }
  return report;
}

int Report::exit_code() const {
  if (succeeded == 0) return 2;
  int code = interrupted ? 2 : 0;
  for (const Verdict& verdict : verdicts) {
    if (verdict.state == Verdict::State::kMissed) return 1;
    if (verdict.state == Verdict::State::kNotMeasured && verdict.required) code = 2;
  }
  return code;
}

}  // namespace llmd::load
