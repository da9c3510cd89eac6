// The metrics page: vLLM's names (spec: decode-worker.md 3), one series for each name and label set.
//
// The engine writes, anybody reads: every value is an atomic, so a scrape every 50 ms disturbs nobody and
// asks nobody. The page's text is laid out once; rendering it fills in numbers.
#ifndef EXAMPLES_SIM_WORKER_METRICS_H_
#define EXAMPLES_SIM_WORKER_METRICS_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace llmd::sim {

class Counter {
 public:
  void Add(std::uint64_t n = 1) { value_.fetch_add(n, std::memory_order_relaxed); }
  std::uint64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> value_ = 0;
};

class Gauge {
 public:
  void Set(double value) { value_.store(value, std::memory_order_relaxed); }
  double value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<double> value_ = 0;
};

class Histogram {
 public:
  // Ascending bounds, +Inf not among them.
  explicit Histogram(std::vector<double> bounds);
  void Observe(double value);

  const std::vector<double>& bounds() const { return bounds_; }
  std::uint64_t bucket(std::size_t i) const { return buckets_[i].load(std::memory_order_relaxed); }
  double sum() const { return sum_.load(std::memory_order_relaxed); }

 private:
  std::vector<double> bounds_;
  std::unique_ptr<std::atomic<std::uint64_t>[]> buckets_;  // one more than bounds: those above
  std::atomic<double> sum_ = 0;
};

enum class FinishReason : std::uint8_t { kNone, kStop, kLength, kAbort, kError };
// As clients see it; "" for kNone.
std::string_view FinishReasonName(FinishReason reason);

struct MetricsOptions {
  std::string model_name = {};
  std::uint32_t max_model_len = 32'768;
  bool legacy_names = true;     // vllm:gpu_cache_usage_perc, vllm:gpu_prefix_cache_*
  std::uint32_t max_loras = 0;  // 0: no vllm:lora_requests_info
  // Of vllm:cache_config_info, in this order.
  std::vector<std::pair<std::string, std::string>> cache_config = {};
};

class Metrics {
 public:
  explicit Metrics(const MetricsOptions& options);
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  // Replaces `page`.
  void Render(std::string& page) const;
  // Adapters of running and of waiting requests, separated by commas.
  void SetLoras(std::string_view running_names, std::string_view waiting_names);
  bool has_loras() const { return options_.max_loras > 0; }

  Gauge running;
  Gauge waiting;
  Gauge waiting_capacity;
  Gauge waiting_deferred;
  Gauge kv_usage;
  Counter prefix_queries;
  Counter prefix_hits;
  Counter external_queries;
  Counter external_hits;
  Counter preemptions;
  Counter prompt_tokens;
  Counter prompt_local_compute;
  Counter prompt_cache_hit;
  Counter prompt_external;
  Counter prompt_cached;
  Counter generation_tokens;
  std::array<Counter, 5> success;  // by FinishReason; the first is that of "repetition"
  Counter faults;
  Counter kv_batches;
  Histogram ttft;
  Histogram inter_token;
  Histogram inter_token_fine;
  Histogram request_time_per_token;
  Histogram e2e;
  Histogram queue_time;
  Histogram inference_time;
  Histogram prefill_time;
  Histogram decode_time;
  Histogram request_prompt_tokens;
  Histogram request_generation_tokens;
  Histogram request_max_generation_tokens;
  Histogram request_max_tokens;
  Histogram request_prefill_computed;
  Histogram iteration_tokens;
  Histogram request_n;

 private:
  struct Line {
    std::string text;  // what precedes the number
    const Counter* counter = nullptr;
    const Gauge* gauge = nullptr;
    const Histogram* histogram = nullptr;
    std::string labels = {};  // of a histogram
    std::string name = {};
    std::vector<std::string> buckets = {};  // of a histogram: the texts before each bucket's number
  };

  void Layout();
  void Head(const std::string& name, const char* type, const char* help);
  void AddGauge(const std::string& name, const char* help, const Gauge& gauge);
  void AddCounter(const std::string& name, const char* help, const Counter& counter);
  void AddHistogram(const std::string& name, const char* help, const Histogram& histogram);

  MetricsOptions options_;
  std::string labels_;  // model_name and engine
  std::string head_;    // pending HELP and TYPE lines
  std::vector<Line> lines_;
  std::string tail_;

  mutable std::mutex lora_mutex_;
  std::string lora_line_;
};

}  // namespace llmd::sim

#endif  // EXAMPLES_SIM_WORKER_METRICS_H_
