#include "llmd/worker/kv_cache_manager.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/test_requests.h"

namespace llmd::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr std::uint32_t kBlockSize = 4;

KvCacheManager Make(std::uint32_t num_blocks, double watermark = 0,
                    std::uint32_t max_model_len = std::numeric_limits<std::uint32_t>::max()) {
  return *KvCacheManager::Create(
      {.pool = {.num_blocks = num_blocks, .block_size = kBlockSize, .enable_events = true},
       .max_model_len = max_model_len,
       .watermark = watermark});
}

// Admits the request whole and runs it; false when it does not fit.
bool Admit(KvCacheManager& kv, TestRequest& request, PrefixHit* hit_out = nullptr) {
  const PrefixHit hit = kv.GetComputedBlocks(*request);
  if (hit_out != nullptr) *hit_out = hit;
  const auto slots =
      kv.AllocateSlots(*request, {.num_new_tokens = request->num_tokens() - hit.num_tokens, .hit = hit});
  EXPECT_TRUE(slots.ok()) << slots.status();
  if (!slots->fits) return false;
  request->num_computed_tokens = request->num_tokens();
  request->status = RequestStatus::kRunning;
  return true;
}

TEST(KvCacheManager, RefusesBadOptions) {
  EXPECT_FALSE(KvCacheManager::Create({.pool = {.num_blocks = 1}}).ok());
  EXPECT_FALSE(KvCacheManager::Create({.pool = {.num_blocks = 2}, .max_model_len = 0}).ok());
  for (const double watermark : {-0.1, 1.5, std::nan("")}) {
    EXPECT_THAT(
        KvCacheManager::Create({.pool = {.num_blocks = 2}, .watermark = watermark}).status().message(),
        HasSubstr("watermark"));
  }
}

TEST(KvCacheManager, TheLastTokenIsAlwaysComputed) {
  KvCacheManager kv = Make(20);
  for (const auto& [tokens, hit_tokens] :
       std::vector<std::pair<int, int>>{{1, 0}, {4, 0}, {5, 4}, {8, 4}, {9, 8}}) {
    TestRequest first(1, Tokens(tokens), kBlockSize);
    ASSERT_TRUE(Admit(kv, first));
    ASSERT_TRUE(kv.Free(1).ok());
    TestRequest second(2, Tokens(tokens), kBlockSize);
    const PrefixHit hit = kv.GetComputedBlocks(*second);
    EXPECT_EQ(hit.num_tokens, hit_tokens) << tokens;
    EXPECT_EQ(hit.blocks.size() * kBlockSize, hit_tokens);
  }
}

TEST(KvCacheManager, HitsStopAtTheFirstMiss) {
  KvCacheManager kv = Make(20);
  TestRequest first(1, Tokens(16), kBlockSize);
  ASSERT_TRUE(Admit(kv, first));
  const BlockId second_block = kv.BlockTable(1)[1];
  ASSERT_TRUE(kv.pool().EvictBlocks(std::vector<BlockId>{second_block}).ok());
  TestRequest again(2, Tokens(16), kBlockSize);
  EXPECT_EQ(kv.GetComputedBlocks(*again).num_tokens, 4);
  again->skip_reading_prefix_cache = true;
  EXPECT_EQ(kv.GetComputedBlocks(*again).num_tokens, 0);
}

TEST(KvCacheManager, SharedPrefixIsHeldByBoth) {
  KvCacheManager kv = Make(20);
  TestRequest a(1, Tokens(10), kBlockSize);
  TestRequest b(2, Tokens(14), kBlockSize);
  ASSERT_TRUE(Admit(kv, a));
  ASSERT_TRUE(Admit(kv, b));
  EXPECT_THAT(kv.BlockTable(1), ElementsAre(1, 2, 3));
  EXPECT_THAT(kv.BlockTable(2), ElementsAre(1, 2, 4, 5));
  EXPECT_EQ(kv.pool().block(1).ref_cnt, 2);
  ASSERT_TRUE(kv.Free(1).ok());
  EXPECT_EQ(kv.pool().block(1).ref_cnt, 1);
  EXPECT_EQ(kv.pool().num_held(), 4);
  EXPECT_EQ(kv.num_requests(), 1);
}

