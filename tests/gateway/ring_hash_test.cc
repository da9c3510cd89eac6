#include "llmd/gateway/ring_hash.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "llmd/base/random.h"
#include "llmd/gateway/request_hash.h"

namespace llmd::gateway {
namespace {

using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

constexpr std::uint64_t kMax = std::numeric_limits<std::uint64_t>::max();

std::vector<HashHost> LocalHosts(int first_port, int count) {
  std::vector<HashHost> hosts;
  for (int i = 0; i < count; ++i) hosts.push_back({.key = "127.0.0.1:" + std::to_string(first_port + i)});
  return hosts;
}

RingHash Ring(const std::vector<HashHost>& hosts, const RingHashOptions& options = {}) {
  auto ring = RingHash::Create(hosts, options);
  EXPECT_TRUE(ring.ok()) << ring.status();
  return *std::move(ring);
}

std::vector<std::pair<std::uint32_t, std::uint64_t>> Points(const RingHash& ring) {
  std::vector<std::pair<std::uint32_t, std::uint64_t>> points;
  for (std::size_t i = 0; i < ring.size(); ++i) points.emplace_back(ring.host(i), ring.hash(i));
  return points;
}

// The search as Envoy writes it, over any sorted hashes.
std::size_t EnvoySearch(const std::vector<std::uint64_t>& ring, std::uint64_t h) {
  std::int64_t lo = 0;
  auto hi = static_cast<std::int64_t>(ring.size());
  for (;;) {
    const std::int64_t mid = (lo + hi) / 2;
    if (mid == static_cast<std::int64_t>(ring.size())) return 0;
    const std::uint64_t value = ring[mid];
    const std::uint64_t before = mid == 0 ? 0 : ring[mid - 1];
    if (h <= value && h > before) return mid;
    if (value < h) {
      lo = mid + 1;
    } else {
      hi = mid - 1;
    }
    if (lo > hi) return 0;
  }
}

// (spec: gateway.md 4.8)
TEST(RequestHash, XxHashVectors) {
  EXPECT_EQ(XxHash64(""), 0xef46db3751d8e999u);
  EXPECT_EQ(XxHash64("a"), 0xd24ec4f1a98c6e5bu);
  EXPECT_EQ(XxHash64("abc"), 0x44bc2cf5ad770999u);
  EXPECT_EQ(XxHash64("sess-a"), 0xa31404ffca898a4bu);
  EXPECT_EQ(XxHash64("sess-b"), 0xe7a5ba881a198381u);
  EXPECT_EQ(XxHash64("user-42"), 0x397e9d3a76af7c81u);
}

TEST(RequestHash, MurmurIsTheStandardLibrarysHash) {
  std::string text;
  Random random(3);
  for (int i = 0; i < 40; ++i) {
    EXPECT_EQ(MurmurHash2(text), std::hash<std::string>()(text)) << i;
    text.push_back(static_cast<char>(random.Next()));
  }
}

TEST(RequestHash, HeaderValuesInAnyOrder) {
  const std::string_view one[] = {"abc"};
  EXPECT_EQ(HashHeaderValues(one), 0x44bc2cf5ad770999u);
  const std::string_view empty[] = {""};
  EXPECT_EQ(HashHeaderValues(empty), 0xef46db3751d8e999u);
  const std::string_view ab[] = {"a", "b"};
  const std::string_view ba[] = {"b", "a"};
  EXPECT_EQ(HashHeaderValues(ab), HashHeaderValues(ba));
  EXPECT_EQ(HashHeaderValues(ab), XxHash64("b", 0xd24ec4f1a98c6e5bu));  // the hash of "a" is the seed
  EXPECT_NE(HashHeaderValues(ab), XxHash64("ab"));
}

TEST(RequestHash, PoliciesCombine) {
  RequestHash hash;
  EXPECT_FALSE(hash.value().has_value());
  hash.Add(0x8000000000000001u);  // 0 xor it
  EXPECT_EQ(hash.value(), 0x8000000000000001u);
  hash.Add(0xf0);  // rotated left by one: 0x3, xor 0xf0
  EXPECT_EQ(hash.value(), 0xf3u);
}

// (spec: gateway.md 4.8)
TEST(RingHash, EnvoysXxHashRing) {
  const RingHash ring = Ring(LocalHosts(90, 6), {.min_ring_size = 12});
  const std::vector<std::pair<std::uint32_t, std::uint64_t>> expected = {
      {4, 833437586790550860u},   {2, 928266305478181108u},   {0, 1033482794131418490u},
      {5, 3551244743356806947u},  {3, 3851675632748031481u},  {1, 5583722120771150861u},
      {1, 6311230543546372928u},  {3, 7700377290971790572u},  {5, 13144177310400110813u},
      {2, 13444792449719432967u}, {4, 15516499411664133160u}, {0, 16117243373044804889u}};
  EXPECT_THAT(Points(ring), ElementsAreArray(expected));
  EXPECT_EQ(ring.Pick(0), 4u);
  EXPECT_EQ(ring.Pick(kMax), 4u);
  EXPECT_EQ(ring.Pick(3551244743356806947u), 5u);
  EXPECT_EQ(ring.Pick(3551244743356806948u), 3u);
  // Retries walk on along the ring: 95, 93, 91, 91, 93; the last point's next is the first.
  EXPECT_EQ(ring.Pick(3551244743356806947u, 1), 3u);
  EXPECT_EQ(ring.Pick(3551244743356806947u, 3), 1u);
  EXPECT_EQ(ring.Pick(3551244743356806947u, 4), 3u);
  EXPECT_EQ(ring.Pick(16117243373044804889u, 1), 4u);
  EXPECT_EQ(ring.Pick(0, 12), 4u);
}

TEST(RingHash, EnvoysMurmurRing) {
  const RingHash ring =
      Ring(LocalHosts(80, 6), {.min_ring_size = 12, .function = RingHashFunction::kMurmurHash2});
  const std::vector<std::pair<std::uint32_t, std::uint64_t>> expected = {
      {5, 1358027074129602068u},  {3, 4361834613929391114u},  {4, 7224494972555149682u},
      {1, 7701421856454313576u},  {2, 8649315368077433379u},  {4, 8739448859063030639u},
      {1, 9887544217113020895u},  {2, 10150910876324007731u}, {3, 15168472011420622455u},
      {0, 15427156902705414897u}, {5, 16375050414328759093u}, {0, 17613279263364193813u}};
  EXPECT_THAT(Points(ring), ElementsAreArray(expected));
}

TEST(RingHash, ThreeHostsAsInADeployment) {
  const std::vector<HashHost> hosts = {{"10.0.0.1:8000"}, {"10.0.0.2:8000"}, {"10.0.0.3:8000"}};
  const RingHash ring = Ring(hosts, {.min_ring_size = 4096});
  ASSERT_EQ(ring.size(), 4098u);  // 1366 a host
  EXPECT_EQ(ring.hash(0), 3922712432549799u);
  EXPECT_EQ(ring.host(0), 2u);
  EXPECT_EQ(ring.hash(4097), 18446656218252309169u);
  EXPECT_EQ(ring.host(4097), 2u);
  EXPECT_EQ(ring.Pick(XxHash64("sess-a")), 1u);
  EXPECT_EQ(ring.Pick(XxHash64("sess-b")), 0u);
  EXPECT_EQ(ring.Pick(XxHash64("user-42")), 0u);
  const RingHash smaller = Ring(hosts);
  EXPECT_EQ(smaller.size(), 1026u);  // 3 * ceil(1024 / 3)
  EXPECT_EQ(smaller.Pick(XxHash64("sess-a")), 2u);
  EXPECT_EQ(smaller.Pick(XxHash64("sess-b")), 0u);
  EXPECT_EQ(smaller.Pick(XxHash64("user-42")), 2u);
}

std::vector<int> PointsByHost(const RingHash& ring, std::size_t hosts) {
  std::vector<int> counts(hosts);
  for (std::size_t i = 0; i < ring.size(); ++i) ++counts[ring.host(i)];
  return counts;
}

TEST(RingHash, PointsInProportionToWeights) {
  // Shares 1/4, 3/4 of at least 10: ceil(2.5) = 3 points for the least, so 12 in all.
  EXPECT_THAT(PointsByHost(Ring({{"a", 1}, {"b", 3}}, {.min_ring_size = 10}), 2), ElementsAreArray({3, 9}));
  // At most 6 points for 4 hosts of one weight, 1.5 each: the running sum gives 2, 1, 2, 1.
  EXPECT_THAT(PointsByHost(Ring(LocalHosts(1, 4), {.min_ring_size = 6, .max_ring_size = 6}), 4),
              ElementsAreArray({2, 1, 2, 1}));
  // Fewer points than hosts: 0.75 each gives running targets 0.75, 1.5, 2.25, 3.
  EXPECT_THAT(PointsByHost(Ring(LocalHosts(1, 4), {.min_ring_size = 3, .max_ring_size = 3}), 4),
              ElementsAreArray({1, 1, 1, 0}));
}

TEST(RingHash, LocalitiesShareByTheirWeight) {
  // Locality 0 has 3/4 of the traffic for two hosts, locality 1 has 1/4 for one, locality 2 none: shares 3/8,
  // 3/8, 1/4. The least has ceil(16 / 4) = 4 points of 16.
  const std::vector<HashHost> hosts = {{"a", 1, 0}, {"b", 1, 0}, {"c", 7, 1}, {"d", 1, 2}};
  const RingHash ring = Ring(hosts, {.min_ring_size = 16, .locality_weights = {3, 1, 0}});
  EXPECT_THAT(PointsByHost(ring, 4), ElementsAreArray({6, 6, 4, 0}));
  EXPECT_EQ(ring.normalized().participants.size(), 3u);
  // All localities without weight: nothing takes part.
  EXPECT_EQ(Ring(hosts, {.locality_weights = {0, 0, 0}}).Pick(1), kNoHost);
}

TEST(RingHash, ARemovedHostMovesOnlyItsOwnRequests) {
  std::vector<HashHost> hosts = LocalHosts(8000, 5);
  const RingHash before = Ring(hosts, {.min_ring_size = 1000});  // 200 points a host
  hosts.pop_back();
  const RingHash after = Ring(hosts, {.min_ring_size = 800});  // 200 still
  Random random(9);
  for (int i = 0; i < 10000; ++i) {
    const std::uint64_t hash = random.Next();
    if (before.Pick(hash) != 4) {
      ASSERT_EQ(after.Pick(hash), before.Pick(hash));
    }
  }
}

TEST(RingHash, EmptyAndSingle) {
  EXPECT_EQ(Ring({}).Pick(1), kNoHost);
  EXPECT_EQ(Ring({}).Pick(1, 3), kNoHost);
  EXPECT_EQ(Ring({}).size(), 0u);
  const RingHash one = Ring({{"a"}}, {.min_ring_size = 1});
  EXPECT_EQ(one.size(), 1u);
  for (const std::uint64_t hash : {std::uint64_t{0}, XxHash64("a_0"), XxHash64("a_0") + 1, kMax}) {
    EXPECT_EQ(one.Pick(hash), 0u);
    EXPECT_EQ(one.Pick(hash, 5), 0u);
  }
}

TEST(RingHash, SearchAgreesWithEnvoysLoop) {
  Random random(5);
  for (int round = 0; round < 60; ++round) {
    std::vector<HashHost> hosts = LocalHosts(1000, 1 + static_cast<int>(random.Below(20)));
    for (HashHost& host : hosts) host.weight = static_cast<std::uint32_t>(random.Between(1, 9));
    const RingHash ring = Ring(hosts, {.min_ring_size = random.Between(1, 3000)});
    std::vector<std::uint64_t> hashes;
    for (std::size_t i = 0; i < ring.size(); ++i) hashes.push_back(ring.hash(i));
    std::vector<std::uint64_t> probes = {0, 1, kMax - 1, kMax};
    for (int i = 0; i < 500; ++i) {
      const std::uint64_t point = hashes[random.Below(hashes.size())];
      probes.insert(probes.end(), {random.Next(), point - 1, point, point + 1});
    }
    for (const std::uint64_t probe : probes) {
      const std::size_t expected = EnvoySearch(hashes, probe);
      ASSERT_EQ(ring.Pick(probe), ring.host(expected)) << probe;
      ASSERT_EQ(ring.Pick(probe, 1), ring.host((expected + 1) % ring.size())) << probe;
    }
  }
}

TEST(RingHash, RefusesWhatHasNoMeaning) {
  const auto error = [](std::vector<HashHost> hosts, RingHashOptions options) {
    return std::string(RingHash::Create(hosts, options).status().message());
  };
  EXPECT_THAT(error({{"a"}}, {.min_ring_size = 0}), HasSubstr("min_ring_size is 0, expected 1 to"));
  EXPECT_THAT(error({{"a"}}, {.min_ring_size = 9, .max_ring_size = 8}), HasSubstr("min_ring_size is 9"));
  EXPECT_THAT(error({{"a"}}, {.max_ring_size = 8388609}), HasSubstr("max_ring_size is 8388609"));
  EXPECT_THAT(error({{"a"}, {""}}, {}), HasSubstr("hosts[1].key is empty"));
  EXPECT_THAT(error({{"a"}, {"b"}, {"a"}}, {}), HasSubstr("hosts[2].key is \"a\" again"));
  EXPECT_THAT(error({{"a", 0}}, {}), HasSubstr("hosts[0].weight is 0"));
  EXPECT_THAT(error({{"a", 4294967295}, {"b", 1}}, {}), HasSubstr("sum of weights is 4294967296"));
  EXPECT_THAT(error({{"a", 1, 2}}, {.locality_weights = {1, 1}}), HasSubstr("hosts[0].locality is 2"));
  EXPECT_THAT(error({{"a"}}, {.locality_weights = {4294967295, 1}}), HasSubstr("sum of locality weights"));
}

TEST(RingHash, WeightsFarApartStayWithinTheGreatestSize) {
  // The least host's share is 1e-6: ceil(1e-6 * 1024) = 1 point of 1e6 + 1.
  const RingHash ring = Ring({{"a", 1}, {"b", 1000000}}, {});
  EXPECT_EQ(ring.size(), 1000001u);
  EXPECT_EQ(Ring({{"a", 1}, {"b", 1000000}}, {.max_ring_size = 5000}).size(), 5000u);
}

TEST(HashHosts, AddressesAsEnvoySpellsThem) {
  EXPECT_EQ(EnvoyAddressKey("10.0.0.1", 8000), "10.0.0.1:8000");
  EXPECT_EQ(EnvoyAddressKey("0:0:0:0:0:0:0:1", 80), "[::1]:80");
  EXPECT_EQ(EnvoyAddressKey("FD00::00aB", 80), "[fd00::ab]:80");
  EXPECT_EQ(EnvoyAddressKey("worker-0.pool", 80), "worker-0.pool:80");
  EXPECT_EQ(EnvoyAddressKey("::nonsense", 80), "[::nonsense]:80");
  sched::EndpointPool pool;
  ASSERT_TRUE(pool.Add({.name = "b", .address = "10.0.0.2", .port = 1}).ok());
  ASSERT_TRUE(pool.Add({.name = "a", .address = "::1", .port = 2}).ok());
  const std::vector<HashHost> hosts = HashHostsOf(pool);
  ASSERT_EQ(hosts.size(), 2u);
  EXPECT_EQ(hosts[0].key, "10.0.0.2:1");
  EXPECT_EQ(hosts[1].key, "[::1]:2");
}

}  // namespace
}  // namespace llmd::gateway
