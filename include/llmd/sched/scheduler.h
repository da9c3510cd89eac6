// The scheduler: from a request and a pool to the endpoint that serves it.
//
//   SchedulerConfig config{.plugins = {{.type = "queue-scorer"}, {.type = "prefix-cache-scorer"}},
//                          .profiles = {{"default", {{"queue-scorer", 2}, {"prefix-cache-scorer", 3}}}}};
//   auto scheduler = *Scheduler::Create(config, PluginRegistry::Builtin(), resources);
//   Workspace workspace(*scheduler);                       // one per thread
//   Decision decision;
//   absl::Status status = scheduler->Schedule({.request = request, .pool = pool, .now = now, .seed = seed},
//                                             workspace, decision);
//   if (status.ok()) send_to(pool[decision.target()].host_port());
//
// Meaning. Data producers run in the order of their dependencies, then admitters; then the profile handler
// chooses profiles, and each profile works on all candidates: filters in order, then for each scorer
// total += clamp(score, 0, 1) * weight, without normalisation, then one picker. (spec: scheduling.md 1.3)
//
// Determinism. A decision is a function of its input, the state of indexes and plugins, and the seed.
// Threads. Schedule() and RunPreRequest() may be called by any number of threads, each with its own
// Workspace, Decision and Explanation. Schedule() takes no lock and, once warm, does not allocate unless it
// returns an error.
//
// Reload. Create() gives a new scheduler or an error and touches no other scheduler. Made with the same
// Resources (with `states`), the new one takes over what the plugins of the old one remember; decisions and
// flights of the old one may end in peace.
#ifndef LLMD_SCHED_SCHEDULER_H_
#define LLMD_SCHED_SCHEDULER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "llmd/sched/config.h"
#include "llmd/sched/decision.h"
#include "llmd/sched/explanation.h"
#include "llmd/sched/flight.h"
#include "llmd/sched/plugin.h"
#include "llmd/sched/registry.h"

namespace llmd::sched {

class RecordedInputs;

struct ScheduleInput {
  const Request& request;
  const EndpointPool& pool;
  // Positions that may serve the request, ascending; nullopt for the whole pool.
  std::optional<std::span<const Position>> candidates = std::nullopt;
  absl::Time now = absl::UnixEpoch();
  std::uint64_t seed = 0;
  // Stands in for producers and for what plugins remember (recorded.h); null in service.
  const RecordedInputs* recorded = nullptr;
};

class Workspace;

class Scheduler {
 public:
  // InvalidArgument names the file and line (where there are such), the plugin or profile, and what was
  // expected.
  static absl::StatusOr<std::unique_ptr<Scheduler>> Create(const SchedulerConfig& config,
                                                           const PluginRegistry& registry,
                                                           const Resources& resources);
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Replaces `decision` (and `explanation`, if any). Errors:
  //   Unavailable, rejected-no-endpoints     there is no candidate
  //   ResourceExhausted, rejected-saturated  filters leave none; or, with flow control off, the request may
  //   be
  //                                          shed (priority < 0) and the candidates are saturated
  //   FailedPrecondition                     the request says `Prefer: if-available` and the chosen endpoint
  //                                          has nothing of its prompt
  //   InvalidArgument                        candidates out of order or range
  //   an admitter's                          it turned the request away
  // The explanation is also filled when filters leave none or an admitter refuses.
  absl::Status Schedule(const ScheduleInput& input, Workspace& workspace, Decision& decision,
                        Explanation* explanation = nullptr) const;

  // To be called when the decision is carried out, before the workspace serves another one. Runs every
  // PreRequest plugin, even after a failure; returns the only failure as it is, several as Internal. Headers
  // and flight of `dispatch` are added to.
  absl::Status RunPreRequest(const ScheduleInput& input, Workspace& workspace, const Decision& decision,
                             Dispatch& dispatch);

  // Under which flow a request is queued: header x-llm-d-inference-fairness-id or its old name
  // x-gateway-inference-fairness-id, else what an agent-identity plugin says, else "default-flow". A view of
  // the request's.
  std::string_view FairnessId(const Request& request) const;

  // The configuration in force, with all that Create() added.
  const SchedulerConfig& config() const;
  // What is accepted but deserves a look: deprecated types, settings without effect.
  const std::vector<std::string>& warnings() const;
  // Names in the order of Decision::profiles.
  const std::vector<std::string>& profiles() const;
  // Null when unknown.
  const Plugin* FindPlugin(std::string_view name) const;

  struct Impl;  // private to the component

 private:
  friend class Workspace;
  friend class DecisionLogWriter;
  friend class DecisionReplayer;
  explicit Scheduler(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Memory of one thread's decisions; use it with the scheduler that it was made for, which must outlive it.
class Workspace {
 public:
  explicit Workspace(const Scheduler& scheduler);
  ~Workspace();
  Workspace(Workspace&&) noexcept;
  Workspace& operator=(Workspace&&) noexcept;

 private:
  friend class Scheduler;
  friend class DecisionLogWriter;
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace llmd::sched

#endif  // LLMD_SCHED_SCHEDULER_H_
