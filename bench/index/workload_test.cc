// The streams have the shape that the profiles promise, and files of them are read back or refused.
#include "bench/index/workload.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <unordered_map>
#include <unordered_set>

#include "bench/index/stream_file.h"
#include "bench/index/trace.h"

namespace llmd::bench {
namespace {

using ::testing::HasSubstr;

Workload Make(std::string_view profile, double scale) {
  GenerateOptions options;
  options.scale = scale;
  auto workload = Generate(profile, options);
  EXPECT_TRUE(workload.ok()) << workload.status();
  return *std::move(workload);
}

struct Final {
  std::vector<std::unordered_set<std::uint64_t>> has;  // by holder: engine keys
  std::unordered_map<std::uint64_t, std::uint64_t> parent, content;
  std::uint64_t duplicates = 0, lost = 0;
  bool in_phase_order = true;
};

// Applies the ops literally and checks what each of them promises.
Final Apply(const Workload& workload) {
  Final state;
  state.has.resize(workload.holders);
  std::size_t block = 0, key = 0;
  int phase = 0;
  for (const Op& op : workload.ops) {
    auto& has = state.has.at(op.holder);
    if (op.kind == OpKind::kRemove) {
      phase = 2;
      for (std::uint32_t i = 0; i < op.count; ++i) {
        EXPECT_EQ(has.erase(workload.removed_keys.at(key++)), 1u);
        ++state.lost;
      }
      continue;
    }
    EXPECT_LE(op.count, 8u);
    std::uint64_t parent = op.parent;
    EXPECT_EQ(has.count(parent), op.has_parent);
    const bool duplicate = has.count(workload.blocks.at(block).engine) > 0;
    if (duplicate ? phase > 1 : phase > 0) state.in_phase_order = false;
    if (duplicate) phase = std::max(phase, 1);
    for (std::uint32_t i = 0; i < op.count; ++i) {
      const index::StoredBlock& stored = workload.blocks.at(block++);
      EXPECT_EQ(has.insert(stored.engine).second, !duplicate);
      EXPECT_EQ(state.parent.emplace(stored.engine, parent).first->second, parent);
      EXPECT_EQ(state.content.emplace(stored.engine, stored.content).first->second, stored.content);
      state.duplicates += duplicate;
      parent = stored.engine;
    }
  }
  EXPECT_EQ(block, workload.blocks.size());
  EXPECT_EQ(key, workload.removed_keys.size());
  return state;
}

TEST(WorkloadTest, StreamsAreWellFormedAndEndAsStated) {
  for (const Profile& profile : Profiles()) {
    const Workload workload = Make(profile.name, 0.005);
    SCOPED_TRACE(workload.name);
    const Final state = Apply(workload);
    EXPECT_TRUE(state.in_phase_order);
    std::uint64_t live = 0;
    for (const auto& has : state.has) live += has.size();
    EXPECT_EQ(live, workload.live_holder_blocks);
    EXPECT_EQ(workload.holders, profile.holders);
    EXPECT_GT(state.lost, 0u);
    const auto stored = static_cast<double>(workload.blocks.size() - state.duplicates);
    EXPECT_NEAR(static_cast<double>(state.duplicates) / stored, profile.republished,
                0.3 * profile.republished);
  }
}

TEST(WorkloadTest, PinnedHasItsSizeAndShares) {
  constexpr double kScale = 0.1;
  const Workload workload = Make("pinned", kScale);
  std::unordered_map<std::uint64_t, std::uint32_t> holders;  // by engine key, republished batches left out
  std::unordered_set<std::uint64_t> seen;
  std::size_t block = 0;
  for (const Op& op : workload.ops) {
    if (op.kind != OpKind::kStore) continue;
    const bool is_new = seen.insert(MixBits(workload.blocks[block].engine + op.holder)).second;
    for (std::uint32_t i = 0; i < op.count; ++i) holders[workload.blocks[block++].engine] += is_new;
  }
  double shared8 = 0, shared64 = 0;
  for (const auto& [key, count] : holders) {
    if (count == 64) shared64 += count;
    if (count == 8) shared8 += count;
  }
  EXPECT_NEAR(shared8 / (kScale * 10e6), 0.35, 0.01);
  EXPECT_NEAR(shared64 / (kScale * 10e6), 0.15, 0.03);
  EXPECT_NEAR(static_cast<double>(workload.live_holder_blocks) / (kScale * 12.8e6), 1, 0.05);
}

TEST(WorkloadTest, TheGateCellExistsAtEveryScale) {
  for (const Profile& profile : Profiles()) {
    if (profile.name == "deep") continue;
    const Workload workload = Make(profile.name, 0.001);
    SCOPED_TRACE(workload.name);
    bool found = false;
    for (const Query& query : workload.queries) {
      if (workload.cells[query.cell].metric != "match_d78_h64_cold") continue;
      EXPECT_EQ(query.length, 78u);
      found = true;
    }
    // A family of churn has at most 64 blocks but for the first one.
    EXPECT_TRUE(found);
  }
}

TEST(WorkloadTest, QueriesAreChainsOfTheTrie) {
  const Workload workload = Make("fragmented", 0.01);
  const Final state = Apply(workload);
  std::unordered_set<BlockKey> contents;
  for (const auto& [engine, content] : state.content) contents.insert(content);
  for (const Query& query : workload.queries) {
    const bool miss = workload.cells[query.cell].kind == CellKind::kMiss;
    EXPECT_EQ(contents.count(workload.chain_keys.at(query.first)), miss ? 0u : 1u);
    EXPECT_EQ(contents.count(workload.chain_keys.at(query.first + query.length - 1)), miss ? 0u : 1u);
    EXPECT_EQ(contents.count(query.last), 0u);
  }
}

TEST(WorkloadTest, OptionsAreChecked) {
  GenerateOptions options;
  EXPECT_THAT(std::string(Generate("nothing", options).status().message()), HasSubstr("\"nothing\""));
  options.scale = 0;
  EXPECT_THAT(std::string(Generate("pinned", options).status().message()), HasSubstr("scale: 0"));
}

TEST(WorkloadTest, EightfoldHasMoreHolders) {
  GenerateOptions options;
  options.scale = 0.01;
  options.eightfold = true;
  const auto workload = Generate("pinned", options);
  ASSERT_TRUE(workload.ok());
  EXPECT_EQ(workload->holders, 2048u);
  EXPECT_NEAR(static_cast<double>(workload->live_holder_blocks), 8 * 128e3, 80e3);
}

class StreamFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = ::testing::TempDir() + "llmd_stream_" +
            ::testing::UnitTest::GetInstance()->current_test_info()->name();
    workload_ = Make("pinned", 0.001);
    const absl::Status status = Dump(workload_, path_);
    ASSERT_TRUE(status.ok()) << status;
    std::ifstream file(path_, std::ios::binary);
    bytes_.assign(std::istreambuf_iterator<char>(file), {});
  }
  void TearDown() override { std::remove(path_.c_str()); }

