#include "llmd/events/encoder.h"

#include <array>
#include <cassert>
#include <string_view>

#include "src/events/fields.h"
#include "src/events/msgpack_writer.h"

namespace llmd::events {

using msgpack::Writer;

namespace {

// Fields of a map-form event in the order of declaration, the tag first.
constexpr std::array kStoredMap = {
    Field::kType,      Field::kBlockHashes, Field::kParentBlockHash, Field::kTokenIds,
    Field::kBlockSize, Field::kLoraId,      Field::kMedium,          Field::kLoraName,
    Field::kExtraKeys, Field::kGroupIdx,    Field::kSpecKind,        Field::kSlidingWindow,
    Field::kLocality,  Field::kOwnership,   Field::kSessionId,       Field::kLookaheadTokenIds,
};
constexpr std::array kRemovedMap = {Field::kType,     Field::kBlockHashes, Field::kMedium,
                                    Field::kGroupIdx, Field::kLocality,    Field::kOwnership};

bool IsDefault(Field field, const Event& event) {
  switch (field) {
    case Field::kExtraKeys:
      return event.extra_keys.empty();
    case Field::kGroupIdx:
      return !event.group_idx;
    case Field::kSpecKind:
      return event.spec_kind.empty();
    case Field::kSlidingWindow:
      return !event.sliding_window;
    case Field::kLocality:
      return event.locality.empty();
    case Field::kOwnership:
      return event.ownership.empty();
    case Field::kSessionId:
      return event.session_id.empty();
    case Field::kLookaheadTokenIds:
      return event.lookahead_tokens.empty();
    default:
      return false;
  }
}

void WriteHash(Writer& out, std::uint64_t hash, std::string_view bytes) {
  if (bytes.empty()) {
    out.Uint(hash);
  } else {
    out.Binary(bytes);
  }
}

void WriteHashes(Writer& out, const Event& event) {
  out.Array(event.hashes.size());
  for (std::size_t i = 0; i < event.hashes.size(); ++i) {
    WriteHash(out, event.hashes[i], i < event.hash_bytes.size() ? event.hash_bytes[i] : std::string_view());
  }
}

void WriteTokens(Writer& out, TokenSpan tokens) {
  out.Array(tokens.size());
  for (const TokenId token : tokens) out.Uint(token);
}

void WriteTokensOrBigrams(Writer& out, const Event& event) {
  if (event.bigram_tokens.empty()) return WriteTokens(out, event.tokens);
  out.Array(event.tokens.size());
  for (std::size_t i = 0; i < event.tokens.size(); ++i) {
    WriteTokens(out, std::array{event.tokens[i], event.bigram_tokens[i]});
  }
}

void WriteExtraKey(Writer& out, const ExtraKey& key) {
  switch (key.kind) {
    case ExtraKey::Kind::kString:
      return out.String(key.text);
    case ExtraKey::Kind::kStringAt:
      out.Array(2);
      out.String(key.text);
      return out.Int(key.number);
    case ExtraKey::Kind::kInt:
      return out.Int(key.number);
    case ExtraKey::Kind::kBytes:
      return out.Binary(key.text);
    case ExtraKey::Kind::kOther:
      return out.Raw(key.text);
  }
}

void WriteExtraKeys(Writer& out, const Event& event) {
  if (event.extra_keys.empty()) return out.Nil();
  out.Array(event.extra_keys.size());
  for (const auto& keys : event.extra_keys) {
    if (keys.empty()) {
      out.Nil();
      continue;
    }
    out.Array(keys.size());
    for (const ExtraKey& key : keys) WriteExtraKey(out, key);
  }
}

void WriteLookahead(Writer& out, const Event& event) {
  out.Array(event.lookahead_tokens.size());
  for (const TokenSpan tokens : event.lookahead_tokens) WriteTokens(out, tokens);
}

void WriteField(Writer& out, Field field, const Event& event) {
  const auto text = [&](std::string_view value) { value.empty() ? out.Nil() : out.String(value); };
  const auto number = [&](const auto& value) { value ? out.Int(*value) : out.Nil(); };
  switch (field) {
    case Field::kType:
      return out.String(EventKindName(event.kind));
    case Field::kBlockHashes:
      return WriteHashes(out, event);
    case Field::kParentBlockHash:
      return event.parent ? WriteHash(out, *event.parent, event.parent_bytes) : out.Nil();
    case Field::kTokenIds:
      return WriteTokensOrBigrams(out, event);
    case Field::kBlockSize:
      return out.Uint(event.block_size);
    case Field::kLoraId:
      return number(event.lora_id);
    case Field::kMedium:
      return text(event.medium);
    case Field::kLoraName:
      return text(event.lora_name);
    case Field::kExtraKeys:
      return WriteExtraKeys(out, event);
    case Field::kGroupIdx:
      return number(event.group_idx);
    case Field::kSpecKind:
      return text(event.spec_kind);
    case Field::kSlidingWindow:
      return number(event.sliding_window);
    case Field::kLocality:
      return text(event.locality);
    case Field::kOwnership:
      return text(event.ownership);
    case Field::kSessionId:
      return text(event.session_id);
    case Field::kLookaheadTokenIds:
      return WriteLookahead(out, event);
    default:
      assert(false);  // other publishers' fields are in none of our layouts
  }
}

void WriteArrayForm(Writer& out, std::span<const Field> fields, const Event& event) {
  out.Array(fields.size());
  for (const Field field : fields) WriteField(out, field, event);
}

// msgspec reserves the header for all declared fields and fills in the real number later: with 16 or more
// declared, a short map has a long header. (msgspec: src/msgspec/_core.c)
void WriteMapForm(Writer& out, std::span<const Field> fields, const Event& event) {
  std::uint32_t present = 0;
  for (const Field field : fields) present += !IsDefault(field, event);
  out.Map(present, /*wide=*/fields.size() >= 16);
  for (const Field field : fields) {
    if (IsDefault(field, event)) continue;
    out.String(FieldName(field));
    WriteField(out, field, event);
  }
}

// Elements of a positional BlockStored and BlockRemoved.
struct ArrayLengths {
  std::size_t stored;
  std::size_t removed;
};

ArrayLengths LengthsOf(Schema schema) {
  switch (schema) {
    case Schema::kArray6:
      return {6, 2};
    case Schema::kArray7:
      return {7, 3};
    case Schema::kArray8:
      return {8, 3};
    case Schema::kArray9:
      return {9, 3};
    case Schema::kArray10:
      return {10, 4};
    default:
      return {12, 4};
  }
}

void WriteEvent(Writer& out, Schema schema, const Event& event) {
  const bool wide = schema == Schema::kMapWide;
  if (wide || schema == Schema::kMap) {
    constexpr std::span<const Field> kStored(kStoredMap);
    switch (event.kind) {
      case EventKind::kBlockStored:
        return WriteMapForm(out, wide ? kStored : kStored.first(kStored.size() - 1), event);
      case EventKind::kBlockRemoved:
        return WriteMapForm(out, kRemovedMap, event);
      case EventKind::kAllBlocksCleared:
        return WriteMapForm(out, kStored.first(1), event);
    }
  }
  const ArrayLengths lengths = LengthsOf(schema);
  switch (event.kind) {
    case EventKind::kBlockStored:
      return WriteArrayForm(out, std::span(kStoredPositions).first(lengths.stored), event);
    case EventKind::kBlockRemoved:
      return WriteArrayForm(out, std::span(kRemovedPositions).first(lengths.removed), event);
    case EventKind::kAllBlocksCleared:
      return WriteArrayForm(out, std::span(kStoredPositions).first(1), event);
  }
}

}  // namespace

void EncodeBatch(Schema schema, double timestamp, std::span<const Event> events,
                 std::optional<std::uint32_t> data_parallel_rank, std::vector<std::byte>& payload) {
  payload.clear();
  Writer out(payload);
  const bool with_rank = schema != Schema::kArray6 || data_parallel_rank.has_value();
  out.Array(with_rank ? 3 : 2);
  out.Double(timestamp);
  out.Array(events.size());
  for (const Event& event : events) WriteEvent(out, schema, event);
  if (!with_rank) return;
  if (data_parallel_rank) {
    out.Uint(*data_parallel_rank);
  } else {
    out.Nil();
  }
}

}  // namespace llmd::events
