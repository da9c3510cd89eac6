#include "llmd/sched/scheduler.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "llmd/base/strings.h"
#include "llmd/sched/recorded.h"
#include "src/sched/scheduler_impl.h"

namespace llmd::sched {
namespace {

// Makes `decision` blank, keeping its memory.
void Reset(Decision& decision, std::size_t profiles) {
  decision.profiles.resize(profiles);
  for (ProfileResult& result : decision.profiles) {
    result.state = ProfileState::kPending;
    result.targets.clear();
    result.scored.clear();
    result.port = 0;
    result.skip_reason = nullptr;
  }
  decision.primary = 0;
}

void Reset(Explanation& explanation, std::span<const Profile> profiles, std::uint64_t seed) {
  explanation.seed = seed;
  explanation.candidates = 0;
  explanation.primary = 0;
  explanation.refused_by = {};
  explanation.profiles.resize(profiles.size());
  for (std::size_t i = 0; i < profiles.size(); ++i) {
    explanation.profiles[i].name = profiles[i].name();
    explanation.profiles[i].Clear();
  }
}

absl::Status SelectCandidates(const ScheduleInput& input, std::vector<Position>& candidates) {
  if (input.candidates) {
    candidates.assign(input.candidates->begin(), input.candidates->end());
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      if (candidates[i] >= input.pool.size() || (i > 0 && candidates[i] <= candidates[i - 1])) {
        return absl::InvalidArgumentError(absl::StrCat("candidates[", i, "] is ", candidates[i],
                                                       ", expected ascending positions below ",
                                                       input.pool.size()));
      }
    }
  } else {
    candidates.resize(input.pool.size());
    std::iota(candidates.begin(), candidates.end(), Position{0});
  }
  if (!candidates.empty()) return absl::OkStatus();
  return WithDroppedReason(
      absl::UnavailableError("failed to find endpoint candidates for serving the request"),
      DroppedReason::kNoEndpoints);
}

// The handler's error, with what went wrong in the profiles.
absl::Status FailedDecision(const absl::Status& error, std::span<const Profile> profiles,
                            const Decision& decision) {
  std::string message(error.message());
  bool failed = false;
  for (std::size_t i = 0; i < profiles.size(); ++i) {
    if (decision.profiles[i].state != ProfileState::kFailed) continue;
    failed = true;
    absl::StrAppend(&message, "; profile ", profiles[i].name(),
                    ": no endpoints available for the given request");
  }
  absl::Status status(error.code(), message);
  DroppedReason reason = GetDroppedReason(error);
  if (reason == DroppedReason::kNone && failed) reason = DroppedReason::kSaturated;
  return reason == DroppedReason::kNone ? status : WithDroppedReason(std::move(status), reason);
}

// RFC 7240: a comma-separated list of preferences, names without regard to case, parameters behind a
// semicolon; the header may be repeated.
bool PrefersIfAvailable(const Request& request) {
  for (const Header& header : request.headers) {
    if (header.name != "prefer") continue;
    for (absl::string_view part : absl::StrSplit(ToAbsl(header.value), ',')) {
      part = absl::StripAsciiWhitespace(part.substr(0, part.find(';')));
      if (absl::EqualsIgnoreCase(part, "if-available")) return true;
    }
  }
  return false;
}

}  // namespace

