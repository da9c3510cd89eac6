#include "tests/events/reference_decoder.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "llmd/base/strings.h"

namespace llmd::events {
namespace {

using nlohmann::json;

struct CutOff {};  // the tree cannot be read any further
struct Bad : std::runtime_error {
  using runtime_error::runtime_error;
};  // this event is of no use

struct Value {
  enum Type { kNil, kBool, kInt, kFloat, kString, kBinary, kArray, kMap, kExtension } type = kNil;
  bool negative = false;
  std::uint64_t bits = 0;
  double number = 0;
  std::string text;
  std::vector<Value> items;  // a map's keys and values in turn
  std::string packed;        // the bytes it was read from

  int Nesting() const {
    if (type != kArray && type != kMap) return 0;
    int deepest = 0;
    for (const Value& item : items) deepest = std::max(deepest, item.Nesting());
    return 1 + deepest;
  }
};

class Tree {
 public:
  explicit Tree(std::string bytes) : bytes_(std::move(bytes)) {}

  std::uint64_t Uint(int width) {
    std::uint64_t value = 0;
    for (int i = 0; i < width; ++i) value = value << 8 | Byte();
    return value;
  }

  // Reads the head only when `shallow`; a body or items follow.
  Value Read(bool shallow = false) {
    const std::size_t start = at_;
    Value v;
    const int c = Byte();
    std::uint64_t size = 0;
    auto sized = [&](Value::Type type, std::uint64_t n) { v.type = type, size = n; };
    auto integer = [&](std::int64_t n) {
      v.type = Value::kInt, v.bits = n, v.negative = n < 0, v.number = n;
    };
    if (c < 0x80) {
      integer(c);
    } else if (c < 0x90) {
      sized(Value::kMap, 2 * (c & 15));
    } else if (c < 0xa0) {
      sized(Value::kArray, c & 15);
    } else if (c < 0xc0) {
      sized(Value::kString, c & 31);
    } else if (c >= 0xe0) {
      integer(c - 256);
    } else {
      switch (c) {
        case 0xc0:
          break;
        case 0xc1:
          throw CutOff();
        case 0xc2:
        case 0xc3:
          v.type = Value::kBool;
          break;
        case 0xc4:
        case 0xc5:
        case 0xc6:
          sized(Value::kBinary, Uint(1 << (c - 0xc4)));
          break;
        case 0xc7:
        case 0xc8:
        case 0xc9:
          sized(Value::kExtension, Uint(1 << (c - 0xc7)) + 1);
          break;
        case 0xca: {
          const auto b = static_cast<std::uint32_t>(Uint(4));
          float f;
          std::memcpy(&f, &b, 4);
          v.type = Value::kFloat;
          v.number = f;
          break;
        }
        case 0xcb: {
          const std::uint64_t b = Uint(8);
          v.type = Value::kFloat;
          std::memcpy(&v.number, &b, 8);
          break;
        }
        case 0xcc:
        case 0xcd:
        case 0xce:
        case 0xcf:
          v.type = Value::kInt;
          v.bits = Uint(1 << (c - 0xcc));
          v.number = static_cast<double>(v.bits);
          break;
        case 0xd0:
          integer(static_cast<std::int8_t>(Uint(1)));
          break;
        case 0xd1:
          integer(static_cast<std::int16_t>(Uint(2)));
          break;
        case 0xd2:
          integer(static_cast<std::int32_t>(Uint(4)));
          break;
        case 0xd3:
          integer(static_cast<std::int64_t>(Uint(8)));
          break;
        case 0xd9:
        case 0xda:
        case 0xdb:
          sized(Value::kString, Uint(1 << (c - 0xd9)));
          break;
        case 0xdc:
        case 0xdd:
          sized(Value::kArray, Uint(2 << (c - 0xdc)));
          break;
        case 0xde:
        case 0xdf:
          sized(Value::kMap, 2 * Uint(2 << (c - 0xde)));
          break;
        default:
          sized(Value::kExtension, (1 << (c - 0xd4)) + 1);
          break;
      }
    }
    if (shallow) {
      if (v.type == Value::kArray || v.type == Value::kMap) v.bits = size;
      return v;
    }
    if (v.type == Value::kString || v.type == Value::kBinary || v.type == Value::kExtension) {
      if (size > bytes_.size() - at_) throw CutOff();
      v.text = bytes_.substr(at_, size);
      at_ += size;
    }
    if (v.type == Value::kArray || v.type == Value::kMap) {
      v.bits = size;
      if (size > bytes_.size() - at_) throw CutOff();
      for (std::uint64_t i = 0; i < size; ++i) v.items.push_back(Read());
    }
    v.packed = bytes_.substr(start, at_ - start);
    return v;
  }

