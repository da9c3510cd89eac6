// The stream of one publisher: which batches to apply, when to clear, when to ask for a replay.
//
// A publisher numbers its batches from 0 and starts again when its process does. The transport loses batches
// silently. PublisherStream sees every message and connection event of one publisher, in order, and answers
// with actions for the host: apply this payload, clear this publisher's entries, request a replay, cancel it.
// It does no I/O and knows no clock: each input carries the time, and next_deadline() says when Tick() is
// due.
//
// Promise: the payloads applied since the last clear are consecutive batches of one publisher process. A hole
// is filled by a replay, or else everything is cleared before anything later is applied. (A first batch above
// 0 starts a run only right after a clear: older batches are out of reach, so an event may name a parent
// nobody has heard of.)
//
// Replay. At most one is under way. While it is, live batches are held, within a byte budget (the oldest go
// first; the replay covers them). A request ends at its end marker, when it falls silent, or when the host
// reports its failure; then, as needed, the next one resumes after the last applied batch. Attempts that
// bring nothing, a hole in the reply, and a total time over the deadline give up, which clears the publisher
// and forbids requests for a while.
//   strict       after giving up nothing is applied until a rebuild from 0 succeeds (tried when the cooldown
//   ends). best effort  after giving up live batches are applied from wherever they are; what is missing is
//   counted.
// Without a replay socket (replay = false) a hole clears, and the stream goes on behind it.
//
// Reconnects. A publisher may have restarted in between and already be past the old numbers. So after a
// reconnect the last applied batch is asked for again, and must come back identical (64-bit hash) before
// anything else is applied.
//
// Ownership: actions and the payloads they point to are valid until the next call. Threads: one owner.
// Source: spec kv-events section 6, llm-d-router: pkg/kvevents/zmq_subscriber.go.
#ifndef LLMD_EVENTS_PUBLISHER_STREAM_H_
#define LLMD_EVENTS_PUBLISHER_STREAM_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <vector>

#include "absl/time/time.h"

namespace llmd::events {

struct StreamOptions {
  enum class Mode : std::uint8_t { kStrict, kBestEffort };
  Mode mode = Mode::kStrict;
  bool replay = true;                                      // the publisher has a replay socket
  absl::Duration replay_deadline = absl::Minutes(2);       // from the first request to caught up
  absl::Duration idle_timeout = absl::Seconds(2);          // silence that ends a request
  absl::Duration retry_backoff = absl::Milliseconds(100);  // between two requests
  absl::Duration cooldown = absl::Seconds(30);             // without requests, after giving up
  int max_attempts_without_progress = 3;
  std::size_t max_held_bytes = 16u << 20;  // live batches held during a replay
};

struct StreamAction {
  enum class Kind : std::uint8_t {
    kApply,          // decode and apply `payload` (batch `seq`)
    kClear,          // forget everything this publisher has announced
    kRequestReplay,  // ask for batches from `seq` on; tag the answers with `request`. On a new socket:
                     // answers to an earlier request must not arrive under this one's tag
    kCancelReplay,   // close the socket of `request`; answers still on the way are ignored
  };
  Kind kind;
  std::uint64_t seq = 0;
  std::uint64_t request = 0;
  std::span<const std::byte> payload = {};
};

struct StreamCounters {
  std::uint64_t applied = 0;
  std::uint64_t duplicates = 0;  // live batches seen twice or already covered by a replay
  std::uint64_t dropped = 0;  // live batches not applied when they came; a replay may have brought them later
  std::uint64_t gaps_total = 0;         // times a batch was missing, live or in a replay
  std::uint64_t events_lost_total = 0;  // batches passed over for good: their numbers were never applied
  std::uint64_t restarts = 0;           // publisher restarts noticed
  std::uint64_t clears = 0;
  std::uint64_t replays_requested = 0;
  std::uint64_t replays_failed = 0;  // given up: a clear and a cooldown followed
  std::uint64_t malformed = 0;       // messages that broke the protocol
};

class PublisherStream {
 public:
  using Actions = std::span<const StreamAction>;

