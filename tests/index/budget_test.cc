// The byte budget holds whatever is stored, and eviction never makes an answer wrong, only shorter.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "llmd/base/random.h"
#include "llmd/index/prefix_index.h"
#include "tests/index/operations.h"
#include "tests/index/oracle.h"
#include "tests/index/sanitized.h"
#include "tests/index/streams.h"

namespace llmd::index {
namespace {

constexpr NamespaceId kNs{1, 2};
constexpr std::size_t kMiB = std::size_t{1} << 20;

std::size_t ResidentBytes() {
  std::size_t pages = 0, resident = 0;
  if (std::FILE* file = std::fopen("/proc/self/statm", "r")) {
    if (std::fscanf(file, "%zu %zu", &pages, &resident) != 2) resident = 0;
    std::fclose(file);
  }
  return resident * 4096;
}

// Applies a stream that exceeds the budget to the index and to an oracle that never evicts.
TEST(Budget, EvictionShortensAnswersAndNeverInventsOne) {
  for (const auto keys : {StreamProfile::Keys::kChained, StreamProfile::Keys::kPerHolder}) {
    StreamProfile profile{.name = "Overflow", .operations = 15000, .keys = keys, .contents = 1000};
    profile.holders = 20;
    profile.chains = 40;
    profile.max_chain = 200;
    profile.max_batch = 80;
    profile.removes = 0.05;
    profile.mistakes = 0;
    profile.new_chains = 0.3;
    profile.lifecycle = 0.002;
    profile.onward = 6;
    const auto index = *PrefixIndex::Create({.max_bytes = kMiB, .max_holders = 64});
    OraclePrefixIndex oracle;
    Reference reference;
    PrefixIndex::Reader reader(*index);
    MatchResult result;
    std::size_t seen = 0, expected = 0;
    for (const Operation& operation : MakeOperations(profile, 3)) {
      const HolderId id = reference.Handle(operation.holder);
      switch (operation.kind) {
        case Operation::Kind::kAddHolder:
          if (const auto added = index->AddHolder(operation.options); added.ok()) {
            oracle.AddHolder(*added, operation.options);
            reference.handles[operation.holder] = *added;
          }
          break;
        case Operation::Kind::kStore:
          index->Store(id, operation.ns, operation.parent, operation.blocks);
          oracle.Store(id, operation.ns, operation.parent, operation.blocks);
          break;
        case Operation::Kind::kStoreKnown:
          index->StoreKnown(id, operation.keys);
          oracle.StoreKnown(id, operation.keys);
          break;
        case Operation::Kind::kRemove:
          index->Remove(id, operation.keys);
          oracle.Remove(id, operation.keys);
          break;
        case Operation::Kind::kClear:
          EXPECT_EQ(index->Clear(id), oracle.Clear(id));
          break;
        case Operation::Kind::kRetire:
          EXPECT_EQ(index->Retire(id), oracle.Retire(id));
          break;
        case Operation::Kind::kCompact:
          index->Compact();
          break;
        case Operation::Kind::kMatch: {
          reader.Match(operation.ns, operation.chain, result);
          const std::optional<OracleMatch> rows = BySlot(result);
          ASSERT_TRUE(rows.has_value());
          const OracleMatch whole = oracle.Match(operation.ns, operation.chain);
          for (const auto& [slot, depth] : *rows) {
            ASSERT_TRUE(whole.contains(slot)) << ToString(operation);
            ASSERT_LE(depth, whole.at(slot)) << ToString(operation);
            seen += depth;
          }
          for (const auto& [slot, depth] : whole) expected += depth;
          ASSERT_LE(index->memory_usage().total_bytes(), kMiB);
        }
      }
    }
    EXPECT_GT(index->stats().evicted_runs, 0u);
    EXPECT_LE(index->stats().holder_blocks, oracle.stats().holder_blocks);
    EXPECT_LT(seen, expected);
    EXPECT_GT(seen, expected / 10) << "eviction takes what is in use";
  }
}

struct Stored {
  std::vector<BlockKey> chain;
  HolderId pod;
};

// Chains that nobody asks for again, many times the budget: the latest are there, the first are not.
TEST(Budget, RecentChainsSurviveOldOnes) {
  constexpr std::size_t kBudget = 8 * kMiB, kChains = 60000;
  const std::size_t resident_before = ResidentBytes();
  const auto index = *PrefixIndex::Create({.max_bytes = kBudget, .max_holders = 64});
  std::vector<HolderId> pods;
  for (int i = 0; i < 16; ++i)
    pods.push_back(*index->AddHolder({.endpoint = std::to_string(i), .dp_rank = {}}));
  Random random(4);
  std::vector<Stored> stored;
  std::vector<StoredBlock> blocks;
  for (std::size_t i = 0; i < kChains; ++i) {
    Stored next{.chain = {}, .pod = pods[random.Below(pods.size())]};
    next.chain.resize(random.Between(5, 60));
    for (std::size_t j = 0; j < next.chain.size(); ++j) next.chain[j] = random.Next();
    blocks.clear();
    for (BlockKey key : next.chain) blocks.push_back({key ^ 1, key});
    ASSERT_EQ(index->Store(next.pod, kNs, std::nullopt, blocks).added, blocks.size());
    stored.push_back(std::move(next));
    if (i % 16 == 0) {
      ASSERT_LE(index->memory_usage().total_bytes(), kBudget) << i;
    }
  }
  EXPECT_GT(index->stats().evicted_runs, kChains / 2);
  PrefixIndex::Reader reader(*index);
  MatchResult result;
  auto survivors = [&](std::size_t begin, std::size_t end) {
    std::size_t count = 0;
    for (std::size_t i = begin; i < end; ++i) {
      reader.Match(kNs, stored[i].chain, result);
      EXPECT_LE(result.size(), 1u);
      if (result.empty()) continue;
      EXPECT_EQ(result[0].slot, stored[i].pod.slot);
      EXPECT_LE(result[0].depth, stored[i].chain.size());
      count += result[0].depth == stored[i].chain.size();
    }
    return count;
  };
  const std::size_t old = survivors(0, kChains / 20), recent = survivors(kChains - kChains / 20, kChains);
  EXPECT_GT(recent, kChains / 20 * 9 / 10);
  EXPECT_LT(old, recent / 4);
  if (!kSanitized) {
    const std::size_t ours = kChains * (sizeof(Stored) + 33 * 8) * 2;
    EXPECT_LT(ResidentBytes() - resident_before, kBudget + ours + 8 * kMiB);
  }

  const MemoryUsage full = index->memory_usage();
  EXPECT_EQ(full.budget_bytes, kBudget);
  for (HolderId pod : pods) index->Clear(pod);
  index->Compact();
  const MemoryUsage empty = index->memory_usage();
  EXPECT_LT(empty.live_bytes() + empty.dead_bytes(), full.live_bytes() / 8);
  EXPECT_LE(empty.total_bytes(), full.total_bytes());
  EXPECT_EQ(index->stats().nodes, 0u);
  EXPECT_EQ(index->stats().runs, 0u);
  EXPECT_EQ(index->stats().holder_blocks, 0u);
}

// A prefix that is stored to again and again outlives a flood of chains that are stored once.
TEST(Budget, AFloodOfOnceStoredChainsDoesNotWashTheHotOnesOut) {
  const auto index = *PrefixIndex::Create({.max_bytes = 4 * kMiB, .max_holders = 4});
  const HolderId pod = *index->AddHolder({.endpoint = "a", .dp_rank = {}});
  std::vector<std::vector<StoredBlock>> hot(20);
  Random random(8);
  for (auto& chain : hot) {
    for (int i = 0; i < 50; ++i) chain.push_back({random.Next(), random.Next()});
  }
  std::vector<StoredBlock> once(30);
  for (int i = 0; i < 40000; ++i) {
    if (i % 10 == 0) index->Store(pod, kNs, std::nullopt, hot[random.Below(hot.size())]);
    for (StoredBlock& block : once) block = {random.Next(), random.Next()};
    index->Store(pod, kNs, std::nullopt, once);
  }
  EXPECT_GT(index->stats().evicted_runs, 1000u);
  PrefixIndex::Reader reader(*index);
  MatchResult result;
  std::size_t kept = 0;
  for (const auto& chain : hot) {
    std::vector<BlockKey> contents;
    for (const StoredBlock& block : chain) contents.push_back(block.content);
    reader.Match(kNs, contents, result);
    kept += !result.empty() && result[0].depth == contents.size();
  }
  EXPECT_GE(kept, 18u);
}

// --- Publishers that cost as much memory as they can

class Hostile : public testing::Test {
 protected:
  static constexpr std::size_t kBudget = 2 * kMiB;

