// Which endpoints the KV event feed listens to, and where.
#include "examples/gateway_scheduler/kv_addresses.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace llmd::host {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

sched::EndpointMetadata At(std::string address, std::uint32_t rank, sched::Labels labels = {}) {
  return {
      .name = "e", .address = std::move(address), .port = 8000, .labels = std::move(labels), .rank = rank};
}

sched::PreciseOptions::KvEvents Ports(std::int64_t events, std::int64_t replay) {
  sched::PreciseOptions::KvEvents options;
  options.socket_port = events;
  options.replay_socket_port = replay;
  return options;
}

TEST(KvAddressesTest, PortPlusRank) {
  const auto options = Ports(5557, 5657);
  EXPECT_THAT(*KvAddressesOf(At("10.0.0.7", 0), options),
              ElementsAre(KvAddress{"tcp://10.0.0.7:5557", "tcp://10.0.0.7:5657"}));
  EXPECT_THAT(*KvAddressesOf(At("10.0.0.7", 3), options),
              ElementsAre(KvAddress{"tcp://10.0.0.7:5560", "tcp://10.0.0.7:5660"}));
  EXPECT_THAT(*KvAddressesOf(At("fd00::1", 1), options),
              ElementsAre(KvAddress{"tcp://[fd00::1]:5558", "tcp://[fd00::1]:5658"}));
}

TEST(KvAddressesTest, NoReplayUnlessConfigured) {
  EXPECT_THAT(*KvAddressesOf(At("h", 2), {}), ElementsAre(KvAddress{"tcp://h:5559", ""}));
}

TEST(KvAddressesTest, LabelsReplacePortsAsTheyAre) {
  const auto options = Ports(5557, 5657);
  EXPECT_THAT(*KvAddressesOf(At("h", 2, {{"llmd.ai/kv-events-port", "7001"}}), options),
              ElementsAre(KvAddress{"tcp://h:7001", "tcp://h:5659"}));
  EXPECT_THAT(*KvAddressesOf(At("h", 2, {{"llmd.ai/kv-replay-port", "0"}}), options),
              ElementsAre(KvAddress{"tcp://h:5559", ""}));
  EXPECT_THAT(*KvAddressesOf(At("h", 0, {{"llmd.ai/kv-events-port", "0"}}), {}), ElementsAre(KvAddress{}));
}

TEST(KvAddressesTest, RangeIsSeveralPublishers) {
  EXPECT_THAT(
      *KvAddressesOf(
          At("h", 0, {{"llmd.ai/kv-events-port", "7001-7002"}, {"llmd.ai/kv-replay-port", "7101-7102"}}), {}),
      ElementsAre(KvAddress{"tcp://h:7001", "tcp://h:7101"}, KvAddress{"tcp://h:7002", "tcp://h:7102"}));
}

TEST(KvAddressesTest, RefusalsNameLabelAndLimit) {
  for (const char* text : {"", "x", "-1", "65536", "5-3", "1-65", "5557-", "-", "1-2-3", "5557 x"}) {
    const auto addresses = KvAddressesOf(At("h", 0, {{"llmd.ai/kv-events-port", text}}), {});
    EXPECT_THAT(std::string(addresses.status().message()), HasSubstr("llmd.ai/kv-events-port")) << text;
  }
  EXPECT_THAT(std::string(KvAddressesOf(At("h", 10), Ports(65530, 0)).status().message()),
              HasSubstr("socketPort 65530 plus rank 10 is 65540"));
  EXPECT_THAT(
      std::string(
          KvAddressesOf(
              At("h", 0, {{"llmd.ai/kv-events-port", "7001-7002"}, {"llmd.ai/kv-replay-port", "7101"}}), {})
              .status()
              .message()),
      HasSubstr("as many"));
}

TEST(KvAddressesTest, RemovalIsSetOrRefcount) {
  EXPECT_EQ(*KvRemovalOf(At("h", 0)), index::RemovalPolicy::kSet);
  EXPECT_EQ(*KvRemovalOf(At("h", 0, {{"llmd.ai/kv-removal", "set"}})), index::RemovalPolicy::kSet);
  EXPECT_EQ(*KvRemovalOf(At("h", 0, {{"llmd.ai/kv-removal", "refcount"}})), index::RemovalPolicy::kRefcount);
  EXPECT_THAT(std::string(KvRemovalOf(At("h", 0, {{"llmd.ai/kv-removal", "Set"}})).status().message()),
              HasSubstr("label llmd.ai/kv-removal is \"Set\", expected"));
}

}  // namespace
}  // namespace llmd::host
