// From the pool to the wire and back: what a router decodes is what happened in the pool.
#include "llmd/worker/event_writer.h"

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "llmd/events/decoder.h"
#include "llmd/hash/vllm.h"
#include "nlohmann/json.hpp"
#include "tests/worker/test_requests.h"

namespace llmd::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr std::uint32_t kBlockSize = 4;

KvCacheManager Make(std::uint32_t num_blocks, std::uint32_t block_size = kBlockSize) {
  return *KvCacheManager::Create(
      {.pool = {.num_blocks = num_blocks, .block_size = block_size, .enable_events = true}, .group_id = 2});
}

std::string Hex(std::span<const std::byte> bytes) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  for (const std::byte byte : bytes) {
    hex += kDigits[static_cast<int>(byte) >> 4];
    hex += kDigits[static_cast<int>(byte) & 15];
  }
  return hex;
}

TEST(EventWriter, RoundTripThroughEverySchema) {
  using events::Schema;
  for (const Schema schema : {Schema::kArray6, Schema::kArray7, Schema::kArray8, Schema::kArray9,
                              Schema::kArray10, Schema::kArray12, Schema::kMap}) {
    for (const bool full_digests : {false, true}) {
      SCOPED_TRACE(testing::Message() << static_cast<int>(schema) << full_digests);
      KvCacheManager kv = Make(4);
      TestRequest a(1, Tokens(12), kBlockSize);
      a->lora_name = "sql-adapter";
      a->lora_id = 7;
      ASSERT_TRUE(kv.AllocateSlots(*a, {.num_new_tokens = 12})->fits);
      ASSERT_TRUE(kv.Free(1).ok());
      TestRequest b(2, Tokens(4, 200000), kBlockSize);
      ASSERT_TRUE(kv.AllocateSlots(*b, {.num_new_tokens = 4})->fits);
      ASSERT_TRUE(kv.Free(2).ok());
      ASSERT_TRUE(kv.ResetPrefixCache());

      BlockEvents taken;
      kv.TakeEvents(taken);
      EventWriter writer({.schema = schema, .full_digests = full_digests, .data_parallel_rank = 3});
      std::vector<std::byte> payload;
      writer.Encode(taken, 1760000000.25, payload);
      events::EventDecoder decoder;
      events::EventBatch batch;
      ASSERT_TRUE(decoder.Decode(payload, batch).ok());
      EXPECT_EQ(batch.skipped_events(), 0);
      EXPECT_EQ(batch.timestamp(), 1760000000.25);
      if (schema != Schema::kArray6) {
        EXPECT_EQ(batch.data_parallel_rank(), 3);
      }
      ASSERT_THAT(batch.events(), SizeIs(4));

      const events::Event& first = batch.events()[0];
      EXPECT_EQ(first.kind, events::EventKind::kBlockStored);
      EXPECT_THAT(first.hashes,
                  ElementsAre(a.hashes()[0].low64(), a.hashes()[1].low64(), a.hashes()[2].low64()));
      EXPECT_EQ(first.parent, std::nullopt);
      EXPECT_THAT(first.tokens, ElementsAreArray(Tokens(12)));
      EXPECT_EQ(first.block_size, kBlockSize);
      EXPECT_EQ(first.lora_id, 7);
      EXPECT_EQ(first.tier, "gpu");
      if (full_digests) {
        ASSERT_THAT(first.hash_bytes, SizeIs(3));
        EXPECT_EQ(first.hash_bytes[0],
                  std::string_view(reinterpret_cast<const char*>(a.hashes()[0].bytes.data()), 32));
      } else {
        EXPECT_THAT(first.hash_bytes, IsEmpty());
      }
      if (schema >= Schema::kArray8) {
        EXPECT_EQ(first.lora_name, "sql-adapter");
      }
      if (schema >= Schema::kArray10) {
        EXPECT_EQ(first.group_idx, 2);
      }
      if (schema >= Schema::kArray12) {
        EXPECT_EQ(first.spec_kind, "full_attention");
      }

      EXPECT_EQ(batch.events()[1].kind, events::EventKind::kBlockRemoved);
      EXPECT_THAT(batch.events()[1].hashes, ElementsAre(a.hashes()[2].low64())) << "the tail goes first";
      EXPECT_EQ(batch.events()[2].kind, events::EventKind::kBlockStored);
      EXPECT_THAT(batch.events()[2].tokens, ElementsAreArray(Tokens(4, 200000)));
      EXPECT_EQ(batch.events()[3].kind, events::EventKind::kAllBlocksCleared);
    }
  }
}

