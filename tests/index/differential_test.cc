// The exact index equals its literal reference after every operation of random and hostile streams.
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "llmd/index/prefix_index.h"
#include "tests/index/operations.h"
#include "tests/index/streams.h"

namespace llmd::index {
namespace {

using Keys = StreamProfile::Keys;

std::vector<StreamProfile> Profiles() {
  std::vector<StreamProfile> profiles;
  profiles.push_back({.name = "Typical"});
  profiles.push_back({.name = "Faultless", .contents = 20, .mistakes = 0});
  profiles.push_back({.name = "TypicalKeySpaces", .key_spaces = 3, .namespaces = 3});
  profiles.push_back({.name = "OneFamily", .namespaces = 1, .contents = 2, .chains = 6, .max_chain = 12});
  profiles.push_back({.name = "BinaryTree", .namespaces = 1, .contents = 2, .chains = 60, .max_chain = 9});
  profiles.push_back({.name = "LongerRuns", .contents = 100, .chains = 8, .max_chain = 300, .max_batch = 40});
  profiles.push_back({.name = "ForeignSeeds", .keys = Keys::kPerHolder});
  profiles.push_back({.name = "ForeignSeedsRefcount", .refcount = 0.5, .keys = Keys::kPerHolder});
  profiles.push_back({.name = "ShiftingSeeds", .key_spaces = 2, .refcount = 0.3, .keys = Keys::kShifting});
  profiles.push_back({.name = "Twins", .holders = 4, .refcount = 0.2, .keys = Keys::kTwins});
  profiles.push_back({.name = "Refcount", .refcount = 1, .max_chain = 10, .removes = 0.4});
  profiles.push_back({.name = "HolesAndDeath", .max_chain = 16, .lifecycle = 0.1, .removes = 0.5});
  profiles.push_back({.name = "Hostile",
                      .holders = 4,
                      .key_spaces = 2,
                      .refcount = 0.3,
                      .keys = Keys::kTiny,
                      .contents = 2,
                      .max_chain = 8});
  profiles.push_back({.name = "HostileFewKeys",
                      .holders = 3,
                      .keys = Keys::kTiny,
                      .contents = 3,
                      .tiny_keys = 4,
                      .max_chain = 6,
                      .lifecycle = 0.05});
  profiles.push_back({.name = "HostileManyKeys",
                      .key_spaces = 2,
                      .namespaces = 3,
                      .refcount = 0.5,
                      .keys = Keys::kTiny,
                      .contents = 2,
                      .tiny_keys = 60,
                      .max_chain = 40,
                      .max_batch = 20});
  return profiles;
}

class Differential : public testing::TestWithParam<StreamProfile> {
 protected:
  void Check(const StreamProfile& profile, std::uint64_t seed) {
    const Operations operations = MakeOperations(profile, seed);
    if (const auto difference = RunOnBoth(operations)) {
      FAIL() << profile.name << ", LLMD_TEST_SEED=" << seed << "\n" << Explain(operations, *difference);
    }
  }