  std::string ErrorOf(const std::string& bytes) {
    std::ofstream(path_, std::ios::binary) << bytes;
    const auto loaded = Load(path_);
    return loaded.ok() ? "" : std::string(loaded.status().message());
  }

  template <typename T>
  std::string With(std::size_t offset, T value) const {
    std::string changed = bytes_;
    std::memcpy(changed.data() + offset, &value, sizeof(value));
    return changed;
  }

  std::size_t ops_at() const { return 112 + 48 * workload_.cells.size(); }
  std::size_t queries_at() const {
    return ops_at() + 16 * workload_.ops.size() + 16 * workload_.blocks.size() +
           8 * (workload_.removed_keys.size() + workload_.chain_keys.size());
  }

  std::string path_, bytes_;
  Workload workload_;
};

TEST_F(StreamFileTest, LoadGivesWhatDumpWrote) {
  const auto loaded = Load(path_);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->name, "pinned");
  EXPECT_EQ(loaded->live_holder_blocks, workload_.live_holder_blocks);
  EXPECT_EQ(loaded->ops.size(), workload_.ops.size());
  EXPECT_EQ(loaded->cells.back().metric, "match_miss");
  ASSERT_TRUE(Dump(*loaded, path_).ok());
  std::ifstream file(path_, std::ios::binary);
  EXPECT_TRUE(bytes_ == std::string(std::istreambuf_iterator<char>(file), {}));
}

