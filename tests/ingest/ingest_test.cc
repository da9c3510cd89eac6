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

Event Group(std::uint32_t idx, std::string_view kind, std::uint32_t block_size = kBlock) {
  Event event;
  event.group_idx = idx;
  event.spec_kind = kind;
  event.block_size = block_size;
  return event;
}

Event Medium(std::string_view medium) {
  Event event;
  event.medium = medium;
  return event;
}

TEST_F(IngestTest, RanksOfOneEndpointAreHoldersOfTheirOwn) {
  const PublisherId pod = Add("a:1");
  StoreRun(pod, 100, 1, 3, 0);
  StoreRun(pod, 100, 1, 2, 1);
  StoreRun(pod, 100, 1, 1);
  EXPECT_THAT(Match(1, 3),
              UnorderedElementsAre(Pair("a:1/0/gpu", 3), Pair("a:1/1/gpu", 2), Pair("a:1/-/gpu", 1)));
  Remove(pod, {100}, "GPU", 1);
  EXPECT_THAT(Match(1, 3), UnorderedElementsAre(Pair("a:1/0/gpu", 3), Pair("a:1/-/gpu", 1)));
  ClearAll(pod, 0);
  EXPECT_THAT(Match(1, 3), UnorderedElementsAre(Pair("a:1/-/gpu", 1)));
}

TEST_F(IngestTest, TierUpdateFilesKnownBlocksByHashAlone) {
  const PublisherId pod = Add("a:1");
  StoreRun(pod, 100, 1, 3);
  Store(pod, {.hashes = {100, 101, 999}, .rest = Medium("CPU")});
  EXPECT_THAT(Match(1, 3), UnorderedElementsAre(Pair("a:1/-/gpu", 3), Pair("a:1/-/cpu", 2)));
  EXPECT_EQ(counters().tier_updates, 2);
  EXPECT_EQ(counters().tier_updates_unknown, 1);
  Remove(pod, {100, 101, 102});
  EXPECT_THAT(Match(1, 3), UnorderedElementsAre(Pair("a:1/-/cpu", 2)));
  Remove(pod, {101}, "cpu");
  EXPECT_THAT(Match(1, 3), UnorderedElementsAre(Pair("a:1/-/cpu", 1)));
}

TEST_F(IngestTest, TierUpdateBeforeTheGpuStoreIsIgnored) {
  const PublisherId pod = Add("a:1");
  EXPECT_FALSE(Store(pod, {.hashes = {100, 101}, .rest = Medium("CPU")}));
  StoreRun(pod, 100, 1, 2);
  EXPECT_THAT(Match(1, 2), UnorderedElementsAre(Pair("a:1/-/gpu", 2)));
}

TEST_F(IngestTest, TierUpdateOfAPodWithASeedOfItsOwn) {
  // The second pod finds the blocks in the index already, under keys that are not its own.
  const PublisherId first = Add("a:1");
  const PublisherId second = Add("b:1");
  StoreRun(first, 100, 1, 3);
  StoreRun(second, 500, 1, 3);
  Store(second, {.hashes = {500, 501}, .rest = Medium("CPU")});
  EXPECT_THAT(Match(1, 3),
              UnorderedElementsAre(Pair("a:1/-/gpu", 3), Pair("b:1/-/gpu", 3), Pair("b:1/-/cpu", 2)));
  // Tokens in the offload tier, below a block that only the GPU tier has named.
  EXPECT_FALSE(
      Store(second, {.hashes = {502}, .parent = 501, .tokens = {7, 7, 7, 7}, .rest = Medium("DISK")}));
  Remove(second, {500, 501, 502});
  Remove(second, {500}, "cpu");
  EXPECT_THAT(Match(1, 3), UnorderedElementsAre(Pair("a:1/-/gpu", 3)));
}

