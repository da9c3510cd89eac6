// The load generator's statistics, criteria and readers.
#include "examples/llmd_load/report.h"

#include <sstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "examples/llmd_load/answer.h"
#include "examples/llmd_load/runner.h"
#include "examples/llmd_load/worker_metrics.h"

namespace llmd::load {
namespace {

using testing::HasSubstr;

RequestRecord Record(const std::string& session, const std::string& upstream, double sent,
                     double ttft = 0.01) {
  RequestRecord record;
  record.session = session;
  record.upstream = upstream;
  record.due = record.sent = sent;
  record.first_token = sent + ttft;
  record.end = sent + 2 * ttft;
  record.status = 200;
  return record;
}

RunResult Result(std::vector<RequestRecord> records) {
  RunResult result;
  result.records = std::move(records);
  result.seconds = 10;
  return result;
}

Sources Workers(std::vector<WorkerDelta> deltas) { return {.workers = std::move(deltas)}; }

TEST(LoadReport, SummaryIsByNearestRank) {
  std::vector<double> samples;
  for (int i = 100; i >= 1; --i) samples.push_back(i);
  const Summary summary = Summarize(samples);
  EXPECT_EQ(summary.count, 100u);
  EXPECT_DOUBLE_EQ(summary.mean, 50.5);
  EXPECT_DOUBLE_EQ(summary.p50, 51);
  EXPECT_DOUBLE_EQ(summary.p90, 90);
  EXPECT_DOUBLE_EQ(summary.p99, 99);
  EXPECT_DOUBLE_EQ(summary.max, 100);
  EXPECT_EQ(Summarize({}).count, 0u);
}

TEST(LoadReport, HitRateIsOfAllWorkers) {
  const Report report =
      MakeReport(Result({Record("a", "w1", 0)}), Workers({{"w1", 900, 800}, {"w2", 100, 0}}), {});
  EXPECT_DOUBLE_EQ(report.hit_rate.value_or(-1), 0.8);
  EXPECT_EQ(report.hit_rate_source, "workers");
}

TEST(LoadReport, HitRateIsNotGuessedWhenAWorkerDidNotAnswer) {
  Sources sources = Workers({{"w1", 900, 800}});
  sources.complete = false;
  RunResult result = Result({Record("a", "w1", 0)});
  result.records[0].has_usage = true;
  result.records[0].prompt_tokens = result.records[0].cached_tokens = 10;
  const Report report = MakeReport(result, sources, {.min_hit_rate = {.limit = 0.8, .required = true}});
  EXPECT_EQ(report.hit_rate, std::nullopt);
  EXPECT_EQ(report.exit_code(), 2);
}

TEST(LoadReport, HitRateFromUsageWithoutWorkers) {
  RunResult result = Result({Record("a", "w1", 0), Record("a", "w1", 1)});
  for (RequestRecord& record : result.records) {
    record.has_usage = true;
    record.prompt_tokens = 100;
  }
  result.records[1].cached_tokens = 96;
  const Report report = MakeReport(result, {}, {});
  EXPECT_DOUBLE_EQ(report.hit_rate.value_or(-1), 0.48);
  EXPECT_EQ(report.hit_rate_source, "usage");
}

TEST(LoadReport, StickinessIsThatOfTheWorstSession) {
  const Report report = MakeReport(
      Result({Record("a", "w1", 0), Record("a", "w1", 1), Record("b", "w2", 0), Record("b", "w1", 1),
              Record("b", "w2", 2), Record("b", "w2", 3), Record("", "w3", 4)}),
      {}, {});
  EXPECT_DOUBLE_EQ(report.stickiness.value_or(-1), 0.75);
  EXPECT_EQ(report.stickiness_source, "headers");
  ASSERT_EQ(report.sessions.size(), 2u);
  EXPECT_EQ(report.sessions[1].top, "w2");
}

TEST(LoadReport, StickinessFromMetricsForOneSessionOnly) {
  const Sources workers = Workers({{"w1", 900, 0}, {"w2", 100, 0}});
  const Report one = MakeReport(Result({Record("a", "", 0), Record("a", "", 1)}), workers, {});
  EXPECT_DOUBLE_EQ(one.stickiness.value_or(-1), 0.9);
  EXPECT_EQ(one.stickiness_source, "metrics");
  const Report two = MakeReport(Result({Record("a", "", 0), Record("b", "", 1)}), workers, {});
  EXPECT_EQ(two.stickiness, std::nullopt);
}

TEST(LoadReport, LatencyFromWhenARequestWasDueIncludesItsWait) {
  RequestRecord record = Record("a", "w1", 5, 0.010);
  record.due = 2;
  const Report report = MakeReport(Result({record}), {}, {});
  EXPECT_NEAR(report.ttft_ms.p50, 10, 1e-6);
  EXPECT_NEAR(report.ttft_from_due_ms.p50, 3010, 1e-6);
  EXPECT_NEAR(report.late_ms.max, 3000, 1e-6);
}

TEST(LoadReport, TrendComparesBothEndsOfSessions) {
  std::vector<RequestRecord> records;
  for (int i = 0; i < 10; ++i)
    records.push_back(Record("a", "w1", 9 - i, i < 7 ? 0.01 : 0.1));  // not in order
  records.push_back(Record("short", "w1", 0, 5));
  const Report report = MakeReport(Result(records), {}, {});
  EXPECT_NEAR(report.ttft_first3_ms.value_or(-1), 100, 1e-6);
  EXPECT_NEAR(report.ttft_last3_ms.value_or(-1), 10, 1e-6);
}

TEST(LoadReport, ExitCodes) {
  const RunResult good = Result({Record("a", "w1", 0), Record("a", "w1", 1)});
  const Sources hits = Workers({{"w1", 100, 80}});
  const Criteria own{.min_hit_rate = {.limit = 0.8}, .min_stickiness = {.limit = 1.0}};
  EXPECT_EQ(MakeReport(good, hits, own).exit_code(), 0);
  EXPECT_EQ(MakeReport(good, Workers({{"w1", 100, 79}}), own).exit_code(), 1);
  // What a workload would like to see is passed over when nobody can say; what was asked for is not.
  EXPECT_EQ(MakeReport(good, {}, own).exit_code(), 0);
  EXPECT_EQ(MakeReport(good, {}, {.min_hit_rate = {.limit = 0.1, .required = true}}).exit_code(), 2);
  EXPECT_EQ(MakeReport(Result({Record("a", "w1", 0), Record("a", "w2", 1)}), hits, own).exit_code(), 1);
  EXPECT_EQ(MakeReport(Result({}), hits, own).exit_code(), 2);

  RunResult half = good;
  half.records[1].error = "http_503";
  half.records[1].reason = "rejected-saturated";
  const Report failed = MakeReport(half, hits, {});
  EXPECT_EQ(failed.exit_code(), 1);
  EXPECT_EQ(failed.errors.at("http_503"), 1u);
  EXPECT_EQ(failed.refusal_reasons.at("rejected-saturated"), 1u);
  EXPECT_EQ(MakeReport(half, hits, {.max_error_rate = 0.5}).exit_code(), 0);
  half.records[0].error = "timeout";
  EXPECT_EQ(MakeReport(half, hits, {.max_error_rate = 1}).exit_code(), 2);  // nothing to measure

  RunResult stopped = good;
  stopped.interrupted = true;
  EXPECT_EQ(MakeReport(stopped, hits, own).exit_code(), 2);
}

TEST(LoadReport, JsonHasTheFigures) {
  std::ostringstream out, table;
  const Report report = MakeReport(Result({Record("a", "w\"1", 0)}), Workers({{"w\"1", 100, 80}}),
                                   {.min_hit_rate = {.limit = 0.8, .required = true}});
  PrintJson(report, "sessions", out);
  const nlohmann::json root = nlohmann::json::parse(out.str());
  EXPECT_EQ(root["hit_rate"], 0.8);
  EXPECT_EQ(root["stickiness"], 1.0);
  EXPECT_EQ(root["upstreams"]["w\"1"], 1);
  EXPECT_EQ(root["exit_code"], 0);
  EXPECT_EQ(root["criteria"][1]["state"], "pass");
  EXPECT_TRUE(root["ttft_first3_ms"].is_null());
  EXPECT_EQ(out.str().find('\n'), out.str().size() - 1);
  PrintTable(report, table);
  EXPECT_THAT(table.str(), HasSubstr("hit rate 80.0 % (by workers), stickiness 100.0 % (by headers)"));
}

TEST(LoadMetrics, DeltasSurviveRestarts) {
  const std::vector<WorkerDelta> delta =
      Delta({{"w1", 100.0, 50.0}, {"w2", 1000.0, 900.0}, {"gone", 5.0, 5.0}},
            {{"w1", 300.0, 150.0}, {"w2", 40.0, 10.0}, {"new", 7.0, 0.0}, {"mute", {}, {}, "no answer"}});
  ASSERT_EQ(delta.size(), 3u);
  EXPECT_EQ(delta[0].queries, 200);
  EXPECT_EQ(delta[0].hits, 100);
  EXPECT_TRUE(delta[1].restarted);
  EXPECT_EQ(delta[1].queries, 40);
  EXPECT_EQ(delta[2].queries, 7);
}

TEST(LoadMetrics, PagesAreSummed) {
  const auto read = ReadCounters(
      "# TYPE vllm:prefix_cache_queries_total counter\n"
      "vllm:prefix_cache_queries_total{engine=\"0\"} 10\nvllm:prefix_cache_queries_total{engine=\"1\"} 5.0\n"
      "vllm:prefix_cache_hits_total{engine=\"0\"} 4\nvllm:gpu_prefix_cache_hits_total 99\n");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->queries, 15);
  EXPECT_EQ(read->hits, 4);
  const auto old =
      ReadCounters("vllm:gpu_prefix_cache_queries_total 3\nvllm:gpu_prefix_cache_hits_total 2\n");
  ASSERT_TRUE(old.ok());
  EXPECT_EQ(old->queries, 3);
  EXPECT_FALSE(ReadCounters("up 1\n").ok());
  EXPECT_FALSE(ReadCounters("\x01\xff garbage").ok());
}

TEST(LoadMetrics, AnswersOfPrometheus) {
  const auto read = ReadQueryAnswer(
      R"({"status":"success","data":{"resultType":"vector","result":[
          {"metric":{"instance":"w1:8000"},"value":[1,"12.5"]},{"metric":{},"value":[1,"3"]}]}})");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ((*read)[0], (std::pair<std::string, double>("w1:8000", 12.5)));
  for (const char* bad :
       {"", "[]", "{}", R"({"status":"error"})", R"({"status":"success","data":{"result":[7]}})",
        R"({"status":"success","data":{"result":[{"value":[1,2]}]}})",
        R"({"status":"success","data":{"result":[{"value":[1,"x"]}]}})"}) {
    EXPECT_FALSE(ReadQueryAnswer(bad).ok()) << bad;
  }
}

