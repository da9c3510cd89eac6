// How prefill's steps are shared out (cuda/attention/prefill_plan.h), against the definition of what a row
// sees and against what the kernel relies on.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "cuda/attention/host_plan.h"

namespace llmd::cuda {
namespace {

struct Batch {
  std::vector<std::int32_t> lengths = {}, rows = {};
  llmd_attention_mode mode = LLMD_PREFILL;
  int heads = 1, group = 1, window = 0, fixed_split = 0, grid = 264;

  std::string Name() const {
    std::string text = "mode " + std::to_string(mode) + ", heads " + std::to_string(heads) + ", G " +
                       std::to_string(group) + ", W " + std::to_string(window) + ", grid " +
                       std::to_string(grid) + ":";
    for (std::size_t b = 0; b < std::min<std::size_t>(lengths.size(), 10); ++b)
      text += " " + std::to_string(rows[b]) + "/" + std::to_string(lengths[b]);
    return text;
  }
};

// Steps of each tile of prefill, from what its first and its last row see.
std::vector<std::int64_t> TilesOf(const Batch& batch) {
  std::vector<std::int64_t> tiles;
  for (std::size_t b = 0; b < batch.lengths.size(); ++b) {
    if (batch.rows[b] == 0 || (batch.mode == LLMD_MIXED && batch.rows[b] == 1)) continue;
    const std::int64_t packed = std::int64_t{batch.rows[b]} * batch.group;
    for (std::int64_t first = 0; first < packed; first += 128) {
      const std::int64_t last = std::min(first + 127, packed - 1);
      const std::int64_t before = batch.lengths[b] - batch.rows[b];
      const std::int64_t end = before + last / batch.group + 1;
      std::int64_t key = 0;
      if (batch.window > 0)
        key = std::max<std::int64_t>(0, before + first / batch.group - batch.window + 1) / 16 * 16;
      tiles.push_back(std::max<std::int64_t>(1, (end - key + 63) / 64));  // one without keys is a step too
    }
  }
  return tiles;
}

void CheckBatch(const Batch& batch) {
  SCOPED_TRACE(batch.Name());
  const PlanInput in{.mode = batch.mode,
                     .lengths = batch.lengths,
                     .rows = batch.rows,
                     .heads = batch.heads,
                     .group = batch.group,
                     .window = batch.window,
                     .unit_keys = batch.fixed_split > 0 ? batch.fixed_split : kUnitKeys,
                     .fixed_split = batch.fixed_split > 0,
                     .grid = batch.grid};
  const HostPrefillPlan plan = MakePrefillPlan(in, MakePlan(in), batch.heads, batch.grid);
  const std::vector<std::int64_t> tiles = TilesOf(batch);
  const std::int64_t items = static_cast<std::int64_t>(tiles.size()) * batch.heads;
  if (tiles.empty() || batch.fixed_split > 0 || tiles.size() > 1024 || items >= 4 * batch.grid) {
    ASSERT_EQ(plan.shares, 0);
    return;
  }
  ASSERT_EQ(plan.units.size(), tiles.size() + 1);
  std::int64_t cost = 0, longest = 0;
  for (std::size_t t = 0; t < tiles.size(); ++t) {
    ASSERT_EQ(ItemUnits(plan.units.data(), static_cast<int>(t), batch.heads), tiles[t]) << "tile " << t;
    cost += (tiles[t] + kItemCost) * batch.heads;
    longest = std::max(longest, tiles[t]);
  }
  std::int64_t most = (cost + plan.shares - 1) / plan.shares;  // steps of a share
  if (plan.even) {
    const std::int64_t parts = plan.shares / items;
    most = parts > 0 ? (longest + parts - 1) / parts : items / plan.shares * longest;
  }
  ASSERT_GE(plan.shares, 1);
  ASSERT_LE(plan.shares, batch.grid);
  ASSERT_LE(plan.blocks, plan.shares);
  ASSERT_EQ(plan.starts.size(), static_cast<std::size_t>(batch.grid) + 1);

  // The blocks go along the line, each up to the next one's start.
  std::size_t tile = 0;
  int head = 0;
  std::int64_t step = 0;
  std::set<int> slots;
  for (int c = 0; c < plan.blocks; ++c) {
    const PieceStart& start = plan.starts[c];
    const PieceStart& end = plan.starts[c + 1];
    ASSERT_EQ(start.request, static_cast<int>(tile));
    ASSERT_EQ(start.head, head);
    ASSERT_EQ(start.unit, step);
    std::int64_t spent = 0;
    while (true) {
      const bool last = end.request == static_cast<int>(tile) && end.head == head;
      if (last && step == end.unit) break;
      ASSERT_LT(tile, tiles.size());
      const std::int64_t until = last ? end.unit : tiles[tile];
      ASSERT_GT(until, step);
      spent += until - step;
      const bool whole = step == 0 && until == tiles[tile];
      if (!whole) {
        const int slot = step > 0 ? c : batch.grid + c;
        ASSERT_TRUE(slots.insert(slot).second) << slot;
        const PieceStart& ends_of = step > 0 ? start : end;
        ASSERT_GE(ends_of.last_block, ends_of.first_block + 1);
        ASSERT_EQ(step == 0, c == ends_of.first_block);
        ASSERT_EQ(until == tiles[tile], c == ends_of.last_block);
      }
      step = until;
      if (last) break;
      step = 0;
      if (++head == batch.heads) {
        head = 0;
        ++tile;
      }
    }
    ASSERT_LE(spent, most);
  }
  ASSERT_EQ(tile, tiles.size());
  ASSERT_EQ(step, 0);
}

TEST(PrefillPlan, ChunksOverPrefixes) {
  for (int rows : {1, 32, 512, 513, 2048, 8192}) {
    for (int prefix : {0, 100, 32768, 131072, 1 << 30}) {
      for (int heads : {1, 8})
        CheckBatch({.lengths = {prefix + rows}, .rows = {rows}, .heads = heads, .group = 4});
    }
  }
}

// 128 items of the same length are halved rather than cut where 264 blocks would have them.
TEST(PrefillPlan, EqualItemsAreCutAlike) {
  const std::vector<std::int32_t> lengths = {33280}, rows = {512};
  const PlanInput in{.mode = LLMD_PREFILL, .lengths = lengths, .rows = rows, .heads = 8, .group = 4};
  EXPECT_EQ(MakePrefillPlan(in, MakePlan(in), 8, 264).shares, 256);
  const std::vector<std::int32_t> longer = {34816}, more = {2048};  // 512 items, and two of them a block
  const PlanInput two{.mode = LLMD_PREFILL, .lengths = longer, .rows = more, .heads = 8, .group = 4};
  const HostPrefillPlan plan = MakePrefillPlan(two, MakePlan(two), 8, 264);
  EXPECT_EQ(plan.blocks, 256);
  for (int c = 0; c < 256; ++c) EXPECT_EQ(plan.starts[c].unit, 0);
}

TEST(PrefillPlan, TokensWithoutKeys) {
  CheckBatch({.lengths = {0, 3, 0, 40}, .rows = {7, 5, 1, 40}, .heads = 2, .group = 3});
  CheckBatch({.lengths = {0, 3, 0, 40}, .rows = {7, 5, 1, 40}, .mode = LLMD_MIXED, .heads = 2, .group = 3});
}

TEST(PrefillPlan, FixedSplitCutsNothing) {
  CheckBatch({.lengths = {5000, 900}, .rows = {100, 900}, .heads = 2, .fixed_split = 256});
}

TEST(PrefillPlan, RandomBatches) {
  std::mt19937 random(5);
  const auto pick = [&random](auto... values) {
    const auto list = {values...};
    return *(list.begin() + random() % list.size());
  };
  for (int round = 0; round < 3000 && !testing::Test::HasFailure(); ++round) {
    Batch batch{.mode = pick(LLMD_PREFILL, LLMD_MIXED),
                .heads = pick(1, 1, 2, 3, 8),
                .group = static_cast<int>(random() % 16) + 1,
                .window = pick(0, 0, 0, 1, 16, 128, 1000),
                .grid = pick(1, 2, 7, 8, 264, static_cast<int>(random() % 1023) + 1)};
    const unsigned longest = pick(2u, 70u, 600u, 5000u, 200000u);
    for (int n = static_cast<int>(random() % pick(2u, 8u, 60u)); n >= 0; --n) {
      const int length = random() % 5 == 0 ? 0 : static_cast<int>(random() % longest);
      batch.lengths.push_back(length);
      batch.rows.push_back(
          static_cast<int>(random() % pick(2u, 40u, 600u, static_cast<unsigned>(length) + 1)));
    }
    CheckBatch(batch);
  }
}

}  // namespace
}  // namespace llmd::cuda