 private:
  int Byte() {
    if (at_ == bytes_.size()) throw CutOff();
    return static_cast<std::uint8_t>(bytes_[at_++]);
  }
  std::string bytes_;
  std::size_t at_ = 0;
};

std::string Hex(const std::string& bytes) { return HexExcerpt(AsBytes(bytes), bytes.size()); }

// One hash: its value and its bytes in hex.
std::pair<std::uint64_t, std::string> Hash(const Value& v) {
  if (v.type == Value::kInt) return {v.bits, ""};
  if (v.type != Value::kBinary || v.text.empty()) throw Bad("hash");
  std::string padded = std::string(8, '\0') + v.text;
  std::uint64_t hash = 0;
  for (const char c : padded.substr(padded.size() - 8)) hash = hash << 8 | static_cast<std::uint8_t>(c);
  return {hash, Hex(v.text)};
}

std::vector<Value> Items(const Value& v) {
  if (v.type == Value::kNil) return {};
  if (v.type != Value::kArray) throw Bad("array");
  return v.items;
}

void ReadHashes(const Value& v, json& hashes, json& hash_bytes) {
  hashes = json::array(), hash_bytes = json::array();
  bool any = false;
  for (const Value& item : Items(v)) {
    const auto [hash, bytes] = Hash(item);
    hashes.push_back(hash);
    hash_bytes.push_back(bytes);
    any |= !bytes.empty();
  }
  if (!any) hash_bytes = json::array();
}

std::uint64_t Uint(const Value& v, std::uint64_t max) {
  if (v.type != Value::kInt || v.negative || v.bits > max) throw Bad("uint");
  return v.bits;
}

json OptionalUint(const Value& v, std::uint64_t max) {
  return v.type == Value::kNil ? json() : json(Uint(v, max));
}

std::string Text(const Value& v) {
  if (v.type == Value::kNil) return "";
  if (v.type != Value::kString) throw Bad("text");
  return v.text;
}

json TokenList(const std::vector<Value>& items) {
  json tokens = json::array();
  for (const Value& item : items) tokens.push_back(Uint(item, UINT32_MAX));
  return tokens;
}

bool FitsInt64(const Value& v) { return v.type == Value::kInt && (v.negative || v.bits <= INT64_MAX); }

json Key(const Value& v) {
  if (FitsInt64(v)) return {2, "", static_cast<std::int64_t>(v.bits)};
  if (v.type == Value::kString) return {0, Hex(v.text), 0};
  if (v.type == Value::kBinary) return {3, Hex(v.text), 0};
  if (v.type == Value::kArray && v.items.size() == 2 && v.items[0].type == Value::kString &&
      FitsInt64(v.items[1])) {
    return {1, Hex(v.items[0].text), static_cast<std::int64_t>(v.items[1].bits)};
  }
  if (v.Nesting() > 16) throw Bad("nesting");
  return {4, Hex(v.packed), 0};
}

std::string Kind(const Value& v) {
  if (v.type != Value::kString) throw Bad("tag");
  if (v.text == "BlockStored" || v.text == "stored") return "BlockStored";
  if (v.text == "BlockRemoved" || v.text == "removed") return "BlockRemoved";
  if (v.text == "AllBlocksCleared" || v.text == "cleared") return "AllBlocksCleared";
  throw Bad("kind");
}

void ReadField(const std::string& name, const Value& v, json& event) {
  static const std::map<std::string, std::string> kTexts = {
      {"kv_cache_spec_kind", "spec_kind"}, {"locality", "locality"},     {"ownership", "ownership"},
      {"session_id", "session_id"},        {"cache_salt", "cache_salt"}, {"additional_salt", "cache_salt"},
      {"model_name", "model_name"},        {"tenant_id", "tenant_id"},   {"backend_id", "backend_id"},
      {"object_key", "object_key"},        {"lora_name", "lora_name"},   {"medium", "medium"}};
  if (name == "block_hashes") return ReadHashes(v, event["hashes"], event["hash_bytes"]);
  if (name == "lora_name" && v.type == Value::kMap) {
    for (std::size_t i = 0; i < v.items.size(); i += 2) {
      const std::string key = Text(v.items[i]);
      if (key == "cache_salt" || key == "session_id") ReadField(key, v.items[i + 1], event);
    }
    return;
  }
  if (kTexts.contains(name)) {
    const std::string text = Text(v);
    event[kTexts.at(name)] = Hex(text);
    if (name == "medium") {
      std::string tier = text.empty() ? "gpu" : text;
      for (char& c : tier) {
        if (c >= 'A' && c <= 'Z') c += 'a' - 'A';
      }
      event["tier"] = Hex(tier);
    }
  } else if (name == "parent_block_hash" || name == "parent_hash") {
    event["parent"] = json(), event["parent_bytes"] = "";
    if (v.type == Value::kNil) return;
    const auto [hash, bytes] = Hash(v);
    if (hash == 0 && bytes.empty()) return;
    event["parent"] = hash, event["parent_bytes"] = bytes;
  } else if (name == "token_ids") {
    const std::vector<Value> items = Items(v);
    event["bigram_tokens"] = json::array();
    if (items.empty() || items[0].packed[0] != '\x92') {
      event["tokens"] = TokenList(items);
      return;
    }
    std::vector<Value> first, second;
    for (const Value& item : items) {
      if (item.type != Value::kArray || item.items.size() != 2) throw Bad("bigram");
      first.push_back(item.items[0]);
      second.push_back(item.items[1]);
    }
    event["tokens"] = TokenList(first), event["bigram_tokens"] = TokenList(second);
  } else if (name == "block_size") {
    event["block_size"] = v.type == Value::kNil ? 0 : Uint(v, UINT32_MAX);
  } else if (name == "lora_id") {
    if (v.type != Value::kNil && !FitsInt64(v)) throw Bad("lora_id");
    event["lora_id"] = v.type == Value::kNil ? json() : json(static_cast<std::int64_t>(v.bits));
  } else if (name == "group_idx") {
    event["group_idx"] = OptionalUint(v, UINT32_MAX);
  } else if (name == "kv_cache_spec_sliding_window") {
    event["sliding_window"] = OptionalUint(v, UINT32_MAX);
  } else if (name == "base_block_idx") {
    event["first_block"] = OptionalUint(v, UINT64_MAX);
  } else if (name == "extra_keys" || name == "lookahead_token_ids") {
    json blocks = json::array();
    for (const Value& block : Items(v)) {
      const std::vector<Value> items = Items(block);
      json out = json::array();
      if (name == "lookahead_token_ids") out = TokenList(items);
      for (const Value& item : items) {
        if (name == "extra_keys") out.push_back(Key(item));
      }
      blocks.push_back(out);
    }
    event[name == "extra_keys" ? "extra_keys" : "lookahead_tokens"] = blocks;
  }
}

json ReadEvent(const Value& v) {
  json event = json::parse(R"({"hashes":[],"hash_bytes":[],"parent":null,"parent_bytes":"","tokens":[],
    "bigram_tokens":[],"block_size":0,"lora_id":null,"lora_name":"","extra_keys":[],"lookahead_tokens":[],
    "cache_salt":"","session_id":"","medium":"","tier":"677075","group_idx":null,"spec_kind":"",
    "sliding_window":null,"locality":"","ownership":"","model_name":"","tenant_id":"","backend_id":"",
    "object_key":"","first_block":null})");
  if (v.type == Value::kArray) {
    if (v.items.empty()) throw Bad("empty");
    const std::string kind = Kind(v.items[0]);
    event["kind"] = kind;
    static const std::vector<std::string> kStored = {
        "type",      "block_hashes",       "parent_block_hash",
        "token_ids", "block_size",         "lora_id",
        "medium",    "lora_name",          "extra_keys",
        "group_idx", "kv_cache_spec_kind", "kv_cache_spec_sliding_window",
        "locality",  "ownership",          "session_id"};
    static const std::vector<std::string> kRemoved = {"type", "block_hashes", "medium", "group_idx"};
    if (kind == "AllBlocksCleared") return event;
    const auto& names = kind == "BlockStored" ? kStored : kRemoved;
    if (v.items.size() < (kind == "BlockStored" ? 5 : 2)) throw Bad("short");
    for (std::size_t i = 1; i < std::min(v.items.size(), names.size()); ++i)
      ReadField(names[i], v.items[i], event);
    return event;
  }
  if (v.type != Value::kMap) throw Bad("form");
  json seq_hashes = json::array(), seq_hash_bytes = json::array();
  std::string type, event_type;
  bool hashed = false;
  for (std::size_t i = 0; i < v.items.size(); i += 2) {
    if (v.items[i].type != Value::kString) continue;
    const std::string& name = v.items[i].text;
    const Value& value = v.items[i + 1];
    if (name == "type") {
      type = Kind(value);
    } else if (name == "event_type") {
      const std::string kind = Kind(value);
      if (type.empty() && event_type.empty()) event_type = kind;
    } else if (name == "seq_hashes") {
      ReadHashes(value, seq_hashes, seq_hash_bytes);
      hashed = true;
    } else {
      ReadField(name, value, event);
      hashed |= name == "block_hashes";
    }
  }
  event["kind"] = type.empty() ? event_type : type;
  if (event["kind"] == "") throw Bad("no type");
  if (!hashed && event["kind"] != "AllBlocksCleared") throw Bad("no hashes");
  if (event["hashes"].empty()) event["hashes"] = seq_hashes, event["hash_bytes"] = seq_hash_bytes;
  return event;
}

}  // namespace

