// The array fields of an event: hashes, tokens, extra keys.
#include <algorithm>
#include <limits>
#include <memory>
#include <new>

#include "src/events/event_reader.h"
#include "src/events/token_run.h"

namespace llmd::events {

using msgpack::Head;
using msgpack::Type;

namespace {

// Last 8 bytes, big-endian; shorter ones as if zeros stood before them.
std::uint64_t HashFromBytes(std::string_view bytes) {
  std::uint64_t hash = 0;
  for (const char c : bytes.substr(bytes.size() - std::min<std::size_t>(bytes.size(), 8))) {
    hash = hash << 8 | static_cast<std::uint8_t>(c);
  }
  return hash;
}

}  // namespace

bool EventReader::ReadHashes(std::string_view field, std::span<const std::uint64_t>& hashes,
                             std::span<const std::string_view>& bytes) {
  std::uint64_t count = 0;
  if (!ReadArray(field, options_.limits.max_hashes, count)) return false;
  auto* const out = Allocate<std::uint64_t>(field, count);
  if (count > 0 && out == nullptr) return false;
  std::string_view* out_bytes = nullptr;
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::uint8_t* const p = in_.position();
    if (in_.left() >= 9 && *p == 0xcf) {  // nearly every hash
      out[i] = msgpack::LoadBig<std::uint64_t>(p + 1);
      in_.set_position(p + 9);
      continue;
    }
    Head head;
    std::string_view body;
    if (!ReadHead(field, head) || !ReadHash(head, field, out[i], body)) return false;
    if (!body.empty() && out_bytes == nullptr) {
      out_bytes = Allocate<std::string_view>(field, count);
      if (out_bytes == nullptr) return false;
      std::uninitialized_value_construct_n(out_bytes, count);
    }
    if (out_bytes != nullptr) out_bytes[i] = body;
  }
  hashes = {out, static_cast<std::size_t>(count)};
  bytes = {out_bytes, out_bytes != nullptr ? static_cast<std::size_t>(count) : 0};
  return true;
}

bool EventReader::ReadHash(const Head& head, std::string_view field, std::uint64_t& hash,
                           std::string_view& bytes) {
  if (head.type == Type::kUint || head.type == Type::kNegative) {
    hash = head.bits;
    return true;
  }
  if (head.type != Type::kBinary) return WrongType(field, "int or binary", head.type);
  if (head.bits > options_.limits.max_string_bytes) {
    return OverLimit(field, head.bits, options_.limits.max_string_bytes);
  }
  if (!in_.ReadBody(head.bits, bytes)) return CutOff(field);
  if (bytes.empty()) return WrongType(field, "int or non-empty binary", head.type);
  hash = HashFromBytes(bytes);
  return true;
}

bool EventReader::ReadParent(std::string_view field, Event& event) {
  Head head;
  if (!ReadHead(field, head)) return false;
  event.parent.reset();
  event.parent_bytes = {};
  if (head.type == Type::kNil) return true;
  std::uint64_t hash = 0;
  if (!ReadHash(head, field, hash, event.parent_bytes)) return false;
  if (hash == 0 && event.parent_bytes.empty() && options_.zero_parent_is_root) return true;
  event.parent = hash;
  return true;
}

bool EventReader::ReadTokens(Event& event) {
  const std::string_view field = FieldName(Field::kTokenIds);
  std::uint64_t count = 0;
  if (!ReadArray(field, options_.limits.max_tokens, count)) return false;
  event.tokens = {};
  event.bigram_tokens = {};
  if (count == 0) return true;
  const std::uint8_t first = *in_.position();
  if (first == 0x92) return ReadBigrams(event, count);
  auto* const tokens = Allocate<TokenId>(field, count);
  if (tokens == nullptr || !ReadTokenRun(field, tokens, count)) return false;
  event.tokens = {tokens, static_cast<std::size_t>(count)};
  return true;
}

bool EventReader::ReadTokenRun(std::string_view field, TokenId* tokens, std::uint64_t count) {
  std::uint64_t done = 0;
  while (true) {
    done += DecodeTokenRun(in_, tokens + done, count - done);
    if (done == count) return true;
    // An unusual width, the payload's last bytes, or a mistake.
    Head head;
    if (!ReadHead(field, head)) return false;
    if (head.type == Type::kNegative || (head.type == Type::kUint && head.bits > UINT32_MAX)) {
      return OutOfRange(field, head, UINT32_MAX);
    }
    if (head.type != Type::kUint) return WrongType(field, "int", head.type);
    tokens[done++] = static_cast<TokenId>(head.bits);
  }
}

