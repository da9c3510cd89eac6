#include "llmd/events/decoder.h"

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "src/events/event_reader.h"
#include "src/events/msgpack.h"

namespace llmd::events {

using msgpack::Head;
using msgpack::Reader;
using msgpack::Type;

namespace {

absl::Status Malformed(std::string_view field, std::string_view expected, std::string_view got,
                       std::span<const std::byte> payload) {
  return absl::InvalidArgumentError(absl::StrCat("event batch: field '", ToAbsl(field), "': expected ",
                                                 ToAbsl(expected), ", got ", ToAbsl(got), "; payload begins ",
                                                 HexExcerpt(payload)));
}

absl::Status OverLimit(std::string_view field, std::uint64_t value, std::uint64_t limit) {
  return absl::ResourceExhaustedError(
      absl::StrCat("event batch: ", ToAbsl(field), " ", value, " exceeds the limit ", limit));
}

absl::Status EventError(std::uint64_t index, const Problem& problem, std::span<const std::byte> bytes) {
  return absl::InvalidArgumentError(
      absl::StrCat("event ", index, ": ", problem.Describe(), "; event begins ", HexExcerpt(bytes)));
}

std::span<const std::byte> Rest(const std::uint8_t* from, const std::uint8_t* to) {
  return {reinterpret_cast<const std::byte*>(from), static_cast<std::size_t>(to - from)};
}

}  // namespace

std::string_view EventKindName(EventKind kind) {
  constexpr std::string_view kNames[] = {"BlockStored", "BlockRemoved", "AllBlocksCleared"};
  return kNames[static_cast<int>(kind)];
}

std::size_t EventBatch::capacity_bytes() const {
  return events_.capacity() * sizeof(Event) + arena_.capacity_bytes();
}

void EventBatch::Clear() {
  events_.clear();
  arena_.Reset();
  timestamp_ = 0;
  rank_.reset();
  skipped_ = 0;
  truncated_ = false;
  first_error_ = absl::OkStatus();
}

absl::Status EventDecoder::Decode(std::span<const std::byte> payload, EventBatch& batch) const {
  batch.Clear();
  if (payload.size() > options_.limits.max_payload_bytes) {
    return OverLimit("payload bytes", payload.size(), options_.limits.max_payload_bytes);
  }
  Reader in(payload);
  const std::uint8_t* const end = in.position() + payload.size();
  const auto malformed = [&](std::string_view field, std::string_view expected, std::string_view got) {
    batch.Clear();
    return Malformed(field, expected, got, payload);
  };

  Head head;
  if (!in.ReadHead(head)) return malformed("batch", "array", "no MessagePack");
  if (head.type != Type::kArray) return malformed("batch", "array", TypeName(head.type));
  const std::uint64_t length = head.bits;
  if (length < 2) return malformed("batch", "array of 2 or more", "a shorter one");
  if (!in.ReadHead(head)) return malformed("ts", "number", "no MessagePack");
  if (!head.is_number()) return malformed("ts", "number", TypeName(head.type));
  batch.timestamp_ = head.AsDouble();
  if (!in.ReadHead(head)) return malformed("events", "array", "no MessagePack");
  if (head.type != Type::kArray) return malformed("events", "array", TypeName(head.type));
  const std::uint64_t count = head.bits;
  if (count > options_.limits.max_events) return OverLimit("events", count, options_.limits.max_events);

  for (std::uint64_t i = 0; i < count; ++i) {
    const std::uint8_t* const start = in.position();
    // A binary element is an event packed once more: read inside it, with the binary's own end.
    Reader inner = in;
    bool packed = false;
    if (in.ReadHead(head)) {
      std::string_view body;
      packed = head.type == Type::kBinary && in.ReadBody(head.bits, body);
      if (packed) inner = Reader(AsBytes(body));
    }
    Event& event = batch.events_.emplace_back();
    EventReader reader(options_, inner, batch.arena_);
    if (reader.Read(event)) {
      if (!packed) in = inner;
      continue;
    }
    batch.events_.pop_back();
    ++batch.skipped_;
    if (batch.first_error_.ok()) batch.first_error_ = EventError(i, reader.problem(), Rest(start, end));
    if (packed) continue;
    in.set_position(start);
    if (!in.Skip()) {
      batch.skipped_ += count - i - 1;
      batch.truncated_ = true;
      return absl::OkStatus();
    }
  }

  if (length < 3) return absl::OkStatus();
  if (!in.ReadHead(head)) {
    batch.truncated_ = true;
    batch.first_error_.Update(
        absl::InvalidArgumentError("event batch: field 'data_parallel_rank': the payload ends"));
    return absl::OkStatus();
  }
  if (head.type == Type::kNil) return absl::OkStatus();
  if (head.type != Type::kUint || head.bits > UINT32_MAX) {
    return malformed("data_parallel_rank", "32-bit unsigned int or nil", TypeName(head.type));
  }
  batch.rank_ = static_cast<std::uint32_t>(head.bits);
  return absl::OkStatus();
}

}  // namespace llmd::events
