// The approximate index equals its literal reference: a list of blocks per holder, most recently predicted
// first.
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "llmd/base/random.h"
#include "llmd/index/approx_index.h"
#include "tests/index/operations.h"
#include "tests/index/oracle.h"

namespace llmd::index {
namespace {

constexpr NamespaceId kNs{1, 1};

std::vector<std::uint64_t> Seeds(std::uint64_t count) {
  std::vector<std::uint64_t> seeds;
  for (std::uint64_t seed = 1; seed <= count; ++seed) seeds.push_back(seed);
  if (const char* text = std::getenv("LLMD_TEST_SEED")) seeds.push_back(std::strtoull(text, nullptr, 10));
  return seeds;
}

struct Shape {
  const char* name;
  std::size_t operations = 3000;
  std::size_t holders = 4;
  std::size_t default_capacity = 40;
  std::size_t max_capacity = 60;  // of holders that bring their own
  std::size_t max_chain = 30;
  std::uint64_t contents = 3;
  std::uint64_t namespaces = 2;
  absl::Duration ttl = absl::InfiniteDuration();
};

class ApproxDifferential : public testing::TestWithParam<Shape> {};

// An index and its reference, driven by one random source.
class Play {
 public:
  Play(const Shape& shape, std::uint64_t seed)
      : shape_(shape),
        random_(seed),
        index_(*ApproxIndex::Create({.capacity_blocks = shape.default_capacity, .ttl = shape.ttl})),
        reader_(*index_),
        oracle_(shape.ttl),
        holders_(shape.holders) {
    for (std::size_t i = 0; i < shape.holders; ++i) AddHolder(i);
  }

  void Step() {
    const std::size_t at = random_.Below(holders_.size());
    const HolderId id = holders_[at];
    now_ += absl::Seconds(static_cast<double>(random_.Below(3)));  // often the same moment
    switch (random_.Below(40)) {
      case 0:
        log_ = "Clear";
        EXPECT_EQ(index_->Clear(id), oracle_.Clear(id));
        break;
      case 1:
        log_ = "Retire";
        EXPECT_EQ(index_->Retire(id), oracle_.Retire(id));
        EXPECT_FALSE(index_->Predict(id, kNs, std::vector<BlockKey>{1}, now_));
        EXPECT_FALSE(index_->Clear(id));
        EXPECT_FALSE(index_->Resize(id, 7));
        EXPECT_EQ(index_->size(id), 0u);
        AddHolder(at);
        break;
      case 2:
      case 3:
        log_ = "Expire";
        index_->Expire(now_);
        oracle_.Expire(now_);
        break;
      case 4: {
        log_ = "Resize";
        const std::size_t own = OwnCapacity();
        EXPECT_EQ(index_->Resize(id, own), oracle_.Resize(id, CapacityOf(own)));
        break;
      }
      default: {
        log_ = "Predict";
        const std::vector<BlockKey> chain = NextChain();
        const NamespaceId ns = NextNs();
        EXPECT_EQ(index_->Predict(id, ns, chain, now_), oracle_.Predict(id, ns, chain, now_));
      }
    }
    Compare();
  }

  void Compare() {
    std::size_t blocks = 0;
    for (HolderId id : holders_) {
      ASSERT_EQ(index_->size(id), oracle_.size(id)) << log_ << " slot " << id.slot;
      blocks += oracle_.size(id);
    }
    ASSERT_EQ(index_->stats().holder_blocks, blocks);
    for (int i = 0; i < 4; ++i) {
      const NamespaceId ns = NextNs();
      const std::vector<BlockKey> chain = NextChain();
      reader_.Match(ns, chain, result_);
      const std::optional<OracleMatch> rows = BySlot(result_);
      ASSERT_TRUE(rows.has_value());
      ASSERT_EQ(*rows, oracle_.Match(ns, chain)) << log_;
    }
  }

