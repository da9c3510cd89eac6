#include "llmd/events/frames.h"

#include "absl/strings/str_cat.h"
#include "src/events/msgpack.h"

namespace llmd::events {

namespace {

absl::StatusOr<std::uint64_t> ParseSeq(Frame frame, absl::string_view what) {
  if (frame.size() != 8) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": field 'seq' has ", frame.size(), " bytes, expected 8"));
  }
  return msgpack::LoadBig<std::uint64_t>(reinterpret_cast<const std::uint8_t*>(frame.data()));
}

absl::Status WrongCount(absl::string_view what, std::size_t count, absl::string_view expected) {
  return absl::InvalidArgumentError(absl::StrCat(what, ": ", count, " frames, expected ", expected));
}

std::string_view AsText(Frame frame) { return {reinterpret_cast<const char*>(frame.data()), frame.size()}; }

}  // namespace

absl::StatusOr<LiveMessage> ParseLiveMessage(std::span<const Frame> frames) {
  constexpr absl::string_view kWhat = "live message";
  if (frames.size() != 3) return WrongCount(kWhat, frames.size(), "3");
  const absl::StatusOr<std::uint64_t> seq = ParseSeq(frames[1], kWhat);
  if (!seq.ok()) return seq.status();
  if (*seq == kEndSeq)
    return absl::InvalidArgumentError("live message: field 'seq' is the end marker 2^64-1");
  return LiveMessage{AsText(frames[0]), *seq, frames[2]};
}

absl::StatusOr<ReplayMessage> ParseReplayMessage(std::span<const Frame> frames) {
  constexpr absl::string_view kWhat = "replay message";
  const std::size_t count = frames.size();
  // Exactly one leading empty frame is the envelope's; a second one is an empty topic.
  if (!frames.empty() && frames[0].empty()) frames = frames.subspan(1);
  if (frames.size() != 2 && frames.size() != 3)
    return WrongCount(kWhat, count, "2 or 3 behind the empty one");
  const Frame seq_frame = frames[frames.size() - 2];
  const absl::StatusOr<std::uint64_t> seq = ParseSeq(seq_frame, kWhat);
  if (!seq.ok()) return seq.status();
  const Frame payload = frames.back();
  if (*seq == kEndSeq) {
    if (payload.empty()) return ReplayMessage{.end = true, .topic = {}, .seq = 0, .payload = {}};
    return absl::InvalidArgumentError(
        absl::StrCat("replay message: end marker with a payload of ", payload.size(), " bytes, expected 0"));
  }
  const std::string_view topic = frames.size() == 3 ? AsText(frames[0]) : std::string_view();
  return ReplayMessage{.end = false, .topic = topic, .seq = *seq, .payload = payload};
}

std::array<std::byte, 8> EncodeSeq(std::uint64_t seq) {
  std::array<std::byte, 8> bytes;
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<std::byte>(seq >> (8 * (7 - i)));
  return bytes;
}

absl::StatusOr<std::uint64_t> ParseReplayRequest(std::span<const Frame> frames) {
  constexpr absl::string_view kWhat = "replay request";
  if (frames.size() != 3) return WrongCount(kWhat, frames.size(), "3");
  return ParseSeq(frames[2], kWhat);
}

}  // namespace llmd::events
