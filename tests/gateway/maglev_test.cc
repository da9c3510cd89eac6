#include "llmd/gateway/maglev.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "llmd/base/random.h"
#include "llmd/gateway/request_hash.h"

namespace llmd::gateway {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Maglev Table(const std::vector<HashHost>& hosts, const MaglevOptions& options = {}) {
  auto table = Maglev::Create(hosts, options);
  EXPECT_TRUE(table.ok()) << table.status();
  return *std::move(table);
}

std::vector<std::uint32_t> Slots(const Maglev& table) {
  std::vector<std::uint32_t> slots;
  for (std::size_t i = 0; i < table.size(); ++i) slots.push_back(table.host(i));
  return slots;
}

std::vector<int> SlotsByHost(const Maglev& table, std::size_t hosts) {
  std::vector<int> counts(hosts);
  for (const std::uint32_t host : Slots(table)) ++counts[host];
  return counts;
}

// (spec: gateway.md 4.8)
TEST(Maglev, EnvoysTable) {
  std::vector<HashHost> hosts;
  for (int port = 90; port < 96; ++port) hosts.push_back({.key = "127.0.0.1:" + std::to_string(port)});
  const Maglev table = Table(hosts, {.table_size = 7});
  EXPECT_THAT(Slots(table), ElementsAre(2, 4, 0, 1, 5, 0, 3));
  EXPECT_EQ(table.Pick(8), 4u);
  // A retry flips the upper bits: ~0 - 1 + 1 = 2^64 - 1 for the first. 3 xor it is 2^64 - 4; 2^64 mod 7 is 2,
  // so slot (2 - 4) mod 7 = 5. The second has 2^64 - 2: 3 xor it is 2^64 - 3, slot 6.
  EXPECT_EQ(table.Pick(3, 1), 0u);
  EXPECT_EQ(table.Pick(3, 2), 3u);
}

TEST(Maglev, OrderOfHostsDoesNotMatter) {
  std::vector<HashHost> hosts;
  for (int i = 0; i < 20; ++i) hosts.push_back({"h" + std::to_string(i), 1 + i % 5u});
  const Maglev table = Table(hosts, {.table_size = 997});
  std::vector<HashHost> shuffled = hosts;
  Random(1).Shuffle(shuffled);
  const Maglev again = Table(shuffled, {.table_size = 997});
  for (std::size_t i = 0; i < 997; ++i) ASSERT_EQ(hosts[table.host(i)].key, shuffled[again.host(i)].key);
}

TEST(Maglev, ThreeHostsAsInADeployment) {
  const Maglev table = Table({{"10.0.0.1:8000"}, {"10.0.0.2:8000"}, {"10.0.0.3:8000"}});
  for (const auto* session : {"sess-a", "sess-b", "user-42"}) EXPECT_EQ(table.Pick(XxHash64(session)), 1u);
  std::vector<int> counts = SlotsByHost(table, 3);
  std::sort(counts.begin(), counts.end());
  EXPECT_THAT(counts, ElementsAre(21845, 21846, 21846));
}

TEST(Maglev, SlotsInProportionToWeights) {
  // Shares 1/6, 2/6, 3/6 of 11 slots. Round r: a host takes a slot when r * share >= its slots * 3/6. Round
  // 1: a, b, c; 2: c (a: 2/6 < 3/6; b: 4/6 >= 3/6, so b too); 3: a (3/6), c (b: 6/6 = its 2 slots' 6/6, so b
  // too); 4: c (b: 8/6 < 9/6). 3 + 2 + 3 + 1 = 9; round 5: b (10/6 >= 9/6), c: 11 slots. In all a 2, b 4,
  // c 5.
  EXPECT_THAT(SlotsByHost(Table({{"a", 1}, {"b", 2}, {"c", 3}}, {.table_size = 11}), 3),
              ElementsAre(2, 4, 5));
}

TEST(Maglev, LocalitiesEmptyAndSingle) {
  EXPECT_EQ(Table({}).Pick(5), kNoHost);
  EXPECT_EQ(Table({}).Pick(5, 1), kNoHost);
  EXPECT_THAT(Slots(Table({{"a"}}, {.table_size = 2})), ElementsAre(0, 0));
  const Maglev table = Table({{"a", 1, 0}, {"b", 1, 1}}, {.table_size = 5, .locality_weights = {0, 1}});
  EXPECT_THAT(Slots(table), ElementsAre(1, 1, 1, 1, 1));
}

TEST(Maglev, ManyHostsTakeWideSlots) {
  std::vector<HashHost> hosts;
  for (int i = 0; i < 65536; ++i) hosts.push_back({std::to_string(i)});
  const Maglev table = Table(hosts);  // 65537 slots: one host has two
  std::vector<int> counts = SlotsByHost(table, hosts.size());
  EXPECT_EQ(std::count(counts.begin(), counts.end(), 1), 65535);
  EXPECT_EQ(std::count(counts.begin(), counts.end(), 2), 1);
}

TEST(Maglev, RefusesWhatHasNoMeaning) {
  const auto error = [](std::uint64_t size) {
    const std::vector<HashHost> hosts = {{"a"}};
    return std::string(Maglev::Create(hosts, {.table_size = size}).status().message());
  };
  for (const std::uint64_t size :
       {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{65536}, std::uint64_t{5000021}}) {
    EXPECT_THAT(error(size), HasSubstr("expected a prime of at most 5000011")) << size;
  }
  EXPECT_EQ(error(5000011), "");
  EXPECT_THAT(std::string(Maglev::Create(std::vector<HashHost>{{"a"}, {"a"}}).status().message()),
              HasSubstr("hosts[1].key is \"a\" again"));
}

}  // namespace
}  // namespace llmd::gateway
