#include "bench/gateway/vllm_page.h"

#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "llmd/base/random.h"

namespace llmd::bench {
namespace {

using Names = std::vector<absl::string_view>;

class Page {
 public:
  explicit Page(int ranks) : ranks_(ranks) {}

  void Family(absl::string_view name, absl::string_view type, absl::string_view help) {
    absl::StrAppend(&text_, "# HELP ", name, " ", help, "\n# TYPE ", name, " ", type, "\n");
  }
  void Sample(absl::string_view name, int rank, absl::string_view more, absl::string_view value) {
    absl::StrAppend(&text_, name, "{engine=\"", rank, "\"", more,
                    ",model_name=\"meta-llama/Llama-3.1-8B-Instruct\"} ", value, "\n");
  }
  void Gauge(absl::string_view name, absl::string_view help) {
    Family(name, "gauge", help);
    for (int rank = 0; rank < ranks_; ++rank) Sample(name, rank, "", absl::StrCat(random_.Below(100), ".0"));
  }
  void Counter(absl::string_view name, absl::string_view help) {
    for (const auto& [suffix, type] : {std::pair("_total", "counter"), std::pair("_created", "gauge")}) {
      const std::string full = absl::StrCat(name, suffix);
      Family(full, type, help);
      for (int rank = 0; rank < ranks_; ++rank) {
        Sample(full, rank, "", absl::StrCat("1.78596", random_.Below(1'000'000'000), "e+09"));
      }
    }
  }
  void Histogram(absl::string_view name, absl::string_view help, const Names& bounds) {
    Family(name, "histogram", help);
    for (int rank = 0; rank < ranks_; ++rank) {
      std::uint64_t count = 0;
      for (const absl::string_view bound : bounds) {
        count += random_.Below(1000);
        Sample(absl::StrCat(name, "_bucket"), rank, absl::StrCat(",le=\"", bound, "\""),
               absl::StrCat(count, ".0"));
      }
      Sample(absl::StrCat(name, "_bucket"), rank, ",le=\"+Inf\"", absl::StrCat(count, ".0"));
      Sample(absl::StrCat(name, "_count"), rank, "", absl::StrCat(count, ".0"));
      Sample(absl::StrCat(name, "_sum"), rank, "", absl::StrCat(count, ".", random_.Below(1'000'000'000)));
    }
    Family(absl::StrCat(name, "_created"), "gauge", help);
    for (int rank = 0; rank < ranks_; ++rank)
      Sample(absl::StrCat(name, "_created"), rank, "", "1.7859669528940387e+09");
  }
  void CacheConfig() {
    Family("vllm:cache_config_info", "gauge", "Information of the LLMEngine CacheConfig");
    for (int rank = 0; rank < ranks_; ++rank) {
      absl::StrAppend(
          &text_,
          "vllm:cache_config_info{_block_size_resolved=\"True\",block_size=\"16\",cache_dtype=\"auto\","
          "calculate_kv_scales=\"False\",enable_prefix_caching=\"True\",engine=\"",
          rank,
          "\",gpu_memory_utilization=\"0.92\",is_attention_free=\"False\",kv_cache_memory_bytes=\"None\","
          "kv_cache_size_tokens=\"1188352\",kv_offloading_size=\"None\",kv_sharing_fast_prefill=\"False\","
          "mamba_block_size=\"None\",mamba_cache_dtype=\"auto\",num_cpu_blocks=\"None\",num_gpu_blocks="
          "\"74272\","
          "num_gpu_blocks_override=\"None\",prefix_caching_hash_algo=\"sha256\",sliding_window=\"None\"} "
          "1.0\n");
    }
  }
  std::string Take() { return std::move(text_); }

 private:
  int ranks_;
  std::string text_;
  Random random_{1};
};

}  // namespace

std::string VllmPage(int ranks) {
  const Names seconds = {"0.001", "0.005", "0.01", "0.02",  "0.04",  "0.06",  "0.08", "0.1",
                         "0.25",  "0.5",   "0.75", "1.0",   "2.5",   "5.0",   "7.5",  "10.0",
                         "20.0",  "40.0",  "80.0", "160.0", "640.0", "2560.0"};
  const Names tokens_seconds = {"0.01", "0.025", "0.05", "0.075", "0.1", "0.15", "0.2",  "0.3",  "0.4", "0.5",
                                "0.75", "1.0",   "2.5",  "5.0",   "7.5", "10.0", "20.0", "40.0", "80.0"};
  const Names latencies = {"0.3",  "0.5",   "0.8",   "1.0",   "1.5",   "2.0",    "2.5",
                           "5.0",  "10.0",  "15.0",  "20.0",  "30.0",  "40.0",   "50.0",
                           "60.0", "120.0", "240.0", "480.0", "960.0", "1920.0", "7680.0"};
  const Names counts = {"1.0",   "2.0",    "5.0",    "10.0",   "20.0",    "50.0",    "100.0",   "200.0",
                        "500.0", "1000.0", "2000.0", "5000.0", "10000.0", "20000.0", "50000.0", "100000.0"};
  Page page(ranks);
  page.Family("python_gc_objects_collected_total", "counter", "Objects collected during gc");
  for (int i = 0; i < 3; ++i) page.Sample("python_gc_objects_collected_total", 0, ",generation=\"0\"", "1.0");
  page.Gauge("process_resident_memory_bytes", "Resident memory size in bytes.");
  page.Gauge("vllm:num_requests_running", "Number of requests in model execution batches.");
  page.Gauge("vllm:num_requests_waiting", "Number of requests waiting to be processed.");
  page.Gauge("vllm:engine_sleep_state",
             "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means not.");
  page.Family("vllm:kv_cache_usage_perc", "gauge", "KV-cache usage. 1 means 100 percent usage.");
  for (int rank = 0; rank < ranks; ++rank)
    page.Sample("vllm:kv_cache_usage_perc", rank, "", "0.4371283649128364");
  for (const char* name : {"prefix_cache_queries", "prefix_cache_hits", "external_prefix_cache_queries",
                           "external_prefix_cache_hits", "mm_cache_queries", "mm_cache_hits",
                           "num_preemptions", "prompt_tokens", "generation_tokens", "request_success"}) {
    page.Counter(absl::StrCat("vllm:", name), "Counter of this, in terms of number of queried tokens.");
  }
  for (const char* name : {"request_prompt_tokens", "request_generation_tokens", "iteration_tokens_total",
                           "request_max_num_generation_tokens", "request_params_n",
                           "request_params_max_tokens", "request_prefill_kv_computed_tokens"}) {
    page.Histogram(absl::StrCat("vllm:", name), "Number of tokens processed.", counts);
  }
  page.Histogram("vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.", seconds);
  for (const char* name : {"inter_token_latency_seconds", "time_per_output_token_seconds",
                           "request_time_per_output_token_seconds"}) {
    page.Histogram(absl::StrCat("vllm:", name), "Histogram of time between tokens in seconds.",
                   tokens_seconds);
  }
  for (const char* name :
       {"e2e_request_latency_seconds", "request_queue_time_seconds", "request_inference_time_seconds",
        "request_prefill_time_seconds", "request_decode_time_seconds"}) {
    page.Histogram(absl::StrCat("vllm:", name), "Histogram of time spent in this phase for request.",
                   latencies);
  }
  page.CacheConfig();
  for (const char* handler : {"/v1/chat/completions", "/metrics"}) {
    page.Family("http_request_duration_seconds", "histogram", "Latency with only few buckets by handler.");
    for (const absl::string_view bound : latencies) {
      page.Sample("http_request_duration_seconds_bucket", 0,
                  absl::StrCat(",handler=\"", handler, "\",method=\"POST\",le=\"", bound, "\""), "12.0");
    }
  }
  return page.Take();
}

}  // namespace llmd::bench
