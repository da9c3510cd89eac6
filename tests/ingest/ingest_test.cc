// Stored, removed and cleared events of well-behaved publishers: ranks, tiers, groups, publishers that come
// and go.
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/ingest/ingest_test_util.h"

namespace llmd::ingest {
namespace {

using events::Event;
using events::EventKind;
using testing::IsEmpty;
using testing::Pair;
using testing::UnorderedElementsAre;

TEST_F(IngestTest, StoredBlocksMatchAndRemovedOnesStop) {
  const PublisherId pod = Add("a:1");
  EXPECT_FALSE(StoreRun(pod, 100, 1, 3));
  EXPECT_FALSE(Store(pod, {.hashes = {103}, .parent = 102, .tokens = {9, 9, 9, 9}}));
  Tokens prompt = MakeTokens(1, 3);
  prompt.insert(prompt.end(), {9, 9, 9, 9, 7});
  const PromptBlocks blocks{.tokens = prompt, .block_size = kBlock};
  EXPECT_THAT(Match(blocks), UnorderedElementsAre(Pair("a:1/-/gpu", 4)));
  Remove(pod, {102});
  EXPECT_THAT(Match(blocks), UnorderedElementsAre(Pair("a:1/-/gpu", 2)));
  Remove(pod, {100, 101, 103});
  EXPECT_THAT(Match(blocks), IsEmpty());
  EXPECT_EQ(counters().stored_events, 2);
  EXPECT_EQ(counters().stored_blocks, 4);
  EXPECT_EQ(counters().removed_blocks, 4);
  EXPECT_EQ(counters().batches, 4);
}

TEST_F(IngestTest, EverySchemaMeansTheSame) {
  using events::Schema;
  int n = 0;
  for (const Schema schema : {Schema::kArray6, Schema::kArray7, Schema::kArray8, Schema::kArray9,
                              Schema::kArray10, Schema::kArray12, Schema::kMap, Schema::kMapWide}) {
    const std::string endpoint = "pod" + std::to_string(n++);
    const PublisherId pod = Add(endpoint);
    Store(pod, {.hashes = {1, 2}, .tokens = MakeTokens(1, 2)}, std::nullopt, schema);
    EXPECT_THAT(Match(1, 2), testing::Contains(Pair(endpoint + "/-/gpu", 2)));
  }
}

}  // namespace
}  // namespace llmd::ingest