  void Create(std::size_t holders, RemovalPolicy removal = RemovalPolicy::kSet,
              std::size_t max_holders = 512) {
    resident_before_ = ResidentBytes();
    index_ = *PrefixIndex::Create({.max_bytes = kBudget, .max_holders = max_holders});
    for (std::size_t i = 0; i < holders; ++i) {
      pods_.push_back(*index_->AddHolder(
          {.endpoint = std::to_string(i), .dp_rank = {}, .removal = removal, .key_space = 0}));
    }
  }

  void CheckNow(std::uint64_t step) {
    const MemoryUsage usage = index_->memory_usage();
    ASSERT_LE(usage.total_bytes(), kBudget) << "step " << step;
    ASSERT_EQ(usage.total_bytes(), usage.live_bytes() + usage.dead_bytes() + usage.free_bytes());
    for (const MemoryUsage::Cause& cause : usage.causes) {
      for (std::size_t bytes : {cause.live_bytes, cause.dead_bytes, cause.free_bytes}) {
        ASSERT_LE(bytes, kBudget) << cause.name << " at step "
                                  << step;  // also catches a difference below zero
      }
    }
  }

  void TearDown() override {
    if (!kSanitized) {
      EXPECT_LT(ResidentBytes() - std::min(ResidentBytes(), resident_before_), kBudget + 8 * kMiB);
    }
    for (HolderId pod : pods_) index_->Clear(pod);
    EXPECT_EQ(index_->stats().holder_blocks, 0u);
    EXPECT_EQ(index_->stats().foreign_keys, 0u);
    EXPECT_EQ(index_->stats().nodes, 0u);
  }

