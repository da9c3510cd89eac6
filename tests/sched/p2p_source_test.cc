// p2p-source-producer. (spec: scheduling.md 2.8)
#include <gmock/gmock.h>

#include "tests/sched/plugin_rig.h"

namespace llmd::sched {
namespace {

using ::testing::HasSubstr;

constexpr char kType[] = "p2p-source-producer";
constexpr char kApprox[] = "approx-prefix-cache-producer";

class P2pSourceTest : public ::testing::Test {
 protected:
  void Make(const Value& parameters) { rig = std::make_unique<PluginRig>(pool, kType, parameters); }
  // The header's value, "" when it is removed.
  std::string Source(const std::vector<PrefixMatch>& matches, const std::vector<PluginRig::Ran>& profiles,
                     std::string_view id = "",
                     std::optional<std::vector<Position>> candidates = std::nullopt) {
    if (rig == nullptr) Make({});
    const Request request{.id = id};
    rig->Begin(request, std::move(candidates));
    if (!matches.empty()) rig->Publish(kApprox, matches);
    rig->Produce();
    Dispatch dispatch;
    EXPECT_TRUE(rig->Decide(profiles, dispatch).ok());
    EXPECT_EQ(dispatch.headers.size(), 1u);
    EXPECT_EQ(dispatch.headers[0].name, "x-kv-cache-source-host-port");
    return dispatch.headers[0].value.value_or("");
  }

  EndpointPool pool = MakePool(4);
  std::unique_ptr<PluginRig> rig;
};

PrefixMatch Held(std::uint32_t blocks) {
  return {.total_blocks = 20, .block_size = 16, .cached_blocks = blocks};
}
PrefixMatch Tiers(std::uint32_t blocks, std::uint32_t cpu) {
  return {
      .total_blocks = 20, .block_size = 16, .cached_blocks = blocks, .tiers_known = true, .cpu_blocks = cpu};
}

TEST_F(P2pSourceTest, ThePeerWithMore) {
  const std::vector<PluginRig::Ran> to_0 = {{"decode", {0}}};
  EXPECT_EQ(Source({Held(2), Held(9), Held(3), {}}, to_0), "10.0.0.1:8000");
  EXPECT_EQ(Source({Held(9), Held(2), Held(3), {}}, to_0), "");  // has most itself
  EXPECT_EQ(Source({Held(9), Held(9), {}, {}}, to_0), "");       // nothing to gain
  EXPECT_EQ(Source({{}, {}, {}, {}}, to_0), "");
  EXPECT_EQ(Source({}, to_0), "");
  EXPECT_EQ(Source({Held(2), Held(9), Held(3), {}}, {{"decode", {}}}), "");
  EXPECT_EQ(Source({Held(2), Held(9), Held(3), {}}, to_0, "", std::vector<Position>{0, 2}), "10.0.0.2:8000");
}

TEST_F(P2pSourceTest, ThePrefillerComputes) {
  const std::vector<PrefixMatch> matches = {Held(9), Held(2), {}, {}};
  EXPECT_EQ(Source(matches, {{"decode", {0}}, {"prefill", {1}}}), "10.0.0.0:8000");
  EXPECT_EQ(Source(matches, {{"decode", {1}}, {"prefill", {0}}}), "");
  EXPECT_EQ(Source(matches, {{"decode", {1}}, {"prefill", {}}}), "10.0.0.0:8000");
  EXPECT_EQ(Source(matches, {{"decode", {1}}, {"first", {0}}}), "10.0.0.0:8000");
  Make(Parameters({{"prefillProfileName", "first"}}));
  EXPECT_EQ(Source(matches, {{"decode", {1}}, {"first", {0}}}), "");
}

TEST_F(P2pSourceTest, GainThatIsWorthIt) {
  Make(Parameters({{"minCachedTokenDelta", 33}}));
  EXPECT_EQ(Source({Held(2), Held(4), {}, {}}, {{"decode", {0}}}), "");               // 32 tokens
  EXPECT_EQ(Source({Held(2), Held(5), {}, {}}, {{"decode", {0}}}), "10.0.0.1:8000");  // 48
}

TEST_F(P2pSourceTest, OnlyTheCpuTierIsServed) {
  // 1 has most, but on its GPU; what the computing endpoint holds counts in any tier.
  EXPECT_EQ(Source({Tiers(1, 0), Tiers(20, 0), Tiers(6, 6), {}}, {{"decode", {0}}}), "10.0.0.2:8000");
  EXPECT_EQ(Source({Tiers(7, 0), Tiers(20, 0), Tiers(6, 6), {}}, {{"decode", {0}}}), "");
}

// Within a block of the best, by chance: 1/(1 + waiting) each. FNV-1a 32 of "" is 0x811c9dc5, which is
// 0.5043 of 2^32; of "a" 0xe40c292c, 0.8908; of "c" 0xe60c2c52, 0.8986; of "foobar" 0xbf9cf968, 0.7485.
TEST_F(P2pSourceTest, SamplesAmongTheBest) {
  const std::vector<PrefixMatch> matches = {{}, Held(10), Held(9), Held(10)};
  const std::vector<PluginRig::Ran> to_0 = {{"decode", {0}}};
  // Equal weights: thirds.
  EXPECT_EQ(Source(matches, to_0, ""), "10.0.0.2:8000");
  EXPECT_EQ(Source(matches, to_0, "a"), "10.0.0.3:8000");
  EXPECT_EQ(Source(matches, to_0, "foobar"), "10.0.0.3:8000");
  // Weights 1, 1/2, 1/10: the coordinates times 1.6 are 0.807, 1.425 and 1.198.
  MetricsAt(pool, 2).waiting_requests = {1, kNow};
  MetricsAt(pool, 3).waiting_requests = {9, kNow};
  EXPECT_EQ(Source(matches, to_0, ""), "10.0.0.1:8000");
  EXPECT_EQ(Source(matches, to_0, "a"), "10.0.0.2:8000");
  EXPECT_EQ(Source(matches, to_0, "foobar"), "10.0.0.2:8000");
  // Two blocks short is too far.
  EXPECT_EQ(Source({{}, Held(10), Held(8), Held(10)}, to_0, ""), "10.0.0.1:8000");
  // A nonsensical queue counts as none: weights 1, 1, 1/10; 0.8908 x 2.1 = 1.87.
  MetricsAt(pool, 2).waiting_requests = {-100, kNow};
  EXPECT_EQ(Source(matches, to_0, "a"), "10.0.0.2:8000");
}

TEST_F(P2pSourceTest, Registration) {
  EXPECT_EQ(PluginRegistry::Builtin().Find(kType)->stability, Stability::kExperimental);
  EXPECT_THAT(PluginUnderTest(kType, Parameters({{"minCachedTokenDelta", 0}})).status.message(),
              HasSubstr("minCachedTokenDelta is 0, expected at least 1"));
}

}  // namespace
}  // namespace llmd::sched