  // The fixed seeds, and the one of the environment.
  static std::vector<std::uint64_t> Seeds(std::uint64_t count) {
    std::vector<std::uint64_t> seeds;
    for (std::uint64_t seed = 1; seed <= count; ++seed) seeds.push_back(seed);
    if (const char* text = std::getenv("LLMD_TEST_SEED")) seeds.push_back(std::strtoull(text, nullptr, 10));
    return seeds;
  }
};

TEST_P(Differential, EqualsTheOracle) {
  for (std::uint64_t seed : Seeds(3)) ASSERT_NO_FATAL_FAILURE(Check(GetParam(), seed));
}

// Many short lives reach more of the first states than few long ones.
TEST_P(Differential, EqualsTheOracleInShortStreams) {
  StreamProfile profile = GetParam();
  profile.operations = 60;
  profile.holders = 3;
  profile.chains = 4;
  for (std::uint64_t seed : Seeds(100)) ASSERT_NO_FATAL_FAILURE(Check(profile, seed));
}

INSTANTIATE_TEST_SUITE_P(Streams, Differential, testing::ValuesIn(Profiles()),
                         [](const auto& info) { return info.param.name; });

using DifferentialScale = Differential;

// Chains beyond 65,535 blocks, in batches of up to 300.
TEST_P(DifferentialScale, EqualsTheOracle) {
  for (std::uint64_t seed : Seeds(1)) ASSERT_NO_FATAL_FAILURE(Check(GetParam(), seed));
}

INSTANTIATE_TEST_SUITE_P(Streams, DifferentialScale,
                         testing::Values(StreamProfile{.name = "LongChains",
                                                       .operations = 2200,
                                                       .holders = 2,
                                                       .namespaces = 1,
                                                       .refcount = 0.2,
                                                       .contents = 1 << 30,
                                                       .chains = 2,
                                                       .max_chain = 70000,
                                                       .max_batch = 300,
                                                       .lifecycle = 0.001,
                                                       .removes = 0.03,
                                                       .mistakes = 0,
                                                       .new_chains = 0,
                                                       .onward = 40,
                                                       .match_every = 100},
                                         StreamProfile{.name = "LongChainsForeign",
                                                       .operations = 1500,
                                                       .holders = 2,
                                                       .namespaces = 1,
                                                       .keys = Keys::kPerHolder,
                                                       .contents = 1 << 30,
                                                       .chains = 1,
                                                       .max_chain = 70000,
                                                       .max_batch = 300,
                                                       .lifecycle = 0.001,
                                                       .removes = 0.03,
                                                       .mistakes = 0,
                                                       .new_chains = 0,
                                                       .onward = 40,
                                                       .match_every = 100},
                                         StreamProfile{.name = "ManyHolders",
                                                       .operations = 12000,
                                                       .holders = 500,
                                                       .namespaces = 1,
                                                       .contents = 2,
                                                       .chains = 3,
                                                       .max_chain = 50,
                                                       .max_batch = 30,
                                                       .lifecycle = 0.01,
                                                       .match_every = 50},
                                         StreamProfile{.name = "ManyHoldersHostile",
                                                       .operations = 12000,
                                                       .holders = 300,
                                                       .namespaces = 1,
                                                       .refcount = 0.3,
                                                       .keys = Keys::kTiny,
                                                       .contents = 1,
                                                       .tiny_keys = 100,
                                                       .chains = 2,
                                                       .max_chain = 20,
                                                       .match_every = 50}),
                         [](const auto& info) { return info.param.name; });

// Every match, whatever the number of readers before it, gives its rows in the order that the history
// determines.
TEST(Determinism, SameHistorySameRowsInTheSameOrder) {
  const Operations operations =
      MakeOperations({.name = "Typical", .holders = 40, .refcount = 0.5, .chains = 4}, 11);
  auto play = [&](bool match_between) {
    const auto index = *PrefixIndex::Create({});
    Comparison comparison(*index, 4096);
    for (const Operation& operation : operations) {
      if (operation.kind == Operation::Kind::kMatch && !match_between) continue;
      EXPECT_EQ(comparison.Apply(operation), std::nullopt);
    }
    PrefixIndex::Reader reader(*index);
    std::vector<MatchResult> results;
    for (const Operation& operation : operations) {
      if (operation.kind != Operation::Kind::kMatch) continue;
      reader.Match(operation.ns, operation.chain, results.emplace_back());
    }
    return results;
  };
  EXPECT_EQ(play(true), play(false));
}

// The directed tests below pin what random streams reach rarely.

class Directed : public testing::Test {
 protected:
  static constexpr NamespaceId kNs{1, 2};

  HolderId Add(const std::string& endpoint, RemovalPolicy removal = RemovalPolicy::kSet,
               std::uint32_t space = 0) {
    return *index_->AddHolder({.endpoint = endpoint, .dp_rank = {}, .removal = removal, .key_space = space});
  }

  // Blocks with content i and engine key base + i, for i in [begin, end).
  static std::vector<StoredBlock> Blocks(std::uint64_t begin, std::uint64_t end, EngineKey base) {
    std::vector<StoredBlock> blocks;
    for (std::uint64_t i = begin; i < end; ++i) blocks.push_back({base + i, i});
    return blocks;
  }

  std::uint32_t Depth(HolderId id, const std::vector<BlockKey>& chain, const NamespaceId& ns = kNs) {
    PrefixIndex::Reader reader(*index_);
    reader.Match(ns, chain, result_);
    for (const HolderDepth& row : result_) {
      if (row.slot == id.slot) return row.depth;
    }
    return 0;
  }