TEST_F(IngestTest, SeedsDoNotMatter) {
  for (int pod = 0; pod < 4; ++pod) {
    StoreRun(Add("pod" + std::to_string(pod)), 1000 * (pod + 1), 1, pod + 1);
  }
  EXPECT_THAT(Match(1, 4), UnorderedElementsAre(Pair("pod0/-/gpu", 1), Pair("pod1/-/gpu", 2),
                                                Pair("pod2/-/gpu", 3), Pair("pod3/-/gpu", 4)));
}

TEST_F(IngestTest, ReannouncedBlocksGoWithOneRemovalOnTheGpu) {
  const PublisherId pod = Add("a:1");
  StoreRun(pod, 100, 1, 2);
  StoreRun(pod, 100, 1, 2);  // kv_cache_report_mode "full"
  Remove(pod, {101});
  EXPECT_THAT(Match(1, 2), UnorderedElementsAre(Pair("a:1/-/gpu", 1)));
}

TEST_F(IngestTest, CopiesOnTheGpuAreCountedWhereThePublisherSaysSo) {
  const PublisherId pod = *ingestor_->AddPublisher(
      {.endpoint = "a:1", .model = std::string(kModel), .gpu_removal = index::RemovalPolicy::kRefcount});
  StoreRun(pod, 100, 1, 2);
  StoreRun(pod, 100, 1, 2);
  Remove(pod, {101});
  EXPECT_THAT(Match(1, 2), UnorderedElementsAre(Pair("a:1/-/gpu", 2)));
  Remove(pod, {101});
  EXPECT_THAT(Match(1, 2), UnorderedElementsAre(Pair("a:1/-/gpu", 1)));
}

TEST_F(IngestTest, OffloadTiersCountReferences) {
  const PublisherId pod = Add("a:1");
  StoreRun(pod, 100, 1, 2);
  Store(pod, {.hashes = {100, 101}, .rest = Medium("CPU")});
  Store(pod, {.hashes = {100}, .rest = Medium("CPU")});
  ClearAll(pod, 7);  // nobody's
  Remove(pod, {100, 101, 100, 101}, "GPU");
  Remove(pod, {100}, "CPU");
  EXPECT_THAT(Match(1, 2), UnorderedElementsAre(Pair("a:1/-/cpu", 2)));
  Remove(pod, {100}, "CPU");
  EXPECT_THAT(Match(1, 2), IsEmpty());
}

TEST_F(IngestTest, ClearedForgetsAllTiers) {
  const PublisherId pod = Add("a:1");
  const PublisherId other = Add("b:1");
  StoreRun(pod, 100, 1, 2);
  StoreRun(other, 100, 1, 2);
  Store(pod, {.hashes = {100, 101}, .rest = Medium("CPU")});
  ClearAll(pod);
  EXPECT_THAT(Match(1, 2), UnorderedElementsAre(Pair("b:1/-/gpu", 2)));
  EXPECT_EQ(counters().cleared_events, 1);
}

TEST_F(IngestTest, RemovalInATierThatWasNeverHeardOf) {
  const PublisherId pod = Add("a:1");
  StoreRun(pod, 100, 1, 2);
  Remove(pod, {100}, "DISK");
  Remove(pod, {100}, "GPU", 3);
  EXPECT_THAT(Match(1, 2), UnorderedElementsAre(Pair("a:1/-/gpu", 2)));
  EXPECT_EQ(counters().removed_blocks, 0);
  EXPECT_EQ(index_->stats().holders, 1);
}

TEST_F(IngestTest, OnlyFullAttentionGroupsAreIndexed) {
  const PublisherId pod = Add("a:1");
  const Keys keys = Run(100, 2);
  int tokens = 0;
  for (const std::string_view kind : {"full_attention", "mla_attention", "sink_full_attention"}) {
    Store(pod, {.hashes = keys, .tokens = MakeTokens(++tokens, 2), .rest = Group(tokens, kind)});
    EXPECT_EQ(Match(tokens, 2).size(), 1) << kind;
  }
  for (const std::string_view kind :
       {"sliding_window", "sliding_window_mla", "mamba", "chunked_local_attention", "encoder_only_attention",
        "cross_attention", "unknown", "from_the_future"}) {
    Store(pod, {.hashes = keys, .tokens = MakeTokens(++tokens, 2), .rest = Group(tokens, kind)});
    EXPECT_EQ(Match(tokens, 2).size(), 0) << kind;
  }
  EXPECT_EQ(counters().skipped_groups, 8);
}

