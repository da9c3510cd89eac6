#include "examples/sim_worker/metrics.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace llmd::sim {
namespace {

const std::vector<double> kTtftBounds = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                         1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
const std::vector<double> kTokenBounds = {.01, .025, .05, .075, .1,  .15, .2, .3, .4, .5,
                                          .75, 1,    2.5, 5,    7.5, 10,  20, 40, 80};
const std::vector<double> kFineTokenBounds = {.0005, .001, .002, .003, .005, .0075, .01, .02, .05, .1, .5, 1};
const std::vector<double> kRequestBounds = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                            30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
const std::vector<double> kIterationBounds = {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
const std::vector<double> kCountBounds = {1, 2, 5, 10, 20};

// 1 2 5 10 20 50 ... up to `most`, which is one of them or none.
std::vector<double> LengthBounds(std::uint32_t most) {
  std::vector<double> bounds;
  for (double decade = 1;; decade *= 10) {
    for (const double digit : {1, 2, 5}) {
      if (digit * decade > most) return bounds;
      bounds.push_back(digit * decade);
    }
  }
}

void AppendNumber(std::string& out, double value) {
  char text[32];
  const auto [end, error] = std::to_chars(text, text + sizeof text, value);
  const std::string_view digits(text, static_cast<std::size_t>(end - text));
  out += digits;
  if (digits.find_first_of(".en") == std::string_view::npos) out += ".0";
}

void AppendNumber(std::string& out, std::uint64_t value) {
  char text[24];
  const auto [end, error] = std::to_chars(text, text + sizeof text, value);
  out.append(text, static_cast<std::size_t>(end - text));
  out += ".0";
}

std::string Escaped(std::string_view value) {
  std::string out;
  for (const char c : value) {
    if (c == '\n') {
      out += "\\n";
      continue;
    }
    if (c == '\\' || c == '"') out += '\\';
    out += c;
  }
  return out;
}

}  // namespace

Histogram::Histogram(std::vector<double> bounds)
    : bounds_(std::move(bounds)),
      buckets_(std::make_unique<std::atomic<std::uint64_t>[]>(bounds_.size() + 1)) {}

void Histogram::Observe(double value) {
  const auto at = std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin();
  buckets_[static_cast<std::size_t>(at)].fetch_add(1, std::memory_order_relaxed);
  sum_.fetch_add(value, std::memory_order_relaxed);
}

std::string_view FinishReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return "";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kAbort:
      return "abort";
    case FinishReason::kError:
      return "error";
  }
  return "";
}

Metrics::Metrics(const MetricsOptions& options)
    : ttft(kTtftBounds),
      inter_token(kTokenBounds),
      inter_token_fine(kFineTokenBounds),
      request_time_per_token(kTokenBounds),
      e2e(kRequestBounds),
      queue_time(kRequestBounds),
      inference_time(kRequestBounds),
      prefill_time(kRequestBounds),
      decode_time(kRequestBounds),
      request_prompt_tokens(LengthBounds(options.max_model_len)),
      request_generation_tokens(LengthBounds(options.max_model_len)),
      request_max_generation_tokens(LengthBounds(options.max_model_len)),
      request_max_tokens(LengthBounds(options.max_model_len)),
      request_prefill_computed(LengthBounds(options.max_model_len)),
      iteration_tokens(kIterationBounds),
      request_n(kCountBounds),
      options_(options),
      labels_(absl::StrCat("engine=\"0\",model_name=\"", Escaped(options.model_name), "\"")) {
  Layout();
  SetLoras("", "");
}

void Metrics::Head(const std::string& name, const char* type, const char* help) {
  absl::StrAppend(&head_, "# HELP ", name, " ", help, "\n# TYPE ", name, " ", type, "\n");
}

void Metrics::AddGauge(const std::string& name, const char* help, const Gauge& gauge) {
  Head(name, "gauge", help);
  lines_.push_back({.text = absl::StrCat(head_, name, "{", labels_, "} "), .gauge = &gauge});
  head_.clear();
}

void Metrics::AddCounter(const std::string& name, const char* help, const Counter& counter) {
  const std::string total = absl::StrCat(name, "_total");
  Head(total, "counter", help);
  lines_.push_back({.text = absl::StrCat(head_, total, "{", labels_, "} "), .counter = &counter});
  head_.clear();
}

