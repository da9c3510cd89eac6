#include "llmd/events/publisher_stream.h"

#include <algorithm>
#include <utility>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "llmd/events/frames.h"

namespace llmd::events {

namespace {

// What a held batch costs besides its payload.
constexpr std::size_t kHeldOverhead = 64;

std::uint64_t HashPayload(std::span<const std::byte> payload) {
  return XXH3_64bits(payload.data(), payload.size());
}

}  // namespace

void PublisherStream::Begin() {
  actions_.clear();
  released_.clear();
}

PublisherStream::Actions PublisherStream::OnConnected(absl::Time now) {
  Begin();
  if (!options_.replay) return actions_;
  if (CoolingDown() && now >= cooldown_until_) cooldown_until_ = absl::InfinitePast();
  // Whatever was under way spoke to the publisher of the old connection.
  CancelRequest();
  recovering_ = false;
  DropHeld();
  if (last_applied_ && CoolingDown()) {
    Clear();  // no request is allowed, so nothing can be verified
  }
  if (!last_applied_) last_live_.reset();
  if (!CoolingDown()) StartRecovery(now, last_applied_ ? Purpose::kVerify : Purpose::kFill);
  return actions_;
}

PublisherStream::Actions PublisherStream::OnLive(absl::Time now, std::uint64_t seq,
                                                 std::span<const std::byte> payload) {
  Begin();
  if (seq == kEndSeq) {
    ++counters_.malformed;
    return actions_;
  }
  if (CoolingDown() && now >= cooldown_until_) EndCooldown(now);
  if (last_live_ && seq == *last_live_) {
    ++counters_.duplicates;
    return actions_;
  }
  if (last_live_ && seq < *last_live_) NoteRestart(now);
  last_live_ = seq;
  Take(now, seq, payload);
  return actions_;
}

// Deals with the next live batch, fresh or held. Numbers rise from call to call.
void PublisherStream::Take(absl::Time now, std::uint64_t seq, std::span<const std::byte> payload) {
  if (recovering_) return Hold(seq, payload);
  if (last_applied_ && seq <= *last_applied_) {
    ++counters_.duplicates;
    return;
  }
  if (seq == (last_applied_ ? *last_applied_ + 1 : 0)) return Apply(seq, payload);

  // A batch or more before this one is missing.
  if (CoolingDown() && options_.mode == StreamOptions::Mode::kStrict) {
    ++counters_.dropped;
    return;
  }
  if (last_applied_) ++counters_.gaps_total;
  if (options_.replay && !CoolingDown()) {
    StartRecovery(now, Purpose::kFill);
    return Hold(seq, payload);
  }
  Clear();
  Apply(seq, payload);
}

void PublisherStream::Apply(std::uint64_t seq, std::span<const std::byte> payload) {
  actions_.push_back({.kind = StreamAction::Kind::kApply, .seq = seq, .payload = payload});
  ++counters_.applied;
  if (never_applied_ && seq > *never_applied_) counters_.events_lost_total += seq - *never_applied_;
  never_applied_ = std::max(never_applied_.value_or(0), seq + 1);
  last_applied_ = seq;
  last_hash_ = HashPayload(payload);
  dirty_ = true;
}

void PublisherStream::Clear() {
  last_applied_.reset();
  if (!std::exchange(dirty_, false)) return;
  actions_.push_back({.kind = StreamAction::Kind::kClear});
  ++counters_.clears;
}

void PublisherStream::Hold(std::uint64_t seq, std::span<const std::byte> payload) {
  held_.push_back({seq, {payload.begin(), payload.end()}});
  held_bytes_ += payload.size() + kHeldOverhead;
  while (held_bytes_ > options_.max_held_bytes) {
    PopHeld();
    ++counters_.dropped;
  }
}

PublisherStream::Held PublisherStream::PopHeld() {
  Held front = std::move(held_.front());
  held_.pop_front();
  held_bytes_ -= front.payload.size() + kHeldOverhead;
  return front;
}

void PublisherStream::DropHeld() {
  counters_.dropped += held_.size();
  held_.clear();
  held_bytes_ = 0;
}

// Applies the held batches that follow the last applied one without a hole.
void PublisherStream::ApplyHeld() {
  while (!held_.empty()) {
    const std::uint64_t next = last_applied_ ? *last_applied_ + 1 : 0;
    if (held_.front().seq > next) return;
    released_.push_back(PopHeld());
    if (released_.back().seq < next) {
      ++counters_.duplicates;
    } else {
      Apply(released_.back().seq, released_.back().payload);
      progressed_ = true;
    }
  }
}

void PublisherStream::StartRecovery(absl::Time now, Purpose purpose) {
  recovering_ = true;
  purpose_ = purpose;
  fruitless_attempts_ = 0;
  recovery_deadline_ = now + options_.replay_deadline;
  next_request_ = std::max(now, last_request_ + options_.retry_backoff);
  SendRequest(now);
}

void PublisherStream::SendRequest(absl::Time now) {
  if (outstanding_ || now < next_request_) return;
  std::uint64_t start = 0;
  if (last_applied_) start = purpose_ == Purpose::kVerify ? *last_applied_ : *last_applied_ + 1;
  actions_.push_back({.kind = StreamAction::Kind::kRequestReplay, .seq = start, .request = ++request_});
  ++counters_.replays_requested;
  outstanding_ = true;
  progressed_ = false;
  last_request_ = now;
  idle_deadline_ = now + options_.idle_timeout;
}

void PublisherStream::CancelRequest() {
  if (!std::exchange(outstanding_, false)) return;
  actions_.push_back({.kind = StreamAction::Kind::kCancelReplay, .request = request_});
}

PublisherStream::Actions PublisherStream::OnReplayBatch(absl::Time now, std::uint64_t request,
                                                        std::uint64_t seq,
                                                        std::span<const std::byte> payload) {
  Begin();
  if (!Awaits(request)) return actions_;
  idle_deadline_ = now + options_.idle_timeout;
  if (purpose_ == Purpose::kVerify && seq == *last_applied_) {
    if (HashPayload(payload) == last_hash_) {
      purpose_ = Purpose::kFill;
      progressed_ = true;
    } else {
      NoteRestart(now);
    }
    return actions_;
  }
  const std::uint64_t first_expected = last_applied_ ? *last_applied_ + 1 : 0;
  if (seq == kEndSeq || seq < first_expected) {
    ++counters_.malformed;
    GiveUp(now);
    return actions_;
  }
  if (last_applied_ && (seq > first_expected || purpose_ == Purpose::kVerify)) {
    // The publisher's buffer no longer holds what was asked for.
    ++counters_.gaps_total;
    if (options_.mode == StreamOptions::Mode::kStrict) {
      GiveUp(now);
      return actions_;
    }
    Clear();
  }
  purpose_ = Purpose::kFill;
  progressed_ = true;
  Apply(seq, payload);
  return actions_;
}

PublisherStream::Actions PublisherStream::OnReplayEnd(absl::Time now, std::uint64_t request) {
  Begin();
  if (!Awaits(request)) return actions_;
  outstanding_ = false;
  if (purpose_ == Purpose::kVerify) {
    // The publisher does not know the batch that we have from it: it has started anew.
    NoteRestart(now);
  } else {
    EndAttempt(now, /*complete=*/true);
  }
  return actions_;
}

PublisherStream::Actions PublisherStream::OnReplayFailed(absl::Time now, std::uint64_t request,
                                                         ReplayFailure why) {
  Begin();
  if (!Awaits(request)) return actions_;
  if (why == ReplayFailure::kMalformed) {
    ++counters_.malformed;
    GiveUp(now);
  } else {
    CancelRequest();
    EndAttempt(now, /*complete=*/false);
  }
  return actions_;
}

// After a request has ended, with its end marker (`complete`) or otherwise: done, try again, or give up.
void PublisherStream::EndAttempt(absl::Time now, bool complete) {
  if (purpose_ == Purpose::kFill) ApplyHeld();
  if (complete && CaughtUp()) {
    recovering_ = false;
    return;
  }
  fruitless_attempts_ = progressed_ ? 0 : fruitless_attempts_ + 1;
  if (fruitless_attempts_ >= options_.max_attempts_without_progress) return GiveUp(now);
  next_request_ = now + options_.retry_backoff;
}

void PublisherStream::GiveUp(absl::Time now) {
  ++counters_.replays_failed;
  CancelRequest();
  recovering_ = false;
  Clear();
  cooldown_until_ = now + options_.cooldown;
  if (options_.mode == StreamOptions::Mode::kStrict) return DropHeld();
  while (!held_.empty()) {
    released_.push_back(PopHeld());
    Take(now, released_.back().seq, released_.back().payload);
  }
}

// The publisher's process is another one: nothing known about the old one holds.
void PublisherStream::NoteRestart(absl::Time now) {
  ++counters_.restarts;
  CancelRequest();
  recovering_ = false;
  DropHeld();
  Clear();
  last_live_.reset();
  never_applied_.reset();
  cooldown_until_ = absl::InfinitePast();
  if (options_.replay) StartRecovery(now, Purpose::kFill);
}

void PublisherStream::EndCooldown(absl::Time now) {
  cooldown_until_ = absl::InfinitePast();
  // Best effort follows the live batches already; a strict stream is empty or behind.
  if (options_.mode == StreamOptions::Mode::kStrict && (!last_applied_ || !CaughtUp())) {
    StartRecovery(now, Purpose::kFill);
  }
}

PublisherStream::Actions PublisherStream::Tick(absl::Time now) {
  Begin();
  if (CoolingDown() && now >= cooldown_until_) EndCooldown(now);
  if (!recovering_) return actions_;
  if (now >= recovery_deadline_) {
    GiveUp(now);
  } else if (outstanding_ && now >= idle_deadline_) {
    CancelRequest();
    EndAttempt(now, /*complete=*/false);
  } else {
    SendRequest(now);
  }
  return actions_;
}

absl::Time PublisherStream::next_deadline() const {
  if (CoolingDown()) return cooldown_until_;
  if (!recovering_) return absl::InfiniteFuture();
  return std::min(recovery_deadline_, outstanding_ ? idle_deadline_ : next_request_);
}

}  // namespace llmd::events
