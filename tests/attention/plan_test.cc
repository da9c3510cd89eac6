// How a step's work is cut (cuda/attention/plan.h), against a planner that goes through the line of work one
// item after the other, and against what the kernels rely on.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "cuda/attention/host_plan.h"

namespace llmd::cuda {
namespace {

struct Batch {
  std::vector<std::int32_t> lengths = {}, rows = {};
  llmd_attention_mode mode = LLMD_DECODE;
  int heads = 1, group = 1, window = 0, fixed_split = 0, grid = 132;

  PlanInput Input() const {
    return {.mode = mode,
            .lengths = lengths,
            .rows = rows,
            .heads = heads,
            .group = group,
            .window = window,
            .unit_keys = fixed_split > 0 ? fixed_split : kUnitKeys,
            .fixed_split = fixed_split > 0,
            .grid = grid};
  }
  bool Decodes(std::size_t b) const {
    const int n = rows.empty() ? 1 : rows[b];
    return mode != LLMD_PREFILL && n == 1 && lengths[b] > 0;
  }
  std::string Name() const {
    std::string text = "mode " + std::to_string(mode) + ", heads " + std::to_string(heads) + ", W " +
                       std::to_string(window) + ", split " + std::to_string(fixed_split) + ", grid " +
                       std::to_string(grid) + ", batch " + std::to_string(lengths.size()) + ":";
    for (std::size_t b = 0; b < std::min<std::size_t>(lengths.size(), 10); ++b)
      text += " " + std::to_string(lengths[b]);
    return text;
  }
};

// One item of the line, as the definition has it.
struct Item {
  int request, head;
  std::int64_t units;
  std::int64_t first_place, first_cost;
};

struct Line {
  std::vector<Item> items;
  std::int64_t units = 0, cost = 0;
  std::int64_t shares = 0;
  bool even = false;  // equally many items a share, or shares an item
};

void Share(const Batch& batch, Line& line) {
  const auto items = static_cast<std::int64_t>(line.items.size());
  const std::int64_t wanted = batch.fixed_split > 0 ? line.units : std::max((line.units + 1) / 2, items);
  line.shares = std::min<std::int64_t>(wanted, batch.grid);
  if (batch.fixed_split > 0 || items == 0 || line.units > kEvenUnits * line.shares) return;
  for (const Item& item : line.items) {
    if (item.units != line.items[0].units) return;
  }
  const std::int64_t most = line.shares, each = (items + most - 1) / most;
  for (std::int64_t n = most; 16 * n >= 15 * most; --n) {
    if (items > most ? n * each != items : n % items != 0) continue;
    line.shares = n;
    line.even = true;
    return;
  }
}

Line LineOf(const Batch& batch) {
  Line line;
  const std::int64_t unit = batch.fixed_split > 0 ? batch.fixed_split : 64;
  for (std::size_t b = 0; b < batch.lengths.size(); ++b) {
    if (!batch.Decodes(b)) continue;
    const std::int64_t length = batch.lengths[b];
    std::int64_t first_key = 0;
    if (batch.window > 0) first_key = std::max<std::int64_t>(0, length - batch.window) / 16 * 16;
    std::int64_t units = 0;
    for (std::int64_t key = first_key; key < length && units < 100000; key += unit) ++units;
    if (units == 100000) units = (length - first_key) / unit + ((length - first_key) % unit != 0);
    for (int h = 0; h < batch.heads; ++h) {
      line.items.push_back({static_cast<int>(b), h, units, line.units, line.cost});
      line.units += units;
      line.cost += units + kItemCost;
    }
  }
  Share(batch, line);
  return line;
}

// Starts by going along the line.
std::vector<PieceStart> SlowStarts(const Batch& batch, const Line& line) {
  std::vector<PieceStart> starts;
  std::vector<std::int64_t> places;
  const std::int64_t wanted = line.shares;
  const auto count = static_cast<std::int64_t>(line.items.size());
  std::size_t i = 0;
  for (std::int64_t c = 0; c < wanted; ++c) {
    std::int64_t unit = 0;
    if (line.even && count >= wanted) {
      i = c * (count / wanted);
    } else if (line.even) {
      const std::int64_t parts = wanted / count;
      i = c / parts;
      unit = c % parts * line.items[i].units / parts;
    } else {
      const auto cost = static_cast<std::int64_t>(static_cast<__int128>(c) * line.cost / wanted);
      while (i + 1 < line.items.size() && line.items[i + 1].first_cost <= cost) ++i;
      unit = std::max<std::int64_t>(0, cost - line.items[i].first_cost - kItemCost);
    }
    const Item& item = line.items[i];
    if (!places.empty() && item.first_place + unit == places.back()) continue;
    places.push_back(item.first_place + unit);
    starts.push_back(
        {item.request, item.head, static_cast<std::int32_t>(unit), 0, 0, batch.lengths[item.request], {}});
  }
  // A block holds a part of an item if its units and the item's overlap.
  i = 0;
  for (std::size_t s = 0; s < starts.size(); ++s) {
    while (line.items[i].request != starts[s].request || line.items[i].head != starts[s].head) ++i;
    if (starts[s].unit == 0) continue;
    const auto overlaps = [&](std::size_t block) {
      const std::int64_t end = block + 1 < places.size() ? places[block + 1] : line.units;
      return places[block] < line.items[i].first_place + line.items[i].units &&
             end > line.items[i].first_place;
    };
    std::size_t first = s, last = s;
    while (first > 0 && overlaps(first - 1)) --first;
    while (last + 1 < starts.size() && overlaps(last + 1)) ++last;
    starts[s].first_block = static_cast<std::int32_t>(first);
    starts[s].last_block = static_cast<std::int32_t>(last);
  }
  return starts;
}

bool Same(const PieceStart& a, const PieceStart& b) {
  return a.request == b.request && a.head == b.head && a.unit == b.unit && a.first_block == b.first_block &&
         a.last_block == b.last_block && a.length == b.length;
}

// A part of an item as a block takes it.
struct Piece {
  int block;
  std::size_t item;
  std::int64_t begin, end;  // units of the item
};

// What the blocks take: each from its start on to the next one's.
std::vector<Piece> PiecesOf(const HostPlan& plan, const Line& line) {
  std::vector<Piece> pieces;
  std::size_t i = 0;
  for (int c = 0; c < plan.blocks; ++c) {
    const PieceStart& start = plan.starts[c];
    const PieceStart& next = plan.starts[c + 1];
    while (i < line.items.size() &&
           (line.items[i].request != start.request || line.items[i].head != start.head)) {
      ++i;
    }
    std::int64_t unit = start.unit;
    while (i < line.items.size()) {
      const Item& item = line.items[i];
      const bool last = item.request == next.request && item.head == next.head;
      const std::int64_t end = last ? next.unit : item.units;
      if (unit < end) pieces.push_back({c, i, unit, end});
      if (last) break;
      unit = 0;
      ++i;
    }
  }
  return pieces;
}

// The groups of an item's parts have slots that no other item's groups have, and that are there.
void CheckGroups(std::int64_t parts, std::int64_t place, std::int64_t slots, std::set<std::int64_t>& taken) {
  const std::int64_t group = MergeGroup(static_cast<int>(parts), kRowTile),
                     groups = (parts + group - 1) / group;
  if (groups == 1) return;
  for (std::int64_t i = 0; i < groups; ++i) {
    const std::int64_t slot = GroupPlace(place) + i;
    ASSERT_LT(slot, GroupSlots(slots, 1));
    ASSERT_TRUE(taken.insert(slot).second) << slot;
  }
}

void CheckPieces(const Batch& batch, const Line& line, const HostPlan& plan) {
  const std::vector<Piece> pieces = PiecesOf(plan, line);
  // Every unit of every item once, in order.
  std::size_t item = 0;
  std::int64_t unit = 0;
  for (const Piece& piece : pieces) {
    ASSERT_EQ(piece.item, item);
    ASSERT_EQ(piece.begin, unit);
    unit = piece.end;
    if (unit == line.items[item].units) {
      ++item;
      unit = 0;
    }
  }
  ASSERT_EQ(item, line.items.size());
  ASSERT_EQ(unit, 0);

  // No block has more than its even share of the line; one item's cost more if it ends just after one begins.
  std::vector<std::int64_t> units(plan.blocks), cost(plan.blocks);
  for (const Piece& piece : pieces) {
    units[piece.block] += piece.end - piece.begin;
    cost[piece.block] += piece.end - piece.begin + (piece.begin == 0 && !line.even ? kItemCost : 0);
  }
  for (int c = 0; c < plan.blocks; ++c) {
    const std::int64_t share = ((line.even ? line.units : line.cost) + plan.shares - 1) / plan.shares;
    ASSERT_GE(units[c], 1);
    ASSERT_LE(units[c], share);
    ASSERT_LE(cost[c], share + kItemCost);
  }

  // Partial results: one slot each, inside the workspace. Part 0 of an item is the last piece of its block,
  // any other the first of its own; with a fixed split each unit is a part.
  std::set<std::int64_t> slots, groups;
  if (batch.fixed_split > 0) {
    std::int64_t keys = 0;
    for (std::size_t b = 0; b < batch.lengths.size(); ++b) keys += batch.Decodes(b) ? batch.lengths[b] : 0;
    const auto limit =
        (keys / batch.fixed_split + static_cast<std::int64_t>(batch.lengths.size())) * batch.heads;
    ASSERT_LE(line.units, limit);  // slots are places on the line of units
    for (const Item& item : line.items) {
      CheckGroups(item.units, item.first_place, limit, groups);
      if (testing::Test::HasFatalFailure()) return;
    }
    return;
  }
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const Piece& piece = pieces[i];
    const bool ends = piece.end == line.items[piece.item].units;
    if (piece.begin == 0 && ends) continue;
    const std::int64_t slot = piece.begin > 0 ? piece.block : batch.grid + piece.block;
    ASSERT_TRUE(slots.insert(slot).second) << slot;
    ASSERT_LT(slot, 2 * batch.grid);
    const PieceStart& ends_of = piece.begin > 0 ? plan.starts[piece.block] : plan.starts[piece.block + 1];
    ASSERT_GT(ends_of.unit, 0);
    const int parts = ends_of.last_block - ends_of.first_block + 1;
    ASSERT_GE(parts, 2);
    ASSERT_EQ(piece.begin == 0, piece.block == ends_of.first_block);
    ASSERT_EQ(ends, piece.block == ends_of.last_block);
    if (ends) CheckGroups(parts, ends_of.first_block, 2 * batch.grid, groups);
    if (testing::Test::HasFatalFailure()) return;
  }
}

void CheckBatch(const Batch& batch) {
  SCOPED_TRACE(batch.Name());
  const HostPlan plan = MakePlan(batch.Input());
  const Line line = LineOf(batch);
  const int count = static_cast<int>(batch.lengths.size());
  ASSERT_EQ(plan.starts.size(), static_cast<std::size_t>(batch.grid) + 1);
  ASSERT_EQ(UnitCount::Units(plan.units[count]), line.units);
  ASSERT_EQ(UnitCount::Items(plan.units[count]), static_cast<std::int64_t>(line.items.size()));
  ASSERT_EQ(UnitCount::Cost(plan.units[count]), line.cost);
  const std::vector<PieceStart> starts =
      line.units == 0 ? std::vector<PieceStart>() : SlowStarts(batch, line);
  ASSERT_EQ(plan.blocks, static_cast<int>(starts.size()));
  for (std::size_t s = 0; s < starts.size(); ++s)
    ASSERT_TRUE(Same(plan.starts[s], starts[s])) << "block " << s;
  for (int s = plan.blocks; s <= batch.grid; ++s) ASSERT_EQ(plan.starts[s].request, count);
  if (line.items.size() > 0) CheckPieces(batch, line, plan);

  // Rows to zero and prefill tiles, by definition.
  std::vector<std::int32_t> empty;
  int row = 0;
  std::int64_t tiles = 0;
  for (int b = 0; b < count; ++b) {
    const int n = batch.rows.empty() ? 1 : batch.rows[b];
    const bool prefill = batch.mode == LLMD_PREFILL ? n > 0 : batch.mode == LLMD_MIXED && n > 1;
    if (!prefill && n == 1 && batch.lengths[b] == 0) empty.push_back(row);
    ASSERT_EQ(plan.prefill[b], tiles);
    for (std::int64_t first = 0; prefill && first < std::int64_t{n} * batch.group; first += 128) ++tiles;
    row += n;
  }
  ASSERT_EQ(plan.prefill[count], tiles);
  ASSERT_EQ(plan.empty, empty);
  ASSERT_EQ(plan.tokens, row);
}

TEST(Plan, NothingToDo) {
  CheckBatch({.lengths = {}});
  CheckBatch({.lengths = {0}});
  CheckBatch({.lengths = {0, 0, 0}, .heads = 8});
}

TEST(Plan, EveryGrid) {
  for (int grid = 1; grid <= 1023; ++grid) {
    CheckBatch({.lengths = {5000, 1, 0, 64, 65, 900, 0, 3000}, .heads = 1 + grid % 5, .grid = grid});
    if (HasFailure()) return;
  }
}

TEST(Plan, OneHugeAmongTiny) {
  for (int heads : {1, 8}) {
    std::vector<std::int32_t> lengths(31, 1);
    lengths.insert(lengths.begin() + 7, 1 << 20);
    CheckBatch({.lengths = lengths, .heads = heads});
    CheckBatch({.lengths = lengths, .heads = heads, .window = 128});
    CheckBatch({.lengths = lengths, .heads = heads, .fixed_split = 2048});
  }
}

TEST(Plan, ThousandsOfTiny) {
  for (int batch : {1023, 1024, 1025, 2047, 2048, 2049, 5000}) {
    for (int grid : {1, 132, 1023}) {
      CheckBatch({.lengths = std::vector<std::int32_t>(batch, 3), .heads = 2, .grid = grid});
    }
  }
}

TEST(Plan, EqualItemsAreCutEvenlyOrNotAtAll) {
  const auto starts = [](int batch, int length, int heads) {
    const std::vector<std::int32_t> lengths(batch, length);
    return MakePlan(Batch{.lengths = lengths, .heads = heads}.Input());
  };
  HostPlan plan = starts(1, 8192, 8);  // 16 parts an item of 128 units
  EXPECT_EQ(plan.blocks, 128);
  for (int c = 0; c < 128; ++c) EXPECT_EQ(plan.starts[c].unit, c % 16 * 8);
  for (int batch : {128, 256, 1024}) {
    plan = starts(batch, 600, 1);
    EXPECT_EQ(plan.blocks, 128);
    for (int c = 0; c < 128; ++c) {
      EXPECT_EQ(plan.starts[c].unit, 0);
      EXPECT_EQ(plan.starts[c].request, c * (batch / 128));
    }
  }
  EXPECT_EQ(starts(120, 600, 1).blocks,
            132);  // where a tenth of the blocks would have nothing, items are cut
}

TEST(Plan, SharesOfTheSameLength) {
  for (int length : {1, 63, 64, 65, 1024, 1025, 4096}) {
    for (int batch : {1, 2, 7, 33, 132, 133}) {
      CheckBatch({.lengths = std::vector<std::int32_t>(batch, length), .heads = 8});
    }
  }
}

TEST(Plan, RandomBatches) {
  std::mt19937 random(11);
  const auto pick = [&random](auto... values) {
    const auto list = {values...};
    return *(list.begin() + random() % list.size());
  };
  for (int round = 0; round < 3000 && !testing::Test::HasFailure(); ++round) {
    Batch batch{.mode = pick(LLMD_DECODE, LLMD_DECODE, LLMD_MIXED, LLMD_PREFILL),
                .heads = pick(1, 1, 2, 3, 8, 16),
                .group = static_cast<int>(random() % 16) + 1,
                .window = pick(0, 0, 0, 1, 16, 128, 1000),
                .fixed_split = pick(0, 0, 64, 256, 2048),
                .grid = pick(1, 2, 3, 78, 132, 148, static_cast<int>(random() % 1023) + 1)};
    const unsigned longest = pick(2u, 70u, 600u, 5000u, 200000u);
    for (int n = static_cast<int>(random() % pick(4u, 40u, 300u)); n >= 0; --n) {
      batch.lengths.push_back(random() % 5 == 0 ? 0 : static_cast<int>(random() % longest));
      if (batch.mode != LLMD_DECODE) {
        batch.rows.push_back(random() % 2 != 0 ? 1 : static_cast<int>(random() % 500));
      }
    }
    CheckBatch(batch);
  }
}

// Lengths and sums past 32 bits.
TEST(Plan, Limits) {
  const std::int32_t most = MostKeys(1500, 32, kUnitKeys);
  CheckBatch({.lengths = {most}, .heads = 32});
  CheckBatch({.lengths = {most, 0, most - 1, 1, most}, .heads = 16, .grid = 1023});
  CheckBatch({.lengths = std::vector<std::int32_t>(1500, most), .heads = 8});
  CheckBatch({.lengths = {most, 5}, .heads = 8, .window = 128});
  CheckBatch({.lengths = {MostKeys(1, 1024, kUnitKeys)}, .heads = 1024});
  CheckBatch({.lengths = {1}, .rows = {1 << 30}, .mode = LLMD_PREFILL, .group = 16});
}

TEST(Plan, MergeGroupsCoverTheParts) {
  for (int rows : {1, 4, kRowTile}) {
    for (int parts = 2; parts <= 1 << 16; ++parts) {
      const int group = MergeGroup(parts, rows);
      const int groups = (parts + group - 1) / group;
      ASSERT_LE(group, parts);
      ASSERT_GE(group, 2);
      if (groups > 1) {
        ASSERT_GE(group * group, parts);             // few groups of few parts
        ASSERT_LE((groups - 1) * group, parts - 1);  // none is empty
        ASSERT_LE(groups, (parts - 1) / 2);
      }
    }
  }
}

TEST(Plan, RequestsWithoutSlotsCountAsEmpty) {
  const std::vector<std::int32_t> lengths = {128, 300, 64, 0, 64};  // 2, 5, 1, 0 and 1 units
  Batch batch{.lengths = lengths, .heads = 2, .fixed_split = 64};
  PlanInput input = batch.Input();
  input.most_units = 2 * 7;
  HostPlan plan = MakePlan(input);
  EXPECT_EQ(plan.lengths, (std::vector<std::int32_t>{128, 300, 0, 0, 0}));
  EXPECT_EQ(plan.empty, (std::vector<std::int32_t>{2, 3, 4}));
  EXPECT_EQ(UnitCount::Units(plan.units[5]), 14);
  input.most_units = 2 * 6;
  plan = MakePlan(input);  // those after the one that is refused are as well
  EXPECT_EQ(plan.lengths, (std::vector<std::int32_t>{128, 0, 0, 0, 0}));
}

TEST(Plan, MostKeysKeepSumsInTheirTypes) {
  for (int batch : {1, 256, 1 << 14, 1 << 20}) {
    for (int heads : {1, 8, 128, 1024}) {
      for (int unit_keys : {64, 2048, 1 << 30}) {
        const std::int64_t keys = MostKeys(batch, heads, unit_keys);
        const std::int64_t units = (keys + unit_keys - 1) / unit_keys;
        EXPECT_GE(keys, 1);
        EXPECT_LE(keys, 1 << 30);
        EXPECT_LT(units * heads * batch, std::int64_t{1} << UnitCount::kShift);
        EXPECT_LE((units + kItemCost) * heads, std::numeric_limits<std::int32_t>::max());
      }
    }
  }
  EXPECT_EQ(MostKeys(256, 8, kUnitKeys), 1 << 30);
}

TEST(Plan, SharesAreEvenAndFound) {
  for (std::int64_t cost : {std::int64_t{1}, std::int64_t{7}, std::int64_t{132}, std::int64_t{1000}}) {
    for (int count = 1; count <= std::min<std::int64_t>(cost, 140); ++count) {
      const Shares shares(cost, count);
      int last = 0;
      for (std::int64_t point = 0; point < cost; ++point) {
        while (last + 1 < count && shares.Begin(last + 1) <= point) ++last;
        ASSERT_EQ(shares.At(point), last) << point << " of " << cost << " in " << count;
      }
    }
  }
  std::mt19937_64 random(5);
  for (int round = 0; round < 200000; ++round) {  // at their edges, where the estimate is least sure
    const std::int64_t cost = static_cast<std::int64_t>(random() >> (25 + random() % 38)) + 1023;
    const int count = static_cast<int>(random() % 1023) + 1, share = static_cast<int>(random() % count);
    const Shares shares(cost, count);
    const std::int64_t begin = shares.Begin(share);
    ASSERT_EQ(begin, static_cast<std::int64_t>(static_cast<__int128>(share) * cost / count));
    ASSERT_EQ(shares.At(begin), share);
    if (share > 0) {
      ASSERT_EQ(shares.At(begin - 1), share - 1);
    }
  }
}

llmd_attention_shape Shape(llmd_attention_mode mode, int batch, int kv_heads, int group, int dim, int window,
                           int split) {
  llmd_attention_shape shape{};
  shape.mode = mode;
  shape.max_batch = batch;
  shape.max_tokens = 4 * batch;
  shape.num_kv_heads = kv_heads;
  shape.num_q_heads = kv_heads * group;
  shape.head_dim = dim;
  shape.kv_dtype = LLMD_BF16;
  shape.page_size = 16;
  shape.window = window;
  shape.fixed_split = split;
  shape.max_kv_tokens = std::int64_t{1000} * batch;
  return shape;
}

TEST(Layout, PartsAreAlignedAndApart) {
  for (llmd_attention_mode mode : {LLMD_DECODE, LLMD_PREFILL, LLMD_MIXED}) {
    for (int batch : {1, 63, 64, 5000}) {
      for (int group : {1, 16, 17, 40}) {
        for (int split : {0, 64, 2048}) {
          for (int grid : {1, 132, 1023}) {
            const llmd_attention_shape shape = Shape(mode, batch, 8, group, 128, 0, split);
            const WorkspaceLayout layout = LayoutOf(shape, grid);
            const int teams = layout.heads / layout.item_heads;
            const auto slots = static_cast<std::size_t>(
                mode == LLMD_PREFILL ? 0 : layout.slots + GroupSlots(layout.slots, teams));
            const auto b = static_cast<std::size_t>(batch);
            const struct {
              std::size_t begin, bytes;
            } parts[] = {{0, sizeof(PlanHeader)},
                         {layout.starts, (grid + 1) * sizeof(PieceStart)},
                         {layout.units, (b + 1) * 8},
                         {layout.lengths, b * 4},
                         {layout.empty, b * 4},
                         {layout.part_lse, slots * 16 * 4},
                         {layout.part_o, slots * 16 * 128 * 4},
                         {layout.prefill, mode == LLMD_DECODE ? 0 : (b + 1) * 4},
                         {layout.bytes, 0}};
            for (std::size_t i = 0; i + 1 < std::size(parts); ++i) {
              if (mode == LLMD_DECODE && i + 2 == std::size(parts)) continue;  // has no prefill
              std::size_t next = i + 1;
              if (mode == LLMD_DECODE && next + 2 == std::size(parts)) ++next;
              EXPECT_EQ(parts[i].begin % 256, 0u);
              EXPECT_LE(parts[i].begin + parts[i].bytes, parts[next].begin) << i;
            }
            EXPECT_EQ(layout.heads, 8 * ((group + 15) / 16));
            if (mode == LLMD_PREFILL)
              EXPECT_EQ(layout.slots, 0);
            else if (split == 0)
              EXPECT_EQ(layout.slots, 2 * grid * teams);
            else
              EXPECT_EQ(layout.slots, (shape.max_kv_tokens / split + batch) * layout.heads);
          }
        }
      }
    }
  }
}

TEST(Layout, GrowsWithTheShape) {
  const auto bytes = [](int batch, int kv_heads, int group, int dim, int split, int grid) {
    return LayoutOf(Shape(LLMD_MIXED, batch, kv_heads, group, dim, 0, split), grid).bytes;
  };
  for (int split : {0, 64}) {
    std::size_t last = 0;
    for (int batch = 1; batch <= 4096; batch *= 2) {
      EXPECT_GE(bytes(batch, 8, 4, 128, split, 132), last);
      last = bytes(batch, 8, 4, 128, split, 132);
    }
    last = 0;
    for (int grid = 1; grid <= 1023; ++grid) {
      EXPECT_GE(bytes(64, 8, 4, 128, split, grid), last);
      last = bytes(64, 8, 4, 128, split, grid);
    }
    EXPECT_GT(bytes(64, 8, 4, 256, split, 132), bytes(64, 8, 4, 128, split, 132));
    EXPECT_GE(bytes(64, 8, 32, 128, split, 132), bytes(64, 8, 16, 128, split, 132));
  }
}

TEST(Layout, TeamsShareOutTheHeads) {
  for (int window : {0, 1, 512, 513}) {
    for (int kv_heads : {1, 2, 3, 8, 24}) {
      for (int dim : {64, 128}) {
        for (llmd_dtype dtype : {LLMD_BF16, LLMD_E4M3}) {
          llmd_attention_shape shape = Shape(LLMD_DECODE, 4, kv_heads, 4, dim, window, 0);
          shape.kv_dtype = dtype;
          const int teams = TeamsOf(shape, kv_heads);
          EXPECT_TRUE(teams == 1 || teams == 2 || teams == kDecodeWarps);
          EXPECT_EQ(kv_heads % teams, 0);
          EXPECT_EQ(LayoutOf(shape, 132).item_heads * teams, kv_heads);
        }
      }
    }
  }
}

}  // namespace
}  // namespace llmd::cuda
