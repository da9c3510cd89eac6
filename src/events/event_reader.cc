#include "src/events/event_reader.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"

namespace llmd::events {

using msgpack::Head;
using msgpack::Type;

namespace {

Field FindField(std::string_view name) {
  for (std::size_t i = 0; i < kFieldNames.size(); ++i) {
    if (name == kFieldNames[i]) return static_cast<Field>(i);
  }
  return Field::kUnknown;
}

std::optional<EventKind> FindKind(std::string_view tag) {
  if (tag == "BlockStored" || tag == "stored") return EventKind::kBlockStored;
  if (tag == "BlockRemoved" || tag == "removed") return EventKind::kBlockRemoved;
  if (tag == "AllBlocksCleared" || tag == "cleared") return EventKind::kAllBlocksCleared;
  return std::nullopt;
}

}  // namespace

std::string Problem::Describe() const {
  const absl::string_view name = ToAbsl(field);
  const std::string number = negative ? absl::StrCat(static_cast<std::int64_t>(value)) : absl::StrCat(value);
  switch (kind) {
    case Kind::kCutOff:
      return absl::StrCat("field '", name, "': the payload ends, or is no MessagePack, inside it");
    case Kind::kWrongType:
      return absl::StrCat("field '", name, "': expected ", ToAbsl(expected), ", got ", ToAbsl(got));
    case Kind::kOutOfRange:
      return absl::StrCat("field '", name, "': value ", number, " is outside 0..", limit);
    case Kind::kOverLimit:
      return absl::StrCat("field '", name, "': size ", number, " exceeds the limit ", limit);
    case Kind::kMissing:
      return absl::StrCat("field '", name, "' is missing");
    case Kind::kUnknownKind:
      return absl::StrCat("field '", name, "': unknown event kind, hex ", HexExcerpt(AsBytes(got)));
    case Kind::kNone:
      break;
  }
  return "no problem";
}

bool EventReader::Read(Event& event) {
  Head head;
  if (!ReadHead("event", head)) return false;
  if (head.type == Type::kArray) return ReadArrayForm(head.bits, event) && SetTier(event);
  if (head.type == Type::kMap) return ReadMapForm(head.bits, event) && SetTier(event);
  return WrongType("event", "array or map", head.type);
}

bool EventReader::ReadArrayForm(std::uint64_t length, Event& event) {
  if (length == 0) {
    problem_ = {.kind = Problem::Kind::kMissing, .field = FieldName(Field::kType)};
    return false;
  }
  if (!ReadTag(event.kind, FieldName(Field::kType))) return false;
  std::span<const Field> positions = std::span(kStoredPositions).first(1);
  if (event.kind == EventKind::kBlockStored) positions = kStoredPositions;
  if (event.kind == EventKind::kBlockRemoved) positions = kRemovedPositions;
  const std::uint64_t min_length = event.kind == EventKind::kBlockStored    ? kMinStoredLength
                                   : event.kind == EventKind::kBlockRemoved ? kMinRemovedLength
                                                                            : 1;
  if (length < min_length) {
    problem_ = {.kind = Problem::Kind::kMissing, .field = FieldName(positions[length])};
    return false;
  }
  for (std::uint64_t i = 1; i < length; ++i) {
    if (i < positions.size() ? !ReadField(positions[i], event) : !in_.Skip()) {
      return problem_.kind == Problem::Kind::kNone ? CutOff("event") : false;
    }
  }
  return true;
}

bool EventReader::ReadMapForm(std::uint64_t pairs, Event& event) {
  bool typed = false;
  bool hashed = false;
  std::span<const std::uint64_t> seq_hashes;
  std::span<const std::string_view> seq_hash_bytes;
  for (std::uint64_t i = 0; i < pairs; ++i) {
    Head key;
    const std::uint8_t* const key_start = in_.position();
    if (!ReadHead("event", key)) return false;
    Field field = Field::kUnknown;
    if (key.type == Type::kString) {
      std::string_view name;
      if (!in_.ReadBody(key.bits, name)) return CutOff("event");
      field = FindField(name);
    } else {
      in_.set_position(key_start);
      if (!in_.Skip()) return CutOff("event");
    }
    bool ok = true;
    switch (field) {
      case Field::kUnknown:
        if (!in_.Skip()) return CutOff("event");
        break;
      case Field::kType:
        ok = ReadTag(event.kind, FieldName(field));
        typed = true;
        break;
      case Field::kEventType: {
        // Where a publisher writes both, `type` counts.
        EventKind kind;
        ok = ReadTag(kind, FieldName(field));
        if (ok && !typed) event.kind = kind;
        typed = true;
        break;
      }
      case Field::kSeqHashes:
        ok = ReadHashes(FieldName(field), seq_hashes, seq_hash_bytes);
        hashed = true;
        break;
      default:
        ok = ReadField(field, event);
        hashed |= field == Field::kBlockHashes;
        break;
    }
    if (!ok) return false;
  }
  if (!typed || (!hashed && event.kind != EventKind::kAllBlocksCleared)) {
    problem_ = {.kind = Problem::Kind::kMissing,
                .field = FieldName(typed ? Field::kBlockHashes : Field::kType)};
    return false;
  }
  if (event.hashes.empty()) {
    event.hashes = seq_hashes;
    event.hash_bytes = seq_hash_bytes;
  }
  return true;
}

bool EventReader::ReadTag(EventKind& kind, std::string_view field) {
  Head head;
  if (!ReadHead(field, head)) return false;
  if (head.type != Type::kString) return WrongType(field, "string", head.type);
  std::string_view tag;
  if (!in_.ReadBody(head.bits, tag)) return CutOff(field);
  const std::optional<EventKind> known = FindKind(tag);
  if (!known) {
    problem_ = {.kind = Problem::Kind::kUnknownKind, .field = field, .got = tag};
    return false;
  }
  kind = *known;
  return true;
}

bool EventReader::ReadField(Field field, Event& event) {
  const std::string_view name = FieldName(field);
  switch (field) {
    case Field::kBlockHashes:
      return ReadHashes(name, event.hashes, event.hash_bytes);
    case Field::kParentBlockHash:
    case Field::kParentHash:
      return ReadParent(name, event);
    case Field::kTokenIds:
      return ReadTokens(event);
    case Field::kBlockSize: {
      std::optional<std::uint32_t> size;
      if (!ReadOptionalUint(name, size)) return false;
      event.block_size = size.value_or(0);
      return true;
    }
    case Field::kLoraId: {
      Head head;
      if (!ReadHead(name, head)) return false;
      event.lora_id.reset();
      if (head.type == Type::kNil) return true;
      if (head.type != Type::kUint && head.type != Type::kNegative)
        return WrongType(name, "int or nil", head.type);
      if (head.type == Type::kUint && head.bits > std::numeric_limits<std::int64_t>::max()) {
        return OutOfRange(name, head, std::numeric_limits<std::int64_t>::max());
      }
      event.lora_id = static_cast<std::int64_t>(head.bits);
      return true;
    }
    case Field::kMedium:
      return ReadString(name, event.medium);
    case Field::kLoraName:
      return ReadLoraNameOrMetadata(event);
    case Field::kExtraKeys:
      return ReadExtraKeys(event);
    case Field::kGroupIdx:
      return ReadOptionalUint(name, event.group_idx);
    case Field::kSpecKind:
      return ReadString(name, event.spec_kind);
    case Field::kSlidingWindow:
      return ReadOptionalUint(name, event.sliding_window);
    case Field::kLocality:
      return ReadString(name, event.locality);
    case Field::kOwnership:
      return ReadString(name, event.ownership);
    case Field::kSessionId:
      return ReadString(name, event.session_id);
    case Field::kLookaheadTokenIds:
      return ReadLookahead(event);
    case Field::kCacheSalt:
    case Field::kAdditionalSalt:
      return ReadString(name, event.cache_salt);
    case Field::kModelName:
      return ReadString(name, event.model_name);
    case Field::kTenantId:
      return ReadString(name, event.tenant_id);
    case Field::kBackendId:
      return ReadString(name, event.backend_id);
    case Field::kObjectKey:
      return ReadString(name, event.object_key);
    case Field::kBaseBlockIdx:
      return ReadOptionalUint(name, event.first_block);
    case Field::kType:
    case Field::kEventType:
    case Field::kSeqHashes:
    case Field::kUnknown:
      break;  // dealt with where the form is known
  }
  return in_.Skip() || CutOff(name);
}

// SGLang once put a map of further fields where vLLM has the adapter's name.
bool EventReader::ReadLoraNameOrMetadata(Event& event) {
  const std::string_view field = FieldName(Field::kLoraName);
  const std::uint8_t* const start = in_.position();
  Head head;
  if (!ReadHead(field, head)) return false;
  if (head.type != Type::kMap) {
    in_.set_position(start);
    return ReadString(field, event.lora_name);
  }
  for (std::uint64_t i = 0; i < head.bits; ++i) {
    std::string_view name;
    if (!ReadString(field, name)) return false;
    const Field key = FindField(name);
    if (key == Field::kCacheSalt || key == Field::kSessionId) {
      if (!ReadField(key, event)) return false;
    } else if (!in_.Skip()) {
      return CutOff(field);
    }
  }
  return true;
}

bool EventReader::ReadString(std::string_view field, std::string_view& text) {
  Head head;
  if (!ReadHead(field, head)) return false;
  text = {};
  if (head.type == Type::kNil) return true;
  if (head.type != Type::kString) return WrongType(field, "string or nil", head.type);
  if (head.bits > options_.limits.max_string_bytes) {
    return OverLimit(field, head.bits, options_.limits.max_string_bytes);
  }
  return in_.ReadBody(head.bits, text) || CutOff(field);
}

template <typename T>
bool EventReader::ReadOptionalUint(std::string_view field, std::optional<T>& value) {
  Head head;
  if (!ReadHead(field, head)) return false;
  value.reset();
  if (head.type == Type::kNil) return true;
  if (head.type == Type::kNegative ||
      (head.type == Type::kUint && head.bits > std::numeric_limits<T>::max())) {
    return OutOfRange(field, head, std::numeric_limits<T>::max());
  }
  if (head.type != Type::kUint) return WrongType(field, "int or nil", head.type);
  value = static_cast<T>(head.bits);
  return true;
}

bool EventReader::ReadArray(std::string_view field, std::uint64_t limit, std::uint64_t& count) {
  Head head;
  if (!ReadHead(field, head)) return false;
  count = 0;
  if (head.type == Type::kNil) return true;
  if (head.type != Type::kArray) return WrongType(field, "array", head.type);
  if (head.bits > limit) return OverLimit(field, head.bits, limit);
  if (head.bits > in_.left()) return CutOff(field);  // each element takes a byte at least
  count = head.bits;
  return true;
}

bool EventReader::ReadHead(std::string_view field, Head& head) { return in_.ReadHead(head) || CutOff(field); }

bool EventReader::SetTier(Event& event) {
  const std::string_view medium = event.medium;
  if (medium.empty() || medium == "GPU") {
    event.tier = "gpu";
    return true;
  }
  const auto is_upper = [](char c) { return c >= 'A' && c <= 'Z'; };
  if (std::none_of(medium.begin(), medium.end(), is_upper)) {
    event.tier = medium;
    return true;
  }
  char* const lower = Allocate<char>(FieldName(Field::kMedium), medium.size());
  if (lower == nullptr) return false;
  std::transform(medium.begin(), medium.end(), lower,
                 [&](char c) { return is_upper(c) ? static_cast<char>(c - 'A' + 'a') : c; });
  event.tier = {lower, medium.size()};
  return true;
}

bool EventReader::CutOff(std::string_view field) {
  problem_ = {.kind = Problem::Kind::kCutOff, .field = field};
  return false;
}

bool EventReader::WrongType(std::string_view field, std::string_view expected, Type got) {
  problem_ = {.kind = Problem::Kind::kWrongType, .field = field, .expected = expected, .got = TypeName(got)};
  return false;
}

bool EventReader::OutOfRange(std::string_view field, const Head& head, std::uint64_t max) {
  problem_ = {.kind = Problem::Kind::kOutOfRange,
              .field = field,
              .value = head.bits,
              .negative = head.type == Type::kNegative,
              .limit = max};
  return false;
}

bool EventReader::OverLimit(std::string_view field, std::uint64_t value, std::uint64_t limit) {
  problem_ = {.kind = Problem::Kind::kOverLimit, .field = field, .value = value, .limit = limit};
  return false;
}

}  // namespace llmd::events
