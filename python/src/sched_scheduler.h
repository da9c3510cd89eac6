// The Python Scheduler and its decisions.
//
// Any thread may call anything. A decision needs a workspace, and keeps it until it is dispatched or gone; a
// scheduler has at most kMaxWorkspaces of them. When all are taken, the oldest decision that waits for its
// dispatch loses its own; when none waits, the caller does, without the GIL. A decision that a plugin takes
// inside another one does not wait, and may be one more.
#ifndef LLMD_PYTHON_SRC_SCHED_SCHEDULER_H_
#define LLMD_PYTHON_SRC_SCHED_SCHEDULER_H_

#include <pybind11/pybind11.h>

#include <condition_variable>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "llmd/sched/scheduler.h"
#include "python/src/sched_plugins.h"
#include "python/src/sched_pool.h"
#include "python/src/sched_request.h"

namespace llmd::python {

class DecisionObject;

class SchedulerObject {
 public:
  static constexpr std::size_t kMaxWorkspaces = 64;

  SchedulerObject(std::unique_ptr<sched::Scheduler> scheduler, std::shared_ptr<sched::PluginStates> states,
                  pybind11::object keep_alive, PrefixPlan plan)
      : keep_alive_(std::move(keep_alive)),
        states_(std::move(states)),
        scheduler_(std::move(scheduler)),
        plan_(std::move(plan)) {}
  SchedulerObject(const SchedulerObject&) = delete;
  SchedulerObject& operator=(const SchedulerObject&) = delete;

  sched::Scheduler& get() { return *scheduler_; }
  const std::shared_ptr<sched::PluginStates>& states() const { return states_; }
  const PrefixPlan& plan() const { return plan_; }

  // Without the GIL. `nested`: the thread is inside a decision, so that it must not wait for others.
  std::unique_ptr<sched::Workspace> Acquire(bool nested);
  void Release(std::unique_ptr<sched::Workspace> workspace);
  // The decision keeps the workspace for its dispatch.
  void Park(DecisionObject& decision, std::unique_ptr<sched::Workspace> workspace);
  // Takes it back; null when it was dispatched or is too old.
  std::unique_ptr<sched::Workspace> Unpark(DecisionObject& decision);

 private:
  pybind11::object keep_alive_;  // the indexes
  std::shared_ptr<sched::PluginStates> states_;
  std::unique_ptr<sched::Scheduler> scheduler_;
  PrefixPlan plan_;

  std::mutex mutex_;
  std::condition_variable returned_;
  std::size_t made_ = 0;
  std::vector<std::unique_ptr<sched::Workspace>> idle_;
  std::list<DecisionObject*> parked_;  // oldest first
};

// What a decision said, kept together with all that it refers to.
class DecisionObject {
 public:
  DecisionObject() = default;
  ~DecisionObject();
  DecisionObject(const DecisionObject&) = delete;
  DecisionObject& operator=(const DecisionObject&) = delete;

  sched::ScheduleInput Input() const {
    sched::ScheduleInput input{.request = request->view(), .pool = *run.pool, .now = now, .seed = seed};
    if (candidates) input.candidates = *candidates;
    return input;
  }

  std::shared_ptr<SchedulerObject> scheduler;
  std::shared_ptr<const OwnedRequest> request;
  std::optional<std::vector<sched::Position>> candidates;
  absl::Time now;
  std::uint64_t seed = 0;
  PluginRun run;
  sched::Decision decision;
  sched::Explanation explanation;
  absl::Status status;

 private:
  friend class SchedulerObject;
  std::unique_ptr<sched::Workspace> workspace_;  // guarded by the scheduler's lock
  std::list<DecisionObject*>::iterator place_;   // valid while there is a workspace
};

}  // namespace llmd::python

#endif  // LLMD_PYTHON_SRC_SCHED_SCHEDULER_H_
