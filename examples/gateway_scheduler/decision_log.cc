#include "examples/gateway_scheduler/decision_log.h"

#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "examples/gateway_scheduler/safe_text.h"
#include "llmd/base/strings.h"
#include "llmd/gateway/headers.h"
#include "spdlog/async_logger.h"
#include "spdlog/details/thread_pool.h"
#include "spdlog/sinks/stdout_sinks.h"

namespace llmd::host {
namespace {

// Endpoints and drops of an explanation beyond this are counted, not listed.
constexpr std::size_t kMaxRows = 32;

// A line under construction: logfmt or JSON with the same fields.
class Line {
 public:
  Line(bool json, absl::Time now, char level, std::string_view what) : json_(json) {
    const std::string time = absl::FormatTime("%Y-%m-%dT%H:%M:%E6SZ", now, absl::UTCTimeZone());
    if (json_) {
      absl::StrAppend(&text_, "{\"time\":\"", time, "\",\"level\":\"", level == 'I' ? "info" : "warn",
                      "\",\"msg\":\"", ToAbsl(what), "\"");
    } else {
      absl::StrAppend(&text_, time, " ", std::string(1, level), " ", ToAbsl(what));
    }
  }

  Line& Text(std::string_view name, std::string_view value) {
    Name(name);
    AppendQuoted(value, text_);
    return *this;
  }
  Line& Number(std::string_view name, std::int64_t value) {
    Name(name);
    absl::StrAppend(&text_, value);
    return *this;
  }
  Line& Micros(std::string_view name, absl::Duration value) {
    return Number(name, absl::ToInt64Microseconds(value));
  }

  std::string Take() {
    if (json_) text_.push_back('}');
    return std::move(text_);
  }

 private:
  void Name(std::string_view name) {
    if (json_) {
      absl::StrAppend(&text_, ",\"", ToAbsl(name), "\":");
    } else {
      absl::StrAppend(&text_, " ", ToAbsl(name), "=");
    }
  }