TEST_F(IngestTest, GroupKindsAreLearnedPerRank) {
  const PublisherId pod = Add("a:1");
  Store(pod, {.hashes = {100}, .tokens = MakeTokens(1, 1), .rest = Group(0, "full_attention")}, 0);
  Store(pod, {.hashes = {101}, .parent = 100, .tokens = {5, 5, 5, 5}, .rest = Group(0, "")}, 0);
  Store(pod, {.hashes = {200}, .tokens = MakeTokens(2, 1), .rest = Group(1, "mamba")}, 0);
  EXPECT_EQ(counters().stored_blocks, 2);
  // Removals name no kind.
  const Keys key{100};
  Event removed = Group(1, "");
  removed.kind = EventKind::kBlockRemoved;
  removed.hashes = key;
  Send(pod, {removed}, 0);
  EXPECT_THAT(Match(1, 1), UnorderedElementsAre(Pair("a:1/0/gpu", 1)));
  removed.group_idx = 2;  // never heard of
  Send(pod, {removed}, 0);
  EXPECT_THAT(Match(1, 1), UnorderedElementsAre(Pair("a:1/0/gpu", 1)));
  removed.group_idx = 0;
  Send(pod, {removed}, 0);
  EXPECT_THAT(Match(1, 1), IsEmpty());
  // Another rank has said nothing of its groups.
  Store(pod, {.hashes = {300}, .tokens = MakeTokens(3, 1), .rest = Group(0, "")}, 1);
  EXPECT_THAT(Match(3, 1), IsEmpty());
  EXPECT_EQ(counters().skipped_groups, 4);
}

TEST_F(IngestTest, GroupsAreBounded) {
  Restart({.max_groups = 2});
  const PublisherId pod = Add("a:1");
  for (std::uint32_t group = 0; group < 4; ++group) {
    Store(pod,
          {.hashes = {100 + group}, .tokens = MakeTokens(group, 1), .rest = Group(group, "full_attention")});
  }
  EXPECT_EQ(counters().stored_blocks, 2);
  EXPECT_EQ(counters().skipped_groups, 2);
}

TEST_F(IngestTest, SparseSpansAreSkipped) {
  const PublisherId pod = Add("a:1");
  const Tokens tokens = MakeTokens(1, 2);
  // Three blocks named, tokens of two: no group, so only divisibility tells.
  Store(pod, {.hashes = {100, 101, 102}, .tokens = tokens});
  Store(pod, {.hashes = Run(100, 9), .tokens = tokens});  // fewer tokens than blocks
  // A group's block size says how many tokens there should be.
  Store(pod, {.hashes = {100, 101}, .tokens = tokens, .rest = Group(0, "full_attention", 2 * kBlock)});
  EXPECT_EQ(counters().skipped_sparse, 3);
  EXPECT_EQ(counters().stored_blocks, 0);
  // Without a group the tokens decide: offload connectors send another block size.
  Event offload;
  offload.block_size = 64 * kBlock;
  Store(pod, {.hashes = {100, 101}, .tokens = tokens, .rest = offload});
  EXPECT_THAT(Match(1, 2), UnorderedElementsAre(Pair("a:1/-/gpu", 2)));
}

TEST_F(IngestTest, BlockSizesDoNotMeet) {
  const PublisherId pod = Add("a:1");
  StoreRun(pod, 100, 1, 2);
  const Tokens twice(2 * kBlock, 5);
  EXPECT_FALSE(Store(pod, {.hashes = {102}, .parent = 101, .tokens = twice}));
  EXPECT_EQ(counters().skipped_malformed, 1);
  EXPECT_EQ(counters().stored_blocks, 2);
}