 private:
  void AddHolder(std::size_t at) {
    const std::size_t own = OwnCapacity();
    const auto id = index_->AddHolder("pod" + std::to_string(at), own);
    ASSERT_TRUE(id.ok()) << id.status();
    oracle_.AddHolder(*id, CapacityOf(own));
    holders_[at] = *id;
  }
  std::size_t OwnCapacity() { return random_.Chance(0.5) ? 0 : random_.Between(1, shape_.max_capacity); }
  std::size_t CapacityOf(std::size_t own) const { return own == 0 ? shape_.default_capacity : own; }
  NamespaceId NextNs() { return {random_.Below(shape_.namespaces), 5}; }
  std::vector<BlockKey> NextChain() {
    std::vector<BlockKey> chain;
    if (!known_.empty() && random_.Chance(0.6)) chain = known_[random_.Below(known_.size())];
    if (random_.Chance(0.4)) chain.resize(random_.Between(0, chain.size()));
    const std::size_t length = random_.Between(0, shape_.max_chain);
    while (chain.size() < length) chain.push_back(random_.Below(shape_.contents));
    if (known_.size() < 20) {
      known_.push_back(chain);
    } else if (random_.Chance(0.1)) {
      known_[random_.Below(known_.size())] = chain;
    }
    return chain;
  }

