#include "tests/hash/reference.h"

#include <openssl/evp.h>

#include <map>

namespace llmd::hash::reference {
namespace {

// A pickle as CPython builds it: an open frame, or none, behind what is already written.
struct Pickle {
  std::string done = std::string("\x80\x05", 2);
  std::string frame;
  bool open = false;
  std::uint32_t memo = 0;
  std::map<std::pair<char, std::string>, std::uint32_t> once;  // memo index by opcode and value

  void Write(const std::string& data) {
    open = true;
    frame += data;
  }
  void Close() {
    if (open && frame.size() >= 4) done += "\x95" + LittleEndian(frame.size(), 8);
    done += frame;
    frame.clear();
    open = false;
  }
  void BeforeObject() {
    if (open && frame.size() >= 65536) Close();
  }
  void Memoize() {
    Write("\x94");
    ++memo;
  }

  void None() {
    BeforeObject();
    Write("N");
  }
  void Int(std::int64_t value) {
    BeforeObject();
    if (value >= 0 && value < 256) return Write("K" + LittleEndian(value, 1));
    if (value >= 0 && value < 65536) return Write("M" + LittleEndian(value, 2));
    if (value >= -2147483648LL && value <= 2147483647LL) return Write("J" + LittleEndian(value, 4));
    int bytes = 1;  // the fewest that hold the value with its sign
    while (bytes < 8 &&
           (value < -(std::int64_t{1} << (8 * bytes - 1)) || value >= std::int64_t{1} << (8 * bytes - 1))) {
      ++bytes;
    }
    Write("\x8a" + LittleEndian(bytes, 1) + LittleEndian(value, bytes));
  }
  void Data(char short_opcode, char long_opcode, const std::string& data) {
    BeforeObject();
    const std::string head = data.size() < 256 ? std::string(1, short_opcode) + LittleEndian(data.size(), 1)
                                               : std::string(1, long_opcode) + LittleEndian(data.size(), 4);
    if (data.size() >= 65536) {
      Close();
      done += head + data;
    } else {
      Write(head + data);
    }
    Memoize();
  }
  // One object however often it occurs.
  void Once(char short_opcode, char long_opcode, const std::string& data) {
    const auto [it, first] = once.try_emplace({short_opcode, data}, memo);
    if (first) return Data(short_opcode, long_opcode, data);
    BeforeObject();
    Write(it->second < 256 ? "h" + LittleEndian(it->second, 1) : "j" + LittleEndian(it->second, 4));
  }
  void Key(const ExtraKey& key) {
    switch (key.kind) {
      case ExtraKey::Kind::kNone:
        return None();
      case ExtraKey::Kind::kInt:
        return Int(key.number);
      case ExtraKey::Kind::kText:
        // CPython's own objects: the empty text and the characters up to U+00FF.
        if (key.text.size() < 2 || (key.text.size() == 2 && (key.text[0] & '\xfc') == '\xc0'))
          return Once('\x8c', 'X', key.text);
        return Data('\x8c', 'X', key.text);
      case ExtraKey::Kind::kBytes:
        if (key.text.empty()) return Once('C', 'B', key.text);
        return Data('C', 'B', key.text);
      case ExtraKey::Kind::kTag:
        return Once('\x8c', 'X', key.text);
      case ExtraKey::Kind::kTuple:
        return Tuple(key.items);
    }
  }
  void Tuple(const std::vector<ExtraKey>& items) {
    BeforeObject();
    if (items.empty()) return Write(")");
    if (items.size() > 3) Write("(");
    for (const ExtraKey& item : items) Key(item);
    Write(items.size() == 1 ? "\x85" : items.size() == 2 ? "\x86" : items.size() == 3 ? "\x87" : "t");
    Memoize();
  }
};

std::string CborHead(int major, std::uint64_t value) {
  if (value < 24) return std::string(1, static_cast<char>(major << 5 | value));
  const int bytes = value < 256 ? 1 : value < 65536 ? 2 : value < (std::uint64_t{1} << 32) ? 4 : 8;
  std::string head(1, static_cast<char>(major << 5 | (bytes == 1   ? 24
                                                      : bytes == 2 ? 25
                                                      : bytes == 4 ? 26
                                                                   : 27)));
  const std::string little = LittleEndian(value, bytes);
  return head + std::string(little.rbegin(), little.rend());
}

std::string Cbor(const ExtraKey& key) {
  switch (key.kind) {
    case ExtraKey::Kind::kNone:
      return "\xf6";
    case ExtraKey::Kind::kInt:
      return key.number >= 0 ? CborHead(0, key.number) : CborHead(1, -1 - key.number);
    case ExtraKey::Kind::kText:
    case ExtraKey::Kind::kTag:
      return CborHead(3, key.text.size()) + key.text;
    case ExtraKey::Kind::kBytes:
      return CborHead(2, key.text.size()) + key.text;
    case ExtraKey::Kind::kTuple: {
      std::string out = CborHead(4, key.items.size());
      for (const ExtraKey& item : key.items) out += Cbor(item);
      return out;
    }
  }
  return {};
}

ExtraKey Block(const std::string& parent, const std::vector<std::int64_t>& tokens, const ExtraKeys& extra) {
  std::vector<ExtraKey> ids;
  for (const std::int64_t token : tokens) ids.push_back(ExtraKey::Int(token));
  return ExtraKey::Tuple({parent.empty() ? ExtraKey::Int(0) : ExtraKey::Bytes(parent), ExtraKey::Tuple(ids),
                          extra.empty() ? ExtraKey::None() : ExtraKey::Tuple(extra)});
}

}  // namespace

std::string LittleEndian(std::uint64_t value, int bytes) {
  std::string out;
  for (int i = 0; i < bytes; ++i) out.push_back(static_cast<char>(value >> (8 * i)));
  return out;
}

std::string PickleBlock(const std::string& parent, const std::vector<std::int64_t>& tokens,
                        const ExtraKeys& extra) {
  Pickle pickle;
  pickle.Key(Block(parent, tokens, extra));
  pickle.Write(".");
  pickle.Close();
  return pickle.done;
}

std::string CborBlock(const std::string& parent, const std::vector<std::int64_t>& tokens,
                      const ExtraKeys& extra) {
  return Cbor(Block(parent, tokens, extra));
}

std::string Sha256(const std::string& data) {
  std::string digest(32, '\0');
  EVP_Digest(data.data(), data.size(), reinterpret_cast<unsigned char*>(digest.data()), nullptr, EVP_sha256(),
             nullptr);
  return digest;
}

ExtraKeys RandomExtraKeys(Random& random) {
  const auto key = [&](auto self, int depth) -> ExtraKey {
    const std::size_t length =
        random.Chance(0.02) ? 65530 + random.Below(12) : random.Below(random.Chance(0.2) ? 600 : 20);
    switch (random.Below(depth > 0 ? 6 : 5)) {
      case 0:
        return ExtraKey::None();
      case 1:
        return ExtraKey::Int(static_cast<std::int64_t>(random.Next()) >> random.Below(64));
      case 2:
        if (random.Chance(0.1)) return ExtraKey::Text(random.Chance(0.5) ? "\xc3\xa9" : "\xc4\x80");
        return ExtraKey::Text(std::string(length, 'x'));
      case 3:
        return ExtraKey::Bytes(std::string(length, '\x80'));
      case 4:
        return ExtraKey::Tag(random.Chance(0.5) ? "mm" : "lora");
      default: {
        std::vector<ExtraKey> items;
        for (std::uint64_t n = random.Below(5); n > 0; --n) items.push_back(self(self, depth - 1));
        return ExtraKey::Tuple(std::move(items));
      }
    }
  };
  ExtraKeys keys;
  for (std::uint64_t n = random.Below(5); n > 0; --n) keys.push_back(key(key, 2));
  return keys;
}

std::vector<std::int64_t> RandomTokens(Random& random, std::size_t count, bool wide) {
  std::vector<std::int64_t> tokens;
  while (tokens.size() < count) {
    const std::uint64_t value = random.Next() >> (wide ? random.Below(64) : 32 + random.Below(32));
    tokens.push_back(static_cast<std::int64_t>(value));
  }
  return tokens;
}

}  // namespace llmd::hash::reference