  const bool json_;
  std::string text_;
};

// "decode: pod-1 3.25 (queue-scorer 2, prefix-cache-scorer 1.25), ...; dropped pod-2 by by-label (why)".
std::string Explain(const sched::Explanation& explanation, const sched::EndpointPool& pool) {
  std::string out;
  for (const sched::Explanation::Profile& profile : explanation.profiles) {
    if (profile.state == sched::ProfileState::kPending) continue;
    if (!out.empty()) out.append("; ");
    absl::StrAppend(&out, ToAbsl(profile.name), ":");
    for (std::size_t e = 0; e < profile.totals.size() && e < kMaxRows; ++e) {
      absl::StrAppendFormat(&out, "%s %s %.6g (", e == 0 ? "" : ",", pool[profile.totals[e].position].id(),
                            profile.totals[e].score);
      for (std::size_t s = 0; s < profile.scorers.size(); ++s) {
        absl::StrAppendFormat(&out, "%s%s %.6g", s == 0 ? "" : ", ", ToAbsl(profile.scorers[s].name),
                              profile.weighted_at(s, e));
      }
      out.push_back(')');
    }
    if (profile.totals.size() > kMaxRows) {
      absl::StrAppend(&out, " and ", profile.totals.size() - kMaxRows, " more");
    }
    for (std::size_t i = 0; i < profile.drops.size() && i < kMaxRows; ++i) {
      const sched::Explanation::Drop& drop = profile.drops[i];
      absl::StrAppend(&out, ", dropped ", pool[drop.position].id(), " by ", ToAbsl(drop.filter), " (",
                      drop.reason != nullptr ? drop.reason : "", ")");
    }
    if (profile.drops.size() > kMaxRows) {
      absl::StrAppend(&out, " and ", profile.drops.size() - kMaxRows, " drops more");
    }
  }
  return out;
}

std::string ReasonOf(const DecisionReport& report) {
  if (report.status.ok()) return report.decision == nullptr ? "any endpoint" : "ok";
  const std::string_view dropped = sched::ToString(sched::GetDroppedReason(report.status));
  return absl::StrCat(ToAbsl(gateway::CodeWord(gateway::RefusalOf(report.status).http_status)), ": ",
                      report.status.message(), dropped.empty() ? "" : " (", ToAbsl(dropped),
                      dropped.empty() ? "" : ")");
}

}  // namespace

struct DecisionLog::Impl {
  DecisionLogOptions options;
  std::shared_ptr<spdlog::details::thread_pool> thread;
  std::shared_ptr<spdlog::async_logger> logger;
};

DecisionLog::DecisionLog(const DecisionLogOptions& options, std::shared_ptr<spdlog::sinks::sink> sink)
    : impl_(std::make_unique<Impl>()) {
  impl_->options = options;
  if (sink == nullptr) sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
  impl_->thread = std::make_shared<spdlog::details::thread_pool>(options.queue_lines, 1);
  impl_->logger = std::make_shared<spdlog::async_logger>("decisions", std::move(sink), impl_->thread,
                                                         spdlog::async_overflow_policy::overrun_oldest);
  impl_->logger->set_pattern("%v");
  impl_->logger->set_level(spdlog::level::info);
  impl_->logger->flush_on(spdlog::level::warn);
}

DecisionLog::~DecisionLog() = default;  // the thread works off its queue

bool DecisionLog::wants_explanations() const { return impl_->options.verbosity >= 5; }

std::size_t DecisionLog::dropped_lines() const { return impl_->thread->overrun_counter(); }

void DecisionLog::OnDecision(const DecisionReport& report) {
  const DecisionLogOptions& options = impl_->options;
  const bool ok = report.status.ok();
  if (ok && options.verbosity < 1) return;
  const RequestInfo& request = report.request;
  Line line(options.json, report.now, ok ? 'I' : 'W', "decision");
  line.Text("request_id", request.request_id)
      .Text("model", request.model)
      .Text("target_model", request.target_model)
      .Text("endpoint", report.endpoint)
      .Text("prefill_endpoint", report.prefill_endpoint)
      .Number("tokens", static_cast<std::int64_t>(report.prompt_tokens))
      .Number("cached_blocks", report.cached_blocks)
      .Number("total_blocks", report.total_blocks)
      .Text("reason", ReasonOf(report))
      .Micros("tokenizing_us", report.tokenizing)
      .Micros("queued_us", report.queued)
      .Micros("deciding_us", report.deciding);
  if (request.priority != 0) line.Number("priority", request.priority);
  if (request.fairness_id != "default-flow") line.Text("fairness_id", request.fairness_id);
  if (wants_explanations() && report.explanation != nullptr) {
    line.Text("scores", Explain(*report.explanation, report.pool));
  }
  // A string_view is taken as it is: no braces of a client's text are a format.
  impl_->logger->log(ok ? spdlog::level::info : spdlog::level::warn, spdlog::string_view_t(line.Take()));
}

void DecisionLog::OnFinished(const FinishReport& report) {
  const DecisionLogOptions& options = impl_->options;
  if (options.verbosity < 4) return;
  const gateway::ResponseFacts& response = report.response;
  const absl::Time received = report.request.received;
  Line line(options.json, report.now, 'I', "finished");
  line.Text("request_id", report.request.request_id)
      .Text("endpoint", report.endpoint)
      .Number("status",
              report.completion.refused_with != 0 ? report.completion.refused_with : response.status)
      .Text("cause", gateway::ToString(report.completion.cause))
      .Number("response_bytes", static_cast<std::int64_t>(response.body_bytes))
      .Micros("duration_us", report.now - received);
  if (response.first_byte != absl::InfiniteFuture()) line.Micros("ttft_us", response.first_byte - received);
  if (response.usage.known) {
    line.Number("input_tokens", static_cast<std::int64_t>(response.usage.prompt_tokens))
        .Number("output_tokens", static_cast<std::int64_t>(response.usage.completion_tokens))
        .Number("cached_tokens", static_cast<std::int64_t>(response.usage.cached_tokens));
  }
  if (!report.completion.error.empty()) line.Text("error", report.completion.error);
  impl_->logger->log(spdlog::level::info, spdlog::string_view_t(line.Take()));
}

}  // namespace llmd::host
