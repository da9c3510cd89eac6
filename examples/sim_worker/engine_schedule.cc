// The scheduling half of the engine (spec: decode-worker.md 2.3).
#include <algorithm>
#include <limits>
#include <utility>

#include "examples/sim_worker/check.h"
#include "examples/sim_worker/engine.h"
#include "examples/sim_worker/engine_entry.h"

namespace llmd::sim {

using worker::RequestStatus;

void Engine::Preempt(Entry& entry) {
  Check(kv_.Preempt(entry.state), "preempt");
  metrics_.preemptions.Add();
  waiting_.push_front(&entry);
}

void Engine::ScheduleRunning(std::uint32_t& budget, bool& preempted, double) {
  for (std::size_t i = 0; i < running_.size() && budget > 0; ++i) {
    Entry& entry = *running_[i];
    std::uint32_t n = std::min(entry.missing(), budget);
    if (options_.long_prefill_token_threshold > 0) n = std::min(n, options_.long_prefill_token_threshold);
    if (n == 0) continue;
    while (true) {
      absl::StatusOr<worker::SlotResult> slots = kv_.AllocateSlots(entry.state, {.num_new_tokens = n});
      Check(slots.status(), "allocate");
      if (slots->fits) break;
      Entry& victim = *running_.back();  // behind `entry` or itself: not scheduled in this step
      running_.pop_back();
      Preempt(victim);
      preempted = true;
      if (&victim == &entry) return;
    }
    scheduled_.push_back({&entry, n});
    budget -= n;
  }
}

std::uint32_t Engine::ReservedBlocks() const {
  std::uint64_t reserved = 0;
  for (const Entry* entry : running_) {
    const std::uint64_t need =
        (entry->state.num_tokens() + std::uint64_t{options_.block_size} - 1) / options_.block_size;
    const std::size_t held = kv_.BlockTable(entry->state.id).size();
    if (need > held) reserved += need - held;
  }
  // What has been loaded still needs a place for its first token.
  reserved += loaded_.size() + loading_.size();
  return static_cast<std::uint32_t>(
      std::min<std::uint64_t>(reserved, std::numeric_limits<std::uint32_t>::max()));
}

bool Engine::StartLoad(Entry& entry, const worker::PrefixHit& hit, double now) {
  const std::uint32_t external = entry.state.num_tokens() - hit.num_tokens;
  // A load cannot be preempted, so it must not take what others were promised; with nobody else about, there
  // is nobody to protect.
  const bool alone = running_.empty() && loaded_.empty() && loading_.empty();
  const std::uint32_t local = hit.num_tokens;
  absl::StatusOr<worker::SlotResult> slots =
      kv_.AllocateSlots(entry.state, {.hit = hit,
                                      .num_external_computed_tokens = external,
                                      .reserved_blocks = alone ? 0 : ReservedBlocks(),
                                      .delay_cache_blocks = true,
                                      .full_sequence_must_fit = true,
                                      .has_scheduled_requests = !running_.empty()});
  Check(slots.status(), "allocate");
  if (!slots->fits) return false;
  entry.state.status = RequestStatus::kWaitingForRemoteKv;
  entry.in.remote_prefill = false;  // once: after a preemption the prompt is computed here
  entry.load_tokens = external;
  entry.loaded_at = now + options_.latency.TransferSeconds(external, random_);
  entry.local_hit = local;
  if (entry.scheduled < 0) entry.scheduled = now;
  metrics_.external_queries.Add(external);
  metrics_.external_hits.Add(external);
  loading_.push_back(&entry);
  return true;
}

void Engine::PromoteLoads(double now) {
  for (std::size_t i = 0; i < loading_.size();) {
    Entry& entry = *loading_[i];
    if (entry.loaded_at > now) {
      ++i;
      continue;
    }
    absl::StatusOr<std::uint32_t> computed = kv_.CommitRemoteLoad(entry.state, entry.state.num_tokens());
    Check(computed.status(), "commit load");
    entry.state.num_computed_tokens = *computed;
    entry.state.status = RequestStatus::kWaiting;
    entry.external_hit = *computed > entry.local_hit ? *computed - entry.local_hit : 0;
    entry.local_hit = *computed - entry.external_hit;
    loading_.erase(loading_.begin() + static_cast<std::ptrdiff_t>(i));
    loaded_.push_back(&entry);
  }
}

void Engine::ReleaseSent(double now) {
  std::erase_if(sending_, [&](const Sending& sending) {
    if (sending.until > now) return false;
    Check(kv_.Free(sending.id), "free sent");
    return true;
  });
}

Engine::Admission Engine::Admit(Entry& entry, std::uint32_t& budget, double now) {
  worker::PrefixHit hit;
  if (entry.state.num_computed_tokens == 0) {
    hit = kv_.GetComputedBlocks(entry.state);
    if (entry.in.remote_prefill) {
      return StartLoad(entry, hit, now) ? Admission::kLoading : Admission::kMustWait;
    }
  }
  const std::uint32_t missing = entry.missing() - hit.num_tokens;
  std::uint32_t n = missing;
  if (options_.long_prefill_token_threshold > 0) n = std::min(n, options_.long_prefill_token_threshold);
  if (!options_.chunked_prefill && n > budget) return Admission::kMustWait;
  n = std::min(n, budget);
  absl::StatusOr<worker::SlotResult> slots =
      kv_.AllocateSlots(entry.state, {.num_new_tokens = n,
                                      .hit = hit,
                                      .full_sequence_must_fit = true,
                                      .has_scheduled_requests = !running_.empty()});
  Check(slots.status(), "allocate");
  if (!slots->fits) return Admission::kMustWait;
  if (entry.scheduled < 0) {
    entry.scheduled = now;
    entry.local_hit = hit.num_tokens;
  }
  entry.state.num_computed_tokens += hit.num_tokens;
  entry.state.status = RequestStatus::kRunning;
  loras_changed_ |= !entry.in.lora_name.empty();
  running_.push_back(&entry);
  scheduled_.push_back({&entry, n});
  budget -= n;
  return Admission::kRunning;
}

void Engine::ScheduleQueues(std::uint32_t& budget, double now) {
  while (budget > 0 && running_.size() < options_.max_num_seqs) {
    std::deque<Entry*>& queue = loaded_.empty() ? waiting_ : loaded_;
    if (queue.empty() || Admit(*queue.front(), budget, now) == Admission::kMustWait) return;
    queue.pop_front();
  }
}

Engine::Tick Engine::Begin(double now) {
  Check(!in_step_, "no step runs");
  PromoteLoads(now);
  ReleaseSent(now);
  scheduled_.clear();
  std::uint32_t budget = options_.max_num_batched_tokens;
  bool preempted = false;
  ScheduleRunning(budget, preempted, now);
  if (!preempted) ScheduleQueues(budget, now);
  if (scheduled_.empty() && running_.empty() && !preempted && !loaded_.empty() && loading_.empty() &&
      sending_.empty()) {
    // Loaded requests hold all blocks and none can grow: one of them is computed again.
    Entry& victim = *loaded_.back();
    loaded_.pop_back();
    victim.state.status = RequestStatus::kRunning;
    Preempt(victim);
    ScheduleQueues(budget, now);
  }

  std::uint64_t prefill_tokens = 0;
  std::uint64_t decoding = 0;
  std::uint64_t tokens = 0;
  for (const Scheduled& scheduled : scheduled_) {
    Entry& entry = *scheduled.entry;
    tokens += scheduled.tokens;
    if (entry.num_output() > 0 && entry.missing() == 1) {
      ++decoding;
    } else {
      prefill_tokens += scheduled.tokens;
    }
    entry.state.num_computed_tokens += scheduled.tokens;
  }
  UpdateGauges();
  if (!scheduled_.empty()) {
    in_step_ = true;
    metrics_.iteration_tokens.Observe(static_cast<double>(tokens));
    return {Tick::Kind::kStep, options_.latency.StepSeconds(prefill_tokens, decoding, random_)};
  }
  FlushEvents();
  if (preempted) return {Tick::Kind::kWait, 0};
  double next = std::numeric_limits<double>::infinity();
  for (const Entry* entry : loading_) next = std::min(next, entry->loaded_at);
  for (const Sending& sending : sending_) next = std::min(next, sending.until);
  if (next == std::numeric_limits<double>::infinity()) return {};
  return {Tick::Kind::kWait, std::max(next - now, 0.0)};
}

}  // namespace llmd::sim
