#include <array>
#include <cstddef>
#include <numeric>
#include <vector>

#include "gtest/gtest.h"
#include "llmd/base/memory_usage.h"
#include "llmd/base/random.h"
#include "llmd/base/strings.h"

namespace llmd {
namespace {

TEST(Random, SplitMixMatchesItsPublishedSequence) {
  std::uint64_t state = 1234567;
  EXPECT_EQ(SplitMix64(state), 6457827717110365317u);
  EXPECT_EQ(SplitMix64(state), 3203168211198807973u);
}

TEST(Random, SameSeedSameSequenceAndSeedsDiffer) {
  Random a(7), b(7), c(8);
  bool differs = false;
  for (int i = 0; i < 100; ++i) {
    const std::uint64_t value = a.Next();
    EXPECT_EQ(value, b.Next());
    differs |= value != c.Next();
  }
  EXPECT_TRUE(differs);
}

TEST(Random, BelowStaysBelowAndReachesEveryValue) {
  Random random(1);
  std::array<int, 5> seen{};
  for (int i = 0; i < 1000; ++i) ++seen.at(random.Below(5));
  for (int count : seen) EXPECT_GT(count, 100);
  EXPECT_EQ(random.Below(0), 0u);
}

TEST(Random, ShuffleIsAPermutation) {
  Random random(3);
  std::vector<int> items(50);
  std::iota(items.begin(), items.end(), 0);
  std::vector<int> shuffled = items;
  random.Shuffle(shuffled);
  EXPECT_NE(shuffled, items);
  std::sort(shuffled.begin(), shuffled.end());
  EXPECT_EQ(shuffled, items);
}

TEST(HexExcerpt, CutsLongInput) {
  const std::vector<std::byte> bytes(40, std::byte{0xA5});
  EXPECT_EQ(HexExcerpt(std::span(bytes).first(2)), "a5a5");
  EXPECT_EQ(HexExcerpt(bytes, 3), "a5a5a5...");
  EXPECT_EQ(HexExcerpt({}), "");
}

TEST(MemoryUsage, SumsCauses) {
  MemoryUsage usage;
  usage.causes = {{"a", 1, 2, 3}, {"b", 10, 20, 30}};
  EXPECT_EQ(usage.live_bytes(), 11u);
  EXPECT_EQ(usage.dead_bytes(), 22u);
  EXPECT_EQ(usage.total_bytes(), 66u);
}

}  // namespace
}  // namespace llmd