  explicit PublisherStream(const StreamOptions& options) : options_(options) {}

  // The subscription became active: the first time, or again after a loss of the connection.
  Actions OnConnected(absl::Time now);
  // A live message. Reaches the stream in order of arrival.
  Actions OnLive(absl::Time now, std::uint64_t seq, std::span<const std::byte> payload);
  // Answers to request `request`; those of an earlier request are ignored.
  Actions OnReplayBatch(absl::Time now, std::uint64_t request, std::uint64_t seq,
                        std::span<const std::byte> payload);
  Actions OnReplayEnd(absl::Time now, std::uint64_t request);
  enum class ReplayFailure : std::uint8_t { kTransport, kMalformed };
  Actions OnReplayFailed(absl::Time now, std::uint64_t request, ReplayFailure why);
  // Call at next_deadline() or later, as often as you like.
  Actions Tick(absl::Time now);

  // When Tick() has something to do; InfiniteFuture when nothing is pending.
  absl::Time next_deadline() const;

  std::optional<std::uint64_t> last_applied() const { return last_applied_; }
  // Nothing is missing as far as the stream can know: no replay under way or pending, no cooldown.
  bool in_sync() const { return !recovering_ && !CoolingDown(); }
  const StreamCounters& counters() const { return counters_; }
  std::size_t held_bytes() const { return held_bytes_; }

 private:
  enum class Purpose : std::uint8_t {
    kFill,    // batches from the one after last_applied_ on; from 0 when nothing is applied
    kVerify,  // last_applied_ once more, then as above
  };
  struct Held {
    std::uint64_t seq;
    std::vector<std::byte> payload;
  };

  bool CoolingDown() const { return cooldown_until_ != absl::InfinitePast(); }
  bool Awaits(std::uint64_t request) const { return recovering_ && outstanding_ && request == request_; }
  bool CaughtUp() const { return !last_live_ || (last_applied_ && *last_applied_ >= *last_live_); }

  void Begin();
  void Take(absl::Time now, std::uint64_t seq, std::span<const std::byte> payload);
  void Apply(std::uint64_t seq, std::span<const std::byte> payload);
  void Clear();
  void Hold(std::uint64_t seq, std::span<const std::byte> payload);
  void ApplyHeld();
  void DropHeld();
  Held PopHeld();

  void StartRecovery(absl::Time now, Purpose purpose);
  void SendRequest(absl::Time now);
  void CancelRequest();
  void EndAttempt(absl::Time now, bool complete);
  void GiveUp(absl::Time now);
  void NoteRestart(absl::Time now);
  void EndCooldown(absl::Time now);

  StreamOptions options_;
  StreamCounters counters_;
  std::vector<StreamAction> actions_;

  std::optional<std::uint64_t> last_applied_;   // since the last clear
  std::optional<std::uint64_t> last_live_;      // last live number of this publisher process
  std::optional<std::uint64_t> never_applied_;  // numbers from here on were never applied, of this process
  std::uint64_t last_hash_ = 0;                 // of the payload of last_applied_
  bool dirty_ = false;                          // something was applied since the last clear

  bool recovering_ = false;
  bool outstanding_ = false;  // a request is under way; else the next one is due at next_request_
  bool progressed_ = false;   // the request has brought something
  Purpose purpose_ = Purpose::kFill;
  int fruitless_attempts_ = 0;
  std::uint64_t request_ = 0;
  absl::Time recovery_deadline_;
  absl::Time idle_deadline_;
  absl::Time next_request_;
  absl::Time last_request_ = absl::InfinitePast();
  absl::Time cooldown_until_ = absl::InfinitePast();

  std::deque<Held> held_;
  std::size_t held_bytes_ = 0;
  std::vector<Held> released_;  // payloads that the current actions point to
};

}  // namespace llmd::events

#endif  // LLMD_EVENTS_PUBLISHER_STREAM_H_