TEST(KvCacheManager, DecodeTakesABlockWhenTheLastIsFullAndCommitsIt) {
  KvCacheManager kv = Make(20);
  TestRequest request(1, Tokens(7), kBlockSize);
  ASSERT_TRUE(Admit(kv, request));
  BlockEvents events;
  kv.TakeEvents(events);
  std::vector<std::size_t> new_blocks;
  std::vector<std::size_t> new_events;
  for (int i = 0; i < 6; ++i) {
    request.Append(100 + i);
    const auto slots = kv.AllocateSlots(*request, {.num_new_tokens = 1});
    ASSERT_TRUE(slots.ok() && slots->fits);
    new_blocks.push_back(slots->new_blocks.size());
    kv.TakeEvents(events);
    new_events.push_back(events.size());
    request->num_computed_tokens += 1;
  }
  EXPECT_THAT(new_blocks, ElementsAre(0, 1, 0, 0, 0, 1));
  EXPECT_THAT(new_events, ElementsAre(1, 0, 0, 0, 1, 0));
}

TEST(KvCacheManager, ChunkedPrefillCommitsWhatIsScheduled) {
  KvCacheManager kv = Make(20);
  TestRequest request(1, Tokens(11), kBlockSize);
  ASSERT_TRUE(kv.AllocateSlots(*request, {.num_new_tokens = 6})->fits);
  EXPECT_EQ(kv.BlockTable(1).size(), 2);
  EXPECT_EQ(kv.pool().num_cached_blocks(), 1);
  request->num_computed_tokens = 6;
  ASSERT_TRUE(kv.AllocateSlots(*request, {.num_new_tokens = 5})->fits);
  EXPECT_EQ(kv.BlockTable(1).size(), 3);
  EXPECT_EQ(kv.pool().num_cached_blocks(), 2);
}

TEST(KvCacheManager, LookaheadTokensGetSlotsButAreNotCommitted) {
  KvCacheManager kv = Make(20);
  TestRequest request(1, Tokens(3), kBlockSize);
  ASSERT_TRUE(kv.AllocateSlots(*request, {.num_new_tokens = 3, .num_lookahead_tokens = 6})->fits);
  EXPECT_EQ(kv.BlockTable(1).size(), 3);
  // Drafts given as new tokens: only the known three tokens count.
  request->num_computed_tokens = 3;
  request.Append(9);
  ASSERT_TRUE(kv.AllocateSlots(*request, {.num_new_tokens = 9})->fits);
  EXPECT_EQ(kv.BlockTable(1).size(), 3);
  EXPECT_EQ(kv.pool().num_cached_blocks(), 1);
}

TEST(KvCacheManager, FreeHitsUseFreeCapacity) {
  KvCacheManager kv = Make(4);  // three usable
  TestRequest a(1, Tokens(12), kBlockSize);
  ASSERT_TRUE(Admit(kv, a));
  ASSERT_TRUE(kv.Free(1).ok());
  // Two hits and two new blocks: four, though only two are new.
  TestRequest b(2, Tokens(8), kBlockSize);
  for (int i = 0; i < 6; ++i) b.Append(50 + i);
  const auto before = FreeList(kv.pool());
  EXPECT_FALSE(Admit(kv, b));
  EXPECT_EQ(FreeList(kv.pool()), before);
  EXPECT_THAT(kv.BlockTable(2), IsEmpty());
  EXPECT_EQ(kv.num_requests(), 0);
  TestRequest c(3, Tokens(10), kBlockSize);
  EXPECT_TRUE(Admit(kv, c));
  EXPECT_EQ(kv.pool().num_free(), 0);
}

TEST(KvCacheManager, FullSequenceGate) {
  KvCacheManager kv = Make(4);
  TestRequest request(1, Tokens(16), kBlockSize);
  EXPECT_FALSE(kv.AllocateSlots(*request, {.num_new_tokens = 4, .full_sequence_must_fit = true})->fits);
  EXPECT_TRUE(kv.AllocateSlots(*request, {.num_new_tokens = 4})->fits);
}

