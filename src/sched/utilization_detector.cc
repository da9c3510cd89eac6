// utilization-detector: how full endpoints are by their scraped queue and KV cache; as a filter, which of
// them have room. (spec: scheduling.md 2.7)
#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "src/sched/builtin_plugins.h"

namespace llmd::sched {
namespace {

struct UtilizationLimits {
  double queue_depth = 5;
  double kv_cache = 0.8;
  double headroom = 0;
  absl::Duration max_age = absl::Milliseconds(200);
  bool stale_is_saturated = false;
};

class UtilizationDetector final : public Plugin, public SaturationDetector, public Filter {
 public:
  UtilizationDetector(std::string type, std::string name, const UtilizationLimits& limits)
      : Plugin(std::move(type), std::move(name)), limits_(limits) {}

  // The mean over the endpoints.
  double Saturation(const EndpointPool& pool, std::span<const Position> candidates,
                    absl::Time now) const override {
    if (candidates.empty()) return 1.0;
    double sum = 0;
    std::size_t counted = 0;
    for (const Position candidate : candidates) {
      const Metrics& metrics = pool[candidate].metrics;
      const bool stale = Stale(metrics, now);
      if (stale && !limits_.stale_is_saturated) continue;
      sum += stale ? 1.0
                   // 0 first: neither nonsense below it nor NaN gets into the mean.
                   : std::max({0.0, static_cast<double>(metrics.waiting_requests.value) / limits_.queue_depth,
                               metrics.kv_cache_usage.value / limits_.kv_cache});
      ++counted;
    }
    return counted == 0 ? 0.0 : sum / static_cast<double>(counted);
  }

  // Leaves all when none has room.
  void Apply(Context& context, std::span<const Position> candidates,
             std::span<DropReason> dropped) const override {
    const double grace = 1 + limits_.headroom;
    bool any = false;
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const Metrics& metrics = context.pool[candidates[i]].metrics;
      if (Stale(metrics, context.now)) {
        dropped[i] = "metrics are stale";
      } else if (!(static_cast<double>(metrics.waiting_requests.value) < limits_.queue_depth * grace)) {
        dropped[i] = "queue is full";
      } else if (!(metrics.kv_cache_usage.value < limits_.kv_cache * grace)) {
        dropped[i] = "KV cache is full";
      } else {
        any = true;
      }
    }
    if (!any) std::fill(dropped.begin(), dropped.end(), nullptr);
  }

 private:
  bool Stale(const Metrics& metrics, absl::Time now) const {
    return !metrics.scraped() || metrics.updated() < now - limits_.max_age;
  }

  UtilizationLimits limits_;
};

absl::StatusOr<std::unique_ptr<Plugin>> Make(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  UtilizationLimits limits;
  std::string staleness = builder.compatibility().stale_is_saturated ? "saturated" : "ignore";
  read.Optional("queueDepthThreshold", &limits.queue_depth);
  read.Optional("kvCacheUtilThreshold", &limits.kv_cache);
  read.Optional("metricsStalenessThreshold", &limits.max_age);
  read.Optional("headroom", &limits.headroom);
  read.Optional("stalenessPolicy", &staleness);
  limits.stale_is_saturated = staleness == "saturated";
  if (!(limits.queue_depth > 0))
    read.Reject("queueDepthThreshold", absl::StrCat(limits.queue_depth), "more than 0");
  if (!(limits.kv_cache > 0 && limits.kv_cache <= 1)) {
    read.Reject("kvCacheUtilThreshold", absl::StrCat(limits.kv_cache), "more than 0 and at most 1");
  }
  if (limits.max_age <= absl::ZeroDuration()) {
    read.Reject("metricsStalenessThreshold", absl::FormatDuration(limits.max_age), "more than 0");
  }
  if (limits.headroom < 0) read.Reject("headroom", absl::StrCat(limits.headroom), "at least 0");
  if (!limits.stale_is_saturated && staleness != "ignore") {
    read.Reject("stalenessPolicy", staleness, "saturated or ignore");
  }
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  return std::make_unique<UtilizationDetector>(builder.type(), builder.name(), limits);
}

}  // namespace

void RegisterUtilizationDetector(PluginRegistry& registry) {
  MustRegister(registry, kUtilizationDetectorType, Make);
}

}  // namespace llmd::sched
