#include "llmd/worker/block_pool.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/test_requests.h"

namespace llmd::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

BlockPool MakePool(std::uint32_t num_blocks, std::uint32_t block_size = 4, bool caching = true) {
  return *BlockPool::Create(
      {.num_blocks = num_blocks, .block_size = block_size, .enable_caching = caching, .enable_events = true});
}

std::vector<BlockId> Get(BlockPool& pool, std::size_t n) {
  std::vector<BlockId> ids;
  EXPECT_TRUE(pool.GetNewBlocks(n, ids).ok());
  return ids;
}

TEST(BlockPool, RefusesSizesThatCannotWork) {
  for (const std::uint32_t n : {0u, 1u, (1u << 28) + 1, 0xFFFFFFFFu}) {
    EXPECT_THAT(BlockPool::Create({.num_blocks = n}).status().message(), HasSubstr("num_blocks is"));
  }
  EXPECT_THAT(BlockPool::Create({.num_blocks = 2, .block_size = 0}).status().message(),
              HasSubstr("block_size is 0"));
  EXPECT_TRUE(BlockPool::Create({.num_blocks = 2, .block_size = 1}).ok());
}

TEST(BlockPool, HandsOutInAscendingOrderAndNeverTheNullBlock) {
  BlockPool pool = MakePool(5);
  EXPECT_EQ(pool.num_free(), 4);
  EXPECT_EQ(pool.usage(), 0);
  EXPECT_THAT(Get(pool, 4), ElementsAre(1, 2, 3, 4));
  EXPECT_EQ(pool.usage(), 1);
  std::vector<BlockId> more;
  EXPECT_EQ(pool.GetNewBlocks(1, more).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(more.empty());
  EXPECT_TRUE(pool.GetNewBlocks(0, more).ok());
}

TEST(BlockPool, UnhashedGoToTheFrontAndHashedToTheBackInOrder) {
  BlockPool pool = MakePool(8);
  TestRequest request(1, Tokens(16), 4);
  const auto table = Get(pool, 6);
  ASSERT_TRUE(pool.CacheFullBlocks(*request, table, 0, 2).ok());
  EXPECT_TRUE(pool.FreeBlocks(std::vector<BlockId>{6, 2, 5, 1}).ok());
  EXPECT_THAT(FreeList(pool), ElementsAre(6, 5, 7, 2, 1));
}

TEST(BlockPool, WithoutCachingTheLastFreedIsTheNextUsed) {
  BlockPool pool = MakePool(6, 4, /*caching=*/false);
  TestRequest request(1, Tokens(16), 4);
  const auto table = Get(pool, 3);
  ASSERT_TRUE(pool.CacheFullBlocks(*request, table, 0, 3).ok());
  EXPECT_EQ(pool.num_cached_blocks(), 0);
  EXPECT_TRUE(pool.FreeBlocks(std::vector<BlockId>{3, 2, 1}).ok());
  EXPECT_THAT(FreeList(pool), ElementsAre(3, 2, 1, 4, 5));
  BlockEvents events;
  pool.TakeEvents(events);
  EXPECT_TRUE(events.empty());
}

TEST(BlockPool, EvictsOnlyWhenTheSlotIsNeeded) {
  BlockPool pool = MakePool(4, 4);
  TestRequest request(1, Tokens(12), 4);
  const auto table = Get(pool, 3);
  ASSERT_TRUE(pool.CacheFullBlocks(*request, table, 0, 3).ok());
  ASSERT_TRUE(pool.FreeBlocks(std::vector<BlockId>{3, 2, 1}).ok());
  EXPECT_EQ(pool.usage(), 0) << "cached free blocks count as free";
  EXPECT_EQ(pool.num_cached_blocks(), 3);
  EXPECT_EQ(pool.Find(request.hashes()[2]), 3);
  EXPECT_THAT(Get(pool, 1), ElementsAre(3)) << "the tail first";
  EXPECT_EQ(pool.Find(request.hashes()[2]), kNoBlock);
  EXPECT_EQ(pool.Find(request.hashes()[1]), 2);

  BlockEvents events;
  pool.TakeEvents(events);
  ASSERT_EQ(events.size(), 2);
  EXPECT_EQ(events[1].kind, BlockEvent::Kind::kRemoved);
  EXPECT_THAT(events[1].hashes, ElementsAre(request.hashes()[2]));
}

TEST(BlockPool, TouchTakesABlockOutOfTheFreeList) {
  BlockPool pool = MakePool(4);
  TestRequest request(1, Tokens(8), 4);
  const auto table = Get(pool, 2);
  ASSERT_TRUE(pool.CacheFullBlocks(*request, table, 0, 2).ok());
  ASSERT_TRUE(pool.FreeBlocks(std::vector<BlockId>{2, 1}).ok());
  ASSERT_TRUE(pool.Touch(std::vector<BlockId>{1}).ok());
  ASSERT_TRUE(pool.Touch(std::vector<BlockId>{1}).ok());
  EXPECT_EQ(pool.block(1).ref_cnt, 2);
  EXPECT_THAT(FreeList(pool), ElementsAre(3, 2));
  ASSERT_TRUE(pool.FreeBlocks(std::vector<BlockId>{1}).ok());
  EXPECT_THAT(FreeList(pool), ElementsAre(3, 2));
  ASSERT_TRUE(pool.FreeBlocks(std::vector<BlockId>{1}).ok());
  EXPECT_THAT(FreeList(pool), ElementsAre(3, 2, 1));
}

TEST(BlockPool, StoredEventCoversTheNewRunOnly) {
  BlockPool pool = MakePool(8);
  TestRequest request(9, Tokens(16), 4);
  request->lora_id = 7;
  request->lora_name = "sql";
  const auto table = Get(pool, 4);
  ASSERT_TRUE(pool.CacheFullBlocks(*request, table, 0, 1, 5).ok());
  ASSERT_TRUE(pool.CacheFullBlocks(*request, table, 1, 3, 5).ok());
  ASSERT_TRUE(pool.CacheFullBlocks(*request, table, 1, 3, 5).ok()) << "cached already: nothing to say";
  ASSERT_TRUE(pool.CacheFullBlocks(*request, table, 3, 3, 5).ok());

  BlockEvents events;
  pool.TakeEvents(events);
  ASSERT_EQ(events.size(), 2);
  EXPECT_EQ(events[0].parent, nullptr);
  EXPECT_THAT(events[0].hashes, ElementsAre(request.hashes()[0]));
  EXPECT_THAT(events[0].tokens, ElementsAre(0, 1, 2, 3));
  EXPECT_EQ(events[1].kind, BlockEvent::Kind::kStored);
  ASSERT_NE(events[1].parent, nullptr);
  EXPECT_EQ(*events[1].parent, request.hashes()[0]);
  EXPECT_THAT(events[1].hashes, ElementsAre(request.hashes()[1], request.hashes()[2]));
  EXPECT_THAT(events[1].tokens, ElementsAre(4, 5, 6, 7, 8, 9, 10, 11));
  EXPECT_EQ(events[1].block_size, 4);
  EXPECT_EQ(events[1].group_id, 5);
  EXPECT_EQ(events[1].lora_id, 7);
  EXPECT_EQ(events[1].lora_name, "sql");
  pool.TakeEvents(events);
  EXPECT_TRUE(events.empty());
}

TEST(BlockPool, NullAndCachedBlocksSplitTheRun) {
  BlockPool pool = MakePool(8);
  TestRequest request(1, Tokens(24), 4);
  std::vector<BlockId> table = Get(pool, 6);
  ASSERT_TRUE(pool.CacheFullBlocks(*request, table, 3, 4).ok());
  table[1] = kNullBlock;
  BlockEvents events;
  pool.TakeEvents(events);
  ASSERT_TRUE(pool.CacheFullBlocks(*request, table, 0, 6).ok());
  pool.TakeEvents(events);
  ASSERT_EQ(events.size(), 3);
  EXPECT_THAT(events[0].hashes, ElementsAre(request.hashes()[0]));
  EXPECT_THAT(events[1].hashes, ElementsAre(request.hashes()[2]));
  EXPECT_EQ(*events[1].parent, request.hashes()[1]);
  EXPECT_THAT(events[2].hashes, ElementsAre(request.hashes()[4], request.hashes()[5]));
  EXPECT_FALSE(pool.block(kNullBlock).cached());
}

TEST(BlockPool, RemovedIsSentForTheLastDuplicateOnly) {
  BlockPool pool = MakePool(4);
  TestRequest a(1, Tokens(4), 4);
  TestRequest b(2, Tokens(4), 4);
  const auto first = Get(pool, 1);
  const auto second = Get(pool, 1);
  ASSERT_TRUE(pool.CacheFullBlocks(*a, first, 0, 1).ok());
  ASSERT_TRUE(pool.CacheFullBlocks(*b, second, 0, 1).ok());
  EXPECT_EQ(pool.num_cached_blocks(), 2);
  EXPECT_EQ(pool.num_cached_keys(), 1);
  EXPECT_EQ(pool.Find(a.hashes()[0]), first[0]);
  BlockEvents events;
  ASSERT_TRUE(pool.EvictBlocks(first).ok());
  pool.TakeEvents(events);
  ASSERT_EQ(events.size(), 2) << "two stored, no removed";
  EXPECT_EQ(pool.Find(a.hashes()[0]), second[0]);
  ASSERT_TRUE(pool.EvictBlocks(second).ok());
  ASSERT_TRUE(pool.EvictBlocks(second).ok()) << "no hash any more: no effect";
  pool.TakeEvents(events);
  ASSERT_EQ(events.size(), 1);
  EXPECT_EQ(events[0].kind, BlockEvent::Kind::kRemoved);
  EXPECT_EQ(pool.block(first[0]).ref_cnt, 1) << "holders keep evicted blocks";
}

TEST(BlockPool, GroupsAreApart) {
  BlockPool pool = MakePool(4);
  TestRequest request(1, Tokens(4), 4);
  const auto table = Get(pool, 1);
  ASSERT_TRUE(pool.CacheFullBlocks(*request, table, 0, 1, 3).ok());
  EXPECT_EQ(pool.Find(request.hashes()[0], 0), kNoBlock);
  EXPECT_EQ(pool.Find(request.hashes()[0], 3), table[0]);
}

TEST(BlockPool, ResetOnlyWhenNothingIsHeld) {
  BlockPool pool = MakePool(4);
  TestRequest request(1, Tokens(4), 4);
  const auto table = Get(pool, 1);
  ASSERT_TRUE(pool.CacheFullBlocks(*request, table, 0, 1).ok());
  EXPECT_FALSE(pool.Reset());
  EXPECT_EQ(pool.num_cached_blocks(), 1);
  ASSERT_TRUE(pool.FreeBlocks(table).ok());
  EXPECT_TRUE(pool.Reset());
  EXPECT_EQ(pool.num_cached_blocks(), 0);
  EXPECT_EQ(pool.Find(request.hashes()[0]), kNoBlock);
  BlockEvents events;
  pool.TakeEvents(events);
  ASSERT_EQ(events.size(), 2);
  EXPECT_EQ(events[1].kind, BlockEvent::Kind::kCleared);
}

TEST(BlockPool, NullBlockIsIgnoredByTouchFreeAndEvict) {
  BlockPool pool = MakePool(3);
  const std::vector<BlockId> null = {kNullBlock};
  EXPECT_TRUE(pool.Touch(null).ok());
  EXPECT_TRUE(pool.FreeBlocks(null).ok());
  EXPECT_TRUE(pool.FreeBlocks(null).ok());
  EXPECT_TRUE(pool.EvictBlocks(null).ok());
  EXPECT_THAT(FreeList(pool), ElementsAre(1, 2));
}

TEST(BlockPool, WrongArgumentsAreReportedAndChangeNothing) {
  BlockPool pool = MakePool(4);
  TestRequest request(1, Tokens(8), 4);
  const auto table = Get(pool, 2);
  const std::vector<BlockId> bad = {1, 4};
  EXPECT_THAT(pool.Touch(bad).message(), HasSubstr("block id 4 is out of range; the pool has 4 blocks"));
  EXPECT_EQ(pool.block(1).ref_cnt, 1);
  EXPECT_FALSE(pool.EvictBlocks(bad).ok());
  EXPECT_FALSE(pool.CacheFullBlocks(*request, bad, 0, 2).ok());
  EXPECT_FALSE(pool.CacheFullBlocks(*request, table, 0, 3).ok()) << "longer than the table";
  EXPECT_FALSE(pool.CacheFullBlocks(*request, table, 2, 1).ok());
  EXPECT_FALSE(pool.CacheFullBlocks(*request, std::vector<BlockId>{1, 3}, 0, 2).ok()) << "block 3 is free";
  Request short_hashes = *request;
  short_hashes.block_hashes = short_hashes.block_hashes.first(1);
  EXPECT_THAT(pool.CacheFullBlocks(short_hashes, table, 0, 2).message(), HasSubstr("1 block_hashes"));
  Request short_tokens = *request;
  short_tokens.tokens = short_tokens.tokens.first(7);
  EXPECT_FALSE(pool.CacheFullBlocks(short_tokens, table, 0, 2).ok());
  for (const int size : {0, 33, 255}) {
    std::vector<hash::Digest> hashes = request.hashes();
    hashes[1].size = size;
    Request wrong = *request;
    wrong.block_hashes = hashes;
    EXPECT_THAT(pool.CacheFullBlocks(wrong, table, 0, 2).message(), HasSubstr("block_hashes[1].size"));
  }
  EXPECT_EQ(pool.num_cached_blocks(), 0);

  ASSERT_TRUE(pool.CacheFullBlocks(*request, table, 0, 2).ok());
  TestRequest other(2, Tokens(8, 100), 4);
  EXPECT_THAT(pool.CacheFullBlocks(*other, table, 0, 2).message(), HasSubstr("another hash"));

  // Freeing goes on after a bad id: nothing leaks.
  EXPECT_THAT(pool.FreeBlocks(std::vector<BlockId>{1, 1, 9, 2}).message(), HasSubstr("block 1 is freed"));
  EXPECT_EQ(pool.num_held(), 0);
}

TEST(BlockPool, UntakenEventsAreBounded) {
  BlockPool pool =
      *BlockPool::Create({.num_blocks = 3, .block_size = 4, .enable_events = true, .max_event_bytes = 4096});
  TestRequest request(1, Tokens(4), 4);
  for (int i = 0; i < 1000; ++i) {
    const auto table = Get(pool, 1);
    ASSERT_TRUE(pool.CacheFullBlocks(*request, table, 0, 1).ok());
    ASSERT_TRUE(pool.EvictBlocks(table).ok());
    ASSERT_TRUE(pool.FreeBlocks(table).ok());
  }
  EXPECT_GT(pool.stats().events_dropped, 0);
  BlockEvents events;
  pool.TakeEvents(events);
  ASSERT_FALSE(events.empty());
  EXPECT_LE(events.bytes(), 4096);
  EXPECT_EQ(events[0].kind, BlockEvent::Kind::kCleared);
}

TEST(BlockPool, SurvivesBeingMoved) {
  BlockPool pool = MakePool(4);
  TestRequest request(1, Tokens(4), 4);
  const auto table = Get(pool, 1);
  ASSERT_TRUE(pool.CacheFullBlocks(*request, table, 0, 1).ok());
  BlockPool moved = std::move(pool);
  EXPECT_EQ(moved.Find(request.hashes()[0]), table[0]);
  ASSERT_TRUE(moved.FreeBlocks(table).ok());
  EXPECT_THAT(FreeList(moved), ElementsAre(2, 3, 1));
}

}  // namespace
}  // namespace llmd::worker
