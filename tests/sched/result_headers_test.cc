// What Envoy is told of a decision, and what it may ask for.
#include "llmd/sched/result_headers.h"

#include <gmock/gmock.h>

#include "tests/sched/sched_test_util.h"

namespace llmd::sched {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

EndpointPool PoolAt(const std::vector<std::pair<std::string, std::uint16_t>>& addresses) {
  EndpointPool pool;
  for (const auto& [address, port] : addresses) {
    EXPECT_TRUE(
        pool.Add({.name = "pod-" + std::to_string(pool.size()), .address = address, .port = port}).ok());
  }
  return pool;
}

TEST(HttpStatus, OfErrorCodes) {
  using absl::StatusCode;
  const std::pair<StatusCode, int> table[] = {
      {StatusCode::kOk, 200},
      {StatusCode::kInvalidArgument, 400},
      {StatusCode::kUnauthenticated, 401},
      {StatusCode::kPermissionDenied, 403},
      {StatusCode::kNotFound, 404},
      {StatusCode::kFailedPrecondition, 412},
      {StatusCode::kResourceExhausted, 429},
      {StatusCode::kInternal, 500},
      {StatusCode::kUnknown, 500},
      {StatusCode::kUnimplemented, 500},
      {StatusCode::kDeadlineExceeded, 500},
      {StatusCode::kUnavailable, 503},
      {static_cast<StatusCode>(99), 500},
  };
  for (const auto& [code, http] : table) EXPECT_EQ(HttpStatus(code), http) << absl::StatusCodeToString(code);
}

TEST(DroppedReasons, AreTheWordsOfTheHeader) {
  const char* const words[] = {"rejected-saturated",         "rejected-no-endpoints",  "rejected-ttl-expired",
                               "rejected-context-cancelled", "rejected-shutting-down", "evicted",
                               "evicted-queue-pressure",     "evicted-priority"};
  for (int i = 0; i < 8; ++i) {
    const auto reason = static_cast<DroppedReason>(i + 1);
    EXPECT_EQ(ToString(reason), words[i]);
    EXPECT_EQ(GetDroppedReason(WithDroppedReason(absl::UnavailableError("x"), reason)), reason);
  }
}

TEST(DestinationEndpoint, JoinsTheTargetsOfThePrimary) {
  const EndpointPool pool =
      PoolAt({{"10.0.0.1", 8000}, {"2001:db8::7", 8001}, {"[2001:db8::8]", 8002}, {"pod.svc", 80}});
  Decision decision;
  EXPECT_EQ(DestinationEndpoint(decision, pool), "");
  decision.profiles.resize(2);
  decision.profiles[0].targets = {3};
  decision.profiles[1].targets = {1, 0, 2, 3};
  EXPECT_EQ(DestinationEndpoint(decision, pool), "pod.svc:80");
  decision.primary = 1;
  EXPECT_EQ(DestinationEndpoint(decision, pool),
            "[2001:db8::7]:8001,10.0.0.1:8000,[2001:db8::8]:8002,pod.svc:80");
  decision.profiles[1].port = 65535;
  EXPECT_EQ(DestinationEndpoint(decision, pool),
            "[2001:db8::7]:65535,10.0.0.1:65535,[2001:db8::8]:65535,pod.svc:65535");
  EXPECT_EQ(TargetHostPort(decision.profiles[0], 1, pool), "[2001:db8::7]:8001");
  decision.profiles[1].targets.clear();
  EXPECT_EQ(DestinationEndpoint(decision, pool), "");
}

TEST(EndpointScores, HoldsEveryScoredEndpointOfThePrimary) {
  const EndpointPool pool = PoolAt({{"10.0.0.2", 8000}, {"10.0.0.2", 8001}, {"10.0.0.1", 8000}});
  Decision decision;
  EXPECT_THAT(EndpointScores(decision, pool), IsEmpty());
  decision.profiles.resize(1);
  decision.profiles[0].targets = {2};
  decision.profiles[0].scored = {{0, 0.5}, {1, 2.5}, {2, -1}};
  const auto text = [&] {
    std::vector<std::string> rows;
    for (const EndpointScore& s : EndpointScores(decision, pool)) {
      rows.push_back(s.host_port + " " + std::to_string(s.score).substr(0, 4));
    }
    return rows;
  };
  EXPECT_THAT(text(), ElementsAre("10.0.0.1:8000 -1.0", "10.0.0.2:8000 0.50", "10.0.0.2:8001 2.50"));
  decision.profiles[0].port = 9000;  // two ranks of a pod
  EXPECT_THAT(text(), ElementsAre("10.0.0.1:9000 -1.0", "10.0.0.2:9000 2.50"));
}

TEST(SetHeader, ReplacesWhatWasSaidBefore) {
  HeaderEdits edits;
  SetHeader(edits, "a", "1");
  SetHeader(edits, "b", std::nullopt);
  SetHeader(edits, "a", "2");
  SetHeader(edits, "b", "3");
  SetHeader(edits, "a", std::nullopt);
  ASSERT_EQ(edits.size(), 2u);
  EXPECT_EQ(edits[0].name, "a");
  EXPECT_EQ(edits[0].value, std::nullopt);
  EXPECT_EQ(edits[1].value, "3");
}

TEST(FindHeader, PrefersTheNewName) {
  Request request;
  EXPECT_EQ(FindHeader(request, kFairnessIdHeaders), std::nullopt);
  const std::vector<Header> headers = {{"x-gateway-inference-fairness-id", "old"},
                                       {"x-llm-d-inference-fairness-id", "new"},
                                       {"x-gateway-inference-objective", "batch"}};
  request.headers = headers;
  EXPECT_EQ(FindHeader(request, kFairnessIdHeaders), "new");
  EXPECT_EQ(FindHeader(request, kObjectiveHeaders), "batch");
}

class SubsetTest : public ::testing::Test {
 protected:
  std::vector<Position> Select(const std::vector<std::string>& hint) {
    const std::vector<std::string_view> views(hint.begin(), hint.end());
    return SelectSubset(pool, views);
  }