void Metrics::AddHistogram(const std::string& name, const char* help, const Histogram& histogram) {
  Head(name, "histogram", help);
  Line line = {
      .text = head_, .histogram = &histogram, .labels = absl::StrCat("{", labels_, "} "), .name = name};
  for (std::size_t i = 0; i <= histogram.bounds().size(); ++i) {
    std::string le = "+Inf";
    if (i < histogram.bounds().size()) {
      le.clear();
      AppendNumber(le, histogram.bounds()[i]);
    }
    line.buckets.push_back(absl::StrCat(name, "_bucket{", labels_, ",le=\"", le, "\"} "));
  }
  lines_.push_back(std::move(line));
  head_.clear();
}

void Metrics::Layout() {
  AddGauge("vllm:num_requests_running", "Number of requests in model execution batches.", running);
  AddGauge("vllm:num_requests_waiting", "Number of requests waiting to be processed.", waiting);
  Head("vllm:num_requests_waiting_by_reason", "gauge", "Number of waiting requests by reason.");
  for (const auto& [reason, gauge] :
       {std::pair("capacity", &waiting_capacity), std::pair("deferred", &waiting_deferred)}) {
    lines_.push_back({.text = absl::StrCat(head_, "vllm:num_requests_waiting_by_reason{", labels_,
                                           ",reason=\"", reason, "\"} "),
                      .gauge = gauge});
    head_.clear();
  }
  AddGauge("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", kv_usage);
  if (options_.legacy_names) {
    AddGauge("vllm:gpu_cache_usage_perc", "Former name of vllm:kv_cache_usage_perc.", kv_usage);
  }
  AddCounter("vllm:prefix_cache_queries", "Prefix cache queries, in tokens.", prefix_queries);
  AddCounter("vllm:prefix_cache_hits", "Prefix cache hits, in tokens.", prefix_hits);
  if (options_.legacy_names) {
    AddCounter("vllm:gpu_prefix_cache_queries", "Former name of vllm:prefix_cache_queries.", prefix_queries);
    AddCounter("vllm:gpu_prefix_cache_hits", "Former name of vllm:prefix_cache_hits.", prefix_hits);
  }
  AddCounter("vllm:external_prefix_cache_queries", "Queries for KV of other workers, in tokens.",
             external_queries);
  AddCounter("vllm:external_prefix_cache_hits", "KV taken from other workers, in tokens.", external_hits);
  static const Counter zero;
  AddCounter("vllm:mm_cache_queries", "Multi-modal cache queries, in items.", zero);
  AddCounter("vllm:mm_cache_hits", "Multi-modal cache hits, in items.", zero);
  AddCounter("vllm:num_preemptions", "Number of preemptions.", preemptions);
  AddCounter("vllm:prompt_tokens", "Number of prefill tokens processed.", prompt_tokens);
  Head("vllm:prompt_tokens_by_source_total", "counter", "Number of prompt tokens by source.");
  for (const auto& [source, counter] :
       {std::pair("local_compute", &prompt_local_compute), std::pair("local_cache_hit", &prompt_cache_hit),
        std::pair("external_kv_transfer", &prompt_external)}) {
    lines_.push_back({.text = absl::StrCat(head_, "vllm:prompt_tokens_by_source_total{", labels_,
                                           ",source=\"", source, "\"} "),
                      .counter = counter});
    head_.clear();
  }
  AddCounter("vllm:prompt_tokens_cached", "Prompt tokens that were not computed here.", prompt_cached);
  AddCounter("vllm:generation_tokens", "Number of generation tokens processed.", generation_tokens);
  Head("vllm:request_success_total", "counter", "Count of successfully processed requests.");
  for (std::size_t i = 0; i < success.size(); ++i) {
    const std::string_view reason = FinishReasonName(static_cast<FinishReason>(i));
    lines_.push_back(
        {.text = absl::StrCat(head_, "vllm:request_success_total{", labels_, ",finished_reason=\"",
                              std::string(reason.empty() ? "repetition" : reason), "\"} "),
         .counter = &success[i]});
    head_.clear();
  }
  AddHistogram("vllm:time_to_first_token_seconds", "Time to first token in seconds.", ttft);
  AddHistogram("vllm:inter_token_latency_seconds", "Inter-token latency in seconds.", inter_token);
  AddHistogram("vllm:time_per_output_token_seconds", "Former name of vllm:inter_token_latency_seconds.",
               inter_token);
  AddHistogram("llmd:inter_token_latency_seconds", "Inter-token latency in finer buckets.", inter_token_fine);
  AddHistogram("vllm:request_time_per_output_token_seconds", "Mean time per output token of a request.",
               request_time_per_token);
  AddHistogram("vllm:e2e_request_latency_seconds", "End-to-end request latency in seconds.", e2e);
  AddHistogram("vllm:request_queue_time_seconds", "Time spent in the waiting phase.", queue_time);
  AddHistogram("vllm:request_inference_time_seconds", "Time spent in the running phase.", inference_time);
  AddHistogram("vllm:request_prefill_time_seconds", "Time spent in the prefill phase.", prefill_time);
  AddHistogram("vllm:request_decode_time_seconds", "Time spent in the decode phase.", decode_time);
  AddHistogram("vllm:request_prompt_tokens", "Number of prefill tokens of a request.", request_prompt_tokens);
  AddHistogram("vllm:request_generation_tokens", "Number of generation tokens of a request.",
               request_generation_tokens);
  AddHistogram("vllm:request_max_num_generation_tokens", "Most generation tokens asked of a request.",
               request_max_generation_tokens);
  AddHistogram("vllm:request_params_max_tokens", "The max_tokens parameter.", request_max_tokens);
  AddHistogram("vllm:request_prefill_kv_computed_tokens", "Prompt tokens computed, cached ones left out.",
               request_prefill_computed);
  AddHistogram("vllm:iteration_tokens_total", "Number of tokens per engine step.", iteration_tokens);
  AddHistogram("vllm:request_params_n", "The n parameter.", request_n);
  AddCounter("sim:faults", "Requests that were made to fail.", faults);
  AddCounter("sim:kv_event_batches", "Batches of KV events published.", kv_batches);

  tail_ = "# HELP vllm:engine_sleep_state Whether the engine sleeps.\n# TYPE vllm:engine_sleep_state gauge\n";
  for (const char* const state : {"awake", "weights_offloaded", "discard_all"}) {
    absl::StrAppend(&tail_, "vllm:engine_sleep_state{", labels_, ",sleep_state=\"", state, "\"} ",
                    std::string_view(state) == "awake" ? "1.0" : "0.0", "\n");
  }
  absl::StrAppend(&tail_, "# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig\n",
                  "# TYPE vllm:cache_config_info gauge\nvllm:cache_config_info{engine=\"0\"");
  for (const auto& [name, value] : options_.cache_config) {
    absl::StrAppend(&tail_, ",", name, "=\"", Escaped(value), "\"");
  }
  tail_ += "} 1.0\n";
}

