// One scorer at a time: a table of situations and the scores expected in each.
#include <gmock/gmock.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "examples/offline_scorers/warm_start_scorer.h"
#include "llmd/testing/matchers.h"
#include "llmd/testing/test_bed.h"

namespace {

using llmd::sched::Parameters;
using llmd::testing::TestBed;
using llmd::testing::TestRequest;
using ::testing::HasSubstr;

struct QueueCase {
  std::string name;
  std::vector<std::optional<int>> waiting;  // of endpoints "0", "1", ...; nothing: never scraped
  std::map<std::string, double> expected;   // (max - waiting) / (max - min); no score without a metric
};

class QueueScorer : public ::testing::TestWithParam<QueueCase> {};

TEST_P(QueueScorer, Scores) {
  TestBed bed;
  for (std::size_t i = 0; i < GetParam().waiting.size(); ++i) {
    TestBed::EndpointSetup& endpoint = bed.Endpoint(std::to_string(i));
    if (GetParam().waiting[i]) endpoint.Waiting(*GetParam().waiting[i]);
  }
  EXPECT_EQ(bed.Score("queue-scorer", {}, TestRequest("any text", 100)), GetParam().expected);
}

INSTANTIATE_TEST_SUITE_P(
    Table, QueueScorer,
    ::testing::Values(QueueCase{"Spread", {0, 5, 10}, {{"0", 1.0}, {"1", 0.5}, {"2", 0.0}}},
                      QueueCase{"Equal", {7, 7}, {{"0", 1.0}, {"1", 1.0}}},
                      QueueCase{"Alone", {3}, {{"0", 1.0}}},
                      QueueCase{"OneNeverScraped", {0, std::nullopt, 4}, {{"0", 1.0}, {"2", 0.0}}}),
    [](const auto& info) { return info.param.name; });

TEST(WarmStartScorer, RampsUp) {
  TestBed bed;
  ASSERT_TRUE(WarmStartScorer::Register(bed.registry()).ok());
  bed.Endpoint("new").Attribute("uptime_seconds", 15);
  bed.Endpoint("old").Attribute("uptime_seconds", 90000);
  bed.Endpoint("unknown");
  const std::map<std::string, double> expected = {{"new", 0.25}, {"old", 1.0}};
  EXPECT_EQ(bed.Score("warm-start-scorer", {}, TestRequest("any text", 100)), expected);
}

TEST(WarmStartScorer, RefusesABadRamp) {
  TestBed bed;
  ASSERT_TRUE(WarmStartScorer::Register(bed.registry()).ok());
  const absl::Status status = bed.Configure(
      {.plugins = {{.type = "warm-start-scorer", .parameters = Parameters({{"rampSeconds", 0}})}}});
  EXPECT_THAT(std::string(status.message()), HasSubstr("rampSeconds is 0"));
}

}  // namespace