  Shape shape_;
  Random random_;
  std::unique_ptr<ApproxIndex> index_;
  ApproxIndex::Reader reader_;
  OracleApproxIndex oracle_;
  std::vector<HolderId> holders_;
  std::vector<std::vector<BlockKey>> known_;
  absl::Time now_ = absl::UnixEpoch();
  const char* log_ = "";
  MatchResult result_;
};

TEST_P(ApproxDifferential, EqualsTheOracle) {
  for (std::uint64_t seed : Seeds(3)) {
    Play play(GetParam(), seed);
    for (std::size_t i = 0; i < GetParam().operations; ++i) {
      play.Step();
      if (HasFailure()) FAIL() << GetParam().name << ", LLMD_TEST_SEED=" << seed << ", operation " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, ApproxDifferential,
    testing::Values(
        Shape{.name = "Capacity"}, Shape{.name = "Ttl", .default_capacity = 1000, .ttl = absl::Seconds(40)},
        Shape{.name = "ShortTtl", .holders = 2, .ttl = absl::Seconds(2)},
        Shape{.name = "Both", .ttl = absl::Seconds(15)},
        Shape{.name = "Tiny", .default_capacity = 1, .max_capacity = 5, .contents = 2, .namespaces = 1},
        Shape{.name = "OneNamespace", .default_capacity = 15, .contents = 2, .namespaces = 1},
        Shape{.name = "LongerChains",
              .operations = 400,
              .default_capacity = 200,
              .max_capacity = 300,
              .max_chain = 250,
              .contents = 50,
              .ttl = absl::Seconds(60)},
        Shape{.name = "ManyHolders", .operations = 1500, .holders = 100}),
    [](const auto& info) { return std::string(info.param.name); });

class ApproxDirected : public testing::Test {
 protected:
  std::uint32_t Depth(ApproxIndex& index, HolderId id, const std::vector<BlockKey>& chain) {
    ApproxIndex::Reader reader(index);
    reader.Match(kNs, chain, result_);
    for (const HolderDepth& row : result_) {
      if (row.slot == id.slot) return row.depth;
    }
    return 0;
  }
  MatchResult result_;
};

TEST_F(ApproxDirected, TailsAreForgottenBeforeTheirPrefix) {
  const auto index = *ApproxIndex::Create({.capacity_blocks = 5});
  const HolderId pod = *index->AddHolder("a");
  index->Predict(pod, kNs, std::vector<BlockKey>{1, 2, 3, 4}, absl::UnixEpoch());
  index->Predict(pod, kNs, std::vector<BlockKey>{9, 8, 7}, absl::UnixEpoch());
  EXPECT_EQ(Depth(*index, pod, {1, 2, 3, 4}), 2u);
  EXPECT_EQ(Depth(*index, pod, {9, 8, 7}), 3u);
}

TEST_F(ApproxDirected, MatchingDoesNotRefresh) {
  const auto index = *ApproxIndex::Create({.capacity_blocks = 2});
  const HolderId pod = *index->AddHolder("a");
  index->Predict(pod, kNs, std::vector<BlockKey>{1}, absl::UnixEpoch());
  index->Predict(pod, kNs, std::vector<BlockKey>{2}, absl::UnixEpoch());
  EXPECT_EQ(Depth(*index, pod, {1}), 1u);
  index->Predict(pod, kNs, std::vector<BlockKey>{3}, absl::UnixEpoch());
  EXPECT_EQ(Depth(*index, pod, {1}), 0u);
  EXPECT_EQ(Depth(*index, pod, {2}), 1u);
}

TEST_F(ApproxDirected, AChainLongerThanTheCapacityIsCut) {
  const auto index = *ApproxIndex::Create({.capacity_blocks = 100});
  const HolderId pod = *index->AddHolder("a", 3);
  EXPECT_TRUE(index->Predict(pod, kNs, std::vector<BlockKey>{1, 2, 3, 4, 5}, absl::UnixEpoch()));
  EXPECT_EQ(Depth(*index, pod, {1, 2, 3, 4, 5}), 3u);
  EXPECT_EQ(index->size(pod), 3u);
}

TEST_F(ApproxDirected, TheTimeToLiveEndsAtItsMoment) {
  const auto index = *ApproxIndex::Create({.ttl = absl::Seconds(10)});
  const HolderId pod = *index->AddHolder("a");
  const absl::Time start = absl::UnixEpoch();
  index->Predict(pod, kNs, std::vector<BlockKey>{1, 2, 3}, start);
  index->Predict(pod, kNs, std::vector<BlockKey>{1}, start + absl::Seconds(5));
  index->Expire(start + absl::Seconds(10) - absl::Nanoseconds(1));
  EXPECT_EQ(Depth(*index, pod, {1, 2, 3}), 3u);
  index->Expire(start + absl::Seconds(10));
  EXPECT_EQ(Depth(*index, pod, {1, 2, 3}), 1u);
  EXPECT_TRUE(index->Predict(pod, kNs, {}, start + absl::Seconds(15)));
  EXPECT_EQ(index->size(pod), 0u);
}

// Longer than a run may be, with a default capacity that holds it.
TEST_F(ApproxDirected, ChainsBeyondOneRun) {
  const auto index = *ApproxIndex::Create({.capacity_blocks = 100000});
  const HolderId pod = *index->AddHolder("a");
  std::vector<BlockKey> chain(70000);
  for (std::size_t i = 0; i < chain.size(); ++i) chain[i] = i;
  index->Predict(pod, kNs, chain, absl::UnixEpoch());
  EXPECT_EQ(Depth(*index, pod, chain), 70000u);
  std::vector<BlockKey> other(40000, 7);
  index->Predict(pod, kNs, other, absl::UnixEpoch());
  EXPECT_EQ(Depth(*index, pod, chain), 60000u);
  EXPECT_EQ(Depth(*index, pod, other), 40000u);
}

TEST(ApproxIndexOptions, AreChecked) {
  EXPECT_TRUE(absl::IsInvalidArgument(ApproxIndex::Create({.capacity_blocks = 0}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(ApproxIndex::Create({.ttl = absl::ZeroDuration()}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(ApproxIndex::Create({.max_holders = 0}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(ApproxIndex::Create({.max_holders = 65536}).status()));
}

// Far more than the budget: memory stays below it, and what is reported was predicted.
TEST(ApproxBudget, IsKept) {
  const std::size_t budget = std::size_t{4} << 20;
  const auto index =
      *ApproxIndex::Create({.capacity_blocks = 1 << 20, .max_bytes = budget, .max_holders = 16});
  std::vector<HolderId> pods;
  for (int i = 0; i < 8; ++i) pods.push_back(*index->AddHolder(std::to_string(i)));
  Random random(1);
  ApproxIndex::Reader reader(*index);
  MatchResult result;
  std::map<std::uint64_t, std::uint32_t> owner;  // chain -> slot of the holder that it was sent to
  for (std::uint64_t i = 0; i < 20000; ++i) {
    const std::size_t pod = random.Below(pods.size());
    std::vector<BlockKey> chain(random.Between(1, 100));
    for (std::size_t j = 0; j < chain.size(); ++j) chain[j] = i << 20 | j;
    index->Predict(pods[pod], kNs, chain, absl::UnixEpoch());
    owner[i] = pods[pod].slot;
    if (i % 64 == 0) {
      ASSERT_LE(index->memory_usage().total_bytes(), budget) << i;
      const std::uint64_t past = random.Below(i + 1);
      reader.Match(kNs, std::vector<BlockKey>{past << 20}, result);
      for (const HolderDepth& row : result) ASSERT_EQ(row.slot, owner[past]);
    }
  }
  EXPECT_GT(index->stats().evicted_runs, 0u);
  std::size_t blocks = 0;
  for (HolderId pod : pods) blocks += index->size(pod);
  EXPECT_EQ(index->stats().holder_blocks, blocks);
  for (HolderId pod : pods) index->Clear(pod);
  EXPECT_EQ(index->stats().holder_blocks, 0u);
  EXPECT_EQ(index->stats().nodes, 0u);
}

}  // namespace
}  // namespace llmd::index