  HolderId Pod() { return pods_[random_.Below(pods_.size())]; }

  Random random_{6};
  std::unique_ptr<PrefixIndex> index_;
  std::vector<HolderId> pods_;
  std::size_t resident_before_ = 0;
};

TEST_F(Hostile, RunsOfOneBlock) {
  Create(8);
  for (std::uint64_t i = 0; i < 200000; ++i) {
    const StoredBlock block{random_.Next(), random_.Next()};
    index_->Store(Pod(), {i, 0}, std::nullopt, {&block, 1});
    if (i % 32 == 0) {
      ASSERT_NO_FATAL_FAILURE(CheckNow(i));
    }
  }
  EXPECT_GT(index_->stats().evicted_runs, 0u);
}

// A chain of blocks, a branch of one block behind each.
TEST_F(Hostile, CombOfBranches) {
  Create(4);
  EngineKey parent = 0;
  for (std::uint64_t i = 1; i < 100000; ++i) {
    const StoredBlock spine{i, 1}, branch{i | std::uint64_t{1} << 40, 2};
    const HolderId pod = Pod();
    const std::optional<EngineKey> below = parent == 0 ? std::nullopt : std::optional(parent);
    const bool known = index_->Store(pod, kNs, below, {&spine, 1}).outcome == StoreOutcome::kApplied;
    index_->Store(pod, kNs, below, {&branch, 1});
    parent = known ? i : 0;
    if (i % 32 == 0) {
      ASSERT_NO_FATAL_FAILURE(CheckNow(i));
    }
  }
  EXPECT_GT(index_->stats().evicted_runs, 0u);
}

// Known contents under ever new keys, by every holder.
TEST_F(Hostile, ForeignKeysOnly) {
  Create(64);
  std::vector<StoredBlock> blocks(50);
  for (std::uint64_t i = 0; i < 20000; ++i) {
    const std::uint64_t chain = random_.Below(100);
    for (std::size_t j = 0; j < blocks.size(); ++j) blocks[j] = {random_.Next(), chain << 32 | j};
    index_->Store(Pod(), kNs, std::nullopt, blocks);
    if (i % 8 == 0) {
      ASSERT_NO_FATAL_FAILURE(CheckNow(i));
    }
  }
}

// Every other block of long runs taken away, for every holder; stored again, and so on.
TEST_F(Hostile, HolesEverywhere) {
  for (const RemovalPolicy removal : {RemovalPolicy::kSet, RemovalPolicy::kRefcount}) {
    pods_.clear();
    Create(400, removal);
    std::vector<StoredBlock> blocks(3000);
    for (std::uint64_t i = 0; i < blocks.size(); ++i) blocks[i] = {i + 1, i};
    for (std::uint64_t i = 0; i < 1500; ++i) {
      const HolderId pod = Pod();
      index_->Store(pod, kNs, std::nullopt, blocks);
      if (removal == RemovalPolicy::kRefcount) index_->Store(pod, kNs, std::nullopt, blocks);
      std::vector<EngineKey> keys;
      for (std::uint64_t j = random_.Below(2); j < blocks.size(); j += 2) keys.push_back(j + 1);
      index_->Remove(pod, keys);
      ASSERT_NO_FATAL_FAILURE(CheckNow(i));
    }
  }
}

// A deep chain in which each run holds one block, since two engine families publish it in turn: only its last
// run is without children, and it is the one that was stored to last.
TEST_F(Hostile, ChainOfRunsOfOneBlock) {
  Create(0);
  for (std::uint32_t space : {0, 1}) {
    pods_.push_back(
        *index_->AddHolder({.endpoint = std::to_string(space), .dp_rank = {}, .key_space = space}));
  }
  bool at_root = true;
  for (std::uint64_t i = 1; i < 20000; ++i) {
    const StoredBlock block{i, i};
    const std::optional<EngineKey> parent = at_root ? std::nullopt : std::optional<EngineKey>(i - 1);
    at_root = false;
    for (int turn : {0, 1}) {
      const StoreResult result = index_->Store(pods_[(i + turn) % 2], kNs, parent, {&block, 1});
      at_root |= result.outcome == StoreOutcome::kUnknownParent;  // evicted under the publisher's feet
    }
    ASSERT_NO_FATAL_FAILURE(CheckNow(i));
  }
  EXPECT_GT(index_->stats().evicted_runs, 0u);
}

// All holders at the first block of many chains.
TEST_F(Hostile, EveryHolderEverywhere) {
  Create(500);
  for (std::uint64_t i = 0; i < 300000; ++i) {
    const std::uint64_t chain = random_.Below(4000);
    const StoredBlock block{chain + 1, chain};
    index_->Store(Pod(), kNs, std::nullopt, {&block, 1});
    if (i % 256 == 0) {
      ASSERT_NO_FATAL_FAILURE(CheckNow(i));
    }
  }
}

TEST_F(Hostile, RandomOperationsFromATinySetAndAHugeOne) {
  Create(30);
  for (std::uint64_t i = 0; i < 60000; ++i) {
    auto key = [&] { return random_.Chance(0.5) ? random_.Below(64) : random_.Next(); };
    std::vector<StoredBlock> blocks(random_.Between(0, 40));
    for (StoredBlock& block : blocks) block = {key(), key()};
    std::vector<EngineKey> keys(random_.Between(0, 10));
    for (EngineKey& k : keys) k = key();
    const HolderId pod = Pod();
    switch (random_.Below(10)) {
      case 0:
        index_->Remove(pod, keys);
        break;
      case 1:
        index_->StoreKnown(pod, keys);
        break;
      case 2:
        if (random_.Chance(0.01)) index_->Clear(pod);
        break;
      default:
        index_->Store(pod, {random_.Below(3), 0},
                      random_.Chance(0.5) ? std::nullopt : std::optional<EngineKey>(key()), blocks);
    }
    if (i % 16 == 0) {
      ASSERT_NO_FATAL_FAILURE(CheckNow(i));
    }
  }
}

// One call with more than the whole budget.
TEST_F(Hostile, OneEnormousStore) {
  Create(2);
  std::vector<StoredBlock> blocks(400000);
  for (StoredBlock& block : blocks) block = {random_.Next(), random_.Next()};
  index_->Store(pods_[0], kNs, std::nullopt, blocks);
  ASSERT_NO_FATAL_FAILURE(CheckNow(0));
  std::vector<EngineKey> keys;
  for (const StoredBlock& block : blocks) keys.push_back(block.engine);
  index_->StoreKnown(pods_[1], keys);
  ASSERT_NO_FATAL_FAILURE(CheckNow(1));
  index_->Remove(pods_[0], keys);
  ASSERT_NO_FATAL_FAILURE(CheckNow(2));
  index_->Store(pods_[0], kNs, std::nullopt, std::span(blocks).first(100));  // still in working order
  ASSERT_NO_FATAL_FAILURE(CheckNow(3));
}

// Smallest legal budget.
TEST_F(Hostile, StillWorksWithOneMebibyte) {
  const auto index = *PrefixIndex::Create({.max_bytes = kMiB, .max_holders = 65535});
  const HolderId pod = *index->AddHolder({.endpoint = "a", .dp_rank = {}});
  Create(0);
  for (std::uint64_t i = 0; i < 50000; ++i) {
    const StoredBlock blocks[] = {{i * 2 + 1, i}, {i * 2 + 2, i}};
    ASSERT_EQ(index->Store(pod, kNs, std::nullopt, blocks).added, 2u);
    if (i % 64 == 0) {
      ASSERT_LE(index->memory_usage().total_bytes(), kMiB) << i;
    }
  }
}

}  // namespace
}  // namespace llmd::index
