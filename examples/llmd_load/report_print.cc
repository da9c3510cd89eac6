#include <algorithm>
#include <cstdio>
#include <string>

#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "examples/llmd_load/report.h"

namespace llmd::load {
namespace {

using nlohmann::ordered_json;

constexpr std::size_t kSessionsShown = 10;

const char* Name(Verdict::State state) {
  switch (state) {
    case Verdict::State::kPass:
      return "pass";
    case Verdict::State::kMissed:
      return "missed";
    case Verdict::State::kNotMeasured:
      return "not measured";
  }
  return "?";
}

ordered_json Json(const Summary& summary) {
  return {{"count", summary.count}, {"mean", summary.mean}, {"p50", summary.p50},
          {"p90", summary.p90},     {"p99", summary.p99},   {"max", summary.max}};
}

ordered_json Json(const std::optional<double>& value) {
  return value ? ordered_json(*value) : ordered_json();
}

std::string Percent(const std::optional<double>& value) {
  return value ? absl::StrFormat("%.1f %%", *value * 100) : "-";
}

}  // namespace

void PrintTable(const Report& report, std::ostream& out) {
  out << absl::StrFormat("%d requests in %.1f s, %d well (%.1f a second), at most %d at a time%s\n",
                         report.requests, report.seconds, report.succeeded, report.requests_per_s,
                         report.most_in_flight, report.interrupted ? ", interrupted" : "");
  for (const auto& [kind, count] : report.errors) out << absl::StrFormat("  error %-20s %d\n", kind, count);
  for (const auto& [reason, count] : report.refusal_reasons) {
    out << absl::StrFormat("  refused, %-17s %d\n", reason, count);
  }
  out << absl::StrFormat("\n%-26s %10s %10s %10s %10s %10s\n", "milliseconds", "mean", "p50", "p90", "p99",
                         "max");
  const auto row = [&](const char* name, const Summary& of) {
    if (of.count == 0) return;
    out << absl::StrFormat("%-26s %10.1f %10.1f %10.1f %10.1f %10.1f\n", name, of.mean, of.p50, of.p90,
                           of.p99, of.max);
  };
  row("time to first token", report.ttft_ms);
  row("  from when it was due", report.ttft_from_due_ms);
  row("between tokens", report.gap_ms);
  row("whole request", report.total_ms);
  row("sent late by", report.late_ms);
  if (report.ttft_first3_ms) {
    out << absl::StrFormat("first token, sessions' first 3 requests %.1f ms, last 3 %.1f ms\n",
                           *report.ttft_first3_ms, *report.ttft_last3_ms);
  }
  if (report.with_usage > 0) {
    out << absl::StrFormat("tokens: %d prompt, of these %d cached, %d generated\n", report.prompt_tokens,
                           report.cached_tokens, report.completion_tokens);
  }
  if (!report.upstreams.empty() || !report.workers.empty()) {
    out << absl::StrFormat("\n%-26s %10s %10s %12s %12s %9s\n", "worker", "requests", "share", "queried",
                           "hit tokens", "hit rate");
    std::size_t all = 0;
    for (const auto& [host, count] : report.upstreams) all += count;
    const auto line = [&](const std::string& host, std::size_t count, const WorkerDelta* delta) {
      out << absl::StrFormat("%-26s %10d %10s", host, count,
                             all == 0 ? "-" : Percent(static_cast<double>(count) / static_cast<double>(all)));
      if (delta) {
        out << absl::StrFormat(" %12.0f %12.0f %9s%s", delta->queries, delta->hits,
                               delta->queries > 0 ? Percent(delta->hits / delta->queries) : "-",
                               delta->restarted ? "  restarted" : "");
      }
      out << "\n";
    };
    for (const WorkerDelta& worker : report.workers) {
      const auto it = report.upstreams.find(worker.worker);
      line(worker.worker, it == report.upstreams.end() ? 0 : it->second, &worker);
    }
    for (const auto& [host, count] : report.upstreams) {
      const bool shown = std::any_of(report.workers.begin(), report.workers.end(),
                                     [&](const WorkerDelta& worker) { return worker.worker == host; });
      if (!shown) line(host, count, nullptr);
    }
  }
  if (!report.sessions.empty()) {
    out << absl::StrFormat("\n%-32s %10s %10s  %s\n", "session", "requests", "share", "on");
    for (std::size_t i = 0; i < std::min(report.sessions.size(), kSessionsShown); ++i) {
      const Stickiness& session = report.sessions[i];
      out << absl::StrFormat("%-32s %10d %10s  %s\n", session.session, session.requests,
                             Percent(session.share), session.top);
    }
    if (report.sessions.size() > kSessionsShown) {
      out << absl::StrFormat("... and %d more\n", report.sessions.size() - kSessionsShown);
    }
  }
  out << absl::StrFormat("\nhit rate %s%s, stickiness %s%s\n", Percent(report.hit_rate),
                         report.hit_rate ? " (by " + report.hit_rate_source + ")" : "",
                         Percent(report.stickiness),
                         report.stickiness ? " (by " + report.stickiness_source + ")" : "");
  for (const Verdict& verdict : report.verdicts) {
    out << absl::StrFormat("%-12s %-12s limit %s, measured %s\n", verdict.name, Name(verdict.state),
                           Percent(verdict.limit), Percent(verdict.value));
  }
}

void PrintJson(const Report& report, const std::string& workload, std::ostream& out) {
  ordered_json root = {{"workload", workload},
                       {"requests", report.requests},
                       {"succeeded", report.succeeded},
                       {"seconds", report.seconds},
                       {"requests_per_s", report.requests_per_s},
                       {"most_in_flight", report.most_in_flight},
                       {"interrupted", report.interrupted},
                       {"errors", report.errors},
                       {"refusal_reasons", report.refusal_reasons},
                       {"ttft_ms", Json(report.ttft_ms)},
                       {"ttft_from_due_ms", Json(report.ttft_from_due_ms)},
                       {"inter_token_ms", Json(report.gap_ms)},
                       {"total_ms", Json(report.total_ms)},
                       {"late_ms", Json(report.late_ms)},
                       {"ttft_first3_ms", Json(report.ttft_first3_ms)},
                       {"ttft_last3_ms", Json(report.ttft_last3_ms)},
                       {"prompt_tokens", report.prompt_tokens},
                       {"cached_tokens", report.cached_tokens},
                       {"completion_tokens", report.completion_tokens},
                       {"with_usage", report.with_usage},
                       {"hit_rate", Json(report.hit_rate)},
                       {"hit_rate_source", report.hit_rate_source},
                       {"stickiness", Json(report.stickiness)},
                       {"stickiness_source", report.stickiness_source},
                       {"upstreams", report.upstreams}};
  root["workers"] = ordered_json::array();
  for (const WorkerDelta& worker : report.workers) {
    root["workers"].push_back({{"worker", worker.worker},
                               {"queries", worker.queries},
                               {"hits", worker.hits},
                               {"restarted", worker.restarted}});
  }
  root["sessions"] = ordered_json::array();
  for (const Stickiness& session : report.sessions) {
    root["sessions"].push_back({{"session", session.session},
                                {"requests", session.requests},
                                {"top", session.top},
                                {"share", session.share}});
  }
  root["criteria"] = ordered_json::array();
  for (const Verdict& verdict : report.verdicts) {
    root["criteria"].push_back({{"name", verdict.name},
                                {"limit", verdict.limit},
                                {"value", Json(verdict.value)},
                                {"state", Name(verdict.state)}});
  }
  root["exit_code"] = report.exit_code();
  out << root.dump(-1, ' ', false, ordered_json::error_handler_t::replace) << "\n";
}

void PrintRecords(const RunResult& result, std::ostream& out) {
  for (const RequestRecord& record : result.records) {
    const ordered_json line = {{"lane", record.lane},
                               {"turn", record.turn},
                               {"session", record.session},
                               {"due", record.due},
                               {"sent", record.sent},
                               {"first_token", Json(record.first_token)},
                               {"end", record.end},
                               {"status", record.status},
                               {"error", record.error},
                               {"reason", record.reason},
                               {"upstream", record.upstream},
                               {"pieces", record.pieces},
                               {"prompt_tokens", record.prompt_tokens},
                               {"cached_tokens", record.cached_tokens},
                               {"completion_tokens", record.completion_tokens}};
    out << line.dump(-1, ' ', false, ordered_json::error_handler_t::replace) << "\n";
  }
}

}  // namespace llmd::load
