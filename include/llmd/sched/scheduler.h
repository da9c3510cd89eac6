// The scheduler: from a request and a pool to the endpoint that serves it.
//
//   SchedulerConfig config{.plugins = {{.type = "queue-scorer"}, {.type = "prefix-cache-scorer"}},
//                          .profiles = {{"default", {{"queue-scorer", 2}, {"prefix-cache-scorer", 3}}}}};
//   auto scheduler = *Scheduler::Create(config, PluginRegistry::Builtin(), resources);
//   Workspace workspace(*scheduler);                       // one per thread
//   Decision decision;
//   absl::Status status = scheduler->Schedule({.request = request, .pool = pool, .now = now, .seed = seed},
//   workspace, decision); if (status.ok()) send_to(pool[decision.target()].host_port());
//
// Meaning. Data producers run in the order of their dependencies; then the profile handler chooses profiles,
// and each profile works on all candidates: filters in order, then for each scorer total += clamp(score, 0,
// 1) * weight, without normalisation, then one picker. (spec: scheduling.md 1.3)
//
// Determinism. A decision is a function of its input, the state of the indexes and the seed. Threads.
// Schedule() is const and takes no lock: any number of threads, each with its own Workspace, Decision and
// Explanation. PreRequest() changes the plugins' memory of decisions: one thread at a time; it may run beside
// Schedule(). Once warm, Schedule() does not allocate unless it returns an error.
#ifndef LLMD_SCHED_SCHEDULER_H_
#define LLMD_SCHED_SCHEDULER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "llmd/sched/decision.h"
#include "llmd/sched/explanation.h"
#include "llmd/sched/parameters.h"
#include "llmd/sched/plugin.h"
#include "llmd/sched/registry.h"

namespace llmd::sched {

struct PluginSpec {
  std::string name = {};  // empty: the type
  std::string type = {};
  Value parameters = {};
};

struct PluginRef {
  std::string plugin = {};            // a plugin's name
  std::optional<double> weight = {};  // of a scorer; 1 when absent. Any finite number
};

struct ProfileSpec {
  std::string name = {};
  std::vector<PluginRef> plugins = {};  // filters and scorers in order, and at most one picker
};

// Completed by Create() as the spec (3.2) says: no profile: one named "default" with every filter, scorer and
// picker in order; one profile and no handler: single-profile-handler; a profile without picker: the first
// picker of the plugins, or max-score-picker; a datum that is required and not produced: its default
// producer.
struct SchedulerConfig {
  // What runs when nothing is configured: queue-scorer 2, kv-cache-utilization-scorer 2,
  // prefix-cache-scorer 3.
  static SchedulerConfig Default();

  std::vector<PluginSpec> plugins = {};
  std::vector<ProfileSpec> profiles = {};
};

struct ScheduleInput {
  const Request& request;
  const EndpointPool& pool;
  // Positions that may serve the request, ascending; nullopt for the whole pool.
  std::optional<std::span<const Position>> candidates = std::nullopt;
  absl::Time now = absl::UnixEpoch();
  std::uint64_t seed = 0;
};

class Workspace;

class Scheduler {
 public:
  // InvalidArgument names the plugin or profile and what was expected.
  static absl::StatusOr<std::unique_ptr<Scheduler>> Create(const SchedulerConfig& config,
                                                           const PluginRegistry& registry,
                                                           const Resources& resources);
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Replaces `decision` (and `explanation`, if any). Errors: Unavailable with reason rejected-no-endpoints
  // when there is no candidate, ResourceExhausted with reason rejected-saturated when filters leave none,
  // InvalidArgument for candidates out of order or range. The explanation is also filled when filters leave
  // none.
  absl::Status Schedule(const ScheduleInput& input, Workspace& workspace, Decision& decision,
                        Explanation* explanation = nullptr) const;

  // To be called when the decision is carried out, before the workspace serves another one. Runs every
  // PreRequest plugin, even after a failure; returns the only failure as it is, several as Internal. Headers
  // are appended.
  absl::Status RunPreRequest(const ScheduleInput& input, Workspace& workspace, const Decision& decision,
                             HeaderEdits& headers);

  // Names in the order of Decision::profiles.
  const std::vector<std::string>& profiles() const;
  // Null when unknown.
  const Plugin* FindPlugin(std::string_view name) const;

  struct Impl;  // private to the component

 private:
  friend class Workspace;
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
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace llmd::sched

#endif  // LLMD_SCHED_SCHEDULER_H_
