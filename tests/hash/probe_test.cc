#include "llmd/hash/probe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "llmd/hash/dynamo.h"
#include "llmd/hash/lmcache.h"
#include "llmd/hash/request_keys.h"
#include "llmd/hash/sglang.h"
#include "llmd/hash/trtllm.h"
#include "llmd/hash/vllm.h"

namespace llmd::hash {
namespace {

using testing::HasSubstr;

class ProbeTest : public testing::Test {
 protected:
  ProbeTest() : tokens_(16 * 3) {
    std::iota(tokens_.begin(), tokens_.end(), 1000);
    input_.tokens = tokens_;
    input_.block_size = 16;
  }

  std::vector<Digest> Vllm(VllmAlgorithm algorithm, NoneHash none_hash,
                           std::span<const ExtraKeys> extra = {}) {
    std::vector<Digest> digests;
    VllmHasher::Create({algorithm, std::move(none_hash), 16})
        ->HashBlocks(TokenSpan(tokens_), nullptr, extra, digests);
    return digests;
  }
  void PublishNumbers(const std::vector<Digest>& digests) {
    for (const Digest& digest : digests) input_.hashes.push_back({digest.low64(), ""});
  }
  void PublishBytes(const std::vector<Digest>& digests) {
    for (const Digest& d : digests) {
      input_.hashes.push_back({0, std::string(reinterpret_cast<const char*>(d.bytes.data()), d.size)});
    }
  }
  void PublishKeys(const std::vector<BlockKey>& keys) {
    for (const BlockKey key : keys) input_.hashes.push_back({key, ""});
  }
  ProbeReport Run() {
    const auto report = Probe(input_);
    EXPECT_TRUE(report.ok()) << report.status();
    return *report;
  }