  EndpointPool pool = PoolAt({{"10.0.0.1", 8000},
                              {"10.0.0.1", 8001},
                              {"10.0.0.2", 8000},
                              {"2001:db8::1", 8000},
                              {"[2001:db8::2]", 8000},
                              {"pod.svc", 8000}});
};

TEST_F(SubsetTest, WithoutHintAllAndWithAnEmptyOneNone) {
  EXPECT_THAT(SelectSubset(pool, std::nullopt), ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_THAT(Select({}), IsEmpty());
  EXPECT_THAT(SelectSubset({}, std::nullopt), IsEmpty());
}

TEST_F(SubsetTest, OnlyTheAddressCounts) {
  EXPECT_THAT(Select({"10.0.0.1:8000"}), ElementsAre(0, 1));
  EXPECT_THAT(Select({"10.0.0.1:9"}), ElementsAre(0, 1));
  EXPECT_THAT(Select({"10.0.0.1"}), ElementsAre(0, 1));
  EXPECT_THAT(Select({"10.0.0.1:"}), ElementsAre(0, 1));
  EXPECT_THAT(Select({"pod.svc:1", "10.0.0.2:1", "pod.svc:2"}), ElementsAre(2, 5));
  EXPECT_THAT(Select({"10.0.0.3:8000", "10.0.0.2:8000"}), ElementsAre(2));  // partly unknown
  EXPECT_THAT(Select({"10.0.0.3:8000"}), IsEmpty());
  EXPECT_THAT(Select({"10.0.0.:8000", "10.0.0.11:8000", "0.0.0.1:8000", "POD.SVC:1"}), IsEmpty());
}

TEST_F(SubsetTest, Ipv6) {
  EXPECT_THAT(Select({"[2001:db8::1]:8000"}), ElementsAre(3));
  EXPECT_THAT(Select({"[2001:db8::1]"}), ElementsAre(3));
  EXPECT_THAT(Select({"2001:db8::1"}), ElementsAre(3));
  EXPECT_THAT(Select({"2001:db8::1:8000"}), ElementsAre(3));  // as llm-d reads it
  EXPECT_THAT(Select({"[2001:db8::2]:8000"}), ElementsAre(4));
  EXPECT_THAT(Select({"2001:db8::2"}), ElementsAre(4));
  EXPECT_THAT(Select({"[2001:db8::3]:8000", "2001:db8:"}), IsEmpty());
}

TEST_F(SubsetTest, HostileHints) {
  const std::string zero("10.0.0.2\0:8000", 14);
  EXPECT_THAT(Select({"", ":", "::", "[", "]", "[]", "[]:", ":8000", "[:8000", "]:8000", "[[", zero}),
              IsEmpty());
  EXPECT_THAT(Select({std::string(1 << 20, 'a'), std::string(1 << 20, ':'), "10.0.0.2:1"}), ElementsAre(2));
  std::vector<std::string> many(kMaxSubsetEntries - 1, "10.9.9.9:1");
  many.push_back("10.0.0.2:1");
  EXPECT_THAT(Select(many), ElementsAre(2));
  many.insert(many.begin(), "10.9.9.8:1");  // now one too many
  EXPECT_THAT(Select(many), IsEmpty());
}

TEST_F(SubsetTest, GoesIntoTheScheduler) {
  const auto scheduler =
      Scheduler::Create({.plugins = {{.type = "queue-scorer"}}}, PluginRegistry::Builtin(), {});
  ASSERT_TRUE(scheduler.ok()) << scheduler.status();
  Workspace workspace(**scheduler);
  Decision decision;
  Request request;
  const auto run = [&](const std::vector<std::string>& hint) {
    const std::vector<Position> subset = Select(hint);
    return (*scheduler)
        ->Schedule({.request = request, .pool = pool, .candidates = subset, .now = kNow}, workspace,
                   decision);
  };
  ASSERT_TRUE(run({"10.0.0.2:8000"}).ok());
  EXPECT_EQ(DestinationEndpoint(decision, pool), "10.0.0.2:8000");
  const absl::Status none = run({"10.0.0.3:8000"});
  EXPECT_EQ(HttpStatus(none.code()), 503);
  EXPECT_EQ(ToString(GetDroppedReason(none)), "rejected-no-endpoints");
}

}  // namespace
}  // namespace llmd::sched