void Metrics::SetLoras(std::string_view running_names, std::string_view waiting_names) {
  if (options_.max_loras == 0) return;
  std::string line = "# HELP vllm:lora_requests_info Running stats on lora requests.\n";
  absl::StrAppend(&line, "# TYPE vllm:lora_requests_info gauge\nvllm:lora_requests_info{max_lora=\"",
                  options_.max_loras, "\",running_lora_adapters=\"", Escaped(running_names),
                  "\",waiting_lora_adapters=\"", Escaped(waiting_names), "\"} ");
  AppendNumber(line,
               std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count());
  line += '\n';
  const std::scoped_lock lock(lora_mutex_);
  lora_line_ = std::move(line);
}

void Metrics::Render(std::string& page) const {
  page.clear();
  for (const Line& line : lines_) {
    page += line.text;
    if (line.counter != nullptr) {
      AppendNumber(page, line.counter->value());
      page += '\n';
    } else if (line.gauge != nullptr) {
      AppendNumber(page, line.gauge->value());
      page += '\n';
    } else {
      std::uint64_t total = 0;
      for (std::size_t i = 0; i < line.buckets.size(); ++i) {
        total += line.histogram->bucket(i);
        page += line.buckets[i];
        AppendNumber(page, total);
        page += '\n';
      }
      absl::StrAppend(&page, line.name, "_sum", line.labels);
      AppendNumber(page, line.histogram->sum());
      absl::StrAppend(&page, "\n", line.name, "_count", line.labels);
      AppendNumber(page, total);
      page += '\n';
    }
  }
  page += tail_;
  const std::scoped_lock lock(lora_mutex_);
  page += lora_line_;
}

}  // namespace llmd::sim
