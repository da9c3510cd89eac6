#include "examples/gateway_scheduler/request_metrics.h"

#include <algorithm>
#include <charconv>
#include <mutex>
#include <utility>

#include "absl/hash/hash.h"
#include "examples/gateway_scheduler/safe_text.h"

namespace llmd::host {
namespace {

constexpr std::size_t kMaxLabelBytes = 256;

std::size_t Index(RequestHistogram histogram) { return static_cast<std::size_t>(histogram); }

}  // namespace

std::size_t RequestMetrics::Hash::operator()(const KeyView& key) const {
  return absl::HashOf(ToAbsl(key[0]), ToAbsl(key[1]), ToAbsl(key[2]), ToAbsl(key[3]));
}

RequestMetrics::RequestMetrics(prometheus::Registry& registry, const MetricNames& names,
                               const LabelLimits& limits)
    : max_label_sets_(limits.label_sets),
      models_(limits.models, limits.configured_models),
      fairness_ids_(limits.fairness_ids),
      priorities_(limits.priorities) {
  using Style = LabelStyle;
  total_
      .Name(names.current, registry, "llm_d_epp_request_total", "Requests sent to a model server.",
            Style::kFull)
      .Name(names.objective, registry, "inference_objective_request_total",
            "Requests sent to a model server.", Style::kModelsPriority)
      .Name(names.v0_2, registry, "inference_model_request_total", "Requests sent to a model server.",
            Style::kModels);
  errors_
      .Name(names.current, registry, "llm_d_epp_request_error_total", "Requests that failed, by error code.",
            Style::kFull)
      .Name(names.objective, registry, "inference_objective_request_error_total",
            "Requests that failed, by error code.", Style::kModels)
      .Name(names.v0_2, registry, "inference_model_request_error_total",
            "Requests that failed, by error code.", Style::kModels);
  running_
      .Name(names.current, registry, "llm_d_epp_request_running", "Requests at model servers now.",
            Style::kFull)
      .Name(names.objective, registry, "inference_objective_running_requests",
            "Requests at model servers now.", Style::kModel)
      .Name(names.v0_2, registry, "inference_model_running_requests", "Requests at model servers now.",
            Style::kModel);

  // `v0_2`: empty where that generation has no such metric.
  const auto define = [&](RequestHistogram id, Buckets buckets, const std::string& help,
                          const std::string& current, const std::string& objective, const std::string& v0_2) {
    FanFamily<prometheus::Histogram>& family = histograms_[Index(id)];
    family = FanFamily<prometheus::Histogram>(std::move(buckets));
    family.Name(names.current, registry, "llm_d_epp_" + current, help, Style::kFull)
        .Name(names.objective && !objective.empty(), registry, "inference_objective_" + objective, help,
              Style::kModels)
        .Name(names.v0_2 && !v0_2.empty(), registry, "inference_model_" + v0_2, help, Style::kModels);
  };
  using H = RequestHistogram;
  define(H::kDuration, LatencyBuckets(), "Seconds from the request's headers to the end of the response.",
         "request_duration_seconds", "request_duration_seconds", "request_duration_seconds");
  define(H::kRequestSize, RequestSizeBuckets(), "Bytes of request bodies.", "request_size_bytes",
         "request_sizes", "request_sizes");
  define(H::kResponseSize, TokenBucketsUpTo(65536), "Bytes of response bodies.", "response_size_bytes",
         "response_sizes", "response_sizes");
  define(H::kInputTokens, TokenBuckets(), "Prompt tokens, as the model server counted them.",
         "request_input_tokens", "input_tokens", "input_tokens");
  define(H::kOutputTokens, TokenBucketsUpTo(8192), "Completion tokens, as the model server counted them.",
         "request_output_tokens", "output_tokens", "output_tokens");
  define(H::kCachedTokens, TokenBuckets(), "Prompt tokens that the model server had in its cache.",
         "request_cached_tokens", "prompt_cached_tokens", "");
  define(H::kNtpot, {0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10},
         "Seconds of a request divided by its completion tokens.", "request_ntpot_seconds",
         "normalized_time_per_output_token_seconds", "normalized_time_per_output_token_seconds");
  define(H::kTtft, LatencyBucketsUpTo(120), "Seconds from the request to the first byte of the response.",
         "request_ttft_seconds", "", "");
  histograms_[Index(H::kTtftStreaming)] = histograms_[Index(H::kTtft)];
  define(H::kStreamingTpot,
         {0.0005, 0.00205, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.125, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6,
          0.8, 1, 2},
         "Seconds for each token after the first one of a streamed response.",
         "request_streaming_tpot_seconds", "", "");
  define(H::kStreamingItl, {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2},
         "Seconds between pieces of a streamed response.", "request_streaming_itl_seconds", "", "");

  queued_ = FanFamily<prometheus::Histogram>(
      {0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60});
  const std::string queued_help = "Seconds that a request waited in flow control.";
  queued_
      .Name(names.current, registry, "llm_d_epp_flow_control_request_queue_duration_seconds", queued_help,
            Style::kFull)
      .Name(names.objective, registry, "inference_extension_flow_control_request_queue_duration_seconds",
            queued_help, Style::kFull);
}

RequestSeries* RequestMetrics::Lookup(const KeyView& key) {
  Shard& shard = shards_[Hash()(key) % shards_.size()];
  const std::shared_lock<std::shared_mutex> lock(shard.mutex);
  const auto it = shard.series.find(key);
  return it == shard.series.end() ? nullptr : it->second.get();
}

RequestSeries& RequestMetrics::Find(const RequestInfo& request) {
  std::array<char, 12> digits;
  const char* end = std::to_chars(digits.data(), digits.data() + digits.size(), request.priority).ptr;
  const KeyView key{request.model, request.target_model, request.fairness_id,
                    std::string_view(digits.data(), static_cast<std::size_t>(end - digits.data()))};
  const bool short_enough = std::all_of(key.begin(), key.end(),
                                        [](std::string_view part) { return part.size() <= kMaxLabelBytes; });
  if (short_enough) {
    if (RequestSeries* found = Lookup(key)) return *found;
  }
  return FindCapped(key);
}

RequestSeries& RequestMetrics::FindCapped(const KeyView& raw) {
  const auto capped = [](LabelCap& cap, std::string_view value) {
    std::string safe = SafeText(value, kMaxLabelBytes);
    return cap.Admit(safe) ? std::move(safe) : std::string(kOtherLabel);
  };
  Key key{capped(models_, raw[0]), capped(models_, raw[1]), capped(fairness_ids_, raw[2]),
          capped(priorities_, raw[3])};
  if (RequestSeries* found = Lookup(View(key))) return *found;
  const bool full = label_sets_.fetch_add(1, std::memory_order_relaxed) >= max_label_sets_;
  if (full) {
    key[0] = key[1] = key[2] = kOtherLabel;
    label_sets_.fetch_sub(1, std::memory_order_relaxed);
    if (RequestSeries* found = Lookup(View(key))) return *found;
  }
  auto made = std::make_shared<RequestSeries>();
  made->labels = {.model = key[0], .target_model = key[1], .fairness_id = key[2], .priority = key[3]};
  Shard& shard = shards_[Hash()(key) % shards_.size()];
  const std::unique_lock<std::shared_mutex> lock(shard.mutex);
  const auto [it, inserted] = shard.series.try_emplace(std::move(key), std::move(made));
  if (!inserted && !full) label_sets_.fetch_sub(1, std::memory_order_relaxed);
  return *it->second;
}

void RequestMetrics::CountRequest(RequestSeries& series) {
  series.total.Get(total_, series.labels).Each([](prometheus::Counter& counter) { counter.Increment(); });
}

void RequestMetrics::CountError(RequestSeries& series, std::string_view code) {
  errors_.Find(series.labels, {{"error_code", std::string(code)}}).Each([](prometheus::Counter& counter) {
    counter.Increment();
  });
}

void RequestMetrics::AddRunning(RequestSeries& series, double change) {
  series.running.Get(running_, series.labels).Each([change](prometheus::Gauge& gauge) {
    gauge.Increment(change);
  });
}

void RequestMetrics::Observe(RequestSeries& series, RequestHistogram histogram, double value) {
  prometheus::Labels extra;
  if (histogram == RequestHistogram::kTtft) extra["streaming"] = "false";
  if (histogram == RequestHistogram::kTtftStreaming) extra["streaming"] = "true";
  series.histograms[Index(histogram)]
      .Get(histograms_[Index(histogram)], series.labels, extra)
      .Each([value](prometheus::Histogram& h) { h.Observe(value); });
}

void RequestMetrics::ObserveQueued(RequestSeries& series, std::string_view outcome, std::string_view pool,
                                   double seconds) {
  queued_.Find(series.labels, {{"outcome", std::string(outcome)}, {"inference_pool", std::string(pool)}})
      .Each([seconds](prometheus::Histogram& h) { h.Observe(seconds); });
}

}  // namespace llmd::host
