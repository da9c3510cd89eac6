// Metrics of requests: counts, durations, sizes and tokens by model, fairness id and priority.
// (spec: gateway.md 3.1, and the histograms by flow of 3.3)
//
//   RequestSeries& series = metrics.Find(request);                   // once per event
//   metrics.Observe(series, RequestHistogram::kDuration, seconds);
//
// Series live as long as this object. Any thread may call anything; finding a known series takes a shared
// lock of one of 16 shards.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_REQUEST_METRICS_H_
#define EXAMPLES_GATEWAY_SCHEDULER_REQUEST_METRICS_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <shared_mutex>
#include <string>
#include <string_view>

#include <prometheus/registry.h>

#include "absl/container/flat_hash_map.h"
#include "examples/gateway_scheduler/label_limits.h"
#include "examples/gateway_scheduler/metric_fan.h"
#include "examples/gateway_scheduler/metric_names.h"
#include "examples/gateway_scheduler/observer.h"

namespace llmd::host {

enum class RequestHistogram : std::uint8_t {
  kDuration,
  kRequestSize,
  kResponseSize,
  kInputTokens,
  kOutputTokens,
  kCachedTokens,
  kNtpot,
  kTtft,
  kTtftStreaming,  // the same family
  kStreamingTpot,
  kStreamingItl,
};
inline constexpr std::size_t kRequestHistograms = 11;

struct RequestSeries {
  RequestLabels labels = {};
  LazyFan<prometheus::Counter> total;
  LazyFan<prometheus::Gauge> running;
  std::array<LazyFan<prometheus::Histogram>, kRequestHistograms> histograms;
};

class RequestMetrics {
 public:
  RequestMetrics(prometheus::Registry& registry, const MetricNames& names, const LabelLimits& limits);

  RequestSeries& Find(const RequestInfo& request);

  void CountRequest(RequestSeries& series);
  void CountError(RequestSeries& series, std::string_view code);
  void AddRunning(RequestSeries& series, double change);
  void Observe(RequestSeries& series, RequestHistogram histogram, double value);
  // Ended waiting in flow control.
  void ObserveQueued(RequestSeries& series, std::string_view outcome, std::string_view pool, double seconds);

  std::size_t label_sets() const { return label_sets_.load(std::memory_order_relaxed); }

 private:
  using Key = std::array<std::string, 4>;
  using KeyView = std::array<std::string_view, 4>;  // model, target, fairness id, priority
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(const Key& key) const { return (*this)(View(key)); }
    std::size_t operator()(const KeyView& key) const;
  };
  struct Equal {
    using is_transparent = void;
    template <typename A, typename B>
    bool operator()(const A& a, const B& b) const {
      return View(a) == View(b);
    }
  };
  static KeyView View(const Key& key) { return {key[0], key[1], key[2], key[3]}; }
  static const KeyView& View(const KeyView& key) { return key; }
  struct Shard {
    std::shared_mutex mutex;
    absl::flat_hash_map<Key, std::shared_ptr<RequestSeries>, Hash, Equal> series;
  };

  RequestSeries& FindCapped(const KeyView& raw);
  RequestSeries* Lookup(const KeyView& key);

  const std::size_t max_label_sets_;
  LabelCap models_;
  LabelCap fairness_ids_;
  LabelCap priorities_;
  std::atomic<std::size_t> label_sets_ = 0;
  std::array<Shard, 16> shards_;

  FanFamily<prometheus::Counter> total_;
  FanFamily<prometheus::Counter> errors_;
  FanFamily<prometheus::Gauge> running_;
  FanFamily<prometheus::Histogram> queued_;
  std::array<FanFamily<prometheus::Histogram>, kRequestHistograms> histograms_;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_REQUEST_METRICS_H_
