// A restored index is the index that was written; a damaged snapshot is an error and nothing else.
#define XXH_INLINE_ALL
#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "llmd/base/random.h"
#include "llmd/index/prefix_index.h"
#include "tests/index/operations.h"
#include "tests/index/streams.h"
#include "xxhash.h"

namespace llmd::index {
namespace {

using Bytes = std::vector<std::byte>;
using Keys = StreamProfile::Keys;

Bytes Write(const PrefixIndex& index) {
  Bytes bytes;
  const absl::Status status = index.Snapshot([&](std::span<const std::byte> piece) {
    bytes.insert(bytes.end(), piece.begin(), piece.end());
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
  return bytes;
}

// The last eight bytes are the checksum of the others (src/index/snapshot.cc describes the format).
void FixChecksum(Bytes& bytes) {
  const std::uint64_t checksum = XXH3_64bits(bytes.data(), bytes.size() - sizeof(checksum));
  std::memcpy(bytes.data() + bytes.size() - sizeof(checksum), &checksum, sizeof(checksum));
}

// A short list of operations after which the index cannot be restored either.
std::string Explain(Operations operations) {
  if (operations.size() > 5000) return "";
  std::string text;
  const Operations shrunk = Shrink(std::move(operations), [](std::span<const Operation> some) {
    const auto index = *PrefixIndex::Create({.max_bytes = std::size_t{64} << 20});
    Comparison comparison(*index, 4096);
    for (const Operation& operation : some) {
      if (comparison.Apply(operation)) return false;
    }
    return !PrefixIndex::Restore(Write(*index), {.max_bytes = std::size_t{64} << 20}).ok();
  });
  for (const Operation& operation : shrunk) text += "  " + ToString(operation) + "\n";
  return text;
}

std::vector<StreamProfile> Profiles() {
  return {{.name = "Typical"},
          {.name = "Refcount", .refcount = 0.6, .max_chain = 10},
          {.name = "ForeignSeeds", .key_spaces = 2, .refcount = 0.3, .keys = Keys::kPerHolder},
          {.name = "ShiftingSeeds", .key_spaces = 2, .refcount = 0.3, .keys = Keys::kShifting},
          {.name = "Twins", .keys = Keys::kTwins},
          {.name = "Hostile",
           .key_spaces = 2,
           .refcount = 0.3,
           .keys = Keys::kTiny,
           .contents = 2,
           .max_chain = 8},
          {.name = "HolesAndDeath", .lifecycle = 0.1, .removes = 0.5},
          {.name = "LongChains",
           .operations = 1500,
           .holders = 2,
           .namespaces = 1,
           .contents = 1 << 30,
           .chains = 2,
           .max_chain = 70000,
           .max_batch = 300,
           .lifecycle = 0.002,
           .removes = 0.05,
           .mistakes = 0.001,
           .new_chains = 0,
           .onward = 40,
           .match_every = 200}};
}

class SnapshotRoundTrip : public testing::TestWithParam<StreamProfile> {};

// Half of a stream, a snapshot, and the other half on the original and on the restored index: both go on as
// the oracle says, with the same handles for those who were there.
TEST_P(SnapshotRoundTrip, TheRestoredIndexGoesOnAsTheOriginalWould) {
  const StreamProfile& profile = GetParam();
  for (std::uint64_t seed = 1; seed <= (profile.max_chain > 1000 ? 1 : 4); ++seed) {
    const Operations operations = MakeOperations(profile, seed);
    const std::size_t half = operations.size() / 2;
    const auto original = *PrefixIndex::Create({});
    Comparison first(*original, 4096);
    for (std::size_t i = 0; i < half; ++i) ASSERT_EQ(first.Apply(operations[i]), std::nullopt);

    auto restored = PrefixIndex::Restore(Write(*original), {});
    if (!restored.ok())
      FAIL() << restored.status() << "\n"
             << Explain(Operations(operations.begin(), operations.begin() + half));
    Comparison second(**restored, 4096, first.reference(), /*fresh=*/false);
    ASSERT_EQ(second.CompareStats(), std::nullopt) << profile.name << " seed " << seed;
    for (const auto& [ordinal, id] : first.reference().handles) {
      const HolderOptions* before = original->GetHolder(id);
      const HolderOptions* after = (*restored)->GetHolder(id);
      ASSERT_EQ(before == nullptr, after == nullptr);
      if (before != nullptr) {
        EXPECT_EQ((*restored)->FindHolder(before->endpoint, before->dp_rank, before->tier), id);
        EXPECT_EQ(before->removal, after->removal);
        EXPECT_EQ(before->key_space, after->key_space);
      }
    }
    for (const Operation& operation : operations) {
      if (operation.kind != Operation::Kind::kMatch) continue;
      ASSERT_EQ(second.Apply(operation), std::nullopt);
    }
    for (std::size_t i = half; i < operations.size(); ++i) {
      ASSERT_EQ(first.Apply(operations[i]), std::nullopt)
          << profile.name << " seed " << seed << " operation " << i;
      ASSERT_EQ(second.Apply(operations[i]), std::nullopt)
          << "restored: " << profile.name << " seed " << seed << " operation " << i << " "
          << ToString(operations[i]);
      if (operations[i].kind == Operation::Kind::kMatch) {
        ASSERT_EQ(second.CompareStats(), std::nullopt)
            << "restored: " << profile.name << " seed " << seed << " operation " << i;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Streams, SnapshotRoundTrip, testing::ValuesIn(Profiles()),
                         [](const auto& info) { return info.param.name; });

// A small index with everything in it that a snapshot can say.
std::unique_ptr<PrefixIndex> SmallIndex() {
  auto index = *PrefixIndex::Create({});
  Comparison comparison(*index, 4096);
  const StreamProfile profile = {.name = "Small",
                                 .operations = 250,
                                 .key_spaces = 2,
                                 .refcount = 0.5,
                                 .keys = Keys::kShifting,
                                 .chains = 4,
                                 .max_chain = 12};
  for (const Operation& operation : MakeOperations(profile, 5))
    EXPECT_EQ(comparison.Apply(operation), std::nullopt);
  EXPECT_GT(index->stats().holder_blocks, 30u);
  EXPECT_GT(index->stats().foreign_keys, 5u);
  return index;
}

// Restoring asks the system for fresh tables each time, so small ones.
constexpr PrefixIndexOptions kSmall = {.max_bytes = std::size_t{4} << 20, .max_holders = 64};

TEST(Snapshot, SameIndexSameBytes) {
  const Bytes bytes = Write(*SmallIndex());
  EXPECT_EQ(bytes, Write(*SmallIndex()));
  const auto restored = PrefixIndex::Restore(bytes, {});
  ASSERT_TRUE(restored.ok());
  EXPECT_EQ(Write(**PrefixIndex::Restore(Write(**restored), {})).size(), bytes.size());
}

TEST(Snapshot, OfAnEmptyIndex) {
  const auto index = *PrefixIndex::Create({});
  const auto restored = PrefixIndex::Restore(Write(*index), {});
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ((*restored)->stats().holders, 0u);
  EXPECT_TRUE((*restored)->AddHolder({.endpoint = "a", .dp_rank = {}}).ok());
}

TEST(Snapshot, EveryTruncationIsAnError) {
  const Bytes bytes = Write(*SmallIndex());
  ASSERT_TRUE(PrefixIndex::Restore(bytes, kSmall).ok());
  for (std::size_t length = 0; length < bytes.size(); ++length) {
    const auto restored = PrefixIndex::Restore(std::span(bytes).first(length), kSmall);
    ASSERT_TRUE(absl::IsDataLoss(restored.status()))
        << length << " of " << bytes.size() << ": " << restored.status();
  }
}

TEST(Snapshot, EveryDamagedByteIsAnError) {
  const Bytes good = Write(*SmallIndex());
  Random random(1);
  for (std::size_t i = 0; i < std::max<std::size_t>(good.size(), 4000); ++i) {
    Bytes bytes = good;
    bytes[i % bytes.size()] ^= static_cast<std::byte>(random.Between(1, 255));
    const auto restored = PrefixIndex::Restore(bytes, kSmall);
    ASSERT_TRUE(absl::IsDataLoss(restored.status()) || absl::IsFailedPrecondition(restored.status()))
        << "byte " << i << ": " << restored.status();
  }
}

TEST(Snapshot, AppendedRepeatedAndRandomBytesAreErrors) {
  const Bytes good = Write(*SmallIndex());
  Bytes bytes = good;
  bytes.push_back(std::byte{0});
  EXPECT_TRUE(absl::IsDataLoss(PrefixIndex::Restore(bytes, kSmall).status()));
  bytes = good;
  bytes.insert(bytes.end(), good.begin(), good.end());
  EXPECT_TRUE(absl::IsDataLoss(PrefixIndex::Restore(bytes, kSmall).status()));
  Random random(2);
  for (int i = 0; i < 200; ++i) {
    Bytes noise(random.Below(300));
    for (std::byte& byte : noise) byte = static_cast<std::byte>(random.Below(256));
    EXPECT_TRUE(absl::IsDataLoss(PrefixIndex::Restore(noise, kSmall).status()));
    Bytes tail = good;  // a true beginning
    tail.resize(random.Below(good.size()));
    tail.insert(tail.end(), noise.begin(), noise.end());
    EXPECT_FALSE(PrefixIndex::Restore(tail, kSmall).ok());
  }
}

TEST(Snapshot, AnotherMajorVersionIsRefusedAndAnotherMinorOneIsRead) {
  constexpr std::size_t kMajorAt = 8, kMinorAt = 12;
  const Bytes good = Write(*SmallIndex());
  Bytes bytes = good;
  bytes[kMajorAt] ^= std::byte{2};
  FixChecksum(bytes);
  const absl::Status status = PrefixIndex::Restore(bytes, kSmall).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_NE(std::string(status.message()).find("version 3"), std::string::npos) << status;
  bytes = good;
  bytes[kMinorAt] ^= std::byte{1};
  FixChecksum(bytes);
  EXPECT_TRUE(PrefixIndex::Restore(bytes, kSmall).ok());
}

// Someone who can write a snapshot can write its checksum as well: what comes of it is an error or a sound
// index.
TEST(Snapshot, DamageBehindAValidChecksumIsAnErrorOrASoundIndex) {
  const Bytes good = Write(*SmallIndex());
  Random random(3);
  std::size_t restored_count = 0;
  for (int i = 0; i < 12000; ++i) {
    Bytes bytes = good;
    for (std::uint64_t changes = random.Between(1, 3); changes > 0; --changes) {
      const std::size_t at = random.Below(bytes.size());
      bytes[at] = random.Chance(0.5) ? static_cast<std::byte>(random.Below(256))
                                     : bytes[at] ^ static_cast<std::byte>(1 << random.Below(8));
    }
    FixChecksum(bytes);
    const auto restored = PrefixIndex::Restore(bytes, kSmall);
    if (!restored.ok()) continue;
    ++restored_count;
    PrefixIndex& index = **restored;
    const IndexStats stats = index.stats();
    ASSERT_TRUE(PrefixIndex::Restore(Write(index), kSmall).ok()) << i;
    ASSERT_EQ(stats.evicted_runs, 0u);
    // Every holder can be found by its handle, written for, and cleared; then nothing is left.
    for (std::uint16_t slot = 0; slot <= kSmall.max_holders; ++slot) {
      for (std::uint32_t generation = 0; generation < 8; ++generation) {
        const HolderId id{slot, generation};
        if (index.GetHolder(id) == nullptr) continue;
        std::vector<StoredBlock> blocks;
        for (std::uint64_t block = 0; block < 20; ++block)
          blocks.push_back({random.Below(50), random.Below(3)});
        index.Store(id, {0, 7}, std::nullopt, blocks);
      }
    }
    for (std::uint16_t slot = 0; slot <= kSmall.max_holders; ++slot) {
      for (std::uint32_t generation = 0; generation < 8; ++generation) index.Clear({slot, generation});
    }
    if (index.stats().holders == stats.holders && index.stats().holder_blocks > 0) {
      // A holder whose generation was damaged keeps its blocks; all others must be gone.
      ASSERT_LT(index.stats().holder_blocks, stats.holder_blocks + 1);
    }
  }
  EXPECT_GT(restored_count, 100u) << "contents and engine keys may be anything";
}

TEST(Snapshot, DoesNotFitFewerHolders) {
  const auto index = *PrefixIndex::Create({});
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(index->AddHolder({.endpoint = std::to_string(i), .dp_rank = {}}).ok());
  }
  const Bytes bytes = Write(*index);
  EXPECT_TRUE(PrefixIndex::Restore(bytes, {.max_holders = 10}).ok());
  const absl::Status status = PrefixIndex::Restore(bytes, {.max_holders = 9}).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_NE(std::string(status.message()).find("max_holders"), std::string::npos) << status;
}

TEST(Snapshot, DoesNotFitFewerBytes) {
  const auto index = *PrefixIndex::Create({});
  const HolderId pod = *index->AddHolder({.endpoint = "a", .dp_rank = {}});
  std::vector<StoredBlock> blocks(300000);
  for (std::uint64_t i = 0; i < blocks.size(); ++i) blocks[i] = {i, i};
  index->Store(pod, {1, 1}, std::nullopt, blocks);
  const Bytes bytes = Write(*index);
  EXPECT_TRUE(PrefixIndex::Restore(bytes, {.max_bytes = std::size_t{64} << 20}).ok());
  const absl::Status status = PrefixIndex::Restore(bytes, {.max_bytes = std::size_t{2} << 20}).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_NE(std::string(status.message()).find("max_bytes"), std::string::npos) << status;
}

TEST(Snapshot, BadOptionsAreRefusedFirst) {
  const Bytes bytes = Write(*SmallIndex());
  EXPECT_TRUE(absl::IsInvalidArgument(PrefixIndex::Restore(bytes, {.max_bytes = 1}).status()));
}

TEST(Snapshot, ErrorsOfTheSinkComeBack) {
  const auto index = SmallIndex();
  const std::size_t whole = Write(*index).size();
  std::size_t taken = 0;
  int calls_after_error = 0;
  const absl::Status status = index->Snapshot([&](std::span<const std::byte> piece) {
    if (taken + piece.size() > whole / 2) {
      ++calls_after_error;
      return absl::UnavailableError("disk full");
    }
    taken += piece.size();
    return absl::OkStatus();
  });
  EXPECT_EQ(status, absl::UnavailableError("disk full"));
  EXPECT_EQ(calls_after_error, 1);
}

// The generation of a slot whose holder is gone lives on: neither its old handle nor a late event may fit a
// successor.
TEST(Snapshot, HandlesOfRetiredHoldersStayInvalid) {
  const auto index = *PrefixIndex::Create({});
  std::vector<HolderId> retired;
  for (int i = 0; i < 5; ++i) {
    retired.push_back(*index->AddHolder({.endpoint = "a", .dp_rank = {}}));
    index->Retire(retired.back());
  }
  const auto restored = *PrefixIndex::Restore(Write(*index), {});
  for (int i = 0; i < 20; ++i) {
    const HolderId id = *restored->AddHolder({.endpoint = std::to_string(i), .dp_rank = {}});
    EXPECT_EQ(std::count(retired.begin(), retired.end(), id), 0) << "slot " << id.slot;
  }
  for (HolderId id : retired) EXPECT_EQ(restored->GetHolder(id), nullptr);
}

}  // namespace
}  // namespace llmd::index
