// The test kit tells the truth about decisions, and its matchers can fail.
#include "llmd/testing/test_bed.h"

#include <gmock/gmock.h>

#include "llmd/testing/matchers.h"

namespace llmd::testing {
namespace {

using sched::Parameters;
using sched::SchedulerConfig;
using ::testing::DoubleEq;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

TEST(TestBed, DefaultConfiguration) {
  TestBed bed;
  bed.Endpoint("a").Waiting(4).KvUsage(0.5).Holds("chat", 512);
  bed.Endpoint("b").Waiting(0).KvUsage(0.0);
  const Outcome outcome = bed.Decide(TestRequest("chat", 1024));
  ASSERT_TRUE(outcome.status.ok()) << outcome.status;
  EXPECT_THAT(outcome, ScoresOf("queue-scorer", UnorderedElementsAre(Pair("a", 0.0), Pair("b", 1.0))));
  EXPECT_THAT(outcome,
              ScoresOf("kv-cache-utilization-scorer", UnorderedElementsAre(Pair("a", 0.5), Pair("b", 1.0))));
  EXPECT_THAT(outcome, ScoresOf("prefix-cache-scorer", UnorderedElementsAre(Pair("a", 0.5), Pair("b", 0.0))));
  // a: 2 * 0 + 2 * 0.5 + 3 * 0.5; b: 2 * 1 + 2 * 1 + 3 * 0
  EXPECT_THAT(outcome, Totals(UnorderedElementsAre(Pair("a", DoubleEq(2.5)), Pair("b", DoubleEq(4.0)))));
  EXPECT_THAT(outcome, Picks("b"));
  EXPECT_THAT(outcome, Not(Picks("a")));
  EXPECT_THAT(outcome, Not(ScoresOf("no-such-scorer", IsEmpty())));
}

TEST(TestBed, LearnsWhereItSent) {
  TestBed bed;
  bed.Endpoint("a").Waiting(0).KvUsage(0);
  bed.Endpoint("b").Waiting(0).KvUsage(0);
  const std::string first = bed.Decide(TestRequest("doc", 640)).targets().front();
  EXPECT_THAT(bed.Score("prefix-cache-scorer", {}, TestRequest("doc", 1280)),
              UnorderedElementsAre(Pair("a", first == "a" ? 0.5 : 0.0), Pair("b", first == "b" ? 0.5 : 0.0)));
  EXPECT_THAT(bed.Decide(TestRequest("doc", 1280)), Picks(first));
  bed.Remove(first);
  EXPECT_THAT(bed.Decide(TestRequest("doc", 1280)), Not(Picks(first)));
}

TEST(TestBed, AskingDoesNotTeach) {
  TestBed bed;
  bed.Endpoint("a");
  ASSERT_TRUE(bed.Ask(TestRequest("doc", 640)).status.ok());
  EXPECT_THAT(bed.Score("prefix-cache-scorer", {}, TestRequest("doc", 640)), ElementsAre(Pair("a", 0.0)));
}

TEST(TestBed, FiltersAndSubsets) {
  TestBed bed;
  bed.Endpoint("p").Role("prefill");
  bed.Endpoint("d").Role("decode");
  EXPECT_THAT(bed.Filter("decode-filter", {}, TestRequest("x", 16)), ElementsAre("d"));
  ASSERT_TRUE(
      bed.Configure(SchedulerConfig{.plugins = {{.type = "decode-filter"}, {.type = "queue-scorer"}}}).ok());
  EXPECT_THAT(bed.Decide(TestRequest("x", 16)), Drops("p", "decode-filter"));
  EXPECT_THAT(bed.Decide(TestRequest("x", 16)), Not(Drops("d", "decode-filter")));
  EXPECT_THAT(bed.DecideAmong({"p"}, TestRequest("x", 16)),
              Refuses(absl::StatusCode::kResourceExhausted, "rejected-saturated"));
  EXPECT_THAT(bed.Decide(TestRequest("x", 16)),
              Not(Refuses(absl::StatusCode::kResourceExhausted, "rejected-saturated")));
}

TEST(TestBed, TiersOfTheExactSource) {
  TestBed bed;
  bed.Endpoint("gpu").Holds("doc", 160);
  bed.Endpoint("cpu").Holds("doc", 160, "cpu");
  ASSERT_TRUE(bed.Configure(SchedulerConfig{
                                .plugins = {{.type = "precise-prefix-cache-producer"},
                                            {.type = "prefix-cache-scorer",
                                             .parameters = Parameters({{"prefixMatchInfoProducerName",
                                                                        "precise-prefix-cache-producer"}})}}})
                  .ok());
  // 10 blocks of weight 1.0 and of 0.8, of 20
  EXPECT_THAT(bed.Ask(TestRequest("doc", 320)),
              ScoresOf("prefix-cache-scorer", UnorderedElementsAre(Pair("gpu", 0.5), Pair("cpu", 0.4))));
}

TEST(TestBed, BadConfigurationLeavesTheOldOne) {
  TestBed bed;
  bed.Endpoint("a");
  EXPECT_FALSE(bed.Configure(SchedulerConfig{.plugins = {{.type = "no-such-type"}}}).ok());
  EXPECT_THAT(bed.Decide(TestRequest("x", 16)), Picks("a"));
}

TEST(TestBedDeathTest, NamesTheMistake) {
  TestBed bed;
  bed.Endpoint("a").Waiting(1);
  EXPECT_DEATH(bed.Endpoint("a").Role("decode"), "labels come before");
  EXPECT_DEATH(bed.DecideAmong({"z"}, TestRequest("x", 16)), "no endpoint is named z");
}

}  // namespace
}  // namespace llmd::testing
