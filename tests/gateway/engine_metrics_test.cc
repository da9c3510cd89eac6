#include "llmd/gateway/engine_metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace llmd::gateway {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;
using Field = MetricField;
using Reason = FieldProblem::Reason;

const absl::Time kNow = absl::FromUnixSeconds(1000);

EngineConfig Engine(std::string_view name) {
  for (EngineConfig& engine : BuiltinEngines()) {
    if (engine.name == name) return engine;
  }
  return {};
}

// One endpoint and the reader for it.
struct Scrape {
  explicit Scrape(std::string_view engine, EngineMetricsOptions options = {})
      : reader(Engine(engine), std::move(options)) {}
  explicit Scrape(EngineConfig config) : reader(std::move(config)) {}

  Scrape& Read(std::string_view page, absl::Time now = kNow) {
    status = reader.Read(page, now, metrics, attributes, report);
    return *this;
  }
  std::vector<Field> ProblemsOf(Reason reason) const {
    std::vector<Field> fields;
    for (const FieldProblem& problem : report.problems) {
      if (problem.reason == reason) fields.push_back(problem.field);
    }
    return fields;
  }
  std::int64_t waiting() const { return metrics.waiting_requests.value; }

  EngineMetricsReader reader;
  sched::Metrics metrics;
  std::vector<sched::Attribute> attributes;
  MetricsReport report;
  absl::Status status;
};

TEST(EngineMetrics, Vllm) {
  Scrape s("vllm");
  s.Read(
      "# TYPE vllm:num_requests_running gauge\n"
      "vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 3.0\n"
      "# TYPE vllm:num_requests_waiting gauge\n"
      "vllm:num_requests_waiting{engine=\"0\",model_name=\"m\"} 7.0\n"
      "vllm:num_requests_waiting_by_reason{engine=\"0\",reason=\"capacity\"} 100.0\n"
      "# TYPE vllm:kv_cache_usage_perc gauge\n"
      "vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"m\"} 0.25\n"
      "# TYPE vllm:cache_config_info gauge\n"
      "vllm:cache_config_info{block_size=\"16\",cache_dtype=\"auto\",engine=\"0\",num_gpu_blocks=\"74272\"} "
      "1.0\n");
  EXPECT_TRUE(s.status.ok());
  EXPECT_THAT(s.report.problems, IsEmpty());
  EXPECT_EQ(s.report.ToString(s.reader.config()), "");
  EXPECT_EQ(s.report.updated, 5u);
  EXPECT_EQ(s.metrics.running_requests.value, 3);
  EXPECT_EQ(s.waiting(), 7);
  EXPECT_EQ(s.metrics.kv_cache_usage.value, 0.25);
  EXPECT_EQ(s.metrics.cache_block_size, 16u);
  EXPECT_EQ(s.metrics.cache_num_blocks, 74272u);
  EXPECT_EQ(s.metrics.waiting_requests.at, kNow);
  EXPECT_EQ(s.metrics.updated(), kNow);
  EXPECT_EQ(s.metrics.adapters.value, nullptr);
  EXPECT_FALSE(s.metrics.adapters.known());
  EXPECT_EQ(s.report.page.malformed, 0u);
}

TEST(EngineMetrics, BothNamesOfVllmsCacheUse) {
  EXPECT_EQ(Scrape("vllm").Read("vllm:gpu_cache_usage_perc 0.5\n").metrics.kv_cache_usage.value, 0.5);
  EXPECT_EQ(Scrape("vllm")
                .Read("vllm:gpu_cache_usage_perc 0.5\nvllm:kv_cache_usage_perc 0.75\n")
                .metrics.kv_cache_usage.value,
            0.75);
}

