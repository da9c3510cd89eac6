// What a block contains besides tokens: adapters, salts, multimodal items; and that requests see it as events
// do.
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "llmd/base/random.h"
#include "llmd/hash/dynamo.h"
#include "tests/ingest/ingest_test_util.h"

namespace llmd::ingest {
namespace {

using events::Event;
using testing::ElementsAre;
using testing::IsEmpty;

const std::string kImage(64, 'a');  // as vLLM's content hashes: 64 hexadecimal digits

std::vector<BlockKey> KeysOf(const PromptBlocks& prompt) {
  std::vector<BlockKey> keys{1, 2, 3};  // is replaced
  ContentKeys(prompt, keys);
  return keys;
}

class ContentTest : public IngestTest {
 protected:
  ContentTest() { pod_ = Add("a:1"); }

  // Depth of the pod for this prompt.
  std::uint32_t Depth(const PromptBlocks& prompt, std::string_view lora = "",
                      std::string_view model = kModel) {
    const Depths depths = Match(prompt, model, lora);
    return depths.empty() ? 0 : depths.begin()->second;
  }
  std::uint32_t Depth(const Tokens& tokens, std::string_view lora = "", std::string_view salt = "",
                      std::vector<MultimodalItem> items = {}) {
    return Depth({.tokens = tokens, .block_size = kBlock, .cache_salt = salt, .items = items}, lora);
  }
  static Event Adapter(std::string_view name, std::optional<std::int64_t> id = std::nullopt) {
    Event event;
    event.lora_name = name;
    event.lora_id = id;
    return event;
  }

