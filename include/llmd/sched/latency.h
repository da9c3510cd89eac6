// Predicted latencies of a request on each endpoint, from a model that the host provides.
//
// llm-d asks a sidecar; here Resources::latency_predictor is any function, called once a decision for all
// candidates. Without one nothing is predicted, and the plugins that read predictions fall back as the spec
// (scheduling.md 2.5) says.
#ifndef LLMD_SCHED_LATENCY_H_
#define LLMD_SCHED_LATENCY_H_

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>

namespace llmd::sched {

// Of one endpoint.
struct LatencyPrediction {
  static constexpr std::string_view kDataType = "LatencyPredictionInfo";

  bool known = false;       // the predictor had an answer
  bool ttft_valid = false;  // within the objective
  bool tpot_valid = false;
  double ttft_ms = 0;
  double tpot_ms = 0;
  double ttft_headroom_ms = 0;  // objective - prediction
  double tpot_headroom_ms = 0;
  std::int64_t dispatched_requests = 0;  // in flight there

  bool valid() const { return ttft_valid && tpot_valid; }
};

// What a prediction is made from. (spec: scheduling.md 2.5)
struct LatencyFeatures {
  double kv_cache_usage = 0;  // 0..1
  std::int64_t input_tokens = 0;
  std::int64_t waiting_requests = 0;
  std::int64_t running_requests = 0;  // in flight if tracked, else scraped
  double prefix_ratio = 0;            // matched / total blocks
  std::int64_t prefill_tokens_in_flight = 0;
  std::string_view role = {};  // value of the role label
  // Images, sounds and videos; with useEncoderCacheFeatures.
  std::int64_t encoder_items = 0;
  std::int64_t encoder_items_cached = 0;
};

struct LatencyEstimate {
  double ttft_ms = 0;
  double tpot_ms = 0;
};

// Fills one estimate for each element of `features`, NaN where it has none. False: no answer at all. Called
// by any thread.
using LatencyPredictor = std::function<bool(std::span<const LatencyFeatures>, std::span<LatencyEstimate>)>;

}  // namespace llmd::sched

#endif  // LLMD_SCHED_LATENCY_H_
