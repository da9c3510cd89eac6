// Division by a multiplication, at the edges and at random.
#include "cuda/common/divide.h"

#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <vector>

namespace llmd::cuda {
namespace {

constexpr std::uint32_t kMost = std::numeric_limits<std::int32_t>::max();

void Expect(std::uint32_t n, std::uint32_t divisor) {
  const FastDivide divide(divisor);
  std::uint32_t rest = 0;
  ASSERT_EQ(divide.Divide(static_cast<int>(n)), static_cast<int>(n / divisor)) << n << " / " << divisor;
  ASSERT_EQ(divide.DivMod(n, &rest), n / divisor) << n << " / " << divisor;
  ASSERT_EQ(rest, n % divisor) << n << " / " << divisor;
}

std::vector<std::uint32_t> Edges() {
  std::vector<std::uint32_t> edges = {1, 3, 5, 6, 7, 10, 48, 100, 641, 65535, 128256, 0x55555555, 0x2AAAAAAB};
  for (int bit = 1; bit < 31; ++bit) {
    for (int off : {-1, 0, 1}) edges.push_back((std::uint32_t{1} << bit) + off);
  }
  edges.push_back(kMost - 1);
  edges.push_back(kMost);
  return edges;
}

TEST(FastDivide, Edges) {
  for (std::uint32_t divisor : Edges()) {
    if (divisor == 0) continue;
    for (std::uint32_t n : Edges()) Expect(n, divisor);
    Expect(0, divisor);
    for (std::uint32_t quotient : {1u, 2u, 3u, kMost / divisor}) {  // where a quotient begins and ends
      const std::uint64_t n = std::uint64_t{quotient} * divisor;
      if (n <= kMost) Expect(static_cast<std::uint32_t>(n), divisor);
      if (n - 1 <= kMost) Expect(static_cast<std::uint32_t>(n - 1), divisor);
    }
  }
  Expect(kMost, std::uint32_t{1} << 31);
}

TEST(FastDivide, SmallDivisorsAtTheTop) {
  for (std::uint32_t divisor = 1; divisor < 5000; ++divisor) {
    const std::uint32_t n = kMost / divisor * divisor;
    Expect(n, divisor);
    Expect(n - 1, divisor);
    Expect(kMost, divisor);
  }
}

TEST(FastDivide, Random) {
  std::mt19937 random(3);
  for (int i = 0; i < 500000; ++i) {
    const std::uint32_t divisor = (random() >> (random() % 32)) & kMost;
    if (divisor == 0) continue;
    Expect(random() & kMost, divisor);
  }
}

TEST(FastDivide, IsOneUntilTold) {
  std::uint32_t rest = 1;
  EXPECT_EQ(FastDivide().DivMod(kMost, &rest), kMost);
  EXPECT_EQ(rest, 0u);
}

TEST(CeilDivide, RoundsUpInTheWiderType) {
  EXPECT_EQ(CeilDivide(0, 5), 0);
  EXPECT_EQ(CeilDivide(1, 5), 1);
  EXPECT_EQ(CeilDivide(5, 5), 1);
  EXPECT_EQ(CeilDivide(6, 5), 2);
  EXPECT_EQ(CeilDivide(std::int64_t{1} << 40, 3), ((std::int64_t{1} << 40) + 2) / 3);
}

}  // namespace
}  // namespace llmd::cuda
