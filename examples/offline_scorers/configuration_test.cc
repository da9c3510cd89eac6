// A whole configuration file: who is picked, and why.
#include <gmock/gmock.h>

#include <fstream>
#include <iterator>
#include <string>

#include "examples/offline_scorers/warm_start_scorer.h"
#include "llmd/testing/matchers.h"
#include "llmd/testing/test_bed.h"

namespace {

using llmd::testing::Drops;
using llmd::testing::Outcome;
using llmd::testing::Picks;
using llmd::testing::Refuses;
using llmd::testing::TestBed;
using llmd::testing::TestRequest;
using llmd::testing::Totals;
using ::testing::DoubleNear;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

class Configuration : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(WarmStartScorer::Register(bed.registry()).ok());
    std::ifstream file(CONFIG_FILE);
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    const absl::Status status = bed.Configure(text);
    ASSERT_TRUE(status.ok()) << status;
    bed.Endpoint("busy").Role("decode").Waiting(10).Attribute("uptime_seconds", 3600);
    bed.Endpoint("idle").Role("decode").Waiting(0).Attribute("uptime_seconds", 3600);
    bed.Endpoint("prefill").Role("prefill").Waiting(0).Attribute("uptime_seconds", 3600);
  }

  TestBed bed;
};

TEST_F(Configuration, ANewConversationGoesWhereNobodyWaits) {
  const Outcome outcome = bed.Decide(TestRequest("hello", 320));
  EXPECT_THAT(outcome, Picks("idle"));
  // idle: 3 * 0 + 2 * 1 + 1 * 1; busy: 3 * 0 + 2 * 0 + 1 * 1
  EXPECT_THAT(outcome, Totals(UnorderedElementsAre(Pair("idle", 3.0), Pair("busy", 1.0))));
}

TEST_F(Configuration, ALongPrefixIsWorthAQueue) {
  bed.Endpoint("busy").Holds("conversation", 288);  // 18 of 20 blocks
  const Outcome outcome = bed.Decide(TestRequest("conversation", 320));
  EXPECT_THAT(outcome, Picks("busy"));
  // busy: 3 * 0.9 + 2 * 0 + 1; idle: 3 * 0 + 2 * 1 + 1
  EXPECT_THAT(outcome, Totals(UnorderedElementsAre(Pair("busy", DoubleNear(3.7, 1e-12)), Pair("idle", 3.0))));
}

TEST_F(Configuration, AShortOneIsNot) {
  bed.Endpoint("busy").Holds("conversation", 160);
  EXPECT_THAT(bed.Decide(TestRequest("conversation", 320)), Picks("idle"));
}

TEST_F(Configuration, PrefillersDoNotDecode) {
  EXPECT_THAT(bed.Decide(TestRequest("hello", 320)), Drops("prefill", "decode-filter"));
  bed.Remove("busy");
  bed.Remove("idle");
  EXPECT_THAT(bed.Decide(TestRequest("hello", 320)),
              Refuses(absl::StatusCode::kResourceExhausted, "rejected-saturated"));
}

}  // namespace