Scheduler::Scheduler(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Scheduler::~Scheduler() = default;

absl::Status Scheduler::Schedule(const ScheduleInput& input, Workspace& workspace, Decision& decision,
                                 Explanation* explanation) const {
  Workspace::State& state = *workspace.state_;
  const std::span<const Profile> profiles = impl_->profiles;
  Reset(decision, profiles.size());
  if (explanation != nullptr) Reset(*explanation, profiles, input.seed);
  state.columns.Begin(input.pool.size());
  if (absl::Status status = SelectCandidates(input, state.candidates); !status.ok()) return status;
  if (explanation != nullptr) explanation->candidates = state.candidates.size();

  Random random(~input.seed);  // of producers
  Context context{input.request, input.pool, input.now, random, state.columns, state.candidates};
  if (absl::Status status = impl_->ShedSaturated(context); !status.ok()) return status;
  if (input.recorded != nullptr) input.recorded->Publish(impl_->layout, state.columns);
  for (std::size_t i = 0; i < impl_->producers.size(); ++i) {
    if (input.recorded != nullptr && input.recorded->Replaces(impl_->producers[i].name)) continue;
    impl_->producers[i].producer->Produce(context, state.thread_states[i].get());
  }
  // Profiles draw the same numbers however many producers drew.
  random = Random(input.seed);
  for (const Scheduler::Impl::NamedAdmitter& admitter : impl_->admitters) {
    absl::Status status = admitter.admitter->Admit(context, state.candidates);
    if (status.ok()) continue;
    if (explanation != nullptr) explanation->refused_by = admitter.name;
    return impl_->config.compatibility.admission_denial_is_internal ? absl::InternalError(status.message())
                                                                    : status;
  }

  // Each turn runs at least one profile for the first time, or is the last.
  bool runs = true;
  for (std::size_t turn = 0; runs && turn <= profiles.size(); ++turn) {
    impl_->handler->Next(context, decision.profiles);
    runs = false;
    for (std::size_t i = 0; i < profiles.size(); ++i) {
      if (decision.profiles[i].state != ProfileState::kRequested) continue;
      runs = true;
      profiles[i].Run(context, state.candidates, input.recorded, state.buffers, decision.profiles[i],
                      explanation != nullptr ? &explanation->profiles[i] : nullptr);
    }
  }
  const bool any_decided =
      std::any_of(decision.profiles.begin(), decision.profiles.end(),
                  [](const ProfileResult& r) { return r.state != ProfileState::kPending; });

  absl::Status status = any_decided ? impl_->handler->Finish(context, decision)
                                    : absl::ResourceExhaustedError("failed to run any scheduler profile");
  if (explanation != nullptr) {
    explanation->primary = decision.primary;
    for (std::size_t i = 0; i < profiles.size(); ++i)
      explanation->profiles[i].state = decision.profiles[i].state;
  }
  if (!status.ok()) return FailedDecision(status, profiles, decision);
  return impl_->CheckConditional(context, decision);
}

absl::Status Scheduler::Impl::ShedSaturated(const Context& context) const {
  if (context.request.priority >= 0 || config.feature_gates.flow_control || detector == nullptr) {
    return absl::OkStatus();
  }
  if (detector->Saturation(context.pool, context.candidates, context.now) < 1.0) return absl::OkStatus();
  return WithDroppedReason(absl::ResourceExhaustedError("system saturated, sheddable request dropped"),
                           DroppedReason::kSaturated);
}

absl::Status Scheduler::Impl::CheckConditional(const Context& context, const Decision& decision) const {
  if (!PrefersIfAvailable(context.request)) return absl::OkStatus();
  const std::span<const PrefixMatch> matches = context.data.Read(default_prefix);
  if (!matches.empty() && matches[decision.target()].match_blocks > 0) return absl::OkStatus();
  return absl::FailedPreconditionError(
      "Prefer: if-available: the chosen endpoint holds nothing of the prompt");
}

absl::Status Scheduler::RunPreRequest(const ScheduleInput& input, Workspace& workspace,
                                      const Decision& decision, Dispatch& dispatch) {
  Random random(input.seed);
  Workspace::State& state = *workspace.state_;
  Context context{input.request, input.pool, input.now, random, state.columns, state.candidates};
  absl::Status first;
  std::string messages;
  int failures = 0;
  for (PreRequest* plugin : impl_->pre_requests) {
    absl::Status status = plugin->OnDecision(context, decision, impl_->profile_names, dispatch);
    if (status.ok()) continue;
    absl::StrAppend(&messages, failures > 0 ? "; " : "", status.message());
    if (failures++ == 0) first = std::move(status);
  }
  return failures > 1 ? absl::InternalError(messages) : first;
}

std::string_view Scheduler::FairnessId(const Request& request) const {
  for (const std::string_view name : {"x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id"}) {
    const std::optional<std::string_view> id = request.FindHeader(name);
    if (id && !id->empty()) return *id;
  }
  for (const AgentIdentity* plugin : impl_->agent_identities) {
    const std::string_view id = plugin->Identify(request);
    if (!id.empty()) return id;
  }
  return "default-flow";
}

const SchedulerConfig& Scheduler::config() const { return impl_->config; }
const std::vector<std::string>& Scheduler::warnings() const { return impl_->warnings; }
const std::vector<std::string>& Scheduler::profiles() const { return impl_->profile_names; }

const Plugin* Scheduler::FindPlugin(std::string_view name) const {
  for (const std::unique_ptr<Plugin>& plugin : impl_->plugins) {
    if (plugin->name() == name) return plugin.get();
  }
  return nullptr;
}

Workspace::Workspace(const Scheduler& scheduler) : state_(std::make_unique<State>(*scheduler.impl_)) {}
Workspace::~Workspace() = default;
Workspace::Workspace(Workspace&&) noexcept = default;
Workspace& Workspace::operator=(Workspace&&) noexcept = default;

}  // namespace llmd::sched
