// Reads one packed event, in any of its forms.
#ifndef LLMD_SRC_EVENTS_EVENT_READER_H_
#define LLMD_SRC_EVENTS_EVENT_READER_H_

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "llmd/events/arena.h"
#include "llmd/events/decoder.h"
#include "llmd/events/event.h"
#include "src/events/fields.h"
#include "src/events/msgpack.h"

namespace llmd::events {

// Why an event cannot be used. Kept as plain values: most are only counted, never printed.
struct Problem {
  enum class Kind : std::uint8_t {
    kNone,
    kCutOff,
    kWrongType,
    kOutOfRange,
    kOverLimit,
    kMissing,
    kUnknownKind
  };
  Kind kind = Kind::kNone;
  std::string_view field = {};
  std::string_view expected = {};  // kWrongType
  std::string_view got = {};       // kWrongType: the type; kUnknownKind: the tag
  std::uint64_t value = 0;         // kOutOfRange, kOverLimit
  bool negative = false;           // `value` is a two's complement
  std::uint64_t limit = 0;         // kOutOfRange: largest value allowed; kOverLimit: the limit

  std::string Describe() const;
};

class EventReader {
 public:
  EventReader(const DecodeOptions& options, msgpack::Reader& in, Arena& arena)
      : options_(options), in_(in), arena_(arena) {}

  // Reads the event at the reader's position, which is behind it afterwards. False, with problem() set and
  // the position anywhere inside the event, when it cannot be used.
  bool Read(Event& event);

  const Problem& problem() const { return problem_; }

 private:
  bool ReadArrayForm(std::uint64_t length, Event& event);
  bool ReadMapForm(std::uint64_t pairs, Event& event);
  bool ReadField(Field field, Event& event);
  bool ReadTag(EventKind& kind, std::string_view field);

  bool ReadHashes(std::string_view field, std::span<const std::uint64_t>& hashes,
                  std::span<const std::string_view>& bytes);
  bool ReadHash(const msgpack::Head& head, std::string_view field, std::uint64_t& hash,
                std::string_view& bytes);
  bool ReadParent(std::string_view field, Event& event);
  bool ReadTokens(Event& event);
  bool ReadTokenRun(std::string_view field, TokenId* tokens, std::uint64_t count);
  bool ReadBigrams(Event& event, std::uint64_t count);
  bool ReadLookahead(Event& event);
  bool ReadExtraKeys(Event& event);
  bool ReadExtraKey(ExtraKey& key);
  bool ReadLoraNameOrMetadata(Event& event);
  bool ReadString(std::string_view field, std::string_view& text);
  template <typename T>
  bool ReadOptionalUint(std::string_view field, std::optional<T>& value);
  // Array header or nil, which counts as empty.
  bool ReadArray(std::string_view field, std::uint64_t limit, std::uint64_t& count);
  bool ReadHead(std::string_view field, msgpack::Head& head);
  bool SetTier(Event& event);

  // nullptr when `count` is 0, and when the arena's budget is spent: then with problem() set.
  template <typename T>
  T* Allocate(std::string_view field, std::uint64_t count);

  bool CutOff(std::string_view field);
  bool WrongType(std::string_view field, std::string_view expected, msgpack::Type got);
  bool OutOfRange(std::string_view field, const msgpack::Head& head, std::uint64_t max);
  bool OverLimit(std::string_view field, std::uint64_t value, std::uint64_t limit);

  const DecodeOptions& options_;
  msgpack::Reader& in_;
  Arena& arena_;
  Problem problem_;
};

template <typename T>
T* EventReader::Allocate(std::string_view field, std::uint64_t count) {
  const std::uint64_t bytes = arena_.used_bytes() + count * sizeof(T);
  if (bytes > options_.limits.max_decoded_bytes) {
    OverLimit(field, bytes, options_.limits.max_decoded_bytes);
    return nullptr;
  }
  return arena_.Allocate<T>(static_cast<std::size_t>(count));
}

}  // namespace llmd::events

#endif  // LLMD_SRC_EVENTS_EVENT_READER_H_
