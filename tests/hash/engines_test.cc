// What the golden vectors do not reach: tails, caps, windows, continuation, bad arguments.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "llmd/hash/approx_prefix.h"
#include "llmd/hash/dynamo.h"
#include "llmd/hash/lmcache.h"
#include "llmd/hash/request_keys.h"
#include "llmd/hash/sglang.h"
#include "llmd/hash/storage_path.h"
#include "llmd/hash/trtllm.h"
#include "tests/hash/reference.h"

namespace llmd::hash {
namespace {

std::vector<TokenId> Sequence(std::size_t count) {
  std::vector<TokenId> tokens(count);
  std::iota(tokens.begin(), tokens.end(), 100);
  return tokens;
}

std::vector<BlockKey> Approx(TokenSpan tokens, ApproxPrefixOptions options) {
  std::vector<BlockKey> keys;
  ApproxPrefixKeys(tokens, "m", "", options, keys);
  return keys;
}

TEST(ApproxPrefix, FloorTailAndCaps) {
  const std::vector<TokenId> tokens = Sequence(64 * 5 + 1);
  const std::vector<BlockKey> all = Approx(tokens, {});
  EXPECT_EQ(all.size(), 6);  // 16 is raised to 64; the tail of one token counts
  EXPECT_EQ(Approx(tokens, {.block_size = 64}), all);
  EXPECT_EQ(Approx(tokens, {.block_size = 100}).size(), 4);
  EXPECT_TRUE(Approx({}, {}).empty());

  const auto capped = [&](std::uint64_t max_tokens, std::uint64_t max_blocks) {
    return Approx(tokens, {.max_prefix_tokens = max_tokens, .max_prefix_blocks = max_blocks}).size();
  };
  EXPECT_EQ(capped(64 * 3, 5), 3);
  EXPECT_EQ(capped(64 * 3 + 63, 1), 3);
  EXPECT_EQ(capped(0, 2), 2);
  EXPECT_EQ(capped(0, 0), 6);
  EXPECT_EQ(capped(10, 0), 0);

  std::vector<BlockKey> longer = Approx(Sequence(64 * 6), {});
  EXPECT_TRUE(std::equal(all.begin(), all.begin() + 5, longer.begin()));
  EXPECT_NE(all[5], longer[5]);
}

TEST(ApproxPrefix, Gaie) {
  const std::string prompt(64 * 3 + 63, 'p');
  std::vector<BlockKey> keys;
  GaiePrefixKeys(prompt, "m", "", 64, kGaieMaxBlocks, keys);
  EXPECT_EQ(keys.size(), 3);
  GaiePrefixKeys(prompt, "m", "", 64, 2, keys);
  EXPECT_EQ(keys.size(), 5);
  EXPECT_EQ(keys[3], keys[0]);
  GaiePrefixKeys(prompt, "m", "", 0, 2, keys);
  GaiePrefixKeys("short", "m", "", 64, 2, keys);
  EXPECT_EQ(keys.size(), 5);
}

TEST(ApproxPrefix, EstimatePacking) {
  EstimatePacker packer;
  packer.AddText("ab");
  packer.AddText("cde");
  packer.AddAsset("abc", 2);
  packer.AddText("z");
  std::vector<TokenId> tokens;
  packer.Finish(tokens);
  // XXH64("abc") is 44bc2cf5ad770999.
  EXPECT_THAT(tokens, testing::ElementsAre(0x64636261, 0x65, 0xad770999, 0xad770999, 0x7a));
  packer.Finish(tokens);
  EXPECT_EQ(tokens.size(), 5);
}

TEST(Dynamo, EagleWindowsOverlap) {
  const std::vector<TokenId> tokens = Sequence(33);
  std::vector<BlockKey> eagle, plain, window;
  DynamoLocalHashes(tokens, {16, kDynamoSeed, true}, eagle);
  ASSERT_EQ(eagle.size(), 2);
  DynamoLocalHashes(TokenSpan(tokens).subspan(16), {17}, window);
  EXPECT_EQ(eagle[1], window[0]);
  DynamoLocalHashes(TokenSpan(tokens).first(32), {16, kDynamoSeed, true}, plain);
  EXPECT_EQ(plain.size(), 1);  // the second window lacks its last token
  DynamoLocalHashes(tokens, {0}, plain);
  EXPECT_EQ(plain.size(), 1);
}

TEST(Dynamo, MultimodalOrderDoesNotMatter) {
  const std::vector<TokenId> tokens = Sequence(32);
  std::vector<BlockKey> a, b, none;
  DynamoLocalHashes(tokens, {16}, a, std::vector<std::vector<std::uint64_t>>{{3, 1, 2}});
  DynamoLocalHashes(tokens, {16}, b, std::vector<std::vector<std::uint64_t>>{{1, 2, 3}, {}});
  DynamoLocalHashes(tokens, {16}, none);
  EXPECT_EQ(a, b);
  EXPECT_NE(a[0], none[0]);
  EXPECT_EQ(a[1], none[1]);
  EXPECT_EQ(DynamoMultimodalHash("f9a38a66df90291515d7ea4de3175b262c1da7668ad1cc32e3dbb98be86388ac"),
            0xf9a38a66df902915u);
  EXPECT_NE(DynamoMultimodalHash("not-hex"), 0u);
}

TEST(Dynamo, SequencesContinue) {
  std::vector<BlockKey> local, whole, part;
  DynamoLocalHashes(Sequence(16 * 5), {16}, local);
  DynamoSequenceHashes(local, std::nullopt, whole);
  DynamoSequenceHashes(BlockKeySpan(local).subspan(2), whole[1], part);
  EXPECT_EQ(part, std::vector<BlockKey>(whole.begin() + 2, whole.end()));
  std::vector<BlockKey> other_seed;
  DynamoSequenceHashes(local, std::nullopt, other_seed, 7);
  EXPECT_EQ(other_seed[0], whole[0]);
  EXPECT_NE(other_seed[1], whole[1]);
}

TEST(Mooncake, Keys) {
  EXPECT_EQ(ParseMooncakeKey("18446744073709551615"), ~std::uint64_t{0});
  EXPECT_EQ(ParseMooncakeKey("0xffffffffffffffff"), ~std::uint64_t{0});
  EXPECT_EQ(ParseMooncakeKey("0X1f"), 31u);
  EXPECT_EQ(ParseMooncakeKey("007"), 7u);
  for (const auto* bad : {"", "0x", "x", "12 ", " 12", "-1", "+1", "1a", "0x1g", "0x-1",
                          "18446744073709551616", "0x10000000000000000", "model@1@2"}) {
    EXPECT_EQ(ParseMooncakeKey(bad), std::nullopt) << bad;
  }
}

TEST(Sglang, ContinuesFromAParentInItsOwnOutput) {
  const std::vector<TokenId> tokens = Sequence(8 * 6);
  std::vector<Digest> whole, parts;
  SglangPageHashes(tokens, 8, nullptr, whole);
  SglangPageHashes(TokenSpan(tokens).first(8 * 2), 8, nullptr, parts);
  parts.shrink_to_fit();
  SglangPageHashes(TokenSpan(tokens).subspan(8 * 2), 8, &parts.back(), parts);
  EXPECT_EQ(parts, whole);
  SglangPageHashes(tokens, 0, nullptr, parts);
  SglangBigramPageHashes({}, 4, nullptr, parts);
  EXPECT_EQ(parts.size(), 6);
}

TEST(Lmcache, TailAndStartValue) {
  const std::vector<TokenId> tokens = Sequence(10);
  const auto hasher = VllmHasher::Create({VllmAlgorithm::kSha256Cbor, NoneHash::IntegerZero(), 4});
  ASSERT_TRUE(hasher.ok());
  std::vector<Digest> full, with_tail;
  LmcacheChunkHashes(*hasher, tokens, false, full);
  LmcacheChunkHashes(*hasher, tokens, true, with_tail);
  ASSERT_EQ(full.size(), 2);
  ASSERT_EQ(with_tail.size(), 3);
  const auto text = [](const Digest& d) {
    return std::string(reinterpret_cast<const char*>(d.bytes.data()), d.size);
  };
  EXPECT_EQ(text(full[0]), reference::Sha256(reference::CborBlock("", {100, 101, 102, 103}, {})));
  EXPECT_EQ(text(with_tail[2]), reference::Sha256(reference::CborBlock(text(full[1]), {108, 109}, {})));
  std::vector<Digest> only_tail;
  LmcacheChunkHashes(*hasher, TokenSpan(tokens).first(3), true, only_tail);
  EXPECT_EQ(text(only_tail[0]), reference::Sha256(reference::CborBlock("", {100, 101, 102}, {})));
  EXPECT_EQ(*ParseLmcacheAlgorithm("sha256_cbor_64bit"), VllmAlgorithm::kSha256Cbor);
  EXPECT_FALSE(ParseLmcacheAlgorithm("builtin").ok());
}

TEST(Trtllm, V1ContinuesAndV2IsLiteral) {
  const std::vector<TokenId> tokens = Sequence(70);
  TrtllmNamespace ns;
  ns.lora_task_id = 5;
  ns.salt_id = TrtllmSaltId("tenant-a");
  std::vector<BlockKey> whole, part;
  TrtllmV1Keys(tokens, 32, ns, 0, whole);
  ASSERT_EQ(whole.size(), 3);
  TrtllmV1Keys(TokenSpan(tokens).subspan(32), 32, ns, whole[0], part);
  EXPECT_EQ(part, std::vector<BlockKey>(whole.begin() + 1, whole.end()));

  std::vector<Digest> digests;
  TrtllmV2Digests(tokens, 32, ns, nullptr, digests);
  ASSERT_EQ(digests.size(), 3);
  std::string chain =
      reference::Sha256("\x03" + reference::LittleEndian(5, 8) + reference::LittleEndian(*ns.salt_id, 8));
  for (std::size_t i = 0; i < 3; ++i) {
    for (std::size_t j = 32 * i; j < std::min<std::size_t>(70, 32 * (i + 1)); ++j) {
      chain += reference::LittleEndian(tokens[j], 4);
    }
    chain = reference::Sha256(chain);
    EXPECT_EQ(digests[i].hex(),
              Digest::FromBytes({reinterpret_cast<const std::uint8_t*>(chain.data()), 32})->hex());
  }
}

TEST(RequestKeys, Errors) {
  EXPECT_FALSE(RequestKeyHasher::Create({RequestKeyAlgorithm::kCborFnv, "", 0}).ok());
  EXPECT_FALSE(ParseRequestKeyAlgorithm("fnv").ok());
}

TEST(StoragePath, Layout) {
  const Digest digest = *Digest::FromHex("abcdef" + std::string(58, '0'));
  const std::string directory = StorageRunDirectory("/mnt/kv", "Qwen/Qwen3-32B", "{}", 3);
  EXPECT_EQ(directory, "/mnt/kv/Qwen_Qwen3-32B_44136fa355b3_r3");  // SHA-256 of "{}"
  EXPECT_EQ(StorageBlockPath(directory, digest, 1),
            directory + "/abc/de_g1/abcdef" + std::string(58, '0') + ".bin");
  EXPECT_EQ(StorageBlockPath("d", {}, 0), "d//_g0/.bin");
}

}  // namespace
}  // namespace llmd::hash
