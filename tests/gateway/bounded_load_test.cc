#include "llmd/gateway/bounded_load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "llmd/base/random.h"

namespace llmd::gateway {
namespace {

using ::testing::HasSubstr;

NormalizedHosts Hosts(const std::vector<std::uint32_t>& weights) {
  std::vector<HashHost> hosts;
  for (const std::uint32_t weight : weights) hosts.push_back({"h" + std::to_string(hosts.size()), weight});
  return *Normalize(hosts);
}

std::uint32_t Pick(std::uint32_t factor, const NormalizedHosts& hosts, std::uint32_t host, std::uint64_t hash,
                   const std::vector<std::uint32_t>& active, std::uint64_t total) {
  const auto bounded = BoundedLoad::Create(factor, hosts);
  std::vector<std::uint32_t> scratch = {7};
  return bounded->Pick(host, hash, active, total, scratch);
}

// The spec's text, literally. (spec: gateway.md 4.7)
std::uint32_t Reference(std::uint32_t f, const NormalizedHosts& hosts, std::uint32_t host, std::uint64_t hash,
                        const std::vector<std::uint32_t>& active, std::uint32_t total) {
  const auto overload = [&](std::uint32_t i) {
    const std::uint32_t all = ((total + 1) * f + 99) / 100;
    const auto slots =
        std::max(static_cast<std::uint32_t>(std::ceil(all * hosts.participants[i].weight)), 1u);
    return static_cast<double>(active[i]) / slots;
  };
  if (overload(host) <= 1) return host;
  std::vector<std::uint32_t> order(hosts.participants.size());
  for (std::uint32_t i = 0; i < order.size(); ++i) order[i] = i;
  std::mt19937 random(static_cast<std::uint32_t>(hash));
  std::uint32_t least = host;
  for (std::uint32_t i = 0; i < order.size(); ++i) {
    const std::uint32_t k = order.size() - i;
    std::uint32_t x = k;
    while (x >= k) x = random() / ((1ull << 32) / k);
    std::swap(order[i], order[i + x]);
    if (order[i] == host) continue;
    if (overload(order[i]) <= 1) return order[i];
    if (overload(order[i]) < overload(least)) least = order[i];
  }
  return least;
}

TEST(BoundedLoad, WithinTheBoundTheHashDecides) {
  const NormalizedHosts hosts = Hosts({1, 1, 1, 1});
  // 10 active: slots = ceil(((11 * 150 + 99) / 100 = 17) * 0.25) = 5.
  EXPECT_EQ(Pick(150, hosts, 2, 1, {2, 1, 5, 2}, 10), 2u);
  EXPECT_NE(Pick(150, hosts, 2, 1, {2, 1, 6, 2}, 10), 2u);
  EXPECT_EQ(Pick(0, hosts, 2, 1, {0, 0, 1000, 0}, 1000), 2u);  // no bound
}

TEST(BoundedLoad, WeightsWidenTheBound) {
  const NormalizedHosts hosts = Hosts({1, 3});
  // 7 active: (8 * 100 + 99) / 100 = 8, slots 2 and 6.
  EXPECT_EQ(Pick(100, hosts, 1, 1, {1, 6}, 7), 1u);
  EXPECT_EQ(Pick(100, hosts, 1, 1, {0, 7}, 7), 0u);
  EXPECT_EQ(Pick(100, hosts, 0, 1, {3, 4}, 7), 1u);
}

TEST(BoundedLoad, AllOverloadedTakesTheLeast) {
  // The counts contradict the total, as counts read at different moments may. Slots 1 each.
  const NormalizedHosts hosts = Hosts({1, 1, 1});
  EXPECT_EQ(Pick(100, hosts, 0, 12345, {9, 8, 7}, 0), 2u);
  EXPECT_EQ(Pick(100, hosts, 0, 12345, {7, 8, 9}, 0), 0u);
}

TEST(BoundedLoad, OneHostAndNone) {
  EXPECT_EQ(Pick(100, Hosts({1}), 0, 3, {50}, 50), 0u);
  EXPECT_EQ(Pick(100, Hosts({}), kNoHost, 3, {}, 0), kNoHost);
  EXPECT_EQ(Pick(100, Hosts({1, 1}), 0, 3, {}, 0), 0u);  // no counts: nobody is busy
}

TEST(BoundedLoad, OneHashHasOneSubstitute) {
  const NormalizedHosts hosts = Hosts(std::vector<std::uint32_t>(8, 1));
  const std::vector<std::uint32_t> active = {100, 0, 0, 0, 0, 0, 0, 0};
  std::set<std::uint32_t> seen;
  for (std::uint64_t hash = 0; hash < 200; ++hash) {
    const std::uint32_t pick = Pick(125, hosts, 0, hash, active, 100);
    EXPECT_EQ(Pick(125, hosts, 0, hash, active, 100), pick);
    EXPECT_EQ(Pick(125, hosts, 0, hash | 1ull << 40, active, 100), pick);  // 32 bits seed the walk
    seen.insert(pick);
  }
  EXPECT_EQ(seen.size(), 7u);  // another host for other hashes
}

TEST(BoundedLoad, AgreesWithTheSpecsText) {
  Random random(11);
  for (int round = 0; round < 5000; ++round) {
    std::vector<std::uint32_t> weights(1 + random.Below(12));
    for (auto& weight : weights) weight = static_cast<std::uint32_t>(random.Between(1, 5));
    const NormalizedHosts hosts = Hosts(weights);
    std::vector<std::uint32_t> active;
    std::uint32_t total = 0;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      active.push_back(static_cast<std::uint32_t>(random.Below(30)));
      total += active.back();
    }
    if (random.Chance(0.2)) total /= 3;
    const auto host = static_cast<std::uint32_t>(random.Below(weights.size()));
    const auto factor = static_cast<std::uint32_t>(random.Between(100, 200));
    const std::uint64_t hash = random.Next();
    ASSERT_EQ(Pick(factor, hosts, host, hash, active, total),
              Reference(factor, hosts, host, hash, active, total));
  }
}

TEST(BoundedLoad, CountsBeyondMeasure) {
  const NormalizedHosts hosts = Hosts({1, 1});
  const std::uint32_t most = std::numeric_limits<std::uint32_t>::max();
  const std::uint64_t total = std::numeric_limits<std::uint64_t>::max();
  // 2^31 slots each.
  EXPECT_EQ(Pick(most, hosts, 0, 1, {most, most}, total), 0u);
  EXPECT_EQ(Pick(most, hosts, 0, 1, {most, most - 1}, total), 1u);
  EXPECT_EQ(Pick(most, hosts, 0, 1, {1u << 31, 0}, total), 0u);
}

TEST(BoundedLoad, RefusesAFactorBelowOne) {
  for (const std::uint32_t factor : {1u, 99u}) {
    EXPECT_THAT(std::string(BoundedLoad::Create(factor, Hosts({1})).status().message()),
                HasSubstr("expected 0 or at least 100"));
  }
}

}  // namespace
}  // namespace llmd::gateway