TEST_F(IngestTest, EventsWithoutHashesAreCounted) {
  const PublisherId pod = Add("a:1");
  EXPECT_FALSE(Store(pod, {.hashes = {}, .tokens = {1, 2, 3, 4}}));
  EXPECT_EQ(counters().skipped_malformed, 1);
  EXPECT_EQ(index_->stats().holders, 0);
}

TEST_F(IngestTest, ABatchThatLostItsRankOnlyTakesAway) {
  const PublisherId pod = Add("a:1");
  StoreRun(pod, 100, 1, 2, 0);
  StoreRun(pod, 100, 1, 2, 1);
  const Keys keys{101, 300};
  const Tokens tokens = MakeTokens(3, 1);
  Event removed;
  removed.kind = EventKind::kBlockRemoved;
  removed.hashes = std::span(keys).first(1);
  Event stored;
  stored.kind = EventKind::kBlockStored;
  stored.hashes = std::span(keys).last(1);
  stored.tokens = tokens;
  events::EncodeBatch(events::Schema::kMap, 1.0, std::vector<Event>{removed, stored}, 1, payload_);
  payload_.pop_back();  // the rank
  SendPayload(pod, payload_);
  EXPECT_TRUE(batch_.truncated());
  EXPECT_THAT(Match(1, 2), UnorderedElementsAre(Pair("a:1/0/gpu", 1), Pair("a:1/1/gpu", 1)));
  EXPECT_THAT(Match(3, 1), IsEmpty());
  EXPECT_EQ(counters().skipped_malformed, 1);
}