TEST(EventWriter, LaterRunsNameTheirParent) {
  KvCacheManager kv = Make(8);
  TestRequest request(1, Tokens(12), kBlockSize);
  ASSERT_TRUE(kv.AllocateSlots(*request, {.num_new_tokens = 4})->fits);
  request->num_computed_tokens = 4;
  ASSERT_TRUE(kv.AllocateSlots(*request, {.num_new_tokens = 8})->fits);
  BlockEvents taken;
  kv.TakeEvents(taken);
  EventWriter writer;
  const auto converted = writer.Convert(taken);
  ASSERT_THAT(converted, SizeIs(2));
  EXPECT_EQ(converted[1].parent, request.hashes()[0].low64());
  EXPECT_THAT(converted[1].tokens, ElementsAre(4, 5, 6, 7, 8, 9, 10, 11));
}

// Keys as they enter the hash become keys as engines publish them: tags and LoRA paths left out.
TEST(EventWriter, ExtraKeysOfEveryStyle) {
  hash::RequestExtras extras;
  extras.lora_name = "sql-adapter";
  extras.lora_int_id = 7;
  extras.lora_path = "/adapters/sql";
  extras.multimodal = {{.identifier = "f9a3", .offset = 5, .length = 2}};
  extras.cache_salt = "tenant-a";
  for (const auto style : {hash::ExtraKeyStyle::kIntLora, hash::ExtraKeyStyle::kBare,
                           hash::ExtraKeyStyle::kOffset, hash::ExtraKeyStyle::kTagged}) {
    SCOPED_TRACE(hash::ToString(style));
    const auto keys = hash::ExtraKeyBuilder(extras, style, kBlockSize).ForBlocks(3);
    KvCacheManager kv = Make(8);
    TestRequest request(1, Tokens(12), kBlockSize);
    request->extra_keys = keys;
    ASSERT_TRUE(kv.AllocateSlots(*request, {.num_new_tokens = 12})->fits);
    BlockEvents taken;
    kv.TakeEvents(taken);
    EventWriter writer;
    std::vector<std::byte> payload;
    writer.Encode(taken, 0, payload);
    events::EventDecoder decoder;
    events::EventBatch batch;
    ASSERT_TRUE(decoder.Decode(payload, batch).ok());
    ASSERT_THAT(batch.events(), SizeIs(1));
    const events::Event& event = batch.events()[0];

    using events::ExtraKey;
    const ExtraKey lora = style == hash::ExtraKeyStyle::kIntLora
                              ? ExtraKey{.kind = ExtraKey::Kind::kInt, .text = {}, .number = 7}
                              : ExtraKey{.kind = ExtraKey::Kind::kString, .text = "sql-adapter"};
    const bool offset = style == hash::ExtraKeyStyle::kOffset || style == hash::ExtraKeyStyle::kTagged;
    const ExtraKey image = offset ? ExtraKey{.kind = ExtraKey::Kind::kStringAt, .text = "f9a3", .number = 1}
                                  : ExtraKey{.kind = ExtraKey::Kind::kString, .text = "f9a3"};
    const ExtraKey salt{.kind = ExtraKey::Kind::kString, .text = "tenant-a"};
    EXPECT_THAT(event.ExtraKeysOf(0), ElementsAre(lora, salt));
    EXPECT_THAT(event.ExtraKeysOf(1), ElementsAre(lora, image));
    EXPECT_THAT(event.ExtraKeysOf(2), ElementsAre(lora));
  }
}

// The bytes of a captured vLLM batch, produced from a block pool.
TEST(EventWriter, EqualsTheGoldenBytes) {
  std::ifstream file(LLMD_VECTORS_DIR "/kv_events.json");
  const auto vectors = nlohmann::json::parse(file);
  const auto it = std::find_if(vectors["cases"].begin(), vectors["cases"].end(),
                               [](const auto& c) { return c["id"] == "v0.26/map_stored"; });
  ASSERT_NE(it, vectors["cases"].end());
  const auto& expected = (*it)["events"][0];
  std::vector<TokenId> tokens = expected["token_ids"].get<std::vector<TokenId>>();
  const std::uint64_t key = std::stoull(expected["block_hashes_u64"][0].get<std::string>());
  hash::Digest digest;
  digest.size = 32;
  for (int i = 0; i < 8; ++i) digest.bytes[24 + i] = static_cast<std::uint8_t>(key >> (56 - 8 * i));

  KvCacheManager kv =
      *KvCacheManager::Create({.pool = {.num_blocks = 4, .block_size = 16, .enable_events = true}});
  Request request;
  request.tokens = tokens;
  request.block_hashes = {&digest, 1};
  ASSERT_TRUE(kv.AllocateSlots(request, {.num_new_tokens = 16})->fits);
  BlockEvents taken;
  kv.TakeEvents(taken);
  EventWriter writer;
  std::vector<std::byte> payload;
  writer.Encode(taken, 1760000000.25, payload);
  EXPECT_EQ(Hex(payload), (*it)["payload_hex"].get<std::string>());
}

}  // namespace
}  // namespace llmd::worker