ReferenceBatch ReferenceDecode(std::span<const std::byte> payload) {
  ReferenceBatch batch;
  Tree tree({reinterpret_cast<const char*>(payload.data()), payload.size()});
  std::uint64_t length = 0, count = 0;
  try {
    const Value head = tree.Read(true);
    if (head.type != Value::kArray || head.bits < 2) return {};
    length = head.bits;
    const Value ts = tree.Read(true);
    if (ts.type != Value::kInt && ts.type != Value::kFloat) return {};
    batch.timestamp = ts.negative ? static_cast<double>(static_cast<std::int64_t>(ts.bits)) : ts.number;
    const Value events = tree.Read(true);
    if (events.type != Value::kArray || events.bits > (1u << 20)) return {};
    count = events.bits;
  } catch (const CutOff&) {
    return {};
  }
  batch.usable = true;
  for (std::uint64_t i = 0; i < count; ++i) {
    try {
      Value event = tree.Read();
      try {
        if (event.type == Value::kBinary) event = Tree(event.text).Read();
        batch.events.push_back(ReadEvent(event));
      } catch (const Bad&) {
        ++batch.skipped;
      } catch (const CutOff&) {
        ++batch.skipped;
      }
    } catch (const CutOff&) {
      batch.skipped += count - i;
      batch.truncated = true;
      return batch;
    }
  }
  if (length < 3) return batch;
  try {
    const Value rank = tree.Read(true);
    if (rank.type == Value::kNil) return batch;
    if (rank.type != Value::kInt || rank.negative || rank.bits > UINT32_MAX) return {};
    batch.rank = rank.bits;
  } catch (const CutOff&) {
    batch.truncated = true;
  }
  return batch;
}

}  // namespace llmd::events
