#include "tests/hosts/scripted_host.h"

#include <cstdlib>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "llmd/sched/config_file.h"
#include "llmd/sched/prefix.h"

namespace llmd::host {
namespace {

sched::EndpointMetadata Metadata(const std::string& name, std::size_t index) {
  return {.name = name, .address = absl::StrCat("10.0.0.", index + 1), .port = 8000};
}

void Must(const absl::Status& status) {
  if (status.ok()) return;
  std::cerr << status << "\n";
  std::abort();
}

template <typename T>
T Must(absl::StatusOr<T> value) {
  Must(value.status());
  return *std::move(value);
}

}  // namespace

ScriptedHost::ScriptedHost(std::size_t endpoints, const std::string& yaml) {
  std::vector<std::string> names;
  for (std::size_t i = 0; i < endpoints; ++i) names.push_back(absl::StrCat("pod-", i));
  SetEndpoints(names);
  exact = Must(index::PrefixIndex::Create({.max_bytes = 1 << 20, .max_holders = 16}));
  approx = Must(index::ApproxIndex::Create({.max_bytes = 1 << 20, .max_holders = 16}));
  const sched::Resources resources{
      .prefix_sources = {sched::ExactIndex(*exact), sched::ApproximateIndex(*approx)}, .states = states};
  scheduler =
      Must(sched::LoadScheduler(yaml, {.source = "test.yaml"}, sched::PluginRegistry::Builtin(), resources));
}

void ScriptedHost::SetEndpoints(const std::vector<std::string>& names) {
  std::vector<sched::EndpointMetadata> all;
  for (std::size_t i = 0; i < names.size(); ++i) all.push_back(Metadata(names[i], i));
  Must(pool.SetEndpoints(all));
}

void ScriptedHost::SetMetrics(std::size_t endpoint, std::int64_t waiting, std::int64_t running, double kv,
                              absl::Time at) {
  pool.Update([&](sched::EndpointPool& p) {
    sched::Metrics* metrics = p.mutable_metrics(p[static_cast<sched::Position>(endpoint)].handle);
    metrics->waiting_requests = {waiting, at};
    metrics->running_requests = {running, at};
    metrics->kv_cache_usage = {kv, at};
  });
}

RequestInfo ScriptedHost::Info(const Script& script) const {
  return {.request_id = script.id,
          .path = "/v1/chat/completions",
          .model = script.model,
          .target_model = script.target_model,
          .fairness_id = script.fairness_id,
          .priority = script.priority,
          .request_bytes = 100,
          .streaming = script.streaming,
          .received = kStart};
}

void ScriptedHost::Decide(Observer& observer, const Script& script) const {
  const RequestInfo request = Info(script);
  const PoolStore::Snapshot snapshot = pool.snapshot();
  observer.OnReceived(request);
  DecisionReport report{
      .request = request, .status = script.status, .pool = *snapshot, .scheduler = *scheduler};
  report.queued = script.queued;
  report.flow = script.flow;
  report.now = kStart + script.queued + absl::Milliseconds(1);
  report.prompt_tokens = 64;
  report.deciding = absl::Microseconds(150);
  sched::Decision decision;
  if (script.status.ok()) {
    const std::vector<std::string>& profiles = scheduler->profiles();
    decision.profiles.resize(profiles.size());
    for (std::size_t i = 0; i < profiles.size(); ++i) {
      sched::ProfileResult& profile = decision.profiles[i];
      if (profiles[i] == "prefill" && !script.split) {
        profile.state = sched::ProfileState::kSkipped;
        profile.skip_reason = "prompt is short";
        continue;
      }
      if (profiles[i] != "prefill") decision.primary = static_cast<std::uint32_t>(i);
      profile.state = sched::ProfileState::kDone;
      profile.targets = {static_cast<sched::Position>(script.endpoint)};
    }
    report.decision = &decision;
    report.endpoint = (*snapshot)[decision.target()].host_port();
    report.cached_blocks = script.cached_blocks;
    report.total_blocks = script.total_blocks;
  }
  observer.OnDecision(report);
}

void ScriptedHost::Schedule(Observer& observer, const Script& script) const {
  const RequestInfo info = Info(script);
  const PoolStore::Snapshot snapshot = pool.snapshot();
  const sched::Request request{.id = info.request_id, .model = info.target_model};
  sched::Workspace workspace(*scheduler);
  sched::Decision decision;
  sched::Explanation explanation;
  const bool explain = observer.wants_explanations();
  DecisionReport report{.request = info, .pool = *snapshot, .scheduler = *scheduler};
  report.status = scheduler->Schedule({.request = request, .pool = *snapshot, .now = kStart, .seed = 1},
                                      workspace, decision, explain ? &explanation : nullptr);
  if (report.status.ok()) {
    report.decision = &decision;
    report.endpoint = (*snapshot)[decision.target()].host_port();
  }
  report.explanation = explain ? &explanation : nullptr;
  report.now = kStart;
  observer.OnDecision(report);
}

void ScriptedHost::Finish(Observer& observer, const Script& script) const {
  const RequestInfo request = Info(script);
  gateway::ResponseFacts response;
  gateway::Completion completion;
  if (!script.status.ok()) {
    completion.refused_with = gateway::RefusalOf(script.status).http_status;
  } else {
    completion.routed = true;
    response.status = script.http_status;
    response.streaming = script.streaming;
    response.first_byte = kStart + script.ttft;
    response.body_bytes = 500;
    if (script.broken_off) {
      completion.cause = gateway::CompletionCause::kClientDisconnect;
    } else {
      response.ended = true;
      response.last_byte = kStart + script.duration;
      response.usage = {.prompt_tokens = 64,
                        .completion_tokens = script.completion_tokens,
                        .total_tokens = 64 + script.completion_tokens,
                        .cached_tokens = 48,
                        .known = script.completion_tokens > 0};
    }
  }
  observer.OnFinished({.request = request,
                       .response = response,
                       .completion = completion,
                       .endpoint = "10.0.0.1:8000",
                       .decided = script.status.ok(),
                       .now = kStart + script.duration});
}

}  // namespace llmd::host