TEST(KvCacheManager, WatermarkHoldsBackAdmissionsOnly) {
  KvCacheManager kv = Make(10, /*watermark=*/0.2);  // two blocks
  TestRequest request(1, Tokens(32), kBlockSize);
  EXPECT_FALSE(kv.AllocateSlots(*request, {.num_new_tokens = 32, .has_scheduled_requests = true})->fits);
  EXPECT_TRUE(kv.AllocateSlots(*request, {.num_new_tokens = 28, .has_scheduled_requests = true})->fits);
  request->num_computed_tokens = 28;
  request->status = RequestStatus::kRunning;
  EXPECT_TRUE(kv.AllocateSlots(*request, {.num_new_tokens = 4, .has_scheduled_requests = true})->fits);
  ASSERT_TRUE(kv.Free(1).ok());
  request->num_computed_tokens = 0;
  request->status = RequestStatus::kPreempted;
  EXPECT_FALSE(kv.AllocateSlots(*request, {.num_new_tokens = 32, .has_scheduled_requests = true})->fits);
  EXPECT_TRUE(kv.AllocateSlots(*request, {.num_new_tokens = 32})->fits) << "nothing else runs";
}

TEST(KvCacheManager, ReservedBlocksAreNotGivenAway) {
  KvCacheManager kv = Make(5);
  TestRequest request(1, Tokens(16), kBlockSize);
  EXPECT_FALSE(kv.AllocateSlots(*request, {.num_new_tokens = 16, .reserved_blocks = 1})->fits);
  EXPECT_FALSE(kv.AllocateSlots(*request, {.num_new_tokens = 1, .reserved_blocks = 0xFFFFFFFF})->fits);
  EXPECT_TRUE(kv.AllocateSlots(*request, {.num_new_tokens = 12, .reserved_blocks = 1})->fits);
}

TEST(KvCacheManager, MaxModelLenClipsSlotsHitsAndCommits) {
  KvCacheManager kv = Make(20, 0, /*max_model_len=*/10);
  TestRequest request(1, Tokens(16), kBlockSize);
  ASSERT_TRUE(
      kv.AllocateSlots(*request, {.num_new_tokens = 0xFFFFFFFF, .num_lookahead_tokens = 0xFFFFFFFF})->fits);
  EXPECT_EQ(kv.BlockTable(1).size(), 3);
  EXPECT_EQ(kv.pool().num_cached_blocks(), 2);
  TestRequest other(2, Tokens(16), kBlockSize);
  EXPECT_EQ(kv.GetComputedBlocks(*other).num_tokens, 8);
}

TEST(KvCacheManager, RemoteLoadIsCommittedWhenItArrives) {
  KvCacheManager kv = Make(20);
  TestRequest request(1, Tokens(12), kBlockSize);
  const auto slots =
      kv.AllocateSlots(*request, {.num_external_computed_tokens = 12, .delay_cache_blocks = true});
  ASSERT_TRUE(slots.ok() && slots->fits);
  EXPECT_EQ(slots->new_blocks.size(), 3);
  EXPECT_EQ(kv.pool().num_cached_blocks(), 0);
  BlockEvents events;
  kv.TakeEvents(events);
  EXPECT_TRUE(events.empty());

  EXPECT_EQ(kv.CommitRemoteLoad(*request, 12).value(), 11) << "the last token is computed here";
  EXPECT_EQ(kv.pool().num_cached_blocks(), 2);
  kv.TakeEvents(events);
  ASSERT_EQ(events.size(), 1);
  EXPECT_EQ(events[0].hashes.size(), 2);

  request->num_computed_tokens = 11;
  EXPECT_TRUE(kv.AllocateSlots(*request, {.num_new_tokens = 1})->new_blocks.empty());
  EXPECT_EQ(kv.pool().num_cached_blocks(), 3);
  kv.TakeEvents(events);
  ASSERT_EQ(events.size(), 1);
  EXPECT_EQ(*events[0].parent, request.hashes()[1]);
}

TEST(KvCacheManager, FailedRemoteLoadKeepsTheValidPart) {
  KvCacheManager kv = Make(20);
  TestRequest request(1, Tokens(13), kBlockSize);
  ASSERT_TRUE(
      kv.AllocateSlots(*request, {.num_external_computed_tokens = 13, .delay_cache_blocks = true})->fits);
  EXPECT_EQ(kv.CommitRemoteLoad(*request, 4).value(), 4);
  EXPECT_EQ(kv.pool().num_cached_blocks(), 1);
  request->num_computed_tokens = 4;
  EXPECT_TRUE(kv.AllocateSlots(*request, {.num_new_tokens = 9})->new_blocks.empty())
      << "the blocks are there";
  EXPECT_EQ(kv.pool().num_cached_blocks(), 3);

  TestRequest nothing(2, Tokens(13, 500), kBlockSize);
  ASSERT_TRUE(
      kv.AllocateSlots(*nothing, {.num_external_computed_tokens = 13, .delay_cache_blocks = true})->fits);
  EXPECT_EQ(kv.CommitRemoteLoad(*nothing, 0).value(), 0);
  EXPECT_TRUE(kv.Free(2).ok());
}

