// Scorers, filters, pickers and producers written in Python.
//
// A type name is registered with a factory; the scheduler calls factory(**parameters) for each plugin of that
// type in the configuration. What the object is follows from its methods:
//
//   score(context, candidates, scores)      fills `scores`, or returns as many numbers; NaN: no opinion
//   filter(context, candidates)             returns a mask (true: keep), or None and reasons for each one
//   pick(context, positions, scores, ties)  returns the chosen positions, best first
//   produce(context, values)                fills `values`, one element for each endpoint; False: nothing
//
// Arrays belong to NumPy, so that a plugin may keep them; the context is void after the call. The GIL is
// taken around the call alone. An exception does not leave: the first one is kept in the decision's
// PluginRun, the plugins written in Python that come after it are passed over, and the decision fails with
// it.
#ifndef LLMD_PYTHON_SRC_SCHED_PLUGINS_H_
#define LLMD_PYTHON_SRC_SCHED_PLUGINS_H_

#include <pybind11/pybind11.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "llmd/sched/registry.h"
#include "llmd/sched/scheduler.h"
#include "python/src/sched_pool.h"

namespace llmd::python {

// Time spent in a plugin.
struct PluginCost {
  std::string plugin;
  std::uint64_t calls = 0;
  std::uint64_t errors = 0;
  double seconds = 0;      // in all
  double gil_seconds = 0;  // of that, waiting for the GIL
};

// What the plugins written in Python see and leave behind in one decision. It is found through a variable of
// the thread, since a decision does not leave its thread.
struct PluginRun {
  static constexpr int kMaxDepth = 16;

  int depth = 0;             // decisions that this one is inside of
  pybind11::object request;  // as the caller gave it
  PoolSnapshot pool;
  std::vector<PluginCost> costs;

  bool failed = false;
  std::string failed_plugin;
  std::string message;  // "plugin "x": ValueError: ..."
  pybind11::object exception;

  absl::Status status() const { return failed ? absl::InternalError(message) : absl::OkStatus(); }

  static PluginRun* Current();
  // Makes a run the thread's current one for the scope's life.
  class Scope {
   public:
    explicit Scope(PluginRun& run);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    PluginRun* outer_;
  };
};

// Counters of a plugin over all decisions.
struct PluginCounters {
  std::string plugin;
  std::atomic<std::uint64_t> calls = 0;
  std::atomic<std::uint64_t> errors = 0;
  std::atomic<std::int64_t> nanoseconds = 0;
  std::atomic<std::int64_t> gil_nanoseconds = 0;

  PluginCost Read() const;
};

// A registry that Python adds to. Any thread may call anything.
class Registry {
 public:
  Registry() : registry_(sched::PluginRegistry::Builtin()) {}

  void Register(const std::string& type, pybind11::object factory, bool experimental);
  sched::PluginRegistry Copy() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return registry_;
  }

 private:
  mutable std::mutex mutex_;
  sched::PluginRegistry registry_;
};

// The counters of the scheduler's plugins that are written in Python.
std::vector<PluginCost> CostsOf(const sched::Scheduler& scheduler);

}  // namespace llmd::python

#endif  // LLMD_PYTHON_SRC_SCHED_PLUGINS_H_
