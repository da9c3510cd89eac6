#include "examples/gateway_scheduler/flow_gate.h"

#include <algorithm>
#include <utility>

namespace llmd::host {
namespace {

// A decision that takes longer than this no longer holds up the next one.
constexpr absl::Duration kDecisionPatience = absl::Milliseconds(20);

using Kind = sched::FlowOutcome::Kind;

}  // namespace

FlowGate::FlowGate(PoolStore& pool, std::function<void(absl::Duration)> on_cycle)
    : pool_(pool), on_cycle_(std::move(on_cycle)) {
  thread_ = std::thread([this] { Run(); });
}

FlowGate::~FlowGate() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

absl::Status FlowGate::SetScheduler(std::shared_ptr<sched::Scheduler> scheduler) {
  Generation generation{.scheduler = std::move(scheduler)};
  if (generation.scheduler->config().feature_gates.flow_control) {
    absl::StatusOr<std::unique_ptr<sched::FlowController>> made =
        sched::FlowController::Create(*generation.scheduler);
    if (!made.ok()) return made.status();
    generation.controller = *std::move(made);
  }
  {
    const std::lock_guard lock(mutex_);
    enabled_.store(generation.controller != nullptr, std::memory_order_release);
    generations_.push_back(std::move(generation));
    changed_ = true;
  }
  wake_.notify_one();
  return absl::OkStatus();
}

void FlowGate::Enqueue(const sched::FlowItem& item, absl::Time now, Callback callback) {
  std::unique_lock lock(mutex_);
  sched::FlowController* controller = generations_.empty() ? nullptr : generations_.back().controller.get();
  if (controller == nullptr) {
    const Kind kind = shut_down_ ? Kind::kRejectedShuttingDown : Kind::kDispatched;
    lock.unlock();
    callback({.id = item.id, .kind = kind, .priority = item.priority});
    return;
  }
  callbacks_.insert_or_assign(item.id, std::move(callback));
  (void)controller->Enqueue(item, now, outcomes_);  // the host's numbers are unique
  changed_ = true;
  Deliver(lock);
  lock.unlock();
  wake_.notify_one();
}

void FlowGate::Cancel(std::uint64_t id, absl::Time now) {
  std::unique_lock lock(mutex_);
  for (Generation& generation : generations_) {
    if (generation.controller != nullptr && generation.controller->Cancel(id, now, outcomes_)) break;
  }
  // Nobody waits for the answer.
  callbacks_.erase(id);
  Deliver(lock);
}

void FlowGate::Carried(std::uint64_t id) {
  {
    const std::lock_guard lock(mutex_);
    if (deciding_ != id) return;
    deciding_.reset();
    changed_ = true;
  }
  wake_.notify_one();
}

void FlowGate::Finished(std::uint64_t id, absl::Time now, const std::optional<sched::TokenUsage>& usage) {
  {
    const std::lock_guard lock(mutex_);
    callbacks_.erase(id);
    for (Generation& generation : generations_) {
      if (generation.controller != nullptr && generation.controller->OnFinished(id, now, usage)) break;
    }
    if (deciding_ == id) deciding_.reset();
    changed_ = true;
  }
  wake_.notify_one();
}

void FlowGate::ShutDown() {
  std::unique_lock lock(mutex_);
  shut_down_ = true;
  for (Generation& generation : generations_) {
    if (generation.controller != nullptr) generation.controller->Shutdown(absl::Now(), outcomes_);
  }
  Deliver(lock);
}

sched::FlowControlStats FlowGate::stats() const {
  const std::lock_guard lock(mutex_);
  sched::FlowControlStats sum;
  for (const Generation& generation : generations_) {
    if (generation.controller == nullptr) continue;
    const sched::FlowControlStats stats = generation.controller->stats();
    sum.queued_requests += stats.queued_requests;
    sum.queued_bytes += stats.queued_bytes;
    sum.running += stats.running;
    sum.flows += stats.flows;
    sum.bands += stats.bands;
    sum.unconfirmed_evictions += stats.unconfirmed_evictions;
    sum.saturation = stats.saturation;
    for (std::size_t i = 0; i < sum.outcomes.size(); ++i) sum.outcomes[i] += stats.outcomes[i];
  }
  return sum;
}

void FlowGate::Deliver(std::unique_lock<std::mutex>& lock) {
  std::vector<std::pair<Callback, sched::FlowOutcome>> calls;
  for (const sched::FlowOutcome& outcome : outcomes_) {
    const auto at = callbacks_.find(outcome.id);
    if (at == callbacks_.end()) continue;
    if (outcome.kind == Kind::kDispatched) {
      deciding_ = outcome.id;
      deciding_since_ = absl::Now();
      calls.emplace_back(at->second, outcome);  // kept: it may be evicted later
    } else {
      calls.emplace_back(std::move(at->second), outcome);
      callbacks_.erase(at);
    }
  }
  outcomes_.clear();
  if (calls.empty()) return;
  lock.unlock();
  for (const auto& [callback, outcome] : calls) callback(outcome);
  lock.lock();
}

void FlowGate::Run() {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    absl::Time wakeup = absl::InfiniteFuture();
    const absl::Time now = absl::Now();
    if (deciding_ && now - deciding_since_ > kDecisionPatience) deciding_.reset();
    for (Generation& generation : generations_) {
      if (generation.controller == nullptr) continue;
      if (deciding_) {
        wakeup = std::min(wakeup, deciding_since_ + kDecisionPatience);
      } else {
        generation.controller->Dispatch(now, *pool_.snapshot(), 1, outcomes_);
        if (on_cycle_) on_cycle_(absl::Now() - now);
        wakeup = std::min(wakeup, generation.controller->NextWakeup(now));
      }
    }
    // A controller that was replaced goes when nothing of it is left.
    std::erase_if(generations_, [this](const Generation& generation) {
      if (&generation == &generations_.back()) return false;
      if (generation.controller == nullptr) return true;
      const sched::FlowControlStats stats = generation.controller->stats();
      return stats.queued_requests == 0 && stats.running == 0;
    });
    changed_ = false;
    Deliver(lock);
    if (changed_ || stop_) continue;
    const auto woken = [this] { return changed_ || stop_; };
    if (wakeup == absl::InfiniteFuture()) {
      wake_.wait_for(lock, std::chrono::seconds(1), woken);
    } else {
      wake_.wait_for(lock, absl::ToChronoNanoseconds(std::max(wakeup - now, absl::ZeroDuration())), woken);
    }
  }
}

}  // namespace llmd::host
