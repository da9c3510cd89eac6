// Stored events whose parent is unknown: they wait, they are never taken for the start of a prompt, and they
// are bounded.
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/ingest/ingest_test_util.h"

namespace llmd::ingest {
namespace {

using events::Event;
using testing::ElementsAre;
using testing::IsEmpty;
using testing::Pair;

class OrphanTest : public IngestTest {
 protected:
  OrphanTest() { pod_ = Add("a:1"); }

  void Restart(const IngestOptions& options) {
    IngestTest::Restart(options);
    pod_ = Add("a:1");
  }
  // Blocks [first, first + count) of the prompt of these tests, whose hashes are 100, 101, ...
  bool StorePart(std::size_t first, std::size_t count, std::optional<std::uint32_t> rank = std::nullopt,
                 std::string_view medium = "GPU") {
    Stored stored{.hashes = Run(100 + first, count)};
    if (first > 0) stored.parent = 99 + first;
    stored.tokens.assign(prompt_.begin() + first * kBlock, prompt_.begin() + (first + count) * kBlock);
    stored.rest.medium = medium;
    return Store(pod_, stored, rank);
  }
  Depths MatchPrompt() { return Match({.tokens = prompt_, .block_size = kBlock}); }

  PublisherId pod_ = 0;
  const Tokens prompt_ = MakeTokens(1, 64);
};

TEST_F(OrphanTest, AnUnknownParentNeverBecomesTheRoot) {
  EXPECT_TRUE(StorePart(2, 2));
  const Tokens tail(prompt_.begin() + 2 * kBlock, prompt_.begin() + 4 * kBlock);
  EXPECT_THAT(Match({.tokens = tail, .block_size = kBlock}), IsEmpty());
  EXPECT_THAT(MatchPrompt(), IsEmpty());
  EXPECT_EQ(counters().orphans_parked, 1);
  EXPECT_EQ(counters().stored_blocks, 0);
}

TEST_F(OrphanTest, TheyAttachWhenTheParentComes) {
  EXPECT_TRUE(StorePart(6, 2));
  EXPECT_TRUE(StorePart(4, 2));
  EXPECT_TRUE(StorePart(2, 2));
  EXPECT_FALSE(StorePart(0, 2));
  EXPECT_THAT(MatchPrompt(), ElementsAre(Pair("a:1/-/gpu", 8)));
  EXPECT_EQ(counters().orphans_attached, 3);
  EXPECT_EQ(counters().orphans_dropped, 0);
  EXPECT_EQ(counters().stored_blocks, 8);
}

TEST_F(OrphanTest, SeveralWaitForOneParentInsideAnEvent) {
  EXPECT_TRUE(StorePart(2, 1));
  EXPECT_TRUE(Store(pod_, {.hashes = {777}, .parent = 101, .tokens = {7, 7, 7, 7}}));
  EXPECT_FALSE(StorePart(0, 4));  // the parent is not its last block
  EXPECT_EQ(counters().orphans_attached, 2);
  Tokens branch(prompt_.begin(), prompt_.begin() + 2 * kBlock);
  branch.insert(branch.end(), kBlock, 7);
  EXPECT_THAT(Match({.tokens = branch, .block_size = kBlock}), ElementsAre(Pair("a:1/-/gpu", 3)));
}

TEST_F(OrphanTest, ALongChainOfThemAttachesWithoutRecursion) {
  Restart({.max_orphan_blocks = 100000});
  constexpr std::size_t kLength = 50000;
  for (std::size_t i = kLength; i-- > 1;) {
    Store(pod_, {.hashes = {1000 + i}, .parent = 999 + i, .tokens = {1, 2, 3, 4}});
  }
  EXPECT_FALSE(Store(pod_, {.hashes = {1000}, .tokens = {1, 2, 3, 4}}));
  EXPECT_EQ(counters().orphans_attached, kLength - 1);
  Tokens prompt;
  for (std::size_t i = 0; i < kLength; ++i) prompt.insert(prompt.end(), {1, 2, 3, 4});
  EXPECT_THAT(Match({.tokens = prompt, .block_size = kBlock}), ElementsAre(Pair("a:1/-/gpu", kLength)));
}

TEST_F(OrphanTest, CirclesEnd) {
  EXPECT_TRUE(Store(pod_, {.hashes = {5}, .parent = 6, .tokens = {1, 2, 3, 4}}));
  EXPECT_TRUE(Store(pod_, {.hashes = {6}, .parent = 5, .tokens = {1, 2, 3, 4}}));
  EXPECT_TRUE(Store(pod_, {.hashes = {8}, .parent = 8, .tokens = {1, 2, 3, 4}}));
  EXPECT_FALSE(Store(pod_, {.hashes = {5, 8}, .tokens = {1, 2, 3, 4, 1, 2, 3, 4}}));
  EXPECT_EQ(counters().orphans_parked, 3);
  EXPECT_EQ(counters().orphans_attached, 3);
}

TEST_F(OrphanTest, RanksDoNotAdoptEachOthersOrphans) {
  EXPECT_TRUE(StorePart(1, 1, 0));
  EXPECT_FALSE(StorePart(0, 1, 1));
  EXPECT_THAT(MatchPrompt(), ElementsAre(Pair("a:1/1/gpu", 1)));
  EXPECT_EQ(counters().orphans_attached, 0);
  StorePart(0, 1, 0);
  EXPECT_EQ(counters().orphans_attached, 1);
  EXPECT_THAT(MatchPrompt(), ElementsAre(Pair("a:1/0/gpu", 2), Pair("a:1/1/gpu", 1)));
}

TEST_F(OrphanTest, AnOrphanOfAnotherTierAttachesToo) {
  EXPECT_TRUE(StorePart(1, 1, std::nullopt, "CPU"));
  EXPECT_FALSE(StorePart(0, 1));
  Event update;
  update.medium = "CPU";
  Store(pod_, {.hashes = {100}, .rest = update});
  EXPECT_THAT(MatchPrompt(), ElementsAre(Pair("a:1/-/cpu", 2), Pair("a:1/-/gpu", 1)));
}

TEST_F(OrphanTest, TheTableIsBoundedAndForgetsTheOldest) {
  Restart({.max_orphan_blocks = 4});
  StorePart(1, 2);
  Store(pod_, {.hashes = {500, 501}, .parent = 499, .tokens = MakeTokens(5, 2)});
  EXPECT_EQ(counters().orphans_dropped, 0);
  Store(pod_, {.hashes = {600}, .parent = 599, .tokens = MakeTokens(6, 1)});
  EXPECT_EQ(counters().orphans_dropped, 1);
  StorePart(0, 1);
  EXPECT_THAT(MatchPrompt(), ElementsAre(Pair("a:1/-/gpu", 1)));
  // One that is too large by itself does not push out the others.
  Store(pod_, {.hashes = Run(700, 5), .parent = 699, .tokens = MakeTokens(7, 5)});
  EXPECT_EQ(counters().orphans_dropped, 2);
  Store(pod_, {.hashes = {499}, .tokens = MakeTokens(4, 1)});
  EXPECT_EQ(counters().orphans_attached, 1);
}

TEST_F(OrphanTest, NoTableAtAll) {
  Restart({.max_orphan_blocks = 0});
  EXPECT_TRUE(StorePart(1, 1));
  StorePart(0, 1);
  EXPECT_THAT(MatchPrompt(), ElementsAre(Pair("a:1/-/gpu", 1)));
  EXPECT_EQ(counters().orphans_dropped, 1);
}

TEST_F(OrphanTest, RemovedWhileWaiting) {
  StorePart(1, 3);
  Remove(pod_, {102});
  StorePart(0, 1);
  EXPECT_THAT(MatchPrompt(), ElementsAre(Pair("a:1/-/gpu", 2)));
  EXPECT_EQ(counters().orphans_dropped, 0);

  ingestor_->Clear(pod_);
  StorePart(1, 3);
  Remove(pod_, {101}, "CPU");  // of another tier
  Remove(pod_, {101, 102, 103}, "GPU");
  EXPECT_EQ(counters().orphans_dropped, 1);
  StorePart(0, 1);
  EXPECT_THAT(MatchPrompt(), ElementsAre(Pair("a:1/-/gpu", 1)));
}

TEST_F(OrphanTest, RemovedRepeatedBlocksWhileWaiting) {
  Store(pod_, {.hashes = {5, 6, 5, 6, 7}, .parent = 1, .tokens = MakeTokens(1, 5)});
  Store(pod_, {.hashes = {6, 5}, .parent = 1, .tokens = MakeTokens(2, 2)});
  Remove(pod_, {7});
  Remove(pod_, {6});
  EXPECT_EQ(counters().orphans_dropped, 1);  // the second began with it
  Remove(pod_, {7, 6});
  Remove(pod_, {5});
  EXPECT_EQ(counters().orphans_dropped, 2);
  Store(pod_, {.hashes = {1}, .tokens = MakeTokens(3, 1)});
  EXPECT_EQ(counters().orphans_attached, 0);
}

TEST_F(OrphanTest, ClearedWhileWaiting) {
  StorePart(1, 1, 0);
  StorePart(1, 1, 1);
  ClearAll(pod_, 0);
  EXPECT_EQ(counters().orphans_dropped, 1);
  StorePart(0, 1, 0);
  StorePart(0, 1, 1);
  EXPECT_THAT(MatchPrompt(), ElementsAre(Pair("a:1/0/gpu", 1), Pair("a:1/1/gpu", 2)));
  StorePart(9, 1, 0);
  ingestor_->Clear(pod_);
  EXPECT_EQ(counters().orphans_dropped, 2);
  StorePart(9, 1, 0);
  ingestor_->RemovePublisher(pod_);
  EXPECT_EQ(counters().orphans_dropped, 3);
}

}  // namespace
}  // namespace llmd::ingest
