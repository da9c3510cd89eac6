// VllmHasher and VllmChain against vLLM's own output and against a literal reference under random input.
#include "llmd/hash/vllm.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "tests/hash/reference.h"
#include "tests/support/allocation_count.h"

namespace llmd::hash {

namespace {

using Json = nlohmann::json;

std::string Bytes(const Digest& digest) {
  return {reinterpret_cast<const char*>(digest.bytes.data()), digest.size};
}

VllmHasher Make(VllmAlgorithm algorithm, std::uint32_t block_size,
                NoneHash none_hash = NoneHash::SeedText("0")) {
  return *VllmHasher::Create({algorithm, std::move(none_hash), block_size});
}

Json MadeByVllm() {
  std::ifstream file(LLMD_VECTORS_DIR "/vllm_extra_keys.json");
  return Json::parse(file);
}

TEST(Vllm, RequestsHashedByVllmItself) {
  Random random(3);
  const Json made = MadeByVllm();
  int checked = 0;
  for (const Json& entry : made["requests"]) {
    SCOPED_TRACE(entry.dump());
    const std::string style_name = entry["style"], algo = entry["algo"];
    ExtraKeyStyle style = ExtraKeyStyle::kOffset;
    for (const auto candidate : {ExtraKeyStyle::kIntLora, ExtraKeyStyle::kBare, ExtraKeyStyle::kTagged}) {
      if (ToString(candidate) == style_name) style = candidate;
    }
    EXPECT_EQ(ToString(style), style_name);
    const bool integer = style == ExtraKeyStyle::kIntLora;
    const auto algorithm = ParseVllmAlgorithm(integer && algo == "sha256" ? "sha256_int" : algo);
    ASSERT_TRUE(algorithm.ok());

    RequestExtras extras;
    extras.lora_name = entry["lora_name"];
    extras.lora_int_id = entry["lora_int_id"];
    extras.lora_path = entry["lora_path"];
    extras.cache_salt = entry["cache_salt"];
    for (const Json& item : entry["multimodal"]) {
      extras.multimodal.push_back({item["identifier"], item["offset"], item["length"]});
    }
    if (!integer) {  // prompt embeddings came later
      for (const Json& hex : entry["embeds_digests"]) {
        extras.embeds_digests.push_back(*Digest::FromHex(hex.get<std::string>()));
      }
    }
    random.Shuffle(extras.multimodal);

    const VllmHasher hasher = Make(*algorithm, entry["block_size"], NoneHash::SeedText("42"));
    const std::vector<TokenId> tokens = entry["token_ids"];
    const ExtraKeyBuilder builder(extras, style, hasher.block_size());
    std::vector<Digest> digests;
    hasher.HashBlocks(TokenSpan(tokens), nullptr, builder.ForBlocks(tokens.size() / hasher.block_size()),
                      digests);
    ASSERT_EQ(digests.size(), entry["block_hashes"].size());
    for (std::size_t i = 0; i < digests.size(); ++i) EXPECT_EQ(digests[i].hex(), entry["block_hashes"][i]);

    VllmChain chain(hasher, builder);
    for (TokenSpan rest = tokens; !rest.empty();) {
      const std::size_t step = random.Between(0, std::min<std::size_t>(rest.size(), 20));
      chain.Extend(rest.first(step));
      rest = rest.subspan(step);
    }
    EXPECT_TRUE(std::ranges::equal(chain.digests(), digests));
    EXPECT_EQ(chain.token_count(), tokens.size());
    ++checked;
  }
  EXPECT_GE(checked, 100);
}

TEST(Vllm, LongSerializationsEqualCpythonAndCbor2) {
  std::string parent;
  for (char i = 0; i < 32; ++i) parent.push_back(i);
  const Digest digest = *Digest::FromBytes({reinterpret_cast<const std::uint8_t*>(parent.data()), 32});
  const Json made = MadeByVllm();
  for (const Json& entry : made["serializations"]) {
    SCOPED_TRACE(entry.dump());
    std::vector<std::int64_t> tokens;
    for (std::int64_t i = 0; i < entry["count"]; ++i) {
      tokens.push_back(entry["first"].get<std::int64_t>() + entry["step"].get<std::int64_t>() * i);
    }
    ExtraKeys extra;
    if (const std::int64_t text = entry["text"]; text > 0) {
      extra = {ExtraKey::Text(std::string(text, 'x')),
               ExtraKey::Tuple({ExtraKey::Text("y"), ExtraKey::Int(-text)}),
               ExtraKey::Bytes(std::string(text, 'z'))};
    }
    EXPECT_EQ(Sha256(Make(VllmAlgorithm::kSha256, 16).Preimage(tokens, &digest, &extra)).hex(),
              entry["pickle_sha256"]);
    EXPECT_EQ(Sha256(Make(VllmAlgorithm::kSha256Cbor, 16).Preimage(tokens, &digest, &extra)).hex(),
              entry["cbor_sha256"]);
    if (tokens.front() >= 0 && tokens.back() <= 0xffffffff) {
      const std::vector<TokenId> narrow(tokens.begin(), tokens.end());
      EXPECT_EQ(Make(VllmAlgorithm::kSha256, 16).HashBlock(TokenSpan(narrow), &digest, &extra).hex(),
                entry["pickle_sha256"]);
    }
  }
}

TEST(Vllm, RandomBlocksEqualReference) {
  Random random(1);
  const VllmHasher pickle = Make(VllmAlgorithm::kSha256, 16);
  const VllmHasher cbor = Make(VllmAlgorithm::kSha256Cbor, 16);
  for (int round = 0; round < 3000; ++round) {
    const bool wide = random.Chance(0.3);
    const std::size_t count = random.Chance(0.01) ? random.Below(40000) : random.Below(40);
    const std::vector<std::int64_t> tokens = reference::RandomTokens(random, count, wide);
    const ExtraKeys extra = random.Chance(0.5) ? reference::RandomExtraKeys(random) : ExtraKeys();
    Digest parent;
    parent.size = random.Chance(0.5) ? 32 : static_cast<std::uint8_t>(random.Below(33));
    for (int i = 0; i < parent.size; ++i) parent.bytes[i] = static_cast<std::uint8_t>(random.Next());

    const std::string pickled = reference::PickleBlock(Bytes(parent), tokens, extra);
    const std::string encoded = reference::CborBlock(Bytes(parent), tokens, extra);
    ASSERT_EQ(pickle.Preimage(tokens, &parent, &extra), pickled);
    ASSERT_EQ(cbor.Preimage(tokens, &parent, &extra), encoded);
    ASSERT_EQ(Bytes(pickle.HashBlock(std::span(std::as_const(tokens)), &parent, &extra)),
              reference::Sha256(pickled));
    if (!wide) {
      const std::vector<TokenId> narrow(tokens.begin(), tokens.end());
      ASSERT_EQ(Bytes(pickle.HashBlock(TokenSpan(narrow), &parent, &extra)), reference::Sha256(pickled));
      ASSERT_EQ(Bytes(cbor.HashBlock(TokenSpan(narrow), &parent, &extra)), reference::Sha256(encoded));
    }
  }
}

TEST(Vllm, EveryMessageLengthIsPaddedRightly) {
  const VllmHasher hasher = Make(VllmAlgorithm::kSha256Cbor, 16);
  for (std::size_t length = 0; length < 200; ++length) {
    const ExtraKeys extra = {ExtraKey::Text(std::string(length, 'a'))};
    const std::vector<std::int64_t> tokens = {1, 2};
    EXPECT_EQ(Bytes(hasher.HashBlock(std::span(std::as_const(tokens)), nullptr, &extra)),
              reference::Sha256(hasher.Preimage(tokens, nullptr, &extra)));
  }
}

TEST(Vllm, ExtremeIntegers) {
  const VllmHasher pickle = Make(VllmAlgorithm::kSha256, 16);
  const VllmHasher cbor = Make(VllmAlgorithm::kSha256Cbor, 16);
  const std::string parent = Bytes(pickle.none_hash());
  std::vector<std::int64_t> values = {std::numeric_limits<std::int64_t>::min(),
                                      std::numeric_limits<std::int64_t>::max()};
  for (int bit = 0; bit < 63; ++bit) {
    for (const std::int64_t delta : {-1, 0, 1}) {
      values.push_back((std::int64_t{1} << bit) + delta);
      values.push_back(-(std::int64_t{1} << bit) + delta);
    }
  }
  for (const std::int64_t value : values) {
    EXPECT_EQ(pickle.Preimage({&value, 1}, nullptr, nullptr), reference::PickleBlock(parent, {value}, {}))
        << value;
    EXPECT_EQ(cbor.Preimage({&value, 1}, nullptr, nullptr),
              reference::CborBlock(Bytes(cbor.none_hash()), {value}, {}));
  }
}

TEST(Vllm, ContinuesFromAParentInItsOwnOutput) {
  const VllmHasher hasher = Make(VllmAlgorithm::kSha256, 16);
  std::vector<TokenId> tokens(16 * 9);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<TokenId>(i * 7919);
  std::vector<Digest> whole, parts;
  hasher.HashBlocks(TokenSpan(tokens), nullptr, {}, whole);
  hasher.HashBlocks(TokenSpan(tokens).first(16 * 4), nullptr, {}, parts);
  parts.shrink_to_fit();
  hasher.HashBlocks(TokenSpan(tokens).subspan(16 * 4), &parts.back(), {}, parts);
  EXPECT_EQ(parts, whole);
}

TEST(Vllm, RawNoneHashOfIntegerAlgorithms) {
  // A random 256-bit NONE_HASH precedes 64-bit digests: a CBOR bignum.
  const Digest raw = *Digest::FromHex("00ff" + std::string(60, '1'));
  const VllmHasher hasher = Make(VllmAlgorithm::kSha256Cbor64bit, 1, NoneHash::Raw(raw));
  const std::int64_t token = 5;
  const std::string preimage = hasher.Preimage({&token, 1}, nullptr, nullptr);
  EXPECT_EQ(preimage.substr(0, 5), "\x83\xc2\x58\x1f\xff");
  EXPECT_EQ(hasher.HashBlock(std::span(&token, 1), nullptr, nullptr).size, 8);
  // Leading zeros are no part of an integer, and small ones take the short forms.
  const Digest small = *Digest::FromHex(std::string(60, '0') + "0102");
  const VllmHasher pickle = Make(VllmAlgorithm::kSha256Int, 1, NoneHash::Raw(small));
  EXPECT_EQ(pickle.Preimage({&token, 1}, nullptr, nullptr).substr(11, 3), "M\x02\x01");
}

TEST(Vllm, RefusesWhatCannotWork) {
  EXPECT_THAT(std::string(ParseVllmAlgorithm("builtin").status().message()),
              testing::HasSubstr("Python's hash()"));
  EXPECT_THAT(std::string(ParseVllmAlgorithm("sha256_msgpack").status().message()),
              testing::HasSubstr("proposal"));
  EXPECT_THAT(std::string(ParseVllmAlgorithm("md5").status().message()),
              testing::HasSubstr("expected sha256"));
  EXPECT_FALSE(VllmHasher::Create({VllmAlgorithm::kSha256, NoneHash::SeedText(""), 0}).ok());
  EXPECT_FALSE(VllmHasher::Create({VllmAlgorithm::kXxhash, NoneHash::VllmDefault(), 16}).ok());
  EXPECT_FALSE(VllmHasher::Create({VllmAlgorithm::kSha256Int, NoneHash::VllmDefault(), 16}).ok());
  EXPECT_FALSE(VllmHasher::Create({VllmAlgorithm::kSha256, NoneHash::Raw({}), 16}).ok());
  for (const auto algorithm :
       {VllmAlgorithm::kSha256, VllmAlgorithm::kSha256Cbor, VllmAlgorithm::kXxhash,
        VllmAlgorithm::kXxhashCbor, VllmAlgorithm::kSha256Int, VllmAlgorithm::kSha256Cbor64bit}) {
    EXPECT_EQ(*ParseVllmAlgorithm(ToString(algorithm)), algorithm);
  }
}

TEST(Vllm, Groups) {
  const VllmHasher hasher = Make(VllmAlgorithm::kSha256, 4);
  std::vector<TokenId> tokens(4 * 7, 9);
  std::vector<Digest> fine, last;
  hasher.HashBlocks(TokenSpan(tokens), nullptr, {}, fine);
  std::vector<std::string> joined;
  GroupDigests(fine, 3, last);
  GroupDigestsConcatenated(fine, 3, joined);
  ASSERT_EQ(last.size(), 2);
  ASSERT_EQ(joined.size(), 2);
  EXPECT_EQ(last[1], fine[5]);
  EXPECT_EQ(joined[1], Bytes(fine[3]) + Bytes(fine[4]) + Bytes(fine[5]));
  EXPECT_EQ(ExternalKey(joined[1]), last[1].low64());
  GroupDigests(fine, 0, last);
  EXPECT_EQ(last.size(), 2);

  const std::string key = PoolKey(fine[0], 0x01020304);
  EXPECT_EQ(key, Bytes(fine[0]) + "\x01\x02\x03\x04");
  const auto parts = ParsePoolKey(key);
  ASSERT_TRUE(parts.ok());
  EXPECT_EQ(parts->digest, fine[0]);
  EXPECT_EQ(parts->group_id, 0x01020304u);
  EXPECT_FALSE(ParsePoolKey("abcd").ok());
  EXPECT_FALSE(ParsePoolKey(std::string(37, 'a')).ok());
  EXPECT_EQ(ExternalKey("\x01\x02"), 0x0102u);
}

TEST(Vllm, HashingDoesNotAllocateOnceWarm) {
  std::vector<TokenId> tokens(16 * 64, 70000);
  for (const auto algorithm : {VllmAlgorithm::kSha256, VllmAlgorithm::kSha256Cbor, VllmAlgorithm::kXxhash}) {
    const VllmHasher hasher = Make(algorithm, 16);
    std::vector<Digest> digests;
    VllmChain chain(hasher);
    const auto run = [&] {
      digests.clear();
      hasher.HashBlocks(TokenSpan(tokens), nullptr, {}, digests);
      chain.Clear();
      for (const TokenId& token : tokens) chain.Extend({&token, 1});
    };
    run();
    const std::size_t before = AllocationCount();
    run();
    EXPECT_EQ(AllocationCount(), before);
    EXPECT_TRUE(std::ranges::equal(chain.digests(), digests));
    EXPECT_EQ(chain.keys().back(), digests.back().low64());
  }
}

TEST(Digest, HexAndWords) {
  EXPECT_FALSE(Digest::FromHex("abc"));
  EXPECT_FALSE(Digest::FromHex("zz"));
  EXPECT_FALSE(Digest::FromHex(std::string(66, '0')));
  const Digest digest = *Digest::FromHex("000102030405060708090A0B0C0D0E0F");
  EXPECT_EQ(digest.hex(), "000102030405060708090a0b0c0d0e0f");
  EXPECT_EQ(digest.first64(), 0x0001020304050607u);
  EXPECT_EQ(digest.low64(), 0x08090a0b0c0d0e0fu);
  EXPECT_EQ(Digest::FromHex("0102")->low64(), 0x0102u);
}

}  // namespace
}  // namespace llmd::hash