TEST_F(IngestTest, ASuccessorAtTheSameAddressInheritsNothing) {
  const PublisherId old_pod = Add("a:1");
  StoreRun(old_pod, 100, 1, 3);
  Store(old_pod, {.hashes = {100}, .rest = Medium("CPU")});
  EXPECT_TRUE(ingestor_->RemovePublisher(old_pod));
  const PublisherId new_pod = Add("a:1");
  EXPECT_NE(new_pod, old_pod);
  EXPECT_THAT(Match(1, 3), IsEmpty());
  // It knows none of its predecessor's keys, and late events of the predecessor do not reach it.
  EXPECT_TRUE(Store(new_pod, {.hashes = {103}, .parent = 102, .tokens = {1, 2, 3, 4}}));
  events::EncodeBatch(events::Schema::kMap, 1.0, std::vector<Event>(1), std::nullopt, payload_);
  ASSERT_TRUE(decoder_.Decode(payload_, batch_).ok());
  EXPECT_EQ(ingestor_->Apply(old_pod, batch_).status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(ingestor_->Clear(old_pod));
  EXPECT_FALSE(ingestor_->RemovePublisher(old_pod));
  StoreRun(new_pod, 900, 1, 1);
  EXPECT_THAT(Match(1, 3), UnorderedElementsAre(Pair("a:1/-/gpu", 1)));
}

TEST_F(IngestTest, ClearForgetsBlocksAndGroups) {
  const PublisherId pod = Add("a:1");
  Store(pod, {.hashes = {100}, .tokens = MakeTokens(1, 1), .rest = Group(0, "full_attention")}, 0);
  StoreRun(pod, 200, 2, 1, 1);
  EXPECT_TRUE(ingestor_->Clear(pod));
  EXPECT_THAT(Match(1, 1), IsEmpty());
  EXPECT_THAT(Match(2, 1), IsEmpty());
  Store(pod, {.hashes = {100}, .tokens = MakeTokens(1, 1), .rest = Group(0, "")}, 0);
  EXPECT_EQ(counters().skipped_groups, 1);
  StoreRun(pod, 200, 2, 1, 1);
  EXPECT_THAT(Match(2, 1), UnorderedElementsAre(Pair("a:1/1/gpu", 1)));
}

TEST_F(IngestTest, PublishersAreChecked) {
  Restart({.max_publishers = 2});
  EXPECT_EQ(ingestor_->AddPublisher({}).status().code(), absl::StatusCode::kInvalidArgument);
  Add("a:1");
  EXPECT_EQ(ingestor_->AddPublisher({.endpoint = "a:1"}).status().code(), absl::StatusCode::kAlreadyExists);
  Add("b:1");
  EXPECT_EQ(ingestor_->AddPublisher({.endpoint = "c:1"}).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST_F(IngestTest, HoldersOfOthersAreLeftAlone) {
  const index::HolderId mine = *index_->AddHolder({.endpoint = "a:1"});
  const absl::Status status = ingestor_->AddPublisher({.endpoint = "a:1"}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(status.message(), ::testing::HasSubstr("no ingestor made"));
  EXPECT_NE(index_->GetHolder(mine), nullptr);
  index_->Retire(mine);
  Add("a:1");
}

TEST_F(IngestTest, HoldersAreBoundedByPublisherAndIndex) {
  Restart({.max_holders = 2}, {.max_bytes = 64 << 20, .max_holders = 3});
  const PublisherId pod = Add("a:1");
  for (std::uint32_t rank = 0; rank < 4; ++rank) StoreRun(pod, 100, 1, 1, rank);
  EXPECT_EQ(Match(1, 1).size(), 2);
  EXPECT_EQ(counters().holders_refused, 2);
  const PublisherId other = Add("b:1");
  for (std::uint32_t rank = 0; rank < 2; ++rank) StoreRun(other, 100, 1, 1, rank);
  EXPECT_EQ(Match(1, 1).size(), 3);
  EXPECT_EQ(counters().holders_refused, 3);
}

TEST_F(IngestTest, HoldersAreReported) {
  std::vector<std::string> heard;
  ingestor_->SetHolderCallback(
      [&](PublisherId publisher, index::HolderId holder, const index::HolderOptions& options) {
        EXPECT_EQ(index_->GetHolder(holder)->tier, options.tier);
        heard.push_back(std::to_string(publisher) + ":" + options.endpoint + "/" + options.tier);
      });
  const PublisherId pod = Add("a:1");
  EXPECT_THAT(heard, IsEmpty());
  StoreRun(pod, 100, 1, 1);
  StoreRun(pod, 100, 1, 1);
  Store(pod, {.hashes = {100}, .rest = Medium("Disk")});
  EXPECT_THAT(heard, testing::ElementsAre("1:a:1/gpu", "1:a:1/disk"));
}

TEST_F(IngestTest, HoldersOfASnapshotAreTakenOver) {
  const PublisherId before = Add("a:1");
  StoreRun(before, 100, 1, 2, 0);
  Store(before, {.hashes = {100}, .rest = Medium("CPU")}, 0);
  StoreRun(Add("b:1"), 500, 1, 2);
  std::vector<std::byte> image;
  ASSERT_TRUE(index_
                  ->Snapshot([&](std::span<const std::byte> piece) {
                    image.insert(image.end(), piece.begin(), piece.end());
                    return absl::OkStatus();
                  })
                  .ok());
  ingestor_.reset();
  index_ = *index::PrefixIndex::Restore(image, {.max_bytes = 64 << 20, .max_holders = 64});
  ingestor_ = std::make_unique<KvEventIngestor>(*index_, IngestOptions{});
  int heard = 0;
  ingestor_->SetHolderCallback([&](PublisherId, index::HolderId, const index::HolderOptions&) { ++heard; });
  const PublisherId pod = Add("a:1");
  EXPECT_EQ(heard, 2);
  // Events go on where they stopped.
  EXPECT_FALSE(Store(pod, {.hashes = {102}, .parent = 101, .tokens = {9, 9, 9, 9}}, 0));
  Remove(pod, {100}, "CPU", 0);
  EXPECT_THAT(Match(1, 2), UnorderedElementsAre(Pair("a:1/0/gpu", 2), Pair("b:1/-/gpu", 2)));
  EXPECT_TRUE(ingestor_->Clear(pod));
  // An endpoint that serves another model now starts from nothing.
  Add("b:1", "other-model");
  EXPECT_THAT(Match(1, 2), IsEmpty());
}

}  // namespace
}  // namespace llmd::ingest
