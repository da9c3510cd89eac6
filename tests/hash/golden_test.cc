// Every vector of tests/golden/block_hashes.json against the library.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "llmd/hash/approx_prefix.h"
#include "llmd/hash/digest.h"
#include "llmd/hash/dynamo.h"
#include "llmd/hash/request_keys.h"
#include "llmd/hash/sglang.h"
#include "llmd/hash/trtllm.h"
#include "llmd/hash/vllm.h"
#include "src/hash/serialize.h"
#include "src/hash/xxh.h"

namespace llmd::hash {
namespace {

using Json = nlohmann::json;

const Json& Vectors() {
  static const Json* const vectors = [] {
    std::ifstream file(LLMD_VECTORS_DIR "/block_hashes.json");
    return new Json(Json::parse(file));
  }();
  return *vectors;
}

std::uint64_t U64(const Json& value) { return std::stoull(value.get<std::string>()); }

std::vector<std::uint64_t> U64s(const Json& values) {
  std::vector<std::uint64_t> out;
  for (const Json& value : values) out.push_back(U64(value));
  return out;
}

std::string Hex(std::string_view bytes) {
  std::string text;
  for (const unsigned char byte : bytes) {
    char buffer[3];
    std::snprintf(buffer, sizeof(buffer), "%02x", byte);
    text += buffer;
  }
  return text;
}

std::string Unhex(const std::string& hex) {
  std::string bytes;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

// Hexadecimal of a decimal number of any size, padded to `digits`.
std::string DecimalToHex(const std::string& decimal, std::size_t digits) {
  std::vector<int> number;  // base 16, least significant first
  for (const char c : decimal) {
    int carry = c - '0';
    for (int& digit : number) {
      digit = digit * 10 + carry;
      carry = digit / 16;
      digit %= 16;
    }
    if (carry > 0) number.push_back(carry);
  }
  number.resize(digits);
  std::string hex;
  for (auto it = number.rbegin(); it != number.rend(); ++it) hex.push_back("0123456789abcdef"[*it]);
  return hex;
}

ExtraKey ToExtraKey(const Json& value) {
  if (value.is_null()) return ExtraKey::None();
  if (value.is_number_integer()) return ExtraKey::Int(value.get<std::int64_t>());
  if (value.is_string()) return ExtraKey::Text(value.get<std::string>());
  if (value.contains("bytes_hex")) return ExtraKey::Bytes(Unhex(value["bytes_hex"]));
  std::vector<ExtraKey> items;
  for (const Json& item : value["tuple"]) items.push_back(ToExtraKey(item));
  return ExtraKey::Tuple(std::move(items));
}

std::vector<ExtraKeys> ExtraKeysOf(const Json& entry) {
  std::vector<ExtraKeys> blocks;
  for (const Json& keys : entry["extra_keys"]) {
    blocks.push_back(keys.is_null() ? ExtraKeys() : ToExtraKey(keys).items);
  }
  return blocks;
}

TEST(Golden, XxHash) {
  std::string data;
  for (int i = 0; i < 1200; ++i) data.push_back(static_cast<char>((7 * i + 3) % 256));
  const auto hex = [](std::uint64_t value) {
    char buffer[17];
    std::snprintf(buffer, sizeof(buffer), "%016llx", static_cast<unsigned long long>(value));
    return std::string(buffer);
  };
  for (const Json& entry : Vectors()["primitives"]["xxhash"]) {
    const std::size_t size = entry["len"];
    EXPECT_EQ(hex(XXH64(data.data(), size, 0)), entry["xxh64"]);
    EXPECT_EQ(hex(XXH3_64bits(data.data(), size)), entry["xxh3_64"]);
    EXPECT_EQ(hex(XXH3_64bits_withSeed(data.data(), size, 1337)), entry["xxh3_64_seed1337"]);
  }
}

// Values of the serialization vectors, by name.
ExtraKey SerializationValue(const std::string& name) {
  const auto ints = [](std::int64_t n) {
    std::vector<ExtraKey> items;
    for (std::int64_t i = 1; i <= n; ++i) items.push_back(ExtraKey::Int(i));
    return ExtraKey::Tuple(items);
  };
  std::string bytes32;
  for (char i = 0; i < 32; ++i) bytes32.push_back(i);
  const std::int64_t two31 = std::int64_t{1} << 31;
  if (name == "str_0") return ExtraKey::Text("0");
  if (name == "str_empty") return ExtraKey::Text("");
  if (name == "int_0") return ExtraKey::Int(0);
  if (name == "int_255") return ExtraKey::Int(255);
  if (name == "int_256") return ExtraKey::Int(256);
  if (name == "int_65535") return ExtraKey::Int(65535);
  if (name == "int_65536") return ExtraKey::Int(65536);
  if (name == "int_max31") return ExtraKey::Int(two31 - 1);
  if (name == "int_2_31") return ExtraKey::Int(two31);
  if (name == "int_2_32") return ExtraKey::Int(two31 * 2);
  if (name == "int_neg1") return ExtraKey::Int(-1);
  if (name == "int_neg5") return ExtraKey::Int(-5);
  if (name == "int_neg_2_31") return ExtraKey::Int(-two31);
  if (name == "int_neg_2_31_1") return ExtraKey::Int(-two31 - 1);
  if (name == "bytes32") return ExtraKey::Bytes(bytes32);
  if (name.starts_with("tuple")) return ints(name[5] - '0');
  if (name == "nested") {
    return ExtraKey::Tuple(
        {ExtraKey::Bytes(bytes32), ints(4),
         ExtraKey::Tuple({ExtraKey::Text("lora"), ExtraKey::Tuple({ExtraKey::Text("mm"), ExtraKey::Int(-3)}),
                          ExtraKey::Text("salt")})});
  }
  ADD_FAILURE() << "no value for " << name;
  return {};
}

template <typename Writer>
std::string SerializeValue(const ExtraKey& value) {
  std::vector<std::uint8_t> buffer(4096);
  Writer writer(buffer.data());
  const auto write = [&](auto self, const ExtraKey& key) -> void {
    if (key.kind == ExtraKey::Kind::kInt) return writer.Int(key.number);
    if (key.kind == ExtraKey::Kind::kText) return writer.Text(key.text);
    if (key.kind == ExtraKey::Kind::kBytes) {
      return writer.Bytes({reinterpret_cast<const std::uint8_t*>(key.text.data()), key.text.size()});
    }
    writer.BeginTuple(key.items.size());
    for (const ExtraKey& item : key.items) self(self, item);
    writer.EndTuple(key.items.size());
  };
  write(write, value);
  const std::size_t size = writer.Finish();
  return {reinterpret_cast<const char*>(buffer.data()), size};
}

TEST(Golden, Serialization) {
  int checked = 0;
  for (const Json& entry : Vectors()["primitives"]["serialization"]) {
    const std::string name = entry["name"];
    if (name == "frame_over_64k") {
      const auto hasher = VllmHasher::Create(
          {VllmAlgorithm::kSha256, NoneHash::Raw(*Digest::FromHex(std::string(64, '0'))), 16});
      std::vector<std::int64_t> tokens(20000);
      for (int i = 0; i < 20000; ++i) tokens[i] = 100000 + i;
      const std::string preimage = hasher->Preimage(tokens, nullptr, nullptr);
      EXPECT_EQ(preimage.size(), entry["pickle5_len"]);
      EXPECT_EQ(Hex(preimage.substr(0, 64)), entry["pickle5_head_hex"]);
      EXPECT_EQ(Sha256(preimage).hex(), entry["pickle5_sha256"]);
    } else if (name == "int_2_63") {
      std::vector<std::uint8_t> two63 = {0x80, 0, 0, 0, 0, 0, 0, 0}, buffer(64);
      PickleWriter pickle(buffer.data());
      pickle.UnsignedInt(two63);
      std::size_t size = pickle.Finish();
      EXPECT_EQ(Hex({reinterpret_cast<char*>(buffer.data()), size}), entry["pickle5_hex"]);
      CborWriter cbor(buffer.data());
      cbor.UnsignedInt(two63);
      size = cbor.Finish();
      EXPECT_EQ(Hex({reinterpret_cast<char*>(buffer.data()), size}), entry["cbor_hex"]);
    } else {
      const ExtraKey value = SerializationValue(name);
      EXPECT_EQ(Hex(SerializeValue<PickleWriter>(value)), entry["pickle5_hex"]) << name;
      EXPECT_EQ(Hex(SerializeValue<CborWriter>(value)), entry["cbor_hex"]) << name;
    }
    ++checked;
  }
  EXPECT_EQ(checked, 23);
}

TEST(Golden, Vllm) {
  int checked = 0;
  for (const Json& entry : Vectors()["vllm"]) {
    const std::string id = entry["id"];
    SCOPED_TRACE(id);
    NoneHash none_hash = entry["seed_string"].is_null()
                             ? NoneHash::Raw(*Digest::FromHex(entry["none_hash"].get<std::string>()))
                             : NoneHash::SeedText(entry["seed_string"].get<std::string>());
    if (id.find("/default_vllm_none_hash/") != std::string::npos) none_hash = NoneHash::VllmDefault();
    const auto algorithm = ParseVllmAlgorithm(entry["algo"].get<std::string>());
    ASSERT_TRUE(algorithm.ok());
    const auto hasher = VllmHasher::Create({*algorithm, none_hash, entry["block_size"]});
    ASSERT_TRUE(hasher.ok()) << hasher.status();
    EXPECT_EQ(hasher->none_hash().hex(), entry["none_hash"]);

    const std::vector<std::int64_t> wide = entry["token_ids"];
    const std::vector<ExtraKeys> extra = ExtraKeysOf(entry);
    std::vector<Digest> digests;
    hasher->HashBlocks(std::span<const std::int64_t>(wide), nullptr, extra, digests);
    ASSERT_EQ(digests.size(), entry["block_hashes"].size());
    for (std::size_t i = 0; i < digests.size(); ++i) {
      EXPECT_EQ(digests[i].hex(), entry["block_hashes"][i]);
      EXPECT_EQ(digests[i].low64(), U64(entry["external_u64"][i]));
    }
    if (entry.contains("preimages_hex")) {
      for (std::size_t i = 0; i < digests.size(); ++i) {
        const auto block = std::span(wide).subspan(i * hasher->block_size(), hasher->block_size());
        EXPECT_EQ(Hex(hasher->Preimage(block, i == 0 ? nullptr : &digests[i - 1], &extra[i])),
                  entry["preimages_hex"][i]);
      }
    }
    if (std::all_of(wide.begin(), wide.end(), [](std::int64_t t) { return t >= 0 && t <= 0xffffffff; })) {
      const std::vector<TokenId> tokens(wide.begin(), wide.end());
      std::vector<Digest> narrow;
      hasher->HashBlocks(TokenSpan(tokens), nullptr, extra, narrow);
      EXPECT_EQ(narrow, digests);
    }
    ++checked;
  }
  EXPECT_EQ(checked, 122);
}

TEST(Golden, VllmIntegerHashes) {
  int checked = 0;
  for (const Json& entry : Vectors()["vllm_0_10_0"]) {
    SCOPED_TRACE(entry["id"]);
    if (entry["algo"] == "builtin") {
      EXPECT_FALSE(ParseVllmAlgorithm("builtin").ok());
      continue;
    }
    const bool wide = entry["algo"] == "sha256";
    const auto algorithm = wide ? VllmAlgorithm::kSha256Int : VllmAlgorithm::kSha256Cbor64bit;
    const auto hasher = VllmHasher::Create(
        {algorithm, NoneHash::SeedText(entry["seed_string"].get<std::string>()), entry["block_size"]});
    ASSERT_TRUE(hasher.ok());
    const std::size_t digits = wide ? 64 : 16;
    EXPECT_EQ(hasher->none_hash().hex(), DecimalToHex(entry["none_hash_int"], digits));
    const std::vector<TokenId> tokens = entry["token_ids"];
    std::vector<Digest> digests;
    hasher->HashBlocks(TokenSpan(tokens), nullptr, {}, digests);
    ASSERT_EQ(digests.size(), entry["block_hashes_int"].size());
    for (std::size_t i = 0; i < digests.size(); ++i) {
      EXPECT_EQ(digests[i].hex(), DecimalToHex(entry["block_hashes_int"][i], digits));
      const std::vector<std::int64_t> block(tokens.begin() + 16 * i, tokens.begin() + 16 * (i + 1));
      EXPECT_EQ(Hex(hasher->Preimage(block, i == 0 ? nullptr : &digests[i - 1], nullptr)),
                entry["preimages_hex"][i]);
    }
    ++checked;
  }
  EXPECT_EQ(checked, 4);
}

TEST(Golden, RequestKeys) {
  int checked = 0;
  for (const Json& entry : Vectors()["llmd"]) {
    SCOPED_TRACE(entry["id"]);
    const auto algorithm = ParseRequestKeyAlgorithm(entry["algo"].get<std::string>());
    ASSERT_TRUE(algorithm.ok());
    const auto hasher = RequestKeyHasher::Create({*algorithm, entry["hash_seed"], entry["block_size"]});
    ASSERT_TRUE(hasher.ok());
    const std::vector<TokenId> tokens = entry["token_ids"];
    std::vector<ExtraStrings> extra(tokens.size() / hasher->block_size());
    const Json per_block = entry.value("extra_hashes_per_block", Json::object());
    for (const auto& [block, strings] : per_block.items()) {
      extra[std::stoul(block)] = strings.get<ExtraStrings>();
    }
    std::vector<BlockKey> keys;
    const BlockKey root = hasher->Root(entry.value("model_name", ""));
    hasher->HashBlocks(tokens, root, extra, keys);
    EXPECT_EQ(keys, U64s(entry["request_keys"]));

    // Continued from the first key.
    std::vector<BlockKey> continued;
    const std::size_t size = hasher->block_size();
    hasher->HashBlocks(TokenSpan(tokens).subspan(size), keys[0], std::span(extra).subspan(1), continued);
    EXPECT_EQ(continued, std::vector<BlockKey>(keys.begin() + 1, keys.end()));
    ++checked;
  }
  EXPECT_EQ(checked, 15);
}

TEST(Golden, ApproxPrefix) {
  int checked = 0;
  for (const Json& entry : Vectors()["approx"]) {
    SCOPED_TRACE(entry["id"]);
    std::vector<BlockKey> keys;
    const std::string model = entry["model"], salt = entry["salt"];
    if (entry["recipe"] == "bytes") {
      GaiePrefixKeys(entry["input_utf8"].get<std::string>(), model, salt, entry["block_bytes"],
                     kGaieMaxBlocks, keys);
    } else {
      const std::vector<TokenId> tokens = entry["token_ids"];
      if (entry.contains("input_utf8")) {
        EstimatePacker packer;
        packer.AddText(entry["input_utf8"].get<std::string>());
        std::vector<TokenId> packed;
        packer.Finish(packed);
        EXPECT_EQ(packed, tokens);
      }
      ApproxPrefixKeys(tokens, model, salt, {.block_size = entry["block_size"]}, keys);
    }
    EXPECT_EQ(keys, U64s(entry["hashes"]));
    ++checked;
  }
  EXPECT_EQ(checked, 5);
}

TEST(Golden, Dynamo) {
  int checked = 0;
  for (const Json& entry : Vectors()["dynamo"]) {
    SCOPED_TRACE(entry["id"]);
    const auto text = [&](const char* key) {
      return entry[key].is_null() ? "" : entry[key].get<std::string>();
    };
    const std::uint64_t seed = DynamoLocalSeed(text("lora_name"), text("cache_namespace"));
    EXPECT_EQ(seed, U64(entry["seed"]));
    const std::vector<TokenId> tokens = entry["token_ids"];
    std::vector<std::vector<std::uint64_t>> multimodal(tokens.size());
    for (const auto& [block, hashes] : entry["mm_hashes_per_block"].items()) {
      multimodal[std::stoul(block)] = U64s(hashes);
    }
    std::vector<BlockKey> local, sequence;
    DynamoLocalHashes(tokens, {entry["block_size"], seed, false}, local, multimodal);
    DynamoSequenceHashes(local, std::nullopt, sequence);
    EXPECT_EQ(local, U64s(entry["block_hashes"]));
    EXPECT_EQ(sequence, U64s(entry["sequence_hashes"]));
    ++checked;
  }
  EXPECT_EQ(checked, 7);
}

TEST(Golden, Sglang) {
  int checked = 0;
  for (const Json& entry : Vectors()["sglang"]) {
    SCOPED_TRACE(entry["id"]);
    std::vector<Digest> pages;
    if (entry.contains("bigrams")) {
      std::vector<TokenId> tokens = {entry["bigrams"][0][0]};
      for (const Json& pair : entry["bigrams"]) tokens.push_back(pair[1]);
      SglangBigramPageHashes(tokens, entry["page_size"], nullptr, pages);
    } else {
      const std::vector<TokenId> tokens = entry["token_ids"];
      SglangPageHashes(tokens, entry["page_size"], nullptr, pages);
      for (std::size_t i = 0; i < pages.size(); ++i) {
        EXPECT_EQ(std::to_string(SglangEventHash(pages[i])), entry["event_int64"][i]);
      }
    }
    ASSERT_EQ(pages.size(), entry["page_hashes"].size());
    for (std::size_t i = 0; i < pages.size(); ++i) EXPECT_EQ(pages[i].hex(), entry["page_hashes"][i]);
    ++checked;
  }
  EXPECT_EQ(checked, 4);
}

TEST(Golden, Trtllm) {
  int checked = 0;
  for (const Json& entry : Vectors()["trtllm"]) {
    SCOPED_TRACE(entry["id"]);
    TrtllmNamespace ns;
    if (!entry["lora_task_id"].is_null()) ns.lora_task_id = entry["lora_task_id"];
    if (!entry["cache_salt"].is_null()) ns.salt_id = TrtllmSaltId(entry["cache_salt"].get<std::string>());
    const std::vector<TokenId> tokens = entry["token_ids"];
    std::vector<BlockKey> keys;
    TrtllmV1Keys(tokens, entry["block_size"], ns, 0, keys);
    EXPECT_EQ(keys, U64s(entry["block_hashes"]));
    ++checked;
  }
  EXPECT_EQ(checked, 3);
}

}  // namespace
}  // namespace llmd::hash
