// Flow control for a host with many threads: the deterministic FlowController behind a mutex, driven by one
// thread.
//
// Without the feature gate everything passes at once. Dispatched requests are decided one after the other, so
// that a detector that counts running requests sees each before the next: call Carried() when a decision was
// carried out.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_FLOW_GATE_H_
#define EXAMPLES_GATEWAY_SCHEDULER_FLOW_GATE_H_

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "examples/gateway_scheduler/pool_store.h"
#include "llmd/sched/flow_control.h"

namespace llmd::host {

class FlowGate {
 public:
  // Called from the gate's threads, and from within Enqueue(); for one request a terminal outcome, and
  // perhaps kEvictRunning later. Must not block.
  using Callback = std::function<void(const sched::FlowOutcome&)>;

  // `on_cycle`, which may be empty, hears how long each cycle took.
  explicit FlowGate(PoolStore& pool, std::function<void(absl::Duration)> on_cycle = {});
  ~FlowGate();
  FlowGate(const FlowGate&) = delete;
  FlowGate& operator=(const FlowGate&) = delete;

  // The scheduler in force. Requests that wait under the one before are served by its rules.
  absl::Status SetScheduler(std::shared_ptr<sched::Scheduler> scheduler);
  bool enabled() const { return enabled_.load(std::memory_order_acquire); }

  void Enqueue(const sched::FlowItem& item, absl::Time now, Callback callback);
  void Cancel(std::uint64_t id, absl::Time now);
  void Carried(std::uint64_t id);
  // Of every dispatched request, once.
  void Finished(std::uint64_t id, absl::Time now, const std::optional<sched::TokenUsage>& usage);
  void ShutDown();

  sched::FlowControlStats stats() const;

 private:
  struct Generation {
    std::shared_ptr<sched::Scheduler> scheduler = {};
    std::unique_ptr<sched::FlowController> controller = {};
  };
  void Run();
  // Takes the callbacks of `outcomes_`; to be called without the lock.
  void Deliver(std::unique_lock<std::mutex>& lock);

  PoolStore& pool_;
  const std::function<void(absl::Duration)> on_cycle_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;
  bool shut_down_ = false;
  bool changed_ = false;
  std::atomic<bool> enabled_ = false;
  std::vector<Generation> generations_;  // the last is in force
  absl::flat_hash_map<std::uint64_t, Callback> callbacks_;
  std::vector<sched::FlowOutcome> outcomes_;
  std::optional<std::uint64_t> deciding_;  // dispatched, not carried out yet
  absl::Time deciding_since_ = absl::InfinitePast();
  std::thread thread_;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_FLOW_GATE_H_
