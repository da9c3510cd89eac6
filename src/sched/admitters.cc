// probabilistic-admitter and latency-slo-admitter: turn away requests that may be shed (priority < 0). (spec:
// scheduling.md 2.7)
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "llmd/sched/result_headers.h"
#include "src/sched/builtin_plugins.h"
#include "src/sched/freshness.h"

namespace llmd::sched {
namespace {

absl::Status Denial(const std::string& message) {
  return WithDroppedReason(absl::ResourceExhaustedError(message), DroppedReason::kSaturated);
}

// 0 for what makes no sense, so that a saturation is never negative or NaN.
double Share(double value, double limit) { return value > 0 ? value / limit : 0; }

struct ProbabilisticOptions {
  double queue_depth = 5;
  double kv_cache = 0.8;
  double power = 5;
  double k = 300;
  FreshnessPolicy freshness;
};

// Rejects with a probability that grows steeply with the mean saturation.
class ProbabilisticAdmitter final : public Plugin, public Admitter {
 public:
  ProbabilisticAdmitter(std::string type, std::string name, const ProbabilisticOptions& options)
      : Plugin(std::move(type), std::move(name)), options_(options) {}

  absl::Status Admit(Context& context, std::span<const Position> candidates) const override {
    if (context.request.priority >= 0 || candidates.empty()) return absl::OkStatus();
    const double saturation = Saturation(context, candidates);
    const double probability = std::min(std::pow(saturation, options_.power) * options_.k, 1.0);
    if (!(context.random.Uniform() < probability)) return absl::OkStatus();
    return Denial(absl::StrFormat("%s: rejected, saturation %.3f gives probability %.2f", name(), saturation,
                                  probability));
  }

 private:
  double Saturation(const Context& context, std::span<const Position> candidates) const {
    const FreshnessPolicy::Rule rule = options_.freshness.At(context.now);
    double sum = 0;
    for (const Position candidate : candidates) {
      const Metrics& metrics = context.pool[candidate].metrics;
      const bool queue = rule.Counts(metrics.waiting_requests);
      const bool kv = rule.Counts(metrics.kv_cache_usage);
      // Of whom nothing is known is full; one value is enough to tell.
      if (!queue && !kv) {
        sum += 1;
        continue;
      }
      const double queued = static_cast<double>(metrics.waiting_requests.value);
      sum += std::max(queue ? Share(queued, options_.queue_depth) : 0.0,
                      kv ? Share(metrics.kv_cache_usage.value, options_.kv_cache) : 0.0);
    }
    return sum / static_cast<double>(candidates.size());
  }

  ProbabilisticOptions options_;
};

// Rejects what no endpoint can serve within its objective.
class LatencySloAdmitter final : public Plugin, public Admitter {
 public:
  LatencySloAdmitter(std::string type, std::string name, DataSlot<LatencyPrediction> slot,
                     const FreshnessPolicy& freshness)
      : Plugin(std::move(type), std::move(name)), slot_(slot), freshness_(freshness) {}

  absl::Status Admit(Context& context, std::span<const Position> candidates) const override {
    if (context.request.priority >= 0) return absl::OkStatus();
    if (SloMilliseconds(context.request, kTtftSloHeaders) == 0 &&
        SloMilliseconds(context.request, kTpotSloHeaders) == 0) {
      return absl::OkStatus();
    }
    const std::span<const LatencyPrediction> predictions = context.data.Read(slot_);
    if (predictions.empty()) return absl::OkStatus();
    constexpr double kCold = 0.02;  // of the KV cache; predictions are not reliable below
    const FreshnessPolicy::Rule rule = freshness_.At(context.now);
    bool any_prediction = false;
    for (const Position candidate : candidates) {
      const Metrics& metrics = context.pool[candidate].metrics;
      const LatencyPrediction& prediction = predictions[candidate];
      any_prediction = any_prediction || prediction.known;
      if (prediction.known && prediction.valid()) return absl::OkStatus();
      if (rule.Counts(metrics.running_requests) && metrics.running_requests.value == 0)
        return absl::OkStatus();
      const double kv = metrics.kv_cache_usage.value;
      if (rule.Counts(metrics.kv_cache_usage) && kv >= 0 && kv < kCold) return absl::OkStatus();
    }
    if (!any_prediction) return absl::OkStatus();
    return Denial(
        absl::StrCat(name(), ": no endpoint is expected to serve the request within its objective"));
  }

 private:
  DataSlot<LatencyPrediction> slot_;
  FreshnessPolicy freshness_;
};

absl::StatusOr<std::unique_ptr<Plugin>> MakeProbabilistic(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  ProbabilisticOptions options;
  options.freshness = FreshnessPolicy::Read(builder, read);
  const auto positive = [&read](std::string_view field, double& value) {
    read.Optional(field, &value);
    if (!(value > 0)) read.Reject(field, absl::StrCat(value), "more than 0");
  };
  positive("queueDepthThreshold", options.queue_depth);
  positive("kvCacheUtilThreshold", options.kv_cache);
  positive("power", options.power);
  positive("k", options.k);
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  return std::make_unique<ProbabilisticAdmitter>(builder.type(), builder.name(), options);
}

absl::StatusOr<std::unique_ptr<Plugin>> MakeLatencySlo(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  std::string producer;
  const FreshnessPolicy freshness = FreshnessPolicy::Read(builder, read);
  read.Optional("latencyPredictionInfoProducerName", &producer);
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  if (producer.empty()) producer = kLatencyProducerType;
  return std::make_unique<LatencySloAdmitter>(builder.type(), builder.name(),
                                              builder.Consumes<LatencyPrediction>(producer), freshness);
}

}  // namespace

void RegisterAdmitters(PluginRegistry& registry) {
  MustRegister(registry, "probabilistic-admitter", MakeProbabilistic);
  MustRegister(registry, "latency-slo-admitter", MakeLatencySlo);
}

}  // namespace llmd::sched
