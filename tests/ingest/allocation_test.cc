// Ordinary stored and removed events do not allocate once everything is warm.
#include <vector>

#include "gtest/gtest.h"
#include "tests/events/counting_allocator.h"
#include "tests/ingest/ingest_test_util.h"

namespace llmd::ingest {
namespace {

TEST_F(IngestTest, StoredAndRemovedDoNotAllocateWhenWarm) {
  const PublisherId pod = Add("a:1");
  constexpr std::size_t kChains = 64;
  std::vector<Tokens> tokens;
  std::vector<Keys> keys;
  for (std::size_t i = 0; i < kChains; ++i) {
    tokens.push_back(MakeTokens(static_cast<TokenId>(i), 8));
    keys.push_back(Run(1000 * (i + 1), 8));
  }
  const std::vector<events::ExtraKey> salt = {Text("tenant-a")};
  const std::vector<std::span<const events::ExtraKey>> extra = {salt};
  std::vector<std::byte> payload;
  std::vector<std::vector<std::byte>> payloads;
  for (std::size_t i = 0; i < kChains; ++i) {
    events::Event stored;
    stored.kind = events::EventKind::kBlockStored;
    stored.hashes = std::span(keys[i]).first(4);
    stored.tokens = TokenSpan(tokens[i]).first(4 * kBlock);
    stored.lora_name = i % 2 == 0 ? "" : "an-adapter-with-a-name-that-is-too-long-for-small-strings";
    if (i % 4 == 3) stored.extra_keys = extra;
    events::Event more = stored;
    more.hashes = std::span(keys[i]).last(4);
    more.parent = keys[i][3];
    more.tokens = TokenSpan(tokens[i]).last(4 * kBlock);
    more.extra_keys = {};
    events::Event removed;
    removed.kind = events::EventKind::kBlockRemoved;
    removed.hashes = keys[i];
    // A salted block allocates inside the hash function; the plain ones must not.
    if (i % 4 == 3) continue;
    events::EncodeBatch(events::Schema::kMap, 1.0, std::vector{stored, more, removed}, std::nullopt, payload);
    payloads.push_back(payload);
  }
  const auto replay = [&] {
    for (const auto& bytes : payloads) {
      ASSERT_TRUE(decoder_.Decode(bytes, batch_).ok());
      ASSERT_TRUE(ingestor_->Apply(pod, batch_).ok());
    }
  };
  for (int warm = 0; warm < 20; ++warm) replay();
  const std::size_t before = events::AllocationCount();
  for (int round = 0; round < 20; ++round) replay();
  EXPECT_EQ(events::AllocationCount(), before);
  EXPECT_EQ(counters().removed_blocks, counters().stored_blocks);
}

}  // namespace
}  // namespace llmd::ingest