  std::unique_ptr<PrefixIndex> index_ = *PrefixIndex::Create({});
  MatchResult result_;
};

TEST_F(Directed, HoleStopsTheCountAndMayBeNamedAsParent) {
  const HolderId pod = Add("a");
  index_->Store(pod, kNs, std::nullopt, Blocks(0, 3, 100));
  EXPECT_EQ(index_->Remove(pod, std::vector<EngineKey>{101}), 1u);
  EXPECT_EQ(Depth(pod, {0, 1, 2}), 1u);
  EXPECT_EQ(index_->Store(pod, kNs, 101, Blocks(2, 4, 100)).outcome, StoreOutcome::kApplied);
  EXPECT_EQ(Depth(pod, {0, 1, 2, 3}), 1u);
  EXPECT_EQ(index_->Store(pod, kNs, 100, Blocks(1, 2, 100)).added, 1u);
  EXPECT_EQ(Depth(pod, {0, 1, 2, 3, 4}), 4u);
}

TEST_F(Directed, ReferencesSaturateAt255) {
  const HolderId pod = Add("a", RemovalPolicy::kRefcount);
  for (int i = 0; i < 300; ++i) index_->Store(pod, kNs, std::nullopt, Blocks(0, 1, 100));
  const std::vector<EngineKey> key = {100};
  for (int i = 0; i < 254; ++i) EXPECT_EQ(index_->Remove(pod, key), 1u);
  EXPECT_EQ(Depth(pod, {0}), 1u);
  EXPECT_EQ(index_->Remove(pod, key), 1u);
  EXPECT_EQ(Depth(pod, {0}), 0u);
  EXPECT_EQ(index_->Remove(pod, key), 0u);
}

TEST_F(Directed, ReferencesAreCountedPerHolder) {
  const HolderId a = Add("a", RemovalPolicy::kRefcount), b = Add("b", RemovalPolicy::kRefcount), c = Add("c");
  const std::vector<EngineKey> keys = {101, 100};
  for (HolderId pod : {a, a, b, c, c}) index_->Store(pod, kNs, std::nullopt, Blocks(0, 2, 100));
  for (HolderId pod : {a, b, c}) EXPECT_EQ(index_->Remove(pod, keys), 2u);
  EXPECT_EQ(Depth(a, {0, 1}), 2u);
  EXPECT_EQ(Depth(b, {0, 1}), 0u);
  EXPECT_EQ(Depth(c, {0, 1}), 0u);
}

TEST_F(Directed, ParentOfAnotherNamespaceChangesNothing) {
  const HolderId pod = Add("a");
  index_->Store(pod, kNs, std::nullopt, Blocks(0, 2, 100));
  const NamespaceId other{1, 3};
  EXPECT_EQ(index_->Store(pod, other, 101, Blocks(2, 4, 100)).outcome, StoreOutcome::kOtherNamespace);
  EXPECT_EQ(index_->stats().holder_blocks, 2u);
  EXPECT_EQ(index_->stats().namespace_mismatches, 1u);
  EXPECT_EQ(Depth(pod, {0, 1}, other), 0u);
}

TEST_F(Directed, LateEventsOfARetiredHolderDoNotTouchItsSuccessor) {
  const HolderId first = Add("a");
  index_->Store(first, kNs, std::nullopt, Blocks(0, 4, 100));
  EXPECT_TRUE(index_->Retire(first));
  EXPECT_FALSE(index_->Retire(first));
  const HolderId second = Add("a");
  EXPECT_NE(first, second);
  EXPECT_EQ(Depth(second, {0, 1, 2, 3}), 0u);
  EXPECT_EQ(index_->Store(first, kNs, std::nullopt, Blocks(0, 4, 100)).outcome, StoreOutcome::kStaleHolder);
  EXPECT_EQ(index_->Store(second, kNs, std::nullopt, Blocks(0, 2, 100)).added, 2u);
  EXPECT_EQ(index_->Remove(first, std::vector<EngineKey>{100}), 0u);
  EXPECT_FALSE(index_->Clear(first));
  EXPECT_EQ(Depth(second, {0, 1, 2, 3}), 2u);
}

TEST_F(Directed, TierUpdateFindsWhatAnotherHolderPublished) {
  const HolderId gpu = Add("a"), cpu = Add("b"), other_engine = Add("c", RemovalPolicy::kSet, 9);
  index_->Store(gpu, kNs, std::nullopt, Blocks(0, 4, 100));
  const std::vector<EngineKey> keys = {100, 101, 999};
  EXPECT_EQ(index_->StoreKnown(cpu, keys), 2u);
  EXPECT_EQ(index_->StoreKnown(other_engine, keys), 0u);
  EXPECT_EQ(Depth(cpu, {0, 1, 2, 3}), 2u);
  index_->Clear(gpu);
  EXPECT_EQ(Depth(cpu, {0, 1, 2, 3}), 2u);
  EXPECT_EQ(index_->StoreKnown(cpu, std::vector<EngineKey>{102}), 0u);
}

TEST_F(Directed, EveryValueOfAKeyIsLegal) {
  const HolderId pod = Add("a");
  const std::uint64_t top = ~std::uint64_t{0};
  const std::vector<StoredBlock> blocks = {{0, 0}, {top, top}, {1, top - 1}, {top - 1, 1}};
  EXPECT_EQ(index_->Store(pod, {0, 0}, std::nullopt, blocks).added, 4u);
  EXPECT_EQ(Depth(pod, {0, top, top - 1, 1}, {0, 0}), 4u);
  EXPECT_EQ(index_->Store(pod, {0, 0}, 0, std::vector<StoredBlock>{{5, 5}}).added, 1u);
  EXPECT_EQ(Depth(pod, {0, 5}, {0, 0}), 2u);
  EXPECT_EQ(index_->Remove(pod, std::vector<EngineKey>{top, 0}), 2u);
  EXPECT_EQ(Depth(pod, {0, top}, {0, 0}), 0u);
}

TEST(PrefixIndexOptions, AreChecked) {
  EXPECT_TRUE(absl::IsInvalidArgument(PrefixIndex::Create({.max_bytes = 1000}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(PrefixIndex::Create({.max_holders = 0}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(PrefixIndex::Create({.max_holders = 65536}).status()));
  const absl::Status status = PrefixIndex::Create({.max_bytes = 1000}).status();
  EXPECT_NE(std::string(status.message()).find("max_bytes"), std::string::npos) << status;
  EXPECT_NE(std::string(status.message()).find("1000"), std::string::npos) << status;
}

TEST(PrefixIndexOptions, HoldersAreLimitedAndSlotsReused) {
  const auto index = *PrefixIndex::Create({.max_holders = 2});
  const HolderId a = *index->AddHolder({.endpoint = "a", .dp_rank = {}});
  EXPECT_TRUE(absl::IsAlreadyExists(index->AddHolder({.endpoint = "a", .dp_rank = {}}).status()));
  ASSERT_TRUE(index->AddHolder({.endpoint = "a", .dp_rank = 0}).ok());
  EXPECT_TRUE(
      absl::IsResourceExhausted(index->AddHolder({.endpoint = "a", .dp_rank = {}, .tier = "cpu"}).status()));
  EXPECT_TRUE(index->Retire(a));
  EXPECT_EQ(index->FindHolder("a", std::nullopt, "gpu"), std::nullopt);
  for (int i = 0; i < 100000; ++i) {
    const auto id = index->AddHolder({.endpoint = "b", .dp_rank = {}});
    ASSERT_TRUE(id.ok());
    ASSERT_NE(*id, a);
    ASSERT_TRUE(index->Retire(*id));
  }
}

TEST(Namespace, FieldsDoNotRunIntoEachOther) {
  const std::vector<NamespaceKey> keys = {{.model = "a", .lora = "", .cache_salt = ""},
                                          {.model = "", .lora = "a", .cache_salt = ""},
                                          {.model = "", .lora = "", .cache_salt = "a"},
                                          {.model = "ab", .lora = "c", .cache_salt = ""},
                                          {.model = "a", .lora = "bc", .cache_salt = ""},
                                          {.model = "a", .lora = "", .cache_salt = "", .block_size = 32}};
  for (std::size_t i = 0; i < keys.size(); ++i) {
    for (std::size_t j = 0; j < keys.size(); ++j) {
      EXPECT_EQ(MakeNamespace(keys[i]) == MakeNamespace(keys[j]), i == j) << i << " " << j;
    }
  }
}

}  // namespace
}  // namespace llmd::index