TEST(EngineMetrics, OtherEngines) {
  Scrape sglang("sglang");
  sglang.Read(
      "sglang:num_queue_reqs{tp_rank=\"0\"} 4\nsglang:num_running_reqs 5\nsglang:token_usage 0.5\n"
      "sglang:cache_config_info{page_size=\"64\",num_pages=\"1000\"} 1\n");
  EXPECT_THAT(sglang.report.problems, IsEmpty());
  EXPECT_EQ(sglang.waiting(), 4);
  EXPECT_EQ(sglang.metrics.running_requests.value, 5);
  EXPECT_EQ(sglang.metrics.kv_cache_usage.value, 0.5);
  EXPECT_EQ(sglang.metrics.cache_block_size, 64u);
  EXPECT_EQ(sglang.metrics.cache_num_blocks, 1000u);
  // Newer versions give values; they go before labels.
  sglang.Read(
      "sglang:page_size 1.0\nsglang:num_pages 200000.0\nsglang:cache_config_info{page_size=\"64\"} 1\n");
  EXPECT_EQ(sglang.metrics.cache_block_size, 1u);
  EXPECT_EQ(sglang.metrics.cache_num_blocks, 200000u);

  Scrape trtllm("trtllm-serve");
  trtllm.Read(
      "trtllm_num_requests_waiting 1\ntrtllm_num_requests_running 2\ntrtllm_kv_cache_utilization 0.125\n"
      "trtllm_kv_cache_tokens_per_block 32.0\ntrtllm_kv_cache_max_blocks 19958.0\n");
  EXPECT_THAT(trtllm.report.problems, IsEmpty());
  EXPECT_EQ(trtllm.waiting(), 1);
  EXPECT_EQ(trtllm.metrics.cache_block_size, 32u);
  EXPECT_EQ(trtllm.metrics.cache_num_blocks, 19958u);

  Scrape triton_llm("triton-tensorrt-llm");
  triton_llm.Read(
      "nv_trt_llm_request_metrics{model=\"m\",request_type=\"context\"} 9\n"
      "nv_trt_llm_request_metrics{model=\"m\",request_type=\"scheduled\"} 2\n"
      "nv_trt_llm_request_metrics{model=\"m\",request_type=\"waiting\"} 3\n"
      "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"fraction\"} 0.75\n"
      "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"tokens_per\"} 64\n"
      "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"max\"} 500\n");
  EXPECT_THAT(triton_llm.report.problems, IsEmpty());
  EXPECT_EQ(triton_llm.waiting(), 3);
  EXPECT_EQ(triton_llm.metrics.running_requests.value, 2);
  EXPECT_EQ(triton_llm.metrics.kv_cache_usage.value, 0.75);
  EXPECT_EQ(triton_llm.metrics.cache_block_size, 64u);
  EXPECT_EQ(triton_llm.metrics.cache_num_blocks, 500u);

  Scrape triton("triton");
  triton.Read(
      "nv_inference_pending_request_count 8\n# TYPE nv_inference_exec_count counter\nnv_inference_exec_count "
      "2\n");
  EXPECT_THAT(triton.report.problems, IsEmpty());
  EXPECT_EQ(triton.waiting(), 8);
  EXPECT_EQ(triton.metrics.running_requests.value, 2);
  EXPECT_FALSE(triton.metrics.kv_cache_usage.known());
}

TEST(EngineMetrics, AMissingMetricKeepsItsOldValueAndTime) {
  Scrape s("vllm");
  s.Read("vllm:num_requests_waiting 7\nvllm:num_requests_running 1\nvllm:kv_cache_usage_perc 0.5\n");
  EXPECT_THAT(s.ProblemsOf(Reason::kMissing), ElementsAre(Field::kCacheBlockSize, Field::kCacheNumBlocks));
  const absl::Time later = kNow + absl::Seconds(1);
  s.Read("vllm:num_requests_running 2\n", later);
  EXPECT_TRUE(s.status.ok());
  EXPECT_THAT(s.ProblemsOf(Reason::kMissing),
              ElementsAre(Field::kWaiting, Field::kKvUsage, Field::kCacheBlockSize, Field::kCacheNumBlocks));
  EXPECT_EQ(s.report.updated, 1u);
  EXPECT_EQ(s.waiting(), 7);
  EXPECT_EQ(s.metrics.waiting_requests.at, kNow);
  EXPECT_EQ(s.metrics.running_requests.value, 2);
  EXPECT_EQ(s.metrics.running_requests.at, later);
  EXPECT_THAT(s.report.ToString(s.reader.config()),
              HasSubstr("waiting requests is missing; cache use is missing; cache block size is missing"));
  s.Read("", later);
  EXPECT_EQ(s.report.updated, 0u);
  EXPECT_EQ(s.metrics.running_requests.value, 2);
}

