// The load generator from its command line, against a small gateway in this process.
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "examples/llmd_load/cli.h"
#include "tests/hosts/load_fake_gateway.h"

namespace llmd::load {
namespace {

using nlohmann::json;
using testing::HasSubstr;

struct Outcome {
  int code = -1;
  std::string out, err;
  json report;
};

Outcome RunLoad(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "llmd_load");
  std::vector<const char*> argv;
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  std::ostringstream out, err;
  Outcome outcome;
  outcome.code = RunCommandLine(static_cast<int>(argv.size()), argv.data(), out, err);
  outcome.out = out.str();
  outcome.err = err.str();
  outcome.report = json::parse(outcome.out, nullptr, false);
  return outcome;
}

Outcome Against(const FakeGateway& gateway, std::vector<std::string> arguments) {
  arguments.insert(arguments.end(), {"--target", gateway.url(), "--json", "--quiet"});
  return RunLoad(std::move(arguments));
}

TEST(LoadRun, TheCacheHitTestPasses) {
  const FakeGateway gateway({});
  const Outcome outcome = Against(gateway, {"--requests", "20", "--pause", "0", "--worker", gateway.url()});
  EXPECT_EQ(outcome.code, 0) << outcome.err << outcome.out;
  EXPECT_EQ(outcome.report["requests"], 20);
  EXPECT_DOUBLE_EQ(outcome.report["hit_rate"], 0.96);  // the first was warm
  EXPECT_EQ(outcome.report["hit_rate_source"], "workers");
  EXPECT_EQ(outcome.report["stickiness"], 1.0);
  EXPECT_EQ(outcome.report["ttft_ms"]["count"], 20);
  EXPECT_EQ(outcome.report["inter_token_ms"]["count"], 40);
  EXPECT_EQ(outcome.report["completion_tokens"], 60);
  EXPECT_EQ(outcome.report["most_in_flight"], 1);

  const std::vector<SeenRequest> seen = gateway.seen();
  ASSERT_EQ(seen.size(), 21u);
  EXPECT_EQ(seen[0].Header("x-session-id"), "");  // warm-up
  const SeenRequest& last = seen.back();
  EXPECT_NE(last.Header("x-session-id"), "");
  EXPECT_EQ(last.Header("session-id"), last.Header("x-session-id"));
  EXPECT_EQ(last.Header("cookie"), "session_id=" + last.Header("x-session-id"));
  EXPECT_NE(last.Header("x-test-id"), "");
  const json body = json::parse(last.body);
  EXPECT_EQ(body["model"], "fake-model");
  EXPECT_EQ(body["max_tokens"], 16);
  EXPECT_EQ(body["temperature"], 0);
  EXPECT_EQ(body["seed"], 12345);
  EXPECT_EQ(body["stream_options"]["include_usage"], true);
}

TEST(LoadRun, AMissedLimitIsExitCode1) {
  FakeBehaviour spread;
  spread.sticky = false;
  const FakeGateway gateway(spread);
  const Outcome outcome = Against(gateway, {"--requests", "9", "--pause", "0"});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_LT(outcome.report["stickiness"], 0.5);
  FakeBehaviour cold;
  cold.caches = false;
  const FakeGateway without(cold);
  EXPECT_EQ(Against(without, {"--requests", "5", "--pause", "0", "--worker", without.url()}).code, 1);
  EXPECT_EQ(
      Against(without, {"--requests", "5", "--pause", "0", "--worker", without.url(), "--min-hit-rate", "0"})
          .code,
      0);
}

TEST(LoadRun, WhatCannotBeMeasuredIsExitCode2) {
  FakeBehaviour mute;
  mute.upstream_header = false;
  mute.caches = false;
  const FakeGateway gateway(mute);
  EXPECT_EQ(Against(gateway, {"--requests", "3", "--pause", "0"}).code, 0);
  EXPECT_EQ(Against(gateway, {"--requests", "3", "--pause", "0", "--min-stickiness", "1"}).code, 2);
  EXPECT_EQ(Against(gateway, {"--requests", "3", "--pause", "0", "--min-hit-rate", "0.5"}).code, 2);
  EXPECT_EQ(
      RunLoad({"--target", "http://127.0.0.1:1", "--model", "m", "--requests", "2", "--pause", "0", "--json"})
          .code,
      2);
  EXPECT_EQ(RunLoad({"--target", "http://127.0.0.1:1", "--json"}).code, 2);  // no model to be had
}

TEST(LoadRun, WrongUsageIsExitCode2) {
  EXPECT_EQ(RunLoad({}).code, 2);
  EXPECT_EQ(RunLoad({"--target", "ftp://x"}).code, 2);
  EXPECT_EQ(RunLoad({"--target", "http://127.0.0.1:1", "--workload", "storm"}).code, 2);
  EXPECT_EQ(RunLoad({"--target", "http://127.0.0.1:1", "--rate", "0"}).code, 2);
  EXPECT_EQ(RunLoad({"--target", "http://127.0.0.1:1", "--min-hit-rate", "80"}).code, 2);
  const Outcome header = RunLoad({"--target", "http://127.0.0.1:1", "--header", "novalue"});
  EXPECT_EQ(header.code, 2);
  EXPECT_THAT(header.err, HasSubstr("novalue"));
  const Outcome help = RunLoad({"--help"});
  EXPECT_EQ(help.code, 0);
  EXPECT_THAT(help.out, HasSubstr("Exit code"));
}

TEST(LoadRun, ErrorsByKind) {
  FakeBehaviour bad;
  bad.refuse_every = 5;
  bad.break_every = 7;
  bad.hang_every = 11;
  const FakeGateway gateway(bad);
  const Outcome outcome =
      Against(gateway, {"--requests", "22", "--pause", "0", "--warmup", "0", "--timeout", "0.3"});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_EQ(outcome.report["errors"]["http_503"], 4);    // 5, 10, 15, 20
  EXPECT_EQ(outcome.report["errors"]["broken_off"], 3);  // 7, 14, 21
  EXPECT_EQ(outcome.report["errors"]["timeout"], 2);     // 11, 22
  EXPECT_EQ(outcome.report["refusal_reasons"]["rejected-no-endpoints"], 4);
  EXPECT_EQ(outcome.report["requests"], 22);
  EXPECT_EQ(
      Against(gateway, {"--requests", "20", "--pause", "0", "--timeout", "0.3", "--max-error-rate", "0.6"})
          .code,
      0);
}

TEST(LoadRun, AnErrorWithinTheStreamIsNoSuccess) {
  FakeBehaviour bad;
  bad.error_event = true;
  const FakeGateway gateway(bad);
  const Outcome outcome = Against(gateway, {"--requests", "2", "--pause", "0", "--warmup", "0"});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_EQ(outcome.report["errors"]["bad_answer"], 2);
}

TEST(LoadRun, Multi5RunsSessionsSideBySide) {
  FakeBehaviour slow;
  slow.seconds = 0.05;
  const FakeGateway gateway(slow);
  const Outcome outcome = Against(gateway, {"--workload", "multi5", "--requests", "4", "--pause", "0"});
  EXPECT_EQ(outcome.code, 0) << outcome.out;
  EXPECT_EQ(outcome.report["sessions"].size(), 5u);
  EXPECT_EQ(outcome.report["most_in_flight"], 5);
  EXPECT_EQ(gateway.most_at_once(), 5u);
  // Two at a time when told so.
  const FakeGateway other(slow);
  EXPECT_EQ(
      Against(other, {"--workload", "multi5", "--requests", "2", "--pause", "0", "--concurrency", "2"}).code,
      0);
  EXPECT_EQ(other.most_at_once(), 2u);
}

TEST(LoadRun, ConversationsCarryTheirAnswers) {
  const FakeGateway gateway({});
  const Outcome outcome = Against(gateway, {"--workload", "chat", "--sessions", "2", "--requests", "3",
                                            "--pause", "0", "--prefix-tokens", "20", "--turn-tokens", "5"});
  EXPECT_EQ(outcome.code, 0) << outcome.out;
  std::map<std::string, std::vector<json>> sessions;
  for (const SeenRequest& seen : gateway.seen()) {
    sessions[seen.Header("x-session-id")].push_back(json::parse(seen.body)["messages"]);
  }
  ASSERT_EQ(sessions.size(), 2u);
  for (const auto& [session, turns] : sessions) {
    ASSERT_EQ(turns.size(), 3u);
    EXPECT_EQ(turns[0].size(), 2u);
    EXPECT_EQ(turns[2].size(), 6u);
    EXPECT_EQ(turns[2][2]["role"], "assistant");
    EXPECT_EQ(turns[2][2]["content"], "word0 word1 word2 ");
    for (std::size_t i = 0; i < turns[1].size(); ++i) EXPECT_EQ(turns[2][i], turns[1][i]);
  }
}

TEST(LoadRun, AnOpenLoopDoesNotWaitForAnswers) {
  FakeBehaviour slow;
  slow.seconds = 0.5;
  const FakeGateway gateway(slow);
  const Outcome outcome = Against(gateway, {"--requests", "20", "--warmup", "0", "--rate", "200"});
  EXPECT_EQ(outcome.code, 0) << outcome.out;
  EXPECT_EQ(outcome.report["requests"], 20);
  EXPECT_GT(outcome.report["most_in_flight"], 1);
}

TEST(LoadRun, WaitingForAPlaceCountsInAnOpenLoop) {
  FakeBehaviour slow;
  slow.seconds = 0.1;
  const FakeGateway gateway(slow);
  const std::string records = testing::TempDir() + "load_records.jsonl";
  const Outcome outcome = Against(gateway, {"--requests", "6", "--warmup", "0", "--rate", "1000",
                                            "--concurrency", "1", "--records", records});
  EXPECT_EQ(outcome.code, 0) << outcome.out;
  EXPECT_EQ(gateway.most_at_once(), 1u);
  // The last of six waited for five answers of at least 0.1 s, and was due within 5 ms.
  EXPECT_GT(outcome.report["ttft_from_due_ms"]["max"], 590);
  EXPECT_GT(outcome.report["late_ms"]["max"], 490);
  std::ifstream file(records);
  std::size_t lines = 0;
  for (std::string line; std::getline(file, line); ++lines) {
    const json record = json::parse(line);
    EXPECT_LE(record["due"], 0.0051);
  }
  EXPECT_EQ(lines, 6u);
}

TEST(LoadRun, WholeAnswersAndCompletions) {
  const FakeGateway gateway({});
  const Outcome outcome =
      Against(gateway, {"--requests", "2", "--pause", "0", "--no-stream", "--api", "completions", "--prompt",
                        "Say something", "--session-by", "cookie"});
  EXPECT_EQ(outcome.report["succeeded"], 2) << outcome.out;
  EXPECT_EQ(outcome.report["ttft_ms"]["count"], 2);
  const SeenRequest last = gateway.seen().back();
  EXPECT_EQ(last.path, "/v1/completions");
  EXPECT_EQ(json::parse(last.body)["prompt"], "Say something");
  EXPECT_EQ(last.Header("x-session-id"), "");
  EXPECT_EQ(last.Header("session-id"), "");
  EXPECT_THAT(last.Header("cookie"), HasSubstr("session_id="));
}

TEST(LoadRun, ATraceIsReplayed) {
  const std::string trace = testing::TempDir() + "load_run_trace.jsonl";
  std::ofstream(trace) << R"({"timestamp":0,"input_length":512,"output_length":3,"hash_ids":[1]}
{"timestamp":10,"input_length":1024,"output_length":3,"hash_ids":[1,2]}
{"timestamp":20,"input_length":1024,"output_length":3,"hash_ids":[1,2]}
)";
  const FakeGateway gateway({});
  const Outcome outcome = Against(gateway, {"--workload", "trace", "--trace", trace, "--block-tokens", "8"});
  EXPECT_EQ(outcome.code, 0) << outcome.err << outcome.out;
  std::map<std::size_t, std::set<std::string>> by_size;
  for (const SeenRequest& seen : gateway.seen()) by_size[seen.body.size()].insert(seen.body);
  ASSERT_EQ(by_size.size(), 2u);
  for (const auto& [size, bodies] : by_size) EXPECT_EQ(bodies.size(), 1u);
}

TEST(LoadRun, StopsStartingAtItsTime) {
  const FakeGateway gateway({});
  const Outcome outcome = Against(gateway, {"--requests", "1000", "--pause", "10", "--max-seconds", "0.2"});
  EXPECT_EQ(outcome.code, 0) << outcome.out;
  EXPECT_EQ(outcome.report["requests"], 1);
}

}  // namespace
}  // namespace llmd::load