TEST(LoadAnswer, EventsInPiecesOfAnySize) {
  const std::string body =
      "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n"
      "data: {\"choices\":[{\"delta\":{\"content\":\"One\"}}]}\r\n\r\n: comment\n\n"
      "data:{\"choices\":[{\"delta\":{\"content\":\" two\"}}]}\n\n"
      "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2,"
      "\"prompt_tokens_details\":{\"cached_tokens\":8}}}\n\ndata: [DONE]\n\n";
  for (std::size_t step = 1; step <= body.size(); ++step) {
    AnswerReader reader(true);
    std::size_t pieces = 0;
    for (std::size_t at = 0; at < body.size(); at += step) pieces += reader.Append(body.substr(at, step));
    reader.Finish();
    EXPECT_EQ(pieces, 2u);
    EXPECT_EQ(reader.text(), "One two");
    EXPECT_TRUE(reader.complete()) << reader.error();
    EXPECT_EQ(reader.usage().cached_tokens, 8u);
  }
}

TEST(LoadAnswer, BadOnesAreSeen) {
  AnswerReader cut(true);
  cut.Append("data: {\"choices\":[{\"text\":\"a\"}]}\n\n");
  cut.Finish();
  EXPECT_FALSE(cut.complete());
  EXPECT_TRUE(cut.error().empty());
  for (const char* bad :
       {"data: {\n\n", "data: 7\n\n", "data: {\"error\":{\"message\":\"x\"}}\n\ndata: [DONE]\n\n"}) {
    AnswerReader reader(true);
    reader.Append(bad);
    reader.Finish();
    EXPECT_FALSE(reader.complete()) << bad;
    EXPECT_FALSE(reader.error().empty()) << bad;
  }
  AnswerReader endless(true, 1000);
  for (int i = 0; i < 100; ++i) endless.Append(std::string(100, 'x'));
  EXPECT_FALSE(endless.error().empty());
}

