// The multipart messages around KV-event payloads: live messages, replay requests, and replay replies.
//
// Frames are ZeroMQ's, but nothing here needs ZeroMQ: lists of byte strings in, views out. The views point
// into the frames given. Threads: pure functions.
//
//   live (SUB socket)              [topic, seq, payload]
//   replay request (DEALER sends)  ["", start_seq]
//   replay reply (DEALER receives) ["", seq, payload] or ["", topic, seq, payload]
//   end of the replay              the same with seq = 2^64 - 1 and an empty payload
//
// Sequence numbers are 8 bytes, big-endian. Use a DEALER socket: a REQ socket accepts one reply message and
// loses the rest. Always read a reply to its end: a publisher answers all its clients from one thread.
#ifndef LLMD_EVENTS_FRAMES_H_
#define LLMD_EVENTS_FRAMES_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string_view>

#include "absl/status/statusor.h"

namespace llmd::events {

using Frame = std::span<const std::byte>;

// The sequence number of the end marker; no batch carries it.
inline constexpr std::uint64_t kEndSeq = std::numeric_limits<std::uint64_t>::max();

struct LiveMessage {
  std::string_view topic;
  std::uint64_t seq = 0;
  Frame payload;
};

// InvalidArgument unless there are 3 frames and the second is 8 bytes that are not the end marker.
absl::StatusOr<LiveMessage> ParseLiveMessage(std::span<const Frame> frames);

struct ReplayMessage {
  bool end = false;        // the end marker; nothing else is set
  std::string_view topic;  // empty in the layout without topic
  std::uint64_t seq = 0;
  Frame payload;
};

// Reads both layouts, with or without the leading empty frame.
absl::StatusOr<ReplayMessage> ParseReplayMessage(std::span<const Frame> frames);

std::array<std::byte, 8> EncodeSeq(std::uint64_t seq);

// The two frames that a DEALER socket sends to ask for every buffered batch from `start_seq` on.
class ReplayRequest {
 public:
  explicit ReplayRequest(std::uint64_t start_seq) : seq_(EncodeSeq(start_seq)) {}
  std::array<Frame, 2> frames() const { return {Frame(), Frame(seq_)}; }

 private:
  std::array<std::byte, 8> seq_;
};

// The publisher's side: the start sequence in [identity, "", start_seq], as a ROUTER socket sees it. Like
// vLLM, does not look at the frame between.
absl::StatusOr<std::uint64_t> ParseReplayRequest(std::span<const Frame> frames);

}  // namespace llmd::events

#endif  // LLMD_EVENTS_FRAMES_H_
