#include "tests/events/events_test_util.h"

#include "llmd/base/strings.h"

namespace llmd::events {

using nlohmann::json;

namespace {

json Hex(std::string_view bytes) { return HexExcerpt(AsBytes(bytes), bytes.size()); }

template <typename T>
json Optional(const std::optional<T>& value) {
  return value ? json(*value) : json();
}

json ToJson(const ExtraKey& key) { return {static_cast<int>(key.kind), Hex(key.text), key.number}; }

}  // namespace

json ToJson(const Event& event) {
  json hash_bytes = json::array(), extra_keys = json::array(), lookahead = json::array();
  for (const auto bytes : event.hash_bytes) hash_bytes.push_back(Hex(bytes));
  for (const auto keys : event.extra_keys) {
    json block = json::array();
    for (const ExtraKey& key : keys) block.push_back(ToJson(key));
    extra_keys.push_back(block);
  }
  for (const auto tokens : event.lookahead_tokens) lookahead.push_back(json(tokens));
  return {{"kind", EventKindName(event.kind)},
          {"hashes", json(event.hashes)},
          {"hash_bytes", hash_bytes},
          {"parent", Optional(event.parent)},
          {"parent_bytes", Hex(event.parent_bytes)},
          {"tokens", json(event.tokens)},
          {"bigram_tokens", json(event.bigram_tokens)},
          {"block_size", event.block_size},
          {"lora_id", Optional(event.lora_id)},
          {"lora_name", Hex(event.lora_name)},
          {"extra_keys", extra_keys},
          {"lookahead_tokens", lookahead},
          {"cache_salt", Hex(event.cache_salt)},
          {"session_id", Hex(event.session_id)},
          {"medium", Hex(event.medium)},
          {"tier", Hex(event.tier)},
          {"group_idx", Optional(event.group_idx)},
          {"spec_kind", Hex(event.spec_kind)},
          {"sliding_window", Optional(event.sliding_window)},
          {"locality", Hex(event.locality)},
          {"ownership", Hex(event.ownership)},
          {"model_name", Hex(event.model_name)},
          {"tenant_id", Hex(event.tenant_id)},
          {"backend_id", Hex(event.backend_id)},
          {"object_key", Hex(event.object_key)},
          {"first_block", Optional(event.first_block)}};
}

json ToJson(std::span<const Event> events) {
  json all = json::array();
  for (const Event& event : events) all.push_back(ToJson(event));
  return all;
}

std::uint64_t RandomEvents::AnyWidth() { return random_.Next() >> random_.Below(64); }

std::string_view RandomEvents::Text() {
  std::string& text = texts_.emplace_back();
  const std::uint64_t size = random_.Chance(0.1) ? random_.Below(400) : random_.Below(12);
  for (std::uint64_t i = 0; i < size; ++i) text += static_cast<char>('A' + random_.Below(58));
  return text;
}

TokenSpan RandomEvents::Tokens(std::size_t count) {
  const auto tokens = Array<TokenId>(count);
  for (TokenId& token : tokens) token = static_cast<TokenId>(random_.Next() >> (32 + random_.Below(32)));
  return tokens;
}

Event RandomEvents::MakeEvent(bool binary_hashes) {
  Event event;
  event.kind = static_cast<EventKind>(random_.Below(3));
  if (event.kind == EventKind::kAllBlocksCleared) return event;

  const std::size_t blocks = random_.Chance(0.1) ? random_.Below(70) : random_.Below(6);
  const auto hashes = Array<std::uint64_t>(blocks);
  const auto bytes = Array<std::string_view>(blocks);
  bool any_bytes = false;
  for (std::size_t i = 0; i < blocks; ++i) {
    hashes[i] = AnyWidth();
    bytes[i] = {};
    if (!binary_hashes || random_.Chance(0.5)) continue;
    std::string& digest = texts_.emplace_back(8 + random_.Below(25), '\0');
    hashes[i] = 0;
    for (char& c : digest) {
      c = static_cast<char>(random_.Next());
      hashes[i] = hashes[i] << 8 | static_cast<std::uint8_t>(c);
    }
    bytes[i] = digest;
    any_bytes = true;
  }
  event.hashes = hashes;
  if (any_bytes) event.hash_bytes = bytes;
  event.medium = Text();
  if (random_.Chance(0.5)) event.group_idx = static_cast<std::uint32_t>(AnyWidth());
  if (event.kind == EventKind::kBlockRemoved) return event;

  if (random_.Chance(0.7)) event.parent = AnyWidth() | 1;
  event.block_size = static_cast<std::uint32_t>(random_.Between(1, 20));
  event.tokens = Tokens(blocks * event.block_size);
  if (!event.tokens.empty() && random_.Chance(0.1)) event.bigram_tokens = Tokens(event.tokens.size());
  if (random_.Chance(0.3)) event.lora_id = static_cast<std::int64_t>(random_.Next() >> random_.Below(64));
  event.lora_name = Text();
  if (random_.Chance(0.5) && blocks > 0) {
    const auto per_block = Array<std::span<const ExtraKey>>(blocks);
    for (auto& block : per_block) {
      const auto keys = Array<ExtraKey>(random_.Below(4));
      for (ExtraKey& key : keys) {
        key.kind = static_cast<ExtraKey::Kind>(random_.Below(4));
        if (key.kind != ExtraKey::Kind::kInt) key.text = Text();
        if (key.kind == ExtraKey::Kind::kInt || key.kind == ExtraKey::Kind::kStringAt) {
          key.number = static_cast<std::int64_t>(random_.Next()) >> random_.Below(64);
        }
      }
      block = keys;
    }
    event.extra_keys = per_block;
  }
  event.spec_kind = Text();
  if (random_.Chance(0.5)) event.sliding_window = static_cast<std::uint32_t>(AnyWidth());
  event.locality = Text();
  event.ownership = Text();
  event.session_id = Text();
  if (random_.Chance(0.2)) {
    const auto lookahead = Array<TokenSpan>(blocks);
    for (TokenSpan& tokens : lookahead) tokens = Tokens(random_.Below(4));
    event.lookahead_tokens = lookahead;
  }
  return event;
}

std::vector<Event> RandomEvents::Batch(bool binary_hashes) {
  std::vector<Event> events(random_.Below(5));
  for (Event& event : events) event = MakeEvent(binary_hashes);
  return events;
}

}  // namespace llmd::events