TEST_F(StreamFileTest, BadFieldsAreNamed) {
  EXPECT_THAT(ErrorOf(""), HasSubstr("header"));
  EXPECT_THAT(ErrorOf(bytes_.substr(0, 111)), HasSubstr("header"));
  EXPECT_THAT(ErrorOf(bytes_.substr(0, bytes_.size() - 1)), HasSubstr("the counts in its header make"));
  EXPECT_THAT(ErrorOf(bytes_ + "x"), HasSubstr("the counts in its header make"));
  EXPECT_THAT(ErrorOf(With<char>(0, 'x')), HasSubstr("magic"));
  EXPECT_THAT(ErrorOf(With<std::uint32_t>(8, 2)), HasSubstr("version: 2"));
  EXPECT_THAT(ErrorOf(With<std::uint32_t>(12, 0)), HasSubstr("offset 12: holders: 0"));
  EXPECT_THAT(ErrorOf(With<std::uint64_t>(16, ~std::uint64_t{0})), HasSubstr("offset 16: ops"));
  EXPECT_THAT(ErrorOf(With<std::uint64_t>(24, std::uint64_t{1} << 33)),
              HasSubstr("the counts in its header make"));
  EXPECT_THAT(ErrorOf(With<std::uint32_t>(64, 100000)), HasSubstr("offset 64: cells: 100000"));
  EXPECT_THAT(ErrorOf(With<char>(72, '"')), HasSubstr("offset 72: name"));
  EXPECT_THAT(ErrorOf(With<char>(112, '\\')), HasSubstr("offset 112: cells.metric"));
  EXPECT_THAT(ErrorOf(With<std::uint32_t>(152, 7)), HasSubstr("offset 152: cells.kind: 7"));
  EXPECT_THAT(ErrorOf(With<std::uint16_t>(ops_at() + 12, 256)), HasSubstr("ops.holder: 256"));
  EXPECT_THAT(ErrorOf(With<std::uint8_t>(ops_at() + 14, 2)), HasSubstr("ops.kind: 2"));
  EXPECT_THAT(ErrorOf(With<std::uint8_t>(ops_at() + 15, 9)), HasSubstr("ops.has_parent: 9"));
  EXPECT_THAT(ErrorOf(With<std::uint32_t>(ops_at() + 8, 0)), HasSubstr("ops.count: 0"));
  EXPECT_THAT(ErrorOf(With<std::uint32_t>(ops_at() + 8, 0xFFFFFFFF)), HasSubstr("ops.count: 4294967295"));
  EXPECT_THAT(ErrorOf(With<std::uint64_t>(queries_at(), ~std::uint64_t{0})), HasSubstr("queries.first"));
  EXPECT_THAT(ErrorOf(With<std::uint32_t>(queries_at() + 8, 0xFFFFFFFF)), HasSubstr("queries.length"));
  EXPECT_THAT(ErrorOf(With<std::uint32_t>(queries_at() + 12, 0xFFFF)), HasSubstr("queries.cell"));
  const std::size_t a_block = ops_at() + 16 * workload_.ops.size();
  EXPECT_THAT(ErrorOf(With<std::uint64_t>(a_block, 12345)), HasSubstr("checksum"));
  EXPECT_EQ(ErrorOf(bytes_), "");
}

TEST_F(StreamFileTest, EveryDamagedByteIsNoticed) {
  for (std::size_t at = 0; at < bytes_.size(); at += 1 + bytes_.size() / 100) {
    EXPECT_NE(ErrorOf(With<char>(at, static_cast<char>(bytes_[at] ^ 0x40))), "") << at;
  }
}

TEST(StreamFileErrorsTest, FilesThatCannotBeOpened) {
  EXPECT_FALSE(Load("/nonexistent/stream").ok());
  EXPECT_FALSE(Dump(Workload{}, "/nonexistent/stream").ok());
}

TEST(TraceTest, StoresQueriesAndEvicts) {
  std::ostringstream trace;
  // One system prompt; requests of 200 private ids each: 8 endpoints of 1875 ids overflow after some 75
  // requests.
  for (int i = 0; i < 90; ++i) {
    trace << R"({"timestamp": 0, "input_length": 102912, "output_length": 1, "hash_ids": [0)";
    for (int k = 0; k < 200; ++k) trace << ", " << 1 + 200 * i + k;
    trace << "]}\n";
  }
  std::istringstream in(trace.str());
  const auto workload = TraceWorkload(in, 1000);
  ASSERT_TRUE(workload.ok()) << workload.status();
  const Final state = Apply(*workload);
  EXPECT_GT(state.lost, 0u);
  EXPECT_EQ(state.duplicates, 0u);
  std::uint64_t live = 0;
  for (const auto& has : state.has) {
    EXPECT_LE(has.size(), kTraceCapacityIds * kBlocksPerId);
    live += has.size();
    // Ancestors outlive their descendants.
    for (const std::uint64_t key : has) {
      const std::uint64_t parent = state.parent.at(key);
      EXPECT_TRUE(parent == 0 || has.count(parent) > 0);
    }
  }
  EXPECT_EQ(live, workload->live_holder_blocks);
  EXPECT_EQ(workload->queries.front().length, 201u * kBlocksPerId);
  EXPECT_EQ(workload->queries[8].cell, 0u);
  EXPECT_EQ(workload->queries[9].cell, 1u);  // misses follow
}

TEST(TraceTest, BadLinesAreNamed) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "no requests"},
      {"{", "line 1: not a JSON object"},
      {"[]", "line 1: not a JSON object"},
      {"{}", "line 1: hash_ids: not an array"},
      {R"({"hash_ids": []})", "line 1: hash_ids: 0 entries"},
      {R"({"hash_ids": [1, -2]})", "hash_ids[1]: not an integer"},
      {R"({"hash_ids": [1e300]})", "hash_ids[0]: not an integer"},
      {"{\"hash_ids\": [1, 2]}\n{\"hash_ids\": [3, 2]}", "line 2: hash_ids[1]: 2 has another predecessor"},
      {R"({"hash_ids": [1, 1]})", "hash_ids[1]: 1 has another predecessor"},
  };
  for (const auto& [text, expected] : cases) {
    std::istringstream in(text);
    EXPECT_THAT(std::string(TraceWorkload(in, 10).status().message()), HasSubstr(expected));
  }
}

}  // namespace
}  // namespace llmd::bench
