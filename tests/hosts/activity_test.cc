#include "examples/gateway_scheduler/activity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "examples/gateway_scheduler/decision_history.h"
#include "nlohmann/json.hpp"
#include "tests/hosts/scripted_host.h"

namespace llmd::host {
namespace {

TEST(DurationCountsTest, QuantilesAreWithinAStep) {
  DurationCounts counts;
  EXPECT_FALSE(counts.Seconds(0.5).has_value());
  for (int ms = 1; ms <= 100; ++ms) counts.Add(absl::Milliseconds(ms));
  EXPECT_GE(*counts.Seconds(0.5), 0.050);
  EXPECT_LE(*counts.Seconds(0.5), 0.050 * 1.2);
  EXPECT_GE(*counts.Seconds(0.99), 0.099);
  EXPECT_LE(*counts.Seconds(0.99), 0.099 * 1.2);
  DurationCounts extremes;
  extremes.Add(-absl::InfiniteDuration());
  extremes.Add(absl::InfiniteDuration());
  EXPECT_EQ(*extremes.Seconds(0.1), 1e-4);
  EXPECT_GT(*extremes.Seconds(1), 100);
}

TEST(ActivityTest, TheLastMinute) {
  ScriptedHost host(2);
  Activity activity;
  for (int i = 0; i < 20; ++i) host.Decide(activity, {.cached_blocks = 3, .total_blocks = 4});
  host.Decide(activity, {.status = absl::UnavailableError("none")});
  host.Finish(activity, {.duration = absl::Seconds(2)});
  host.Finish(activity, {.duration = absl::Seconds(2), .http_status = 500});
  const HostState::Traffic now = activity.Traffic(kStart + absl::Seconds(5));
  EXPECT_EQ(now.decided_per_second.size(), 60u);
  EXPECT_EQ(now.decided_per_second[55], 20u);  // five seconds ago
  EXPECT_DOUBLE_EQ(now.decided_rate, 2);
  EXPECT_DOUBLE_EQ(now.refused_rate, 0.1);
  EXPECT_DOUBLE_EQ(now.failed_rate, 0.1);
  EXPECT_EQ(now.running, 18);
  EXPECT_DOUBLE_EQ(*now.hit_ratio, 0.75);
  EXPECT_GE(*now.duration.p50, 2);
  EXPECT_LE(*now.duration.p50, 2.4);

  const HostState::Traffic later = activity.Traffic(kStart + absl::Minutes(3));
  EXPECT_EQ(later.decided_rate, 0);
  EXPECT_FALSE(later.hit_ratio.has_value());
  EXPECT_EQ(later.decided, 20u);
}

TEST(ActivityTest, EndpointsAreCountedAndForgotten) {
  ScriptedHost host(2);
  Activity activity;
  host.Decide(activity, {.endpoint = 1, .cached_blocks = 2, .total_blocks = 5});
  const auto shown = [&] {
    HostState state;
    const PoolStore::Snapshot pool = host.pool.snapshot();
    FillEndpoints(*pool, kStart, absl::Seconds(2), state);
    activity.FillEndpoints(*pool, state);
    return state.endpoints;
  };
  EXPECT_EQ(shown()[0].decisions, 0u);
  EXPECT_EQ(shown()[1].decisions, 1u);
  EXPECT_EQ(shown()[1].cached_blocks, 2u);
  EXPECT_FALSE(shown()[1].healthy);
  host.SetMetrics(1, 1, 2, 0.5, kStart - absl::Seconds(1));
  EXPECT_TRUE(shown()[1].healthy);
  EXPECT_EQ(*shown()[1].metrics_age, 1);
  host.SetEndpoints({"pod-0"});
  (void)shown();
  host.SetEndpoints({"pod-0", "pod-1"});
  EXPECT_EQ(shown()[1].decisions, 0u);
}

TEST(DecisionHistoryTest, KeepsTheLastOnesWithScoresAndDrops) {
  ScriptedHost host(2);
  host.SetMetrics(0, 0, 1, 0.25, kStart);
  host.SetMetrics(1, 4, 1, 0.75, kStart);
  DecisionHistory history({.size = 2, .per_second = 1e9});
  for (int i = 0; i < 3; ++i) host.Schedule(history, {.id = absl::StrCat("r-", i)});
  const auto entries = history.Recent();
  ASSERT_EQ(entries.size(), 2u);
  EXPECT_EQ(entries[0]->request_id, "r-2");
  EXPECT_EQ(entries[1]->request_id, "r-1");
  EXPECT_EQ(history.seen(), 3u);
  EXPECT_EQ(history.Find(1), nullptr);
  const auto json = nlohmann::json::parse(DetailJson(*history.Find(3)));
  const auto& rows = json["profiles"][0]["rows"];
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0]["endpoint"], "default/pod-0");
  EXPECT_EQ(rows[0]["rank"], 1);
  EXPECT_EQ(rows[0]["total"], 3.5);
  EXPECT_EQ(rows[1]["total"], 0.5);
  double sum = 0;
  for (const auto& weighted : rows[0]["weighted"]) sum += weighted.get<double>();
  EXPECT_EQ(sum, 3.5);
}

TEST(DecisionHistoryTest, AsksForABoundedNumberOfExplanations) {
  ScriptedHost host(2);
  DecisionHistory history({.size = 5, .per_second = 0.001});
  int explained = 0;
  for (int i = 0; i < 100; ++i) {
    explained += history.wants_explanations() ? 1 : 0;
    host.Schedule(history, {.id = absl::StrCat("r-", i)});
  }
  EXPECT_EQ(explained, 5);
  EXPECT_EQ(history.Recent().size(), 5u);
  EXPECT_EQ(history.Recent()[0]->request_id, "r-4");
  EXPECT_EQ(history.seen(), 100u);
}

TEST(DecisionHistoryTest, RowsAreBounded) {
  ScriptedHost host(9);
  DecisionHistory history({.max_rows = 4});
  host.Schedule(history, {});
  EXPECT_EQ(history.Recent()[0]->profiles[0].rows.size(), 4u);
  EXPECT_EQ(history.Recent()[0]->profiles[0].more_rows, 5u);
}

TEST(DecisionHistoryTest, RefusalsAndHostileNames) {
  ScriptedHost host(1);
  DecisionHistory history;
  host.Decide(history,
              {.model = std::string("\xff<script>\0", 10), .status = absl::UnavailableError("none")});
  const auto json = nlohmann::json::parse(SummaryJson(*history.Recent()[0]));
  EXPECT_EQ(json["error"], "none");
  EXPECT_EQ(json["model"], std::string("\uFFFD<script>\0", 12));
  host.Decide(history, {.model = std::string(1 << 20, 'x'), .status = absl::UnavailableError("none")});
  EXPECT_LT(SummaryJson(*history.Recent()[0]).size(), 4096u);
}

TEST(DecisionHistoryTest, ManyThreads) {
  ScriptedHost host(2);
  DecisionHistory history({.size = 20, .per_second = 1e6});
  Activity activity;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 100; ++i) {
        host.Schedule(history, {});
        host.Decide(activity, {.endpoint = static_cast<std::size_t>(i % 2)});
        host.Finish(activity, {});
        if (t == 0) {
          for (const auto& entry : history.Recent()) (void)DetailJson(*entry);
          (void)activity.Traffic(kStart);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(history.seen(), 400u);
  EXPECT_EQ(activity.Traffic(kStart).decided, 400u);
  EXPECT_EQ(activity.Traffic(kStart).running, 0);
}

}  // namespace
}  // namespace llmd::host