TEST(EngineMetrics, ValuesWithoutMeaningAreNone) {
  for (const char* bad : {"NaN", "+Inf", "-Inf", "-1", "-0.5", "1e300"}) {
    Scrape s("vllm");
    s.Read("vllm:num_requests_waiting 7\n");
    s.Read("vllm:num_requests_waiting " + std::string(bad) + "\n");
    EXPECT_EQ(s.waiting(), 7) << bad;
    EXPECT_THAT(s.ProblemsOf(Reason::kBadValue), ElementsAre(Field::kWaiting)) << bad;
  }
  for (const char* bad : {"NaN", "+Inf", "-0.001"}) {
    EXPECT_FALSE(Scrape("vllm")
                     .Read("vllm:kv_cache_usage_perc " + std::string(bad) + "\n")
                     .metrics.kv_cache_usage.known())
        << bad;
  }
  EXPECT_EQ(Scrape("vllm").Read("vllm:kv_cache_usage_perc 1.5\n").metrics.kv_cache_usage.value, 1);
  EXPECT_EQ(Scrape("vllm").Read("vllm:num_requests_waiting 2.9\n").waiting(), 2);
  // A number that does not parse is malformed, so the metric is missing.
  Scrape s("vllm");
  s.Read("vllm:num_requests_waiting two\n");
  EXPECT_EQ(s.report.page.malformed, 1u);
  EXPECT_EQ(s.ProblemsOf(Reason::kMissing).front(), Field::kWaiting);
}

TEST(EngineMetrics, HistogramsHaveNoValue) {
  Scrape s("vllm");
  s.Read("# TYPE vllm:num_requests_waiting summary\nvllm:num_requests_waiting{quantile=\"0.5\"} 3\n");
  EXPECT_FALSE(s.metrics.waiting_requests.known());
  EXPECT_THAT(s.ProblemsOf(Reason::kWrongType), ElementsAre(Field::kWaiting));
}

TEST(EngineMetrics, CountersByTheNameOfTheFamily) {
  EngineConfig config;
  config.queued_requests = {{"q"}};
  Scrape s(config);
  s.Read("# TYPE q counter\nq_total 4\n");
  EXPECT_EQ(s.waiting(), 4);
  Scrape other(config);
  other.Read("# TYPE q gauge\nq_total 4\n");
  EXPECT_FALSE(other.metrics.waiting_requests.known());
}

TEST(EngineMetrics, TheNewestSeriesElseTheFirst) {
  const auto waiting = [](const std::string& page) { return Scrape("vllm").Read(page).waiting(); };
  EXPECT_EQ(waiting("vllm:num_requests_waiting{m=\"a\"} 1\nvllm:num_requests_waiting{m=\"b\"} 2\n"), 1);
  EXPECT_EQ(waiting("vllm:num_requests_waiting{m=\"a\"} 1 100\nvllm:num_requests_waiting{m=\"b\"} 2 101\n"),
            2);
  EXPECT_EQ(waiting("vllm:num_requests_waiting{m=\"a\"} 1 100\nvllm:num_requests_waiting{m=\"b\"} 2 100\n"),
            1);
  EXPECT_EQ(waiting("vllm:num_requests_waiting{m=\"a\"} 1\nvllm:num_requests_waiting{m=\"b\"} 2 100\n"), 2);
  EXPECT_EQ(waiting("vllm:num_requests_waiting 1\nvllm:num_requests_waiting 2\n"),
            1);  // the same series twice
}

