#include "llmd/sched/scheduler.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
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
  }
  decision.primary = 0;
}

void Reset(Explanation& explanation, std::span<const Profile> profiles, std::uint64_t seed) {
  explanation.seed = seed;
  explanation.candidates = 0;
  explanation.primary = 0;
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
  return WithDroppedReason(absl::UnavailableError("no candidate endpoints for the request"),
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
  return failed ? WithDroppedReason(std::move(status), DroppedReason::kSaturated) : status;
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
  if (absl::Status status = SelectCandidates(input, state.candidates); !status.ok()) return status;
  if (explanation != nullptr) explanation->candidates = state.candidates.size();

  Random random(input.seed);
  Context context{input.request, input.pool, input.now, random, state.columns};
  state.columns.Begin(input.pool.size());
  for (std::size_t i = 0; i < impl_->producers.size(); ++i) {
    impl_->producers[i]->Produce(context, state.thread_states[i].get());
  }

  // Each turn runs at least one profile for the first time, or is the last.
  bool runs = true;
  for (std::size_t turn = 0; runs && turn <= profiles.size(); ++turn) {
    impl_->handler->Next(context, decision.profiles);
    runs = false;
    for (std::size_t i = 0; i < profiles.size(); ++i) {
      if (decision.profiles[i].state != ProfileState::kRequested) continue;
      runs = true;
      profiles[i].Run(context, state.candidates, state.buffers, decision.profiles[i],
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
  if (status.ok()) return status;
  return FailedDecision(status, profiles, decision);
}

absl::Status Scheduler::RunPreRequest(const ScheduleInput& input, Workspace& workspace,
                                      const Decision& decision, HeaderEdits& headers) {
  Random random(input.seed);
  Context context{input.request, input.pool, input.now, random, workspace.state_->columns};
  absl::Status first;
  std::string messages;
  int failures = 0;
  for (PreRequest* plugin : impl_->pre_requests) {
    absl::Status status = plugin->OnDecision(context, decision, impl_->profile_names, headers);
    if (status.ok()) continue;
    absl::StrAppend(&messages, failures > 0 ? "; " : "", status.message());
    if (failures++ == 0) first = std::move(status);
  }
  return failures > 1 ? absl::InternalError(messages) : first;
}

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
