#include "examples/trace_replay/engine.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace llmd::replay {
namespace {

using worker::RequestStatus;

}  // namespace

absl::StatusOr<Engine> Engine::Create(const EngineOptions& options, ServedSink served, EventSink events,
                                      FirstTokenSink first_token) {
  if (options.max_running < 1 || options.max_batched_tokens < options.max_running) {
    return absl::InvalidArgumentError(absl::StrCat("max_batched_tokens: is ", options.max_batched_tokens,
                                                   ", expected at least max_running, which is ",
                                                   options.max_running, " and must be at least 1"));
  }
  // The pool keeps one block for itself.
  absl::StatusOr<worker::KvCacheManager> kv =
      worker::KvCacheManager::Create({.pool = {.num_blocks = options.capacity_blocks + 1,
                                               .block_size = kBlockTokens,
                                               .enable_events = options.publish_events}});
  if (!kv.ok()) return kv.status();
  return Engine(options, *std::move(kv), std::move(served), std::move(events), std::move(first_token));
}

Engine::Engine(const EngineOptions& options, worker::KvCacheManager kv, ServedSink served, EventSink events,
               FirstTokenSink first_token)
    : options_(options),
      kv_(std::move(kv)),
      served_(std::move(served)),
      events_(std::move(events)),
      first_token_(std::move(first_token)) {}

absl::Status Engine::Submit(std::shared_ptr<const PreparedRequest> request, Nanos now) {
  const std::size_t blocks = (request->tokens.size() + kBlockTokens - 1) / kBlockTokens;
  if (blocks > options_.capacity_blocks) {
    return absl::InvalidArgumentError(absl::StrCat("request ", request->index, ": needs ", blocks,
                                                   " blocks, capacity_blocks is ", options_.capacity_blocks));
  }
  auto active = std::make_unique<Active>();
  active->view.id = request->index;
  active->view.tokens = TokenSpan(request->tokens).first(request->prompt_tokens);
  active->view.block_hashes = request->digests;
  active->source = std::move(request);
  waiting_.push_back(std::move(active));
  return stepping_ ? absl::OkStatus() : StartStep(now);
}

absl::Status Engine::AdvanceTo(Nanos now) {
  while (stepping_ && step_end_ <= now) {
    if (absl::Status s = FinishStep(); !s.ok()) return s;
    if (absl::Status s = StartStep(step_end_); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status Engine::StartStep(Nanos now) {
  stepping_ = !running_.empty() || !waiting_.empty();
  if (!stepping_) return absl::OkStatus();
  std::uint32_t budget = options_.max_batched_tokens;
  bool preempted = false;
  if (absl::Status s = ScheduleRunning(budget, preempted); !s.ok()) return s;
  if (!preempted) {
    if (absl::Status s = ScheduleWaiting(budget); !s.ok()) return s;
  }
  StepWork work;
  for (const auto& active : running_) {
    if (active->scheduled > 0) work.Add(active->view.num_computed_tokens, active->scheduled);
  }
  // Submit() refuses what cannot fit, so an empty engine can always serve its first request.
  if (work.tokens == 0) return absl::InternalError("a step schedules nothing");
  const Nanos time = StepTime(options_.latency, work);
  step_end_ = now + time;
  totals_.busy += time;
  totals_.computed_tokens += work.tokens;
  ++totals_.steps;
  return absl::OkStatus();
}

absl::Status Engine::ScheduleRunning(std::uint32_t& budget, bool& preempted) {
  for (std::size_t i = 0; i < running_.size() && budget > 0; ++i) {
    Active& active = *running_[i];
    const std::uint32_t computed = active.view.num_computed_tokens;
    const std::uint32_t count = std::min(active.view.num_tokens() - computed, budget);
    // A decode step inside a block neither needs a block nor completes one: nothing to ask the manager for.
    const std::uint32_t offset = computed % kBlockTokens;
    bool fits = offset != 0 && offset + count < kBlockTokens;
    while (!fits) {
      absl::StatusOr<worker::SlotResult> slots = kv_.AllocateSlots(active.view, {.num_new_tokens = count});
      if (!slots.ok()) return slots.status();
      fits = slots->fits;
      if (fits) break;
      preempted = true;
      const bool itself = running_.back().get() == &active;
      if (absl::Status s = PreemptLast(); !s.ok()) return s;
      if (itself) return absl::OkStatus();
    }
    active.scheduled = count;
    budget -= count;
  }
  return absl::OkStatus();
}

absl::Status Engine::ScheduleWaiting(std::uint32_t& budget) {
  while (!waiting_.empty() && budget > 0 && running_.size() < options_.max_running) {
    Active& active = *waiting_.front();
    const worker::PrefixHit hit = kv_.GetComputedBlocks(active.view);
    const std::uint32_t count = std::min(active.view.num_tokens() - hit.num_tokens, budget);
    absl::StatusOr<worker::SlotResult> slots =
        kv_.AllocateSlots(active.view, {.num_new_tokens = count,
                                        .hit = hit,
                                        .full_sequence_must_fit = true,
                                        .has_scheduled_requests = !running_.empty()});
    if (!slots.ok()) return slots.status();
    if (!slots->fits) break;
    if (!active.admitted_before) active.hit_tokens = hit.num_tokens;
    active.admitted_before = true;
    active.view.num_computed_tokens = hit.num_tokens;
    active.view.status = RequestStatus::kRunning;
    active.scheduled = count;
    budget -= count;
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
  return absl::OkStatus();
}

// The youngest running request; it is not scheduled yet, since requests are scheduled in the order of
// admission.
absl::Status Engine::PreemptLast() {
  std::unique_ptr<Active> victim = std::move(running_.back());
  running_.pop_back();
  ++totals_.preemptions;
  absl::Status status = kv_.Preempt(victim->view);
  waiting_.push_front(std::move(victim));
  return status;
}

absl::Status Engine::FinishStep() {
  std::size_t kept = 0;
  for (std::size_t i = 0; i < running_.size(); ++i) {
    Active& active = *running_[i];
    active.view.num_computed_tokens += active.scheduled;
    const bool caught_up =
        active.scheduled > 0 && active.view.num_computed_tokens == active.view.num_tokens();
    active.scheduled = 0;
    if (caught_up) {
      if (active.generated++ == 0) {
        active.first_token = step_end_;
        if (first_token_) first_token_(active.source->index, step_end_);
      }
      if (active.generated == active.source->output_tokens) {
        if (absl::Status s = FinishRequest(active); !s.ok()) return s;
        continue;
      }
      active.view.tokens =
          TokenSpan(active.source->tokens).first(active.source->prompt_tokens + active.generated);
    }
    if (kept != i) running_[kept] = std::move(running_[i]);
    ++kept;
  }
  running_.resize(kept);
  if (!options_.publish_events) return absl::OkStatus();
  kv_.TakeEvents(step_events_);
  return step_events_.empty() ? absl::OkStatus() : events_(step_end_, step_events_);
}

absl::Status Engine::FinishRequest(Active& active) {
  ++totals_.requests;
  totals_.prompt_tokens += active.source->prompt_tokens;
  totals_.hit_tokens += active.hit_tokens;
  totals_.output_tokens += active.generated;
  active.view.status = RequestStatus::kFinished;
  served_({.index = active.source->index,
           .first_token = active.first_token,
           .finished = step_end_,
           .hit_tokens = active.hit_tokens,
           .preemptions = active.view.num_preemptions});
  return kv_.Free(active.view.id);
}

}  // namespace llmd::replay