  std::vector<TokenId> tokens_;
  ProbeInput input_;
};

TEST_F(ProbeTest, FindsEveryVllmAlgorithmAndSeed) {
  for (const auto algorithm :
       {VllmAlgorithm::kSha256, VllmAlgorithm::kSha256Cbor, VllmAlgorithm::kXxhash,
        VllmAlgorithm::kXxhashCbor, VllmAlgorithm::kSha256Int, VllmAlgorithm::kSha256Cbor64bit}) {
    for (const std::string seed : {"0", "42", "", "my own"}) {
      input_.hashes.clear();
      input_.seeds = {"my own"};
      PublishNumbers(Vllm(algorithm, NoneHash::SeedText(seed)));
      const ProbeReport report = Run();
      ASSERT_TRUE(report.match) << report.summary;
      EXPECT_EQ(report.match->engine, "vllm");
      EXPECT_EQ(report.match->algorithm, ToString(algorithm));
      EXPECT_EQ(report.match->seed, "PYTHONHASHSEED=\"" + seed + "\"");
      EXPECT_EQ(report.match->blocks, 3);
    }
  }
}

TEST_F(ProbeTest, DefaultSeedRawNoneHashAndBytes) {
  PublishBytes(Vllm(VllmAlgorithm::kSha256, NoneHash::VllmDefault()));
  EXPECT_EQ(Run().match->seed, "PYTHONHASHSEED not set");
  input_.hashes.clear();
  const Digest raw = *Digest::FromHex(std::string(64, 'a'));
  PublishBytes(Vllm(VllmAlgorithm::kXxhash, NoneHash::Raw(raw)));
  input_.none_hashes = {raw};
  EXPECT_THAT(Run().match->seed, HasSubstr("NONE_HASH=aaaa"));
}

TEST_F(ProbeTest, ExtraKeysOfEveryStyle) {
  input_.extras.lora_name = "sql-adapter";
  input_.extras.lora_int_id = 7;
  input_.extras.lora_path = "/adapters/sql";
  input_.extras.cache_salt = "tenant-a";
  input_.extras.multimodal = {{"f9a3", 5, 20}};
  for (const auto style :
       {ExtraKeyStyle::kIntLora, ExtraKeyStyle::kBare, ExtraKeyStyle::kOffset, ExtraKeyStyle::kTagged}) {
    input_.hashes.clear();
    PublishNumbers(Vllm(VllmAlgorithm::kSha256, NoneHash::SeedText("0"),
                        ExtraKeyBuilder(input_.extras, style, 16).ForBlocks(3)));
    const ProbeReport report = Run();
    ASSERT_TRUE(report.match) << report.summary;
    EXPECT_THAT(report.match->extra_keys, HasSubstr(std::string(ToString(style))));
  }
  // The event tells what the request's data does not: the tags are put back.
  input_.event_extra_keys = ExtraKeyBuilder(input_.extras, ExtraKeyStyle::kOffset, 16).ForBlocks(3);
  input_.extras.multimodal.clear();
  input_.extras.cache_salt.clear();
  const ProbeReport report = Run();
  ASSERT_TRUE(report.match) << report.summary;
  EXPECT_EQ(report.match->extra_keys, "event, tagged style");
}

TEST_F(ProbeTest, WrongHalfOfTheDigest) {
  for (const Digest& digest : Vllm(VllmAlgorithm::kSha256Cbor, NoneHash::SeedText("0"))) {
    input_.hashes.push_back({digest.first64(), ""});
  }
  const ProbeReport report = Run();
  EXPECT_FALSE(report.match);
  ASSERT_FALSE(report.near.empty());
  EXPECT_EQ(report.near[0].algorithm, "sha256_cbor");
  EXPECT_EQ(report.near[0].form, "first 64 bits");
  EXPECT_THAT(report.summary, HasSubstr("closest: vllm sha256_cbor"));
}

TEST_F(ProbeTest, UnknownSeedShowsInLaterBlocks) {
  PublishBytes(Vllm(VllmAlgorithm::kXxhashCbor, NoneHash::SeedText("a secret")));
  const ProbeReport report = Run();
  EXPECT_FALSE(report.match);
  ASSERT_FALSE(report.near.empty());
  EXPECT_EQ(report.near[0].algorithm, "xxhash_cbor");
  EXPECT_EQ(report.near[0].seed, "unknown");
  EXPECT_EQ(report.near[0].blocks, 2);
  EXPECT_THAT(report.summary, HasSubstr("Set PYTHONHASHSEED"));
}

TEST_F(ProbeTest, ParentAsBytesAndAsNumber) {
  const std::vector<Digest> digests = Vllm(VllmAlgorithm::kSha256, NoneHash::SeedText("a secret"));
  const Digest& parent = digests[0];
  input_.tokens = TokenSpan(tokens_).subspan(16);
  PublishNumbers({digests[1], digests[2]});
  input_.parent = {0, std::string(reinterpret_cast<const char*>(parent.bytes.data()), parent.size)};
  ASSERT_TRUE(Run().match);
  EXPECT_EQ(Run().match->seed, "event's parent");
  input_.parent = {parent.low64(), ""};
  const ProbeReport report = Run();
  EXPECT_FALSE(report.match);
  EXPECT_THAT(report.summary, HasSubstr("64 bits of a parent"));
}

TEST_F(ProbeTest, LongerBlocksThanHashBlocks) {
  std::vector<Digest> fine, group;
  VllmHasher::Create({VllmAlgorithm::kSha256, NoneHash::SeedText("0"), 8})
      ->HashBlocks(TokenSpan(tokens_), nullptr, {}, fine);
  GroupDigests(fine, 2, group);
  PublishNumbers(group);
  EXPECT_EQ(Run().match->algorithm, "sha256, hash block size 8");
}

TEST_F(ProbeTest, OtherEngines) {
  std::vector<Digest> pages;
  SglangPageHashes(tokens_, 16, nullptr, pages);
  for (const Digest& page : pages) input_.hashes.push_back({page.first64(), ""});
  EXPECT_EQ(Run().match->engine, "sglang");

  const auto expect = [&](const std::vector<BlockKey>& keys, const std::string& engine,
                          const std::string& algorithm) {
    input_.hashes.clear();
    PublishKeys(keys);
    const ProbeReport report = Run();
    ASSERT_TRUE(report.match) << report.summary;
    EXPECT_EQ(report.match->engine, engine);
    EXPECT_EQ(report.match->algorithm, algorithm);
  };
  std::vector<BlockKey> v1, local, sequence, llmd;
  TrtllmV1Keys(tokens_, 16, {}, 0, v1);
  expect(v1, "trtllm", "v1_block_key");
  DynamoLocalHashes(tokens_, {16}, local);
  expect(local, "dynamo", "local hash");
  DynamoSequenceHashes(local, std::nullopt, sequence);
  expect(sequence, "dynamo", "sequence hash");
  const auto hasher = RequestKeyHasher::Create({RequestKeyAlgorithm::kXxh64, "42", 16});
  hasher->HashBlocks(tokens_, hasher->Root("model"), {}, llmd);
  input_.models = {"model"};
  expect(llmd, "llm-d", "xxh64");

  input_.hashes.clear();
  std::vector<Digest> chunks;
  LmcacheChunkHashes(*VllmHasher::Create({VllmAlgorithm::kSha256, NoneHash::IntegerZero(), 16}), tokens_,
                     true, chunks);
  PublishNumbers(chunks);
  EXPECT_EQ(Run().match->engine, "lmcache");
}

TEST_F(ProbeTest, NothingFitsAndBadInput) {
  input_.hashes = {{1, ""}, {2, ""}, {3, "xyz"}};
  const ProbeReport report = Run();
  EXPECT_FALSE(report.match);
  EXPECT_TRUE(report.near.empty());
  EXPECT_GT(report.combinations, 50u);
  EXPECT_THAT(report.summary, HasSubstr("builtin"));
  input_.block_size = 15;
  EXPECT_THAT(std::string(Probe(input_).status().message()), HasSubstr("tokens has 48 ids"));
  input_.block_size = 0;
  EXPECT_FALSE(Probe(input_).ok());
  input_.hashes.clear();
  EXPECT_FALSE(Probe(input_).ok());
}

}  // namespace
}  // namespace llmd::hash