  PublisherId pod_ = 0;
  const Tokens tokens_ = MakeTokens(1, 3);
  const Keys keys_ = {100, 101, 102};
};

TEST_F(ContentTest, PlainKeysAreDynamosLocalHashes) {
  std::vector<BlockKey> expected;
  hash::DynamoLocalHashes(tokens_, {.block_size = kBlock}, expected);
  EXPECT_EQ(KeysOf({.tokens = tokens_, .block_size = kBlock}), expected);
  EXPECT_EQ(KeysOf({.tokens = TokenSpan(tokens_).first(11), .block_size = kBlock}).size(), 2);
  EXPECT_THAT(KeysOf({.tokens = tokens_, .block_size = 0}), IsEmpty());
  EXPECT_THAT(KeysOf({.tokens = {}, .block_size = kBlock, .cache_salt = "s"}), IsEmpty());
  EXPECT_THAT(KeysOf({.tokens = TokenSpan(tokens_).first(3), .block_size = kBlock, .cache_salt = "s"}),
              IsEmpty());
}

TEST_F(ContentTest, ItemsChangeTheBlocksThatTheyOverlap) {
  const Tokens tokens = MakeTokens(1, 5);
  const std::vector<BlockKey> plain = KeysOf({.tokens = tokens, .block_size = kBlock});
  const auto changed = [&](std::uint32_t offset, std::uint32_t length) {
    const std::vector<MultimodalItem> items = {{.identifier = kImage, .offset = offset, .length = length}};
    const std::vector<BlockKey> keys = KeysOf({.tokens = tokens, .block_size = kBlock, .items = items});
    std::vector<int> blocks;
    for (int i = 0; i < 5; ++i) {
      if (keys[i] != plain[i]) blocks.push_back(i);
    }
    return blocks;
  };
  EXPECT_THAT(changed(0, 4), ElementsAre(0));
  EXPECT_THAT(changed(3, 1), ElementsAre(0));
  EXPECT_THAT(changed(3, 2), ElementsAre(0, 1));
  EXPECT_THAT(changed(4, 8), ElementsAre(1, 2));
  EXPECT_THAT(changed(7, 6), ElementsAre(1, 2, 3));
  EXPECT_THAT(changed(0xFFFFFFFF, 0xFFFFFFFF), IsEmpty());
  EXPECT_THAT(changed(16, 0xFFFFFFFF), ElementsAre(4));
  EXPECT_THAT(changed(4, 0), IsEmpty());
}

TEST_F(ContentTest, AdapterNameInExtraKeysDoesNotTaintTheBlocks) {
  Store(pod_, {.hashes = keys_,
               .tokens = tokens_,
               .extra_keys = {{Text("sql")}, {Text("sql")}, {Text("sql")}},
               .rest = Adapter("sql")});
  EXPECT_EQ(Depth(tokens_, "sql"), 3);
  EXPECT_EQ(Depth(tokens_), 0);
  EXPECT_EQ(Depth(tokens_, "other"), 0);
  // The adapter is served as a model of its own name.
  EXPECT_EQ(Depth({.tokens = tokens_, .block_size = kBlock}, "", "sql"), 3);
}

TEST_F(ContentTest, OnlyOneOccurrenceOfTheAdapterIsDropped) {
  Store(pod_, {.hashes = keys_,
               .tokens = tokens_,
               .extra_keys = {{Text("sql"), Text("sql")}, {Text("sql")}, {Text("sql")}},
               .rest = Adapter("sql")});
  EXPECT_EQ(Depth(tokens_, "sql", "sql"), 3);  // the salt
  EXPECT_EQ(Depth(tokens_, "sql"), 0);
}

TEST_F(ContentTest, AdapterWithoutExtraKeys) {
  Store(pod_, {.hashes = keys_, .tokens = tokens_, .rest = Adapter("sql", 3)});
  EXPECT_EQ(Depth(tokens_, "sql"), 3);
}

TEST_F(ContentTest, AdapterByNumberAlone) {
  Store(pod_, {.hashes = keys_,
               .tokens = tokens_,
               .extra_keys = {{Number(3)}, {Number(3)}, {Number(3)}},
               .rest = Adapter("", 3)});
  EXPECT_EQ(Depth(tokens_), 0);
  EXPECT_EQ(Depth(tokens_, std::string(kModel) + ":lora:3"), 3);
  EXPECT_EQ(Depth(tokens_, std::string(kModel) + ":lora:4"), 0);
}

TEST_F(ContentTest, NumberZeroIsNoAdapter) {
  Store(pod_, {.hashes = keys_, .tokens = tokens_, .rest = Adapter("", 0)});
  EXPECT_EQ(Depth(tokens_), 3);
}

TEST_F(ContentTest, NamesAndNumbersTakeTurns) {
  // Guards the memory of the last namespace.
  std::uint64_t key = 1000;
  TokenId first = 10;
  for (int round = 0; round < 2; ++round) {
    for (const std::string name : {"", "sql", "chat"}) {
      for (const std::int64_t id : {0, 1, 2}) {
        const Tokens tokens = MakeTokens(first++, 1);
        Store(pod_, {.hashes = {key++}, .tokens = tokens, .rest = Adapter(name, id)});
        const std::string by_number = std::string(kModel) + ":lora:" + std::to_string(id);
        EXPECT_EQ(Depth(tokens, name.empty() && id > 0 ? by_number : name), 1) << name << id;
      }
    }
  }
}

TEST_F(ContentTest, SaltIsPartOfTheFirstBlock) {
  Store(pod_, {.hashes = keys_, .tokens = tokens_, .extra_keys = {{Text("tenant-a")}, {}, {}}});
  EXPECT_EQ(Depth(tokens_, "", "tenant-a"), 3);
  EXPECT_EQ(Depth(tokens_, "", "tenant-b"), 0);
  EXPECT_EQ(Depth(tokens_), 0);
}

TEST_F(ContentTest, SaltInAFieldOfItsOwnCountsAtTheRoot) {
  // SGLang: positional and tagged. The encoder writes vLLM's fields only, hence the golden payloads' form by
  // hand.
  const auto put = [](std::vector<std::byte>& out, std::string_view text) {
    out.push_back(static_cast<std::byte>(0xA0 + text.size()));
    for (const char c : text) out.push_back(static_cast<std::byte>(c));
  };
  const auto event = [&](int hash, std::optional<int> parent, int token) {
    std::vector<std::byte> out{std::byte{0x98}};
    put(out, "BlockStored");
    out.push_back(std::byte{0x91});
    out.push_back(static_cast<std::byte>(hash));
    out.push_back(parent ? static_cast<std::byte>(*parent) : std::byte{0xC0});
    out.push_back(std::byte{0x94});
    for (int i = 0; i < 4; ++i) out.push_back(static_cast<std::byte>(token));
    out.insert(out.end(), {std::byte{4}, std::byte{0xC0}});
    put(out, "GPU");
    out.push_back(std::byte{0x81});
    put(out, "cache_salt");
    put(out, "tenant-a");
    return out;
  };
  std::vector<std::byte> payload{std::byte{0x92}, std::byte{1}, std::byte{0x92}};
  for (const auto& bytes : {event(11, std::nullopt, 5), event(12, 11, 6)}) {
    payload.insert(payload.end(), bytes.begin(), bytes.end());
  }
  EXPECT_FALSE(SendPayload(pod_, payload));
  ASSERT_EQ(batch_.events().size(), 2);
  ASSERT_EQ(batch_.events()[1].cache_salt, "tenant-a");
  const Tokens tokens{5, 5, 5, 5, 6, 6, 6, 6};
  EXPECT_EQ(Depth(tokens, "", "tenant-a"), 2);
  EXPECT_EQ(Depth(tokens), 0);
}

TEST_F(ContentTest, ItemsWithAndWithoutOffsets) {
  const std::vector<MultimodalItem> items = {{.identifier = kImage, .offset = 2, .length = 4},
                                             {.identifier = "uuid-7", .offset = 6, .length = 2}};
  const std::vector<std::vector<events::ExtraKey>> bare = {
      {Text(kImage)}, {Text(kImage), Text("uuid-7")}, {}};
  const std::vector<std::vector<events::ExtraKey>> with_offsets = {{TextAt(kImage, 2)},
                                                                   {TextAt(kImage, -2), TextAt("uuid-7", 2)}};
  for (const auto& extra : {bare, with_offsets}) {
    ingestor_->Clear(pod_);
    Store(pod_, {.hashes = keys_, .tokens = tokens_, .extra_keys = extra});
    EXPECT_EQ(Depth(tokens_, "", "", items), 3);
    EXPECT_EQ(Depth(tokens_), 0);
    EXPECT_EQ(Depth(tokens_, "", "", {items[0]}), 1);
  }
}

TEST_F(ContentTest, EverythingAtOnce) {
  const std::vector<MultimodalItem> items = {{.identifier = "img", .offset = 0, .length = 1}};
  Store(pod_,
        {.hashes = keys_,
         .tokens = tokens_,
         .extra_keys = {{Text("sql"), TextAt("img", 0), Text("tenant-a")}, {Text("sql")}, {Text("sql")}},
         .rest = Adapter("sql")});
  EXPECT_EQ(Depth(tokens_, "sql", "tenant-a", items), 3);
  EXPECT_EQ(Depth(tokens_, "sql", "tenant-a"), 0);
  EXPECT_EQ(Depth(tokens_, "sql", "", items), 0);
}

TEST_F(ContentTest, WhatCannotBeInterpretedStillSeparates) {
  // Digests of prompt embeddings, and numbers that are no adapter.
  const std::string digest("\x00\xFF\x01", 3);
  Store(pod_, {.hashes = keys_, .tokens = tokens_, .extra_keys = {{}, {Bytes(digest)}, {}}});
  EXPECT_EQ(Depth(tokens_), 1);
  ingestor_->Clear(pod_);
  Store(pod_, {.hashes = keys_, .tokens = tokens_, .extra_keys = {{}, {}, {Number(3)}}});
  EXPECT_EQ(Depth(tokens_), 2);
}

TEST_F(ContentTest, BigramTokensCountByTheirFirst) {
  const Tokens second(tokens_.begin() + 1, tokens_.end());
  std::vector<std::byte> payload{std::byte{0x92}, std::byte{1}, std::byte{0x91}, std::byte{0x96},
                                 std::byte{0xAB}};
  for (const char c : std::string_view("BlockStored")) payload.push_back(static_cast<std::byte>(c));
  payload.insert(payload.end(), {std::byte{0x91}, std::byte{7}, std::byte{0xC0}, std::byte{0x94}});
  for (int i = 0; i < 4; ++i) {
    payload.insert(payload.end(),
                   {std::byte{0x92}, static_cast<std::byte>(20 + i), static_cast<std::byte>(21 + i)});
  }
  payload.insert(payload.end(), {std::byte{4}, std::byte{0xC0}});
  SendPayload(pod_, payload);
  ASSERT_EQ(batch_.events().size(), 1) << batch_.first_error();
  ASSERT_EQ(batch_.events()[0].bigram_tokens.size(), 4);
  EXPECT_EQ(Depth(Tokens{20, 21, 22, 23, 24}), 1);
}

TEST_F(ContentTest, ModelsDoNotMeet) {
  const PublisherId other = Add("b:1", "other-model");
  Store(pod_, {.hashes = keys_, .tokens = tokens_});
  Store(other, {.hashes = keys_, .tokens = tokens_});
  EXPECT_THAT(Match({.tokens = tokens_, .block_size = kBlock}), ElementsAre(testing::Pair("a:1/-/gpu", 3)));
  EXPECT_THAT(Match({.tokens = tokens_, .block_size = kBlock}, "other-model"),
              ElementsAre(testing::Pair("b:1/-/gpu", 3)));
  // Nor do their engine keys.
  EXPECT_TRUE(Store(Add("c:1", "third-model"), {.hashes = {103}, .parent = 102, .tokens = {1, 2, 3, 4}}));
}

}  // namespace
}  // namespace llmd::ingest