bool EventReader::ReadBigrams(Event& event, std::uint64_t count) {
  const std::string_view field = FieldName(Field::kTokenIds);
  auto* const tokens = Allocate<TokenId>(field, 2 * count);
  if (tokens == nullptr) return false;
  for (std::uint64_t i = 0; i < count; ++i) {
    Head head;
    if (!ReadHead(field, head)) return false;
    if (head.type != Type::kArray || head.bits != 2)
      return WrongType(field, "array of 2 like the first", head.type);
    TokenId pair[2];
    if (!ReadTokenRun(field, pair, 2)) return false;
    tokens[i] = pair[0];
    tokens[count + i] = pair[1];
  }
  event.tokens = {tokens, static_cast<std::size_t>(count)};
  event.bigram_tokens = {tokens + count, static_cast<std::size_t>(count)};
  return true;
}

bool EventReader::ReadLookahead(Event& event) {
  const std::string_view field = FieldName(Field::kLookaheadTokenIds);
  std::uint64_t count = 0;
  if (!ReadArray(field, options_.limits.max_hashes, count)) return false;
  auto* const blocks = Allocate<TokenSpan>(field, count);
  if (count > 0 && blocks == nullptr) return false;
  for (std::uint64_t i = 0; i < count; ++i) {
    std::uint64_t length = 0;
    if (!ReadArray(field, options_.limits.max_tokens, length)) return false;
    auto* const tokens = Allocate<TokenId>(field, length);
    if (length > 0 && (tokens == nullptr || !ReadTokenRun(field, tokens, length))) return false;
    blocks[i] = {tokens, static_cast<std::size_t>(length)};
  }
  event.lookahead_tokens = {blocks, static_cast<std::size_t>(count)};
  return true;
}

bool EventReader::ReadExtraKeys(Event& event) {
  const std::string_view field = FieldName(Field::kExtraKeys);
  std::uint64_t count = 0;
  if (!ReadArray(field, options_.limits.max_hashes, count)) return false;
  auto* const blocks = Allocate<std::span<const ExtraKey>>(field, count);
  if (count > 0 && blocks == nullptr) return false;
  for (std::uint64_t i = 0; i < count; ++i) {
    std::uint64_t length = 0;
    if (!ReadArray(field, options_.limits.max_extra_keys_per_block, length)) return false;
    auto* const keys = Allocate<ExtraKey>(field, length);
    if (length > 0 && keys == nullptr) return false;
    for (std::uint64_t k = 0; k < length; ++k) {
      if (!ReadExtraKey(*new (keys + k) ExtraKey)) return false;
    }
    blocks[i] = {keys, static_cast<std::size_t>(length)};
  }
  event.extra_keys = {blocks, static_cast<std::size_t>(count)};
  return true;
}

bool EventReader::ReadExtraKey(ExtraKey& key) {
  const std::string_view field = FieldName(Field::kExtraKeys);
  const std::uint8_t* const start = in_.position();
  Head head;
  if (!ReadHead(field, head)) return false;
  const auto fits = [](const Head& h) {
    return h.type == Type::kNegative ||
           (h.type == Type::kUint && h.bits <= std::uint64_t{std::numeric_limits<std::int64_t>::max()});
  };
  if (fits(head)) {
    key = {.kind = ExtraKey::Kind::kInt, .text = {}, .number = static_cast<std::int64_t>(head.bits)};
    return true;
  }
  if (head.type == Type::kString || head.type == Type::kBinary) {
    if (head.bits > options_.limits.max_string_bytes) {
      return OverLimit(field, head.bits, options_.limits.max_string_bytes);
    }
    key.kind = head.type == Type::kString ? ExtraKey::Kind::kString : ExtraKey::Kind::kBytes;
    return in_.ReadBody(head.bits, key.text) || CutOff(field);
  }
  if (head.type == Type::kArray && head.bits == 2) {
    Head text, offset;
    if (!ReadHead(field, text)) return false;
    if (text.type == Type::kString && text.bits <= options_.limits.max_string_bytes) {
      if (!in_.ReadBody(text.bits, key.text)) return CutOff(field);
      if (!ReadHead(field, offset)) return false;
      if (fits(offset)) {
        key.kind = ExtraKey::Kind::kStringAt;
        key.number = static_cast<std::int64_t>(offset.bits);
        return true;
      }
    }
  }
  in_.set_position(start);
  int nesting = 0;
  if (!in_.SkipMeasured(nesting)) return CutOff(field);
  const std::uint64_t max_nesting =
      std::min<std::uint64_t>(options_.limits.max_nesting, msgpack::Reader::kMaxNesting);
  if (nesting > max_nesting) return OverLimit("extra_keys (nesting)", nesting, max_nesting);
  const auto bytes = static_cast<std::size_t>(in_.position() - start);
  if (bytes > options_.limits.max_string_bytes)
    return OverLimit(field, bytes, options_.limits.max_string_bytes);
  key = {.kind = ExtraKey::Kind::kOther, .text = {reinterpret_cast<const char*>(start), bytes}, .number = 0};
  return true;
}

}  // namespace llmd::events