const char kTwoRanks[] =
    "vllm:num_requests_waiting{engine=\"0\",model_name=\"m\"} 3\n"
    "vllm:num_requests_waiting{engine=\"1\",model_name=\"m\"} 5\n"
    "vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 1\n"
    "vllm:num_requests_running{model_name=\"m\",engine=\"1\"} 2\n"
    "vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"m\"} 0.25\n"
    "vllm:kv_cache_usage_perc{engine=\"1\",model_name=\"m\"} 0.75\n"
    "vllm:cache_config_info{block_size=\"16\",engine=\"0\",num_gpu_blocks=\"100\"} 1.0\n"
    "vllm:cache_config_info{block_size=\"16\",engine=\"1\",num_gpu_blocks=\"100\"} 1.0\n";

TEST(EngineMetrics, RanksBehindOnePortAreAddedUp) {
  Scrape s("vllm");
  s.Read(kTwoRanks);
  EXPECT_EQ(s.waiting(), 8);
  EXPECT_EQ(s.metrics.running_requests.value, 3);
  EXPECT_EQ(s.metrics.kv_cache_usage.value, 0.5);
  EXPECT_EQ(s.metrics.cache_block_size, 16u);
}

TEST(EngineMetrics, TheFirstRankAloneForCompatibility) {
  Scrape s("vllm", {.compatibility = {.first_rank_alone = true}});
  s.Read(kTwoRanks);
  EXPECT_EQ(s.waiting(), 3);
  EXPECT_EQ(s.metrics.running_requests.value, 1);
  EXPECT_EQ(s.metrics.kv_cache_usage.value, 0.25);
  EXPECT_EQ(s.metrics.cache_num_blocks, 100u);
  EXPECT_TRUE(sched::Compatibility::LlmD().first_rank_alone);
}

TEST(EngineMetrics, OnlySeriesThatDifferInTheRankAreAddedUp) {
  Scrape s("vllm");
  s.Read(
      "vllm:num_requests_waiting{engine=\"0\",model_name=\"m\"} 3\n"
      "vllm:num_requests_waiting{engine=\"1\",model_name=\"n\"} 100\n"          // another model
      "vllm:num_requests_waiting{engine=\"2\"} 200\n"                           // a label less
      "vllm:num_requests_waiting{engine=\"3\",model_name=\"m\",z=\"1\"} 400\n"  // a label more
      "vllm:num_requests_waiting{engine=\"0\",model_name=\"m\"} 800\n"          // the same rank again
      "vllm:num_requests_waiting{engine=\"1\",model_name=\"m\"} 5\n");
  EXPECT_EQ(s.waiting(), 8);
  // One rank's value without meaning is not replaced by a guess.
  s.Read("vllm:num_requests_waiting{engine=\"0\"} 3\nvllm:num_requests_waiting{engine=\"1\"} NaN\n");
  EXPECT_EQ(s.waiting(), 8);
  EXPECT_THAT(s.ProblemsOf(Reason::kBadValue), ElementsAre(Field::kWaiting));
}

TEST(EngineMetrics, ShardsOfOneRankCountOnce) {
  // Two data-parallel ranks of two tensor-parallel shards each: 3 + 5.
  Scrape s("sglang");
  s.Read(
      "sglang:num_queue_reqs{dp_rank=\"0\",tp_rank=\"0\",moe_ep_rank=\"0\"} 3\n"
      "sglang:num_queue_reqs{dp_rank=\"0\",tp_rank=\"1\",moe_ep_rank=\"1\"} 3\n"
      "sglang:num_queue_reqs{dp_rank=\"1\",tp_rank=\"2\",moe_ep_rank=\"2\"} 5\n"
      "sglang:num_queue_reqs{dp_rank=\"1\",tp_rank=\"3\",moe_ep_rank=\"3\"} 5\n");
  EXPECT_EQ(s.waiting(), 8);
  // Without a rank's label there is one rank.
  s.Read("sglang:num_queue_reqs{tp_rank=\"0\"} 3\nsglang:num_queue_reqs{tp_rank=\"1\"} 3\n");
  EXPECT_EQ(s.waiting(), 3);
}

