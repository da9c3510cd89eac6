// What the load generator's workloads consist of.
#include "examples/llmd_load/plan.h"

#include <cstdio>
#include <fstream>
#include <set>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "examples/llmd_load/text.h"

namespace llmd::load {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

Plan Make(const PlanOptions& options) {
  absl::StatusOr<Plan> plan = MakePlan(options);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return plan.ok() ? *std::move(plan) : Plan();
}

std::string Text(const PlannedRequest& request) {
  std::string out;
  for (const Message& message : request.messages)
    out += message.role + ": " + message.content.Render() + "\n";
  return out;
}

std::vector<std::string> Texts(const Plan& plan) {
  std::vector<std::string> out;
  for (const Lane& lane : plan.lanes) {
    for (const PlannedRequest& request : lane.requests) out.push_back(lane.session + " " + Text(request));
  }
  return out;
}

std::string WriteTrace(const std::string& name, const std::string& lines) {
  const std::string path = testing::TempDir() + name;
  std::ofstream(path) << lines;
  return path;
}

TEST(LoadText, StreamsAreStableAndBeginAlike) {
  std::string a, b, other;
  AppendText(7, 10, a);
  AppendText(7, 25, b);
  AppendText(8, 10, other);
  EXPECT_EQ(a.size(), 10 * kCharactersPerToken);
  EXPECT_THAT(b, StartsWith(a));
  EXPECT_NE(a, other);
  EXPECT_GT(TestParagraph().size(), 800u);
  EXPECT_LT(TestParagraph().size(), 1000u);
}

TEST(LoadPlan, SessionsAreTheCacheHitTest) {
  const Plan plan = Make({});
  ASSERT_EQ(plan.lanes.size(), 1u);
  EXPECT_EQ(plan.lanes[0].requests.size(), 30u);
  EXPECT_EQ(plan.lanes[0].pause, 0.8);
  EXPECT_EQ(plan.lanes[0].requests[0].max_tokens, 16u);
  EXPECT_EQ(plan.warmup.size(), 1u);
  EXPECT_EQ(plan.min_hit_rate, 0.8);
  EXPECT_EQ(plan.min_stickiness, 1.0);
  EXPECT_FALSE(plan.open_loop);
  const std::vector<std::string> texts = Texts(plan);
  EXPECT_EQ(std::set<std::string>(texts.begin(), texts.end()).size(), 1u);  // all equal
}

TEST(LoadPlan, RampAndMulti5) {
  const Plan ramp = Make({.workload = Workload::kRamp});
  EXPECT_EQ(ramp.lanes.size(), 1u);
  EXPECT_EQ(ramp.requests(), 80u);
  EXPECT_EQ(ramp.lanes[0].pause, 0.3);
  const Plan multi = Make({.workload = Workload::kMulti5});
  EXPECT_EQ(multi.lanes.size(), 5u);
  EXPECT_EQ(multi.requests(), 125u);
  std::set<std::string> sessions;
  for (const Lane& lane : multi.lanes) sessions.insert(lane.session);
  EXPECT_EQ(sessions.size(), 5u);
}

TEST(LoadPlan, ChatSharesInstructionsAndNothingElse) {
  const Plan plan = Make({.workload = Workload::kChat, .sessions = 3, .requests = 4, .prefix_tokens = 50});
  ASSERT_EQ(plan.lanes.size(), 3u);
  std::set<std::string> systems, questions;
  for (const Lane& lane : plan.lanes) {
    EXPECT_TRUE(lane.grows);
    ASSERT_EQ(lane.requests.size(), 4u);
    ASSERT_EQ(lane.requests[0].messages.size(), 2u);
    systems.insert(lane.requests[0].messages[0].content.Render());
    for (const PlannedRequest& request : lane.requests)
      questions.insert(request.messages.back().content.Render());
    EXPECT_EQ(lane.requests[1].messages.size(), 1u);
  }
  EXPECT_EQ(systems.size(), 1u);
  EXPECT_EQ(questions.size(), 12u);
}

TEST(LoadPlan, SharedPrefixHasFewBeginningsAndManyQuestions) {
  const Plan plan =
      Make({.workload = Workload::kSharedPrefix, .requests = 100, .prefix_tokens = 30, .prefixes = 4});
  std::set<std::string> beginnings, questions;
  for (const Lane& lane : plan.lanes) {
    EXPECT_TRUE(lane.session.empty());
    beginnings.insert(lane.requests[0].messages[0].content.Render());
    questions.insert(lane.requests[0].messages[1].content.Render());
  }
  EXPECT_EQ(beginnings.size(), 4u);
  EXPECT_EQ(questions.size(), 100u);
  EXPECT_TRUE(plan.open_loop);
  EXPECT_NEAR(plan.last_start(), 99 / 8.0, 1e-9);
}

TEST(LoadPlan, VllmLoadTestHasItsThreeParts) {
  const Plan plan = Make({.workload = Workload::kVllmLoadTest, .time_scale = 0.5});
  ASSERT_EQ(plan.requests(), 100u);
  EXPECT_EQ(plan.api, Api::kCompletions);
  EXPECT_EQ(plan.lanes[1].start, 0.5);
  EXPECT_EQ(plan.lanes[51].start, (50 + 0.5) * 0.5);
  std::map<double, int> bursts;
  for (int i = 80; i < 100; ++i) ++bursts[*plan.lanes[i].start];
  EXPECT_EQ(bursts.size(), 4u);
  for (const auto& [start, count] : bursts) EXPECT_EQ(count, 5);
  std::set<std::string> rotating;
  for (int i = 50; i < 80; ++i) rotating.insert(Text(plan.lanes[i].requests[0]));
  EXPECT_EQ(rotating.size(), 4u);
}

TEST(LoadPlan, IsTheSameForASeedAndAnotherForAnother) {
  for (const Workload workload : {Workload::kChat, Workload::kSharedPrefix, Workload::kMulti5}) {
    const PlanOptions one{.workload = workload, .seed = 1}, two{.workload = workload, .seed = 2};
    EXPECT_EQ(Texts(Make(one)), Texts(Make(one)));
    EXPECT_NE(Texts(Make(one)), Texts(Make(two)));
  }
}

TEST(LoadPlan, ARateMakesAnOpenLoopThatTakesSessionsInTurn) {
  const Plan plan = Make({.workload = Workload::kMulti5, .requests = 2, .rate = 4});
  ASSERT_EQ(plan.lanes.size(), 10u);
  EXPECT_TRUE(plan.open_loop);
  for (int i = 0; i < 10; ++i) {
    EXPECT_DOUBLE_EQ(*plan.lanes[i].start, i / 4.0);
    EXPECT_EQ(plan.lanes[i].session, plan.lanes[i % 5].session);
  }
  EXPECT_NE(plan.lanes[0].session, plan.lanes[1].session);

  const Plan random = Make({.workload = Workload::kMulti5, .requests = 200, .rate = 4, .poisson = true});
  EXPECT_NEAR(random.last_start(), 1000 / 4.0, 30);
  const Plan again = Make({.workload = Workload::kMulti5, .requests = 200, .rate = 4, .poisson = true});
  EXPECT_EQ(random.last_start(), again.last_start());

  const Plan chat = Make({.workload = Workload::kChat, .sessions = 3, .requests = 6, .rate = 2});
  ASSERT_EQ(chat.lanes.size(), 3u);  // whole, one every three seconds
  EXPECT_DOUBLE_EQ(*chat.lanes[2].start, 6.0);
}

TEST(LoadTrace, EqualHashesAreEqualText) {
  PlanOptions options{.workload = Workload::kTrace, .block_tokens = 16};
  options.trace_file =
      WriteTrace("load_trace.jsonl",
                 R"({"timestamp":1000,"input_length":1030,"output_length":20,"hash_ids":[0,7,8]}
{"timestamp":3000,"input_length":1024,"output_length":5,"hash_ids":[0,7]}
{"timestamp":3000,"input_length":600,"output_length":5,"hash_ids":[0,9]}
{"timestamp":7000,"input_length":512,"output_length":900,"hash_ids":[4]}
)");
  const Plan plan = Make(options);
  ASSERT_EQ(plan.lanes.size(), 4u);
  std::vector<std::string> texts;
  for (const Lane& lane : plan.lanes) texts.push_back(lane.requests[0].messages[0].content.Render());
  EXPECT_EQ(texts[0].size(), (16 + 16 + 1) * kCharactersPerToken);
  EXPECT_THAT(texts[0], StartsWith(texts[1]));
  EXPECT_EQ(texts[2].size(), (16 + 2) * kCharactersPerToken);
  EXPECT_EQ(texts[2].substr(0, 64), texts[0].substr(0, 64));
  EXPECT_NE(texts[2].substr(64, 8), texts[0].substr(64, 8));
  EXPECT_NE(texts[3].substr(0, 64), texts[0].substr(0, 64));
  EXPECT_EQ(plan.lanes[3].requests[0].max_tokens, 900u);
  EXPECT_DOUBLE_EQ(*plan.lanes[0].start, 0);
  EXPECT_DOUBLE_EQ(*plan.lanes[1].start, 2);
  EXPECT_DOUBLE_EQ(*plan.lanes[2].start, 4);  // equal stamps are spread
  EXPECT_DOUBLE_EQ(*plan.lanes[3].start, 6);

  options.time_scale = 0.5;
  options.max_tokens = 100;
  options.max_prompt_tokens = 20;
  const Plan scaled = Make(options);
  EXPECT_DOUBLE_EQ(*scaled.lanes[3].start, 3);
  EXPECT_EQ(scaled.lanes[3].requests[0].max_tokens, 100u);
  EXPECT_EQ(scaled.lanes[0].requests[0].messages[0].content.Render(), texts[0].substr(0, 80));

  options.rate = 30;  // three gaps
  EXPECT_DOUBLE_EQ(Make(options).last_start(), 0.1);
}

TEST(LoadTrace, ReadsTheRecordedOne) {
  PlanOptions options{.workload = Workload::kTrace, .requests = 200};
  options.trace_file = LLMD_SOURCE_DIR "/examples/trace_replay/traces/mooncake_conversation_trace.jsonl";
  const Plan plan = Make(options);
  ASSERT_EQ(plan.lanes.size(), 200u);
  // Block 0 is in every request.
  const std::uint64_t first = plan.lanes[0].requests[0].messages[0].content.segments[0].stream;
  for (const Lane& lane : plan.lanes)
    EXPECT_EQ(lane.requests[0].messages[0].content.segments[0].stream, first);
}

TEST(LoadPlan, BadOptionsAreNamed) {
  const auto why = [](const PlanOptions& options) {
    return std::string(MakePlan(options).status().message());
  };
  EXPECT_THAT(why({.workload = Workload::kTrace}), HasSubstr("trace"));
  EXPECT_THAT(why({.time_scale = 0}), HasSubstr("time-scale"));
  EXPECT_THAT(why({.rate = -1.0}), HasSubstr("rate"));
  EXPECT_THAT(why({.sessions = 0}), HasSubstr("sessions"));
  EXPECT_THAT(why({.sessions = 1u << 30, .requests = 1u << 30}), HasSubstr("sessions"));
  EXPECT_THAT(why({.workload = Workload::kChat, .api = Api::kCompletions}), HasSubstr("api"));
  EXPECT_THAT(why({.prefixes = 0}), HasSubstr("prefixes"));
  PlanOptions broken{.workload = Workload::kTrace};
  broken.trace_file = WriteTrace("load_broken.jsonl", "{\"timestamp\": 1, \"input_length\": -5}\n");
  EXPECT_THAT(why(broken), HasSubstr("line 1"));
  EXPECT_FALSE(ParseWorkload("everything").ok());
}

}  // namespace
}  // namespace llmd::load