TEST(LoadAnswer, WholeDocuments) {
  AnswerReader reader(false);
  reader.Append("{\"choices\":[{\"message\":{\"content\":\"all\"}}],");
  reader.Append("\"usage\":{\"prompt_tokens\":3}}");
  reader.Finish();
  EXPECT_TRUE(reader.complete());
  EXPECT_EQ(reader.text(), "all");
  EXPECT_EQ(reader.usage().prompt_tokens, 3u);
}

TEST(LoadTarget, UrlsAreReadOrRefused) {
  EXPECT_EQ(ParseTarget("http://localhost:8080")->host_port, "localhost:8080");
  EXPECT_EQ(ParseTarget("http://gateway/base/")->host_port, "gateway:80");
  EXPECT_EQ(ParseTarget("http://gateway/base/")->base, "/base");
  EXPECT_EQ(ParseTarget("http://[::1]:80")->host_port, "[::1]:80");
  EXPECT_EQ(ParseTarget("http://[::1]")->host_port, "[::1]:80");
  for (const char* bad :
       {"", "localhost:80", "https://x", "http://", "http://:80", "http://x:", "http://a b:1"}) {
    EXPECT_FALSE(ParseTarget(bad).ok()) << bad;
  }
}

}  // namespace
}  // namespace llmd::load
