// What requests do, as the exposition text that Prometheus reads. Expected lines are worked out by hand.
#include "examples/gateway_scheduler/telemetry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "tests/hosts/scripted_host.h"

namespace llmd::host {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

TelemetryOptions Options(MetricNames names = {}) {
  return {.pool_name = "pool", .names = names, .clock = [] { return kStart; }};
}

constexpr MetricNames kAllNames{.current = true, .objective = true, .v0_2 = true};

std::vector<std::string> Lines(const Telemetry& telemetry) {
  return absl::StrSplit(telemetry.Expose(), '\n', absl::SkipEmpty());
}

// The lines of one family's samples, sorted; `name` with or without _bucket, _sum or _count.
std::vector<std::string> Samples(const Telemetry& telemetry, const std::string& name) {
  std::set<std::string> found;
  for (const std::string& line : Lines(telemetry)) {
    const std::string first = line.substr(0, line.find_first_of("{ "));
    if (first == name) found.insert(line);
  }
  return {found.begin(), found.end()};
}

constexpr char kFull[] =
    "{fairness_id=\"default-flow\",model_name=\"m\",priority=\"0\",target_model_name=\"m-target\"}";
constexpr char kModels[] = "{model_name=\"m\",target_model_name=\"m-target\"}";

TEST(TelemetryTest, OneRequestInAllGenerations) {
  ScriptedHost host(2);
  Telemetry telemetry(Options(kAllNames), host.pool);
  telemetry.SetScheduler(*host.scheduler);
  host.Decide(telemetry, {});
  EXPECT_THAT(Samples(telemetry, "llm_d_epp_request_running"),
              ElementsAre(absl::StrCat("llm_d_epp_request_running", kFull, " 1")));
  host.Finish(telemetry, {});

  const std::vector<std::string> lines = Lines(telemetry);
  const std::string objective = "inference_objective_";
  const std::string old = "inference_model_";
  for (const std::string& expected : {
           absl::StrCat("llm_d_epp_request_total", kFull, " 1"),
           absl::StrCat("inference_objective_request_total{model_name=\"m\",priority=\"0\",target_model_name="
                        "\"m-target\"} 1"),
           absl::StrCat(old, "request_total", kModels, " 1"),
           absl::StrCat("llm_d_epp_request_running", kFull, " 0"),
           absl::StrCat(objective, "running_requests{model_name=\"m\"} 0"),
           absl::StrCat(old, "running_requests{model_name=\"m\"} 0"),
           // 2 s from the headers to the last byte
           absl::StrCat("llm_d_epp_request_duration_seconds_sum", kFull, " 2"),
           absl::StrCat(objective, "request_duration_seconds_sum", kModels, " 2"),
           absl::StrCat(old, "request_duration_seconds_count", kModels, " 1"),
           absl::StrCat("llm_d_epp_request_size_bytes_sum", kFull, " 100"),
           absl::StrCat(objective, "request_sizes_sum", kModels, " 100"),
           absl::StrCat(old, "request_sizes_sum", kModels, " 100"),
           absl::StrCat("llm_d_epp_response_size_bytes_sum", kFull, " 500"),
           absl::StrCat(objective, "response_sizes_sum", kModels, " 500"),
           absl::StrCat("llm_d_epp_request_input_tokens_sum", kFull, " 64"),
           absl::StrCat("llm_d_epp_request_output_tokens_sum", kFull, " 10"),
           absl::StrCat(old, "output_tokens_sum", kModels, " 10"),
           absl::StrCat("llm_d_epp_request_cached_tokens_sum", kFull, " 48"),
           absl::StrCat(objective, "prompt_cached_tokens_sum", kModels, " 48"),
           // 2 s / 10 tokens
           absl::StrCat("llm_d_epp_request_ntpot_seconds_sum", kFull, " 0.2"),
           absl::StrCat(objective, "normalized_time_per_output_token_seconds_sum", kModels, " 0.2"),
           // (2 - 0.2) / (10 - 1)
           absl::StrCat("llm_d_epp_request_streaming_tpot_seconds_sum", kFull, " 0.2"),
           std::string(
               "llm_d_epp_request_ttft_seconds_sum{fairness_id=\"default-flow\",model_name=\"m\",priority="
               "\"0\",streaming=\"true\",target_model_name=\"m-target\"} 0.2"),
           std::string("llm_d_epp_scheduler_e2e_duration_seconds_sum 0.00015"),
           std::string("inference_extension_scheduler_e2e_duration_seconds_bucket{le=\"0.0002\"} 1"),
           std::string("llm_d_epp_request_processing_duration_seconds_bucket{le=\"0.0005\"} 0"),
           std::string("llm_d_epp_request_processing_duration_seconds_bucket{le=\"0.001\"} 1"),
           std::string("llm_d_epp_scheduler_attempts_total{status=\"success\",target_model_name=\"m-target\","
                       "endpoint_name=\"pod-0\",namespace=\"default\",port=\"8000\"} 1"),
           std::string("inference_extension_scheduler_attempts_total{status=\"success\",target_model_name="
                       "\"m-target\",pod_name=\"pod-0\",namespace=\"default\",port=\"8000\"} 1"),
           std::string("llm_d_epp_info{commit=\"unknown\",build_ref=\"unknown\"} 1"),
       }) {
    EXPECT_THAT(lines, Contains(expected));
  }
  EXPECT_THAT(telemetry.Expose(), Not(HasSubstr("inference_model_prompt_cached_tokens")));
  EXPECT_THAT(telemetry.Expose(), Not(HasSubstr("epp_requests_total")));
}

TEST(TelemetryTest, HistogramOfDurations) {
  ScriptedHost host(1);
  Telemetry telemetry(Options(), host.pool);
  host.Decide(telemetry, {});
  host.Finish(telemetry, {.duration = absl::Seconds(2)});
  host.Decide(telemetry, {});
  host.Finish(telemetry, {.duration = absl::Milliseconds(1250)});
  const std::string rest =
      "fairness_id=\"default-flow\",model_name=\"m\",priority=\"0\",target_model_name=\"m-target\",le=";
  std::vector<std::string> expected;
  for (const auto& [bound, count] : std::vector<std::pair<std::string, int>>{
           {"0.005", 0}, {"0.025", 0}, {"0.05", 0}, {"0.1", 0},  {"0.2", 0},  {"0.4", 0},
           {"0.6", 0},   {"0.8", 0},   {"1", 0},    {"1.25", 1}, {"1.5", 1},  {"2", 2},
           {"3", 2},     {"4", 2},     {"5", 2},    {"6", 2},    {"8", 2},    {"10", 2},
           {"15", 2},    {"20", 2},    {"30", 2},   {"45", 2},   {"60", 2},   {"120", 2},
           {"180", 2},   {"240", 2},   {"300", 2},  {"360", 2},  {"480", 2},  {"600", 2},
           {"900", 2},   {"1200", 2},  {"1800", 2}, {"2700", 2}, {"3600", 2}, {"+Inf", 2}}) {
    expected.push_back(
        absl::StrCat("llm_d_epp_request_duration_seconds_bucket{", rest, "\"", bound, "\"} ", count));
  }
  EXPECT_THAT(Samples(telemetry, "llm_d_epp_request_duration_seconds_bucket"),
              ::testing::UnorderedElementsAreArray(expected));
}

TEST(TelemetryTest, TokenBucketsHaveTheSourcesSpelling) {
  ScriptedHost host(1);
  Telemetry telemetry(Options(), host.pool);
  host.Decide(telemetry, {});
  host.Finish(telemetry, {});
  const std::string text = telemetry.Expose();
  EXPECT_THAT(text, HasSubstr("le=\"32778\""));
  EXPECT_THAT(Samples(telemetry, "llm_d_epp_request_input_tokens_bucket").size(), 20u);   // T and +Inf
  EXPECT_THAT(Samples(telemetry, "llm_d_epp_request_output_tokens_bucket").size(), 13u);  // to 8192 and +Inf
  EXPECT_THAT(Samples(telemetry, "llm_d_epp_response_size_bytes_bucket").size(), 16u);    // to 65536 and +Inf
  EXPECT_THAT(Samples(telemetry, "llm_d_epp_request_size_bytes_bucket").size(), 26u);     // 2^6 .. 2^30, +Inf
  EXPECT_THAT(Samples(telemetry, "llm_d_epp_request_ttft_seconds_bucket").size(), 25u);   // to 120 and +Inf
}

TEST(TelemetryTest, EveryHelpTextIsMarkedAlpha) {
  ScriptedHost host(1);
  TelemetryOptions options = Options(kAllNames);
  options.demo_metrics = options.stream_metrics = true;
  Telemetry telemetry(options, host.pool);
  int helps = 0;
  for (const std::string& line : Lines(telemetry)) {
    if (!line.starts_with("# HELP ")) continue;
    ++helps;
    EXPECT_THAT(line, HasSubstr(" [ALPHA] "));
  }
  EXPECT_GT(helps, 10);
}

TEST(TelemetryTest, ErrorsByCode) {
  ScriptedHost host(1);
  Telemetry telemetry(Options(), host.pool);
  const absl::Status saturated =
      sched::WithDroppedReason(absl::ResourceExhaustedError("full"), sched::DroppedReason::kSaturated);
  host.Decide(telemetry, {.status = saturated});
  host.Finish(telemetry, {.status = saturated});
  host.Decide(telemetry, {});
  host.Finish(telemetry, {.http_status = 503});
  host.Decide(telemetry, {});
  host.Finish(telemetry, {.broken_off = true});
  const std::string labels = "model_name=\"m\",priority=\"0\",target_model_name=\"m-target\"} 1";
  EXPECT_THAT(
      Samples(telemetry, "llm_d_epp_request_error_total"),
      ElementsAre(absl::StrCat("llm_d_epp_request_error_total{error_code=\"ModelServerError\",fairness_id="
                               "\"default-flow\",",
                               labels),
                  absl::StrCat("llm_d_epp_request_error_total{error_code=\"ResourceExhausted\",fairness_id="
                               "\"default-flow\",",
                               labels)));
  // The refused one was not sent; the one that broke off has no duration.
  EXPECT_THAT(Samples(telemetry, "llm_d_epp_request_total"),
              ElementsAre(absl::StrCat("llm_d_epp_request_total", kFull, " 2")));
  EXPECT_THAT(Samples(telemetry, "llm_d_epp_request_running"),
              ElementsAre(absl::StrCat("llm_d_epp_request_running", kFull, " 0")));
  EXPECT_THAT(Samples(telemetry, "llm_d_epp_request_duration_seconds_count"),
              ElementsAre(absl::StrCat("llm_d_epp_request_duration_seconds_count", kFull, " 1")));
}

TEST(TelemetryTest, GapsBetweenPieces) {
  ScriptedHost host(1);
  Telemetry telemetry(Options(), host.pool);
  const RequestInfo request = host.Info({});
  telemetry.OnResponseChunk(request, absl::InfiniteDuration());  // the first one
  telemetry.OnResponseChunk(request, absl::Milliseconds(30));
  telemetry.OnResponseChunk(request, absl::Milliseconds(20));
  EXPECT_THAT(Samples(telemetry, "llm_d_epp_request_streaming_itl_seconds_sum"),
              ElementsAre(absl::StrCat("llm_d_epp_request_streaming_itl_seconds_sum", kFull, " 0.05")));
  EXPECT_THAT(Samples(telemetry, "llm_d_epp_request_streaming_itl_seconds_count"),
              ElementsAre(absl::StrCat("llm_d_epp_request_streaming_itl_seconds_count", kFull, " 2")));
}

TEST(TelemetryTest, ModelsAndTheirTargetsShareACap) {
  ScriptedHost host(1);
  TelemetryOptions options = Options();
  options.limits = {.models = 3, .configured_models = {"configured"}};
  Telemetry telemetry(options, host.pool);
  host.Decide(telemetry, {.model = "a", .target_model = "a-1"});
  host.Decide(telemetry, {.model = "b", .target_model = "b-1"});  // the target is the fourth name
  host.Decide(telemetry, {.model = "c", .target_model = "configured"});
  host.Decide(telemetry, {.model = "d", .target_model = "a"});
  const auto line = [](const std::string& model, const std::string& target, int count) {
    return absl::StrCat("llm_d_epp_request_total{fairness_id=\"default-flow\",model_name=\"", model,
                        "\",priority=\"0\",target_model_name=\"", target, "\"} ", count);
  };
  EXPECT_THAT(Samples(telemetry, "llm_d_epp_request_total"),
              ElementsAre(line("a", "a-1", 1), line("b", "other", 1), line("other", "a", 1),
                          line("other", "configured", 1)));
}

TEST(TelemetryTest, ThousandModelsAndThousandFlows) {
  ScriptedHost host(1);
  TelemetryOptions options = Options();
  options.limits.label_sets = 100000;
  Telemetry telemetry(options, host.pool);
  for (int i = 0; i < 1100; ++i) {
    host.Decide(telemetry, {.model = absl::StrCat("m", i), .target_model = "m0", .fairness_id = "f"});
    host.Decide(telemetry, {.model = "m0", .target_model = "m0", .fairness_id = absl::StrCat("f", i)});
  }
  std::set<std::string> models, flows;
  for (const std::string& line : Samples(telemetry, "llm_d_epp_request_total")) {
    const auto value = [&](const std::string& label) {
      const std::size_t at = line.find(label + "=\"") + label.size() + 2;
      return line.substr(at, line.find('"', at) - at);
    };
    flows.insert(value("fairness_id"));
    models.insert(value("{fairness_id").empty() ? "" : value(",model_name"));
  }
  EXPECT_EQ(models.size(), 1001u);
  EXPECT_EQ(flows.size(), 1001u);
  EXPECT_THAT(models, Contains("other"));
  EXPECT_THAT(flows, Contains("other"));
  EXPECT_THAT(Samples(telemetry, "llm_d_epp_request_total"),
              Contains("llm_d_epp_request_total{fairness_id=\"f\",model_name=\"other\",priority=\"0\","
                       "target_model_name=\"m0\"} 100"));
}

TEST(TelemetryTest, CombinationsAndPrioritiesAreBounded) {
  ScriptedHost host(1);
  TelemetryOptions options = Options();
  options.limits = {.priorities = 2, .label_sets = 2};
  Telemetry telemetry(options, host.pool);
  for (int priority = 0; priority < 50; ++priority) host.Decide(telemetry, {.priority = priority});
  const auto line = [](const std::string& name, const std::string& flow, const std::string& priority,
                       int count) {
    return absl::StrCat("llm_d_epp_request_total{fairness_id=\"", flow, "\",model_name=\"", name,
                        "\",priority=\"", priority, "\",target_model_name=\"",
                        name == "m" ? "m-target" : name, "\"} ", count);
  };
  EXPECT_THAT(Samples(telemetry, "llm_d_epp_request_total"),
              ElementsAre(line("m", "default-flow", "0", 1), line("m", "default-flow", "1", 1),
                          line("other", "other", "other", 48)));
}

TEST(TelemetryTest, HostileLabelValuesStayOneLine) {
  ScriptedHost host(1);
  Telemetry telemetry(Options(), host.pool);
  host.Decide(telemetry,
              {.model = "a\"} 1\nevil_total 7\n", .target_model = "\xff\x1b[2J", .fairness_id = ""});
  host.Decide(telemetry, {.model = std::string(1 << 20, 'x')});
  const std::string text = telemetry.Expose();
  EXPECT_THAT(text, Not(HasSubstr("\nevil_total")));
  EXPECT_THAT(text, HasSubstr("model_name=\"a\\\"} 1\uFFFDevil_total 7\uFFFD\""));
  EXPECT_THAT(text, HasSubstr("target_model_name=\"\uFFFD\uFFFD[2J\""));
  EXPECT_LT(text.size(), 100000u);
}

TEST(TelemetryTest, DemoNames) {
  ScriptedHost host(1);
  TelemetryOptions options = Options({.current = false});
  options.demo_metrics = true;
  Telemetry telemetry(options, host.pool);
  host.Decide(telemetry, {});
  host.Finish(telemetry, {});
  host.Decide(telemetry, {.cached_blocks = 0});
  host.Decide(telemetry, {.cached_blocks = 0, .total_blocks = 0});
  host.Decide(telemetry, {.status = absl::UnavailableError("none")});
  const std::vector<std::string> lines = Lines(telemetry);
  EXPECT_THAT(lines, Contains("epp_requests_total 4"));
  EXPECT_THAT(lines, Contains("epp_cache_requests_total 2"));
  EXPECT_THAT(lines, Contains("epp_cache_hits_total 1"));
  EXPECT_THAT(lines, Contains("epp_routing_decisions_total{decision_type=\"cache_hit\"} 1"));
  EXPECT_THAT(lines, Contains("epp_routing_decisions_total{decision_type=\"load_balance\"} 2"));
  EXPECT_THAT(lines, Contains("epp_request_duration_seconds_sum 2"));
  EXPECT_THAT(lines, Contains("epp_backend_health{backend=\"10.0.0.1:8000\"} 0"));
  EXPECT_THAT(telemetry.Expose(), Not(HasSubstr("llm_d_epp_")));
}

TEST(TelemetryTest, ManyThreadsLoseNothing) {
  ScriptedHost host(2);
  TelemetryOptions options = Options(kAllNames);
  options.limits.models = 6;
  options.limits.label_sets = 20;
  Telemetry telemetry(options, host.pool);
  telemetry.SetScheduler(*host.scheduler);
  constexpr int kThreads = 4;
  constexpr int kEach = 300;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kEach; ++i) {
        const Script script{.model = absl::StrCat("m", i % 10),
                            .fairness_id = absl::StrCat("f", (i + t) % 7),
                            .endpoint = static_cast<std::size_t>(i % 2)};
        host.Decide(telemetry, script);
        telemetry.OnResponseChunk(host.Info(script), absl::Milliseconds(1));
        host.Finish(telemetry, script);
        if (i % 100 == 0) telemetry.Expose();
        if (t == 0 && i % 100 == 50) telemetry.SetScheduler(*host.scheduler);
        if (t == 1 && i % 10 == 0) host.SetMetrics(0, i, 1, 0.5, kStart);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  double requests = 0, running = 0, attempts = 0, durations = 0;
  for (const std::string& line : Lines(telemetry)) {
    const double value = std::atof(line.substr(line.rfind(' ')).c_str());
    if (line.starts_with("llm_d_epp_request_total{")) requests += value;
    if (line.starts_with("llm_d_epp_request_running{")) running += value;
    if (line.starts_with("llm_d_epp_scheduler_attempts_total{")) attempts += value;
    if (line.starts_with("inference_objective_request_duration_seconds_count{")) durations += value;
  }
  EXPECT_EQ(requests, kThreads * kEach);
  EXPECT_EQ(attempts, kThreads * kEach);
  EXPECT_EQ(durations, kThreads * kEach);
  EXPECT_EQ(running, 0);
}

TEST(TelemetryTest, PromtoolFindsNothing) {
  if (std::system("promtool --version > /dev/null 2>&1") != 0) GTEST_SKIP() << "promtool is not installed";
  ScriptedHost host(2);
  host.SetMetrics(0, 1, 2, 0.25, kStart);
  TelemetryOptions options = Options(kAllNames);
  options.demo_metrics = options.stream_metrics = true;
  Telemetry telemetry(options, host.pool);
  telemetry.SetScheduler(*host.scheduler);
  telemetry.OnStreamStarted();
  telemetry.OnStreamStarted();
  telemetry.OnStreamEnded("OK", absl::Seconds(1));
  host.Decide(telemetry, {.model = "a\"\n\\\xff"});
  host.Finish(telemetry, {.model = "a\"\n\\\xff"});
  EXPECT_THAT(Lines(telemetry), Contains("llm_d_epp_extproc_streams_inflight 1"));
  EXPECT_THAT(Lines(telemetry), Contains("llm_d_epp_extproc_streams_total{code=\"OK\"} 1"));

  const std::filesystem::path file =
      std::filesystem::temp_directory_path() / absl::StrCat("llmd_metrics_", ::getpid());
  std::ofstream(file) << telemetry.Expose();
  std::FILE* promtool =
      ::popen(absl::StrCat("promtool check metrics < ", file.string(), " 2>&1").c_str(), "r");
  std::string output;
  char buffer[4096];
  while (const std::size_t bytes = std::fread(buffer, 1, sizeof buffer, promtool))
    output.append(buffer, bytes);
  const int status = ::pclose(promtool);
  std::filesystem::remove(file);
  // It takes the d of llm_d for days, which makes its status 3; the names are llm-d's.
  EXPECT_THAT(status / 256, ::testing::AnyOf(0, 3)) << output;
  for (const std::string& line : std::vector<std::string>(absl::StrSplit(output, '\n', absl::SkipEmpty()))) {
    EXPECT_THAT(line,
                ::testing::MatchesRegex("llm_d_epp_.* metric names should not contain abbreviated units"));
  }
}

TEST(MetricNamesTest, Parse) {
  EXPECT_FALSE(ParseMetricNames("v0.2")->current);
  EXPECT_TRUE(ParseMetricNames("v0.2, current")->v0_2);
  EXPECT_TRUE(ParseMetricNames("objective")->objective);
  EXPECT_THAT(std::string(ParseMetricNames("current,old").status().message()),
              HasSubstr("--metric-names has \"old\", expected"));
  EXPECT_FALSE(ParseMetricNames("").ok());
}

}  // namespace
}  // namespace llmd::host