TEST(KvCacheManager, TailIsEvictedFirst) {
  KvCacheManager kv = Make(6);
  TestRequest request(1, Tokens(20), kBlockSize);
  ASSERT_TRUE(Admit(kv, request));
  const auto table = ToVector(kv.BlockTable(1));
  ASSERT_TRUE(kv.Free(1).ok());
  std::vector<BlockId> popped;
  ASSERT_TRUE(kv.pool().GetNewBlocks(5, popped).ok());
  EXPECT_THAT(popped, testing::ElementsAreArray(table.rbegin(), table.rend()));
}

TEST(KvCacheManager, PreemptedRequestFindsItsOwnBlocks) {
  KvCacheManager kv = Make(20);
  TestRequest request(1, Tokens(9), kBlockSize);
  ASSERT_TRUE(Admit(kv, request));
  for (int i = 0; i < 4; ++i) {
    request.Append(70 + i);
    ASSERT_TRUE(kv.AllocateSlots(*request, {.num_new_tokens = 1})->fits);
    request->num_computed_tokens += 1;
  }
  const auto table = ToVector(kv.BlockTable(1));
  kv.TakePrefixCacheStats();
  ASSERT_TRUE(kv.Preempt(*request).ok());
  EXPECT_EQ(request->status, RequestStatus::kPreempted);
  EXPECT_EQ(request->num_preemptions, 1);
  EXPECT_EQ(request->num_computed_tokens, 0);
  EXPECT_EQ(kv.usage(), 0);
  EXPECT_FALSE(kv.Preempt(*request).ok()) << "not running";

  PrefixHit hit;
  ASSERT_TRUE(Admit(kv, request, &hit));
  EXPECT_EQ(hit.num_tokens, 12);
  EXPECT_THAT(kv.BlockTable(1).first(3), testing::ElementsAreArray(table.begin(), table.begin() + 3));
  const PrefixCacheStats stats = kv.TakePrefixCacheStats();
  EXPECT_EQ(stats.requests, 0);
  EXPECT_EQ(stats.preempted_requests, 1);
  EXPECT_EQ(stats.preempted_queries, 13);
  EXPECT_EQ(stats.preempted_hits, 12);
}

TEST(KvCacheManager, StatisticsCountAdmissionsThatSucceed) {
  KvCacheManager kv = Make(5);
  TestRequest a(1, Tokens(9), kBlockSize);
  ASSERT_TRUE(Admit(kv, a));
  TestRequest b(2, Tokens(17), kBlockSize);
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(Admit(kv, b));
  ASSERT_TRUE(kv.Free(1).ok());
  TestRequest c(3, Tokens(10), kBlockSize);
  ASSERT_TRUE(Admit(kv, c));
  ASSERT_TRUE(kv.Free(3).ok());
  TestRequest unread(4, Tokens(10), kBlockSize);
  unread->skip_reading_prefix_cache = true;
  ASSERT_TRUE(Admit(kv, unread));
  PrefixCacheStats stats = kv.TakePrefixCacheStats();
  EXPECT_EQ(stats.requests, 2);
  EXPECT_EQ(stats.queries, 19);
  EXPECT_EQ(stats.hits, 8);
  EXPECT_FALSE(stats.reset);
  EXPECT_FALSE(kv.ResetPrefixCache());
  ASSERT_TRUE(kv.Free(4).ok());
  EXPECT_TRUE(kv.ResetPrefixCache());
  stats = kv.TakePrefixCacheStats();
  EXPECT_EQ(stats.requests, 0);
  EXPECT_TRUE(stats.reset);
}

