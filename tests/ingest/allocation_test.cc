// Ordinary events do not allocate in the ingestor once everything is warm. The index may, per run of blocks
// that it creates or takes apart; so these events tell it nothing new.
#include <vector>

#include "gtest/gtest.h"
#include "tests/ingest/ingest_test_util.h"
#include "tests/support/allocation_count.h"

namespace llmd::ingest {
namespace {

TEST_F(IngestTest, EventsDoNotAllocateWhenWarm) {
  constexpr std::size_t kChains = 64;
  const PublisherId pod = Add("a:1");
  const Keys unknown = Run(1, 8);
  std::vector<std::vector<std::byte>> payloads;
  for (std::size_t i = 0; i < kChains; ++i) {
    const Tokens tokens = MakeTokens(static_cast<TokenId>(i), 8);
    const Keys keys = Run(1000 * (i + 1), 8);
    events::Event first;
    first.kind = events::EventKind::kBlockStored;
    first.hashes = std::span(keys).first(4);
    first.tokens = TokenSpan(tokens).first(4 * kBlock);
    first.lora_name = i % 2 == 0 ? "" : "an-adapter-with-a-name-that-is-too-long-for-small-strings";
    first.group_idx = 0;
    first.block_size = kBlock;
    first.spec_kind = "full_attention";
    events::Event second = first;
    second.hashes = std::span(keys).last(4);
    second.parent = keys[3];
    second.tokens = TokenSpan(tokens).last(4 * kBlock);
    events::Event offloaded = second;
    offloaded.tokens = {};
    offloaded.medium = "CPU";
    events::Event removed;
    removed.kind = events::EventKind::kBlockRemoved;
    removed.hashes = unknown;
    events::EncodeBatch(events::Schema::kMap, 1.0, std::vector{first, second, offloaded, removed}, 0,
                        payload_);
    payloads.push_back(payload_);
  }
  const auto apply_all = [&] {
    for (const auto& payload : payloads) {
      ASSERT_TRUE(decoder_.Decode(payload, batch_).ok());
      ASSERT_TRUE(ingestor_->Apply(pod, batch_).ok());
    }
  };
  apply_all();
  apply_all();
  const std::size_t before = AllocationCount();
  for (int round = 0; round < 10; ++round) apply_all();
  EXPECT_EQ(AllocationCount(), before);
  EXPECT_EQ(counters().stored_blocks, 12 * kChains * 8);
  EXPECT_EQ(counters().tier_updates, 12 * kChains * 4);
}

}  // namespace
}  // namespace llmd::ingest