TEST(EngineMetrics, SeriesBeyondTheLimitAreReported) {
  std::string page;
  for (int i = 0; i < 257; ++i) page += "vllm:num_requests_waiting{engine=\"" + std::to_string(i) + "\"} 1\n";
  Scrape s("vllm");
  s.Read(page);
  EXPECT_EQ(s.waiting(), 256);
  EXPECT_THAT(s.ProblemsOf(Reason::kTooManySeries), ElementsAre(Field::kWaiting));
}

TEST(EngineMetrics, AdaptersOfTheSeriesMadeLast) {
  Scrape s("vllm");
  s.Read(
      "vllm:lora_requests_info{max_lora=\"2\",running_lora_adapters=\"old\",waiting_lora_adapters=\"\"} "
      "1.7e9\n"
      "vllm:lora_requests_info{max_lora=\"4\",running_lora_adapters=\"a, b ,,c\",waiting_lora_adapters=\" "
      "d\"} 1.8e9\n"
      "vllm:lora_requests_info{max_lora=\"8\",running_lora_adapters=\"older\",waiting_lora_adapters=\"\"} "
      "1.6e9 99\n"
      "vllm:lora_requests_info{max_lora=\"9\",running_lora_adapters=\"nan\",waiting_lora_adapters=\"\"} "
      "NaN\n");
  ASSERT_NE(s.metrics.adapters.value, nullptr);
  const std::shared_ptr<const sched::AdapterState> first = s.metrics.adapters.value;
  EXPECT_EQ(first->max_active, 4);
  EXPECT_THAT(first->active, ElementsAre("a", "b", "c"));
  EXPECT_THAT(first->waiting, ElementsAre("d"));
  EXPECT_EQ(s.metrics.adapters.at, kNow);

  // A page without adapters is no error, and the same adapters are the same object with a new time.
  const absl::Time later = kNow + absl::Seconds(1);
  s.Read("vllm:num_requests_waiting 1\n", later);
  EXPECT_EQ(s.metrics.adapters.value, first);
  EXPECT_EQ(s.metrics.adapters.at, kNow);
  EXPECT_THAT(s.ProblemsOf(Reason::kMissing), ::testing::Not(::testing::Contains(Field::kAdapters)));
  s.Read(
      "vllm:lora_requests_info{waiting_lora_adapters=\"d\",running_lora_adapters=\"a,b,c\",max_lora=\"4\"} "
      "1\n",
      later);
  EXPECT_EQ(s.metrics.adapters.value, first);
  EXPECT_EQ(s.metrics.adapters.at, later);
  s.Read("vllm:lora_requests_info{running_lora_adapters=\"q\\\"\",max_lora=\"4\"} 1\n", later);
  ASSERT_NE(s.metrics.adapters.value, first);
  EXPECT_THAT(s.metrics.adapters.value->active, ElementsAre("q\""));
  EXPECT_THAT(s.metrics.adapters.value->waiting, IsEmpty());
}

TEST(EngineMetrics, AdaptersWithoutMeaningKeepTheOldOnes) {
  Scrape s("vllm");
  s.Read("vllm:lora_requests_info{max_lora=\"4\",running_lora_adapters=\"a\"} 1\n");
  const auto before = s.metrics.adapters.value;
  for (const char* max : {"x", "-1", "4.0", "99999999999999999999"}) {
    s.Read("vllm:lora_requests_info{max_lora=\"" + std::string(max) + "\",running_lora_adapters=\"b\"} 1\n");
    EXPECT_EQ(s.metrics.adapters.value, before) << max;
    EXPECT_THAT(s.ProblemsOf(Reason::kBadLabel), ElementsAre(Field::kAdapters));
  }
  s.Read("vllm:lora_requests_info{max_lora=\"4\",running_lora_adapters=\"b\"} +Inf\n");
  EXPECT_EQ(s.metrics.adapters.value, before);
  EXPECT_THAT(s.ProblemsOf(Reason::kBadValue), ElementsAre(Field::kAdapters));
}