TEST(KvCacheManager, IdenticalPromptsInOneStepShareTheFirstBlocks) {
  KvCacheManager kv = Make(20);
  TestRequest a(1, Tokens(8), kBlockSize);
  TestRequest b(2, Tokens(8), kBlockSize);
  ASSERT_TRUE(Admit(kv, a));
  ASSERT_TRUE(Admit(kv, b));
  EXPECT_THAT(kv.BlockTable(2), ElementsAre(1, 3)) << "the last block is computed again: a duplicate";
  EXPECT_EQ(kv.pool().num_cached_blocks(), 3);
  EXPECT_EQ(kv.pool().num_cached_keys(), 2);
}

TEST(KvCacheManager, WrongArgumentsAreReportedAndChangeNothing) {
  KvCacheManager kv = Make(10);
  TestRequest request(1, Tokens(9), kBlockSize);
  EXPECT_EQ(kv.Free(1).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(kv.CacheBlocks(*request, 4).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(kv.CommitRemoteLoad(*request, 4).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(kv.AllocateSlots(*request, {}).status().message(), HasSubstr("both 0"));
  request->num_computed_tokens = 4;
  EXPECT_THAT(kv.AllocateSlots(*request, {.num_new_tokens = 1}).status().message(),
              HasSubstr("num_computed_tokens is 4, but it holds 0 blocks"));
  request->num_computed_tokens = 0;
  EXPECT_FALSE(kv.AllocateSlots(*request, {.num_new_tokens = 1, .hit = {.num_tokens = 4}}).ok());
  const std::vector<BlockId> made_up = {3};
  EXPECT_THAT(kv.AllocateSlots(*request, {.num_new_tokens = 1, .hit = {.blocks = made_up, .num_tokens = 4}})
                  .status()
                  .message(),
              HasSubstr("block 3, which does not hold block_hashes[0]"));
  const std::vector<BlockId> out_of_range = {10};
  EXPECT_FALSE(
      kv.AllocateSlots(*request, {.num_new_tokens = 1, .hit = {.blocks = out_of_range, .num_tokens = 4}})
          .ok());

  Request no_hashes = *request;
  no_hashes.block_hashes = {};
  EXPECT_THAT(kv.AllocateSlots(no_hashes, {.num_new_tokens = 9}).status().message(),
              HasSubstr("0 block_hashes"));
  std::vector<hash::Digest> empty_hash(2);
  Request unhashed = *request;
  unhashed.block_hashes = empty_hash;
  EXPECT_FALSE(kv.AllocateSlots(unhashed, {.num_new_tokens = 9}).ok());
  EXPECT_EQ(kv.pool().num_held(), 0);
  EXPECT_EQ(kv.num_requests(), 0);

  ASSERT_TRUE(Admit(kv, request));
  TestRequest other(2, Tokens(9), kBlockSize);
  const PrefixHit hit = kv.GetComputedBlocks(*other);
  EXPECT_THAT(kv.AllocateSlots(*request, {.num_new_tokens = 1, .hit = hit}).status().message(),
              HasSubstr("holds 3 blocks already"));
  EXPECT_FALSE(kv.CacheBlocks(*request, 1000).ok());
  EXPECT_EQ(kv.CommitRemoteLoad(*request, 1000).value(), 8);

  // A hit that was evicted in between is noticed.
  ASSERT_TRUE(kv.Free(1).ok());
  const PrefixHit stale = kv.GetComputedBlocks(*other);
  ASSERT_EQ(stale.num_tokens, 8);
  ASSERT_TRUE(kv.ResetPrefixCache());
  EXPECT_EQ(kv.AllocateSlots(*other, {.num_new_tokens = 1, .hit = stale}).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(KvCacheManager, WithoutCachingNoHashesAreNeeded) {
  KvCacheManager kv =
      *KvCacheManager::Create({.pool = {.num_blocks = 10, .block_size = 4, .enable_caching = false}});
  TestRequest request(1, Tokens(9), kBlockSize);
  Request bare = *request;
  bare.block_hashes = {};
  EXPECT_EQ(kv.GetComputedBlocks(bare).num_tokens, 0);
  EXPECT_TRUE(kv.AllocateSlots(bare, {.num_new_tokens = 9})->fits);
  EXPECT_TRUE(kv.Free(1).ok());
  EXPECT_EQ(kv.TakePrefixCacheStats().requests, 0);
}

}  // namespace
}  // namespace llmd::worker
