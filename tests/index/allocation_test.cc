// Hot paths do not allocate: counts every operator new of the process around them.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "llmd/base/random.h"
#include "llmd/index/approx_index.h"
#include "llmd/index/prefix_index.h"
#include "tests/index/operations.h"
#include "tests/index/streams.h"
#include "tests/support/allocation_count.h"

namespace llmd::index {
namespace {

template <typename Action>
std::size_t AllocationsOf(Action action) {
  const std::size_t before = AllocationCount();
  action();
  return AllocationCount() - before;
}

// An index in the state that a random stream leaves behind, holes and foreign keys included.
class Allocation : public testing::Test {
 protected:
  void SetUp() override {
    const StreamProfile profile{.name = "Mixed",
                                .operations = 3000,
                                .holders = 50,
                                .refcount = 0.3,
                                .keys = StreamProfile::Keys::kShifting,
                                .lifecycle = 0};
    Stream stream(profile, 5);
    Comparison comparison(*index_, 4096);
    for (std::size_t i = 0; i < profile.operations; ++i) {
      const Operation operation = stream.Next();
      ASSERT_EQ(comparison.Apply(operation), std::nullopt);
      if (operation.kind == Operation::Kind::kStore) stores_.push_back(operation);
    }
    for (int i = 0; i < 300; ++i) matches_.push_back(stream.NextMatch());
    handles_ = comparison.reference().handles;
  }

  std::unique_ptr<PrefixIndex> index_ = *PrefixIndex::Create({});
  Operations stores_, matches_;
  std::map<std::size_t, HolderId> handles_;
};

TEST_F(Allocation, TheCounterCounts) {
  EXPECT_GE(AllocationsOf([] { std::vector<int>(100).shrink_to_fit(); }), 1u);
}

TEST_F(Allocation, AWarmMatchDoesNotAllocate) {
  PrefixIndex::Reader reader(*index_);
  MatchResult result;
  auto match_all = [&] {
    for (const Operation& match : matches_) reader.Match(match.ns, match.chain, result);
  };
  match_all();
  EXPECT_FALSE(result.empty() && result.capacity() == 0);
  EXPECT_EQ(AllocationsOf(match_all), 0u);
}

TEST_F(Allocation, AWarmMatchDoesNotAllocateAfterWrites) {
  PrefixIndex::Reader reader(*index_);
  MatchResult result;
  result.reserve(64);
  reader.Match(matches_[0].ns, matches_[0].chain, result);
  for (const Operation& store : stores_) {
    index_->Store(handles_.at(store.holder), store.ns, store.parent, store.blocks);
    for (int i = 0; i < 3; ++i) {
      const Operation& match = matches_[(&store - stores_.data() + i) % matches_.size()];
      ASSERT_EQ(AllocationsOf([&] { reader.Match(match.ns, match.chain, result); }), 0u);
    }
  }
}

TEST(AllocationOfWrites, StoringKnownBlocksAgainDoesNotAllocate) {
  const auto index = *PrefixIndex::Create({});
  std::vector<HolderId> pods;
  for (int i = 0; i < 20; ++i)
    pods.push_back(*index->AddHolder({.endpoint = std::to_string(i), .dp_rank = {}}));
  Random random(1);
  std::vector<std::vector<StoredBlock>> chains(100);
  for (auto& chain : chains) {
    for (int i = 0; i < 40; ++i) chain.push_back({random.Next(), random.Next()});
  }
  auto store_all = [&] {
    for (const auto& chain : chains) {
      for (HolderId pod : pods) {
        index->Store(pod, {1, 1}, std::nullopt, std::span(chain).first(20));
        index->Store(pod, {1, 1}, chain[19].engine, std::span(chain).subspan(20));
      }
    }
  };
  store_all();
  index->Compact();
  store_all();
  EXPECT_EQ(AllocationsOf(store_all), 0u);
}

TEST(AllocationOfWrites, TailsThatComeAndGoDoNotAllocatePerBlock) {
  const auto index = *PrefixIndex::Create({});
  const HolderId pod = *index->AddHolder({.endpoint = "a", .dp_rank = {}});
  std::vector<StoredBlock> chain;
  std::vector<EngineKey> tail;
  for (std::uint64_t i = 0; i < 400; ++i) chain.push_back({i + 1000, i});
  for (std::uint64_t i = 400; i > 100; --i) tail.push_back(i - 1 + 1000);
  auto cycle = [&] {
    index->Store(pod, {1, 1}, std::nullopt, chain);
    index->Remove(pod, tail);
  };
  for (int i = 0; i < 100; ++i) cycle();
  const std::size_t count = AllocationsOf([&] {
    for (int i = 0; i < 100; ++i) cycle();
  });
  EXPECT_LT(count, 100u * tail.size() / 50) << "300 blocks stored and removed, 100 times";
}

TEST(AllocationOfWrites, NewBlocksDoNotAllocateEach) {
  const auto index = *PrefixIndex::Create({});
  const HolderId pod = *index->AddHolder({.endpoint = "a", .dp_rank = {}});
  std::vector<StoredBlock> blocks(50);
  const std::size_t count = AllocationsOf([&] {
    for (std::uint64_t chain = 0; chain < 2000; ++chain) {
      for (std::uint64_t i = 0; i < blocks.size(); ++i) blocks[i] = {chain << 32 | i, chain << 32 | i};
      index->Store(pod, {1, 1}, std::nullopt, blocks);
    }
  });
  EXPECT_LT(count, 2000u * blocks.size() / 50) << "for 100,000 blocks in 2,000 stores";
}

TEST(AllocationOfWrites, AWarmApproximateMatchDoesNotAllocate) {
  const auto index = *ApproxIndex::Create({});
  const HolderId pod = *index->AddHolder("a");
  const std::vector<BlockKey> chain = {1, 2, 3, 4, 5};
  index->Predict(pod, {1, 1}, chain, absl::UnixEpoch());
  ApproxIndex::Reader reader(*index);
  MatchResult result;
  reader.Match({1, 1}, chain, result);
  EXPECT_EQ(AllocationsOf([&] { reader.Match({1, 1}, chain, result); }), 0u);
  EXPECT_EQ(result.size(), 1u);
}

}  // namespace
}  // namespace llmd::index