TEST(EngineMetrics, LabelsOfTheCacheThatAreNoNumbers) {
  Scrape s("vllm");
  s.Read("vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"None\"} 1\n");  // before the engine has
                                                                                    // profiled
  EXPECT_EQ(s.metrics.cache_block_size, 16u);
  EXPECT_EQ(s.metrics.cache_num_blocks, 0u);
  EXPECT_THAT(s.ProblemsOf(Reason::kBadLabel), ElementsAre(Field::kCacheNumBlocks));
  for (const char* bad : {"", "-1", "16.0", "4294967296", " 16"}) {
    s.Read("vllm:cache_config_info{block_size=\"" + std::string(bad) + "\",num_gpu_blocks=\"5\"} 1\n");
    EXPECT_EQ(s.metrics.cache_block_size, 16u) << bad;
    EXPECT_THAT(s.ProblemsOf(Reason::kBadLabel), ElementsAre(Field::kCacheBlockSize)) << bad;
  }
  EXPECT_EQ(s.metrics.cache_num_blocks, 5u);
  s.Read(kTwoRanks);
  EXPECT_EQ(s.metrics.cache_num_blocks, 200u);
}

TEST(EngineMetrics, CustomMetricsBecomeAttributes) {
  EngineConfig config;
  config.custom = {{"power", {"gpu_power", {{"gpu", "0"}}}}, {"heat", {"gpu_heat"}}};
  Scrape s(config);
  s.Read("gpu_power{gpu=\"1\"} 9\ngpu_power{gpu=\"0\"} -5.5\n");
  ASSERT_EQ(s.attributes.size(), 1u);
  EXPECT_EQ(s.attributes[0].name, "power");
  EXPECT_EQ(s.attributes[0].sample.value, -5.5);
  EXPECT_EQ(s.attributes[0].sample.at, kNow);
  EXPECT_THAT(s.report.problems, ElementsAre(FieldProblem{Field::kCustom, 1, Reason::kMissing}));
  EXPECT_EQ(s.report.ToString(config), "heat is missing");
  const absl::Time later = kNow + absl::Seconds(1);
  s.Read("gpu_power{gpu=\"0\"} NaN\ngpu_heat 60\n", later);
  ASSERT_EQ(s.attributes.size(), 2u);
  EXPECT_EQ(s.attributes[0].sample.value, -5.5);
  EXPECT_EQ(s.attributes[0].sample.at, kNow);
  EXPECT_EQ(s.attributes[1].name, "heat");
  EXPECT_EQ(s.attributes[1].sample.value, 60);
  EXPECT_THAT(s.report.problems, ElementsAre(FieldProblem{Field::kCustom, 0, Reason::kBadValue}));
}

TEST(EngineMetrics, ARefusedPageChangesNothing) {
  Scrape s("vllm", {.limits = {.max_bytes = 100, .max_malformed = 1}});
  s.Read("vllm:num_requests_waiting 7\n");
  s.Read(std::string_view("x", std::size_t{1} << 30));
  EXPECT_EQ(s.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(s.waiting(), 7);
  EXPECT_THAT(s.report.problems, IsEmpty());
  s.Read("vllm:num_requests_waiting 8\n<a>\n<b>\n", kNow + absl::Seconds(1));
  EXPECT_EQ(s.status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(s.waiting(), 7);
  EXPECT_EQ(s.metrics.waiting_requests.at, kNow);
  EXPECT_EQ(s.report.page.malformed, 2u);
  EXPECT_TRUE(s.Read("vllm:num_requests_waiting 9\n").status.ok());
  EXPECT_EQ(s.waiting(), 9);
}

}  // namespace
}  // namespace llmd::gateway
