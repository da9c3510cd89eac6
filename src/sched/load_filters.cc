// Filters on load: utilization-filter (limits), load-outlier-filter (busier than most). (spec:
// scheduling.md 2.3, 8.1)
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "llmd/sched/in_flight.h"
#include "src/sched/builtin_plugins.h"
#include "src/sched/data_source.h"
#include "src/sched/freshness.h"

namespace llmd::sched {
namespace {

enum class LoadMetric { kActiveRequests, kRunningRequests, kWaitingQueue, kKvCacheUtilization };

constexpr std::string_view kMetricNames[] = {"active-requests", "running-requests", "waiting-queue",
                                             "kv-cache-utilization"};  // by LoadMetric

std::optional<LoadMetric> FindMetric(std::string_view name) {
  const auto* found = std::find(std::begin(kMetricNames), std::end(kMetricNames), name);
  if (found == std::end(kMetricNames)) return std::nullopt;
  return static_cast<LoadMetric>(found - std::begin(kMetricNames));
}

// Calls back with the sample of a scraped metric.
template <typename Callback>
auto WithSample(const Metrics& metrics, LoadMetric metric, const Callback& callback) {
  switch (metric) {
    case LoadMetric::kRunningRequests:
      return callback(metrics.running_requests);
    case LoadMetric::kKvCacheUtilization:
      return callback(metrics.kv_cache_usage);
    default:
      return callback(metrics.waiting_requests);
  }
}

// Keeps endpoints that are within all limits. As in llm-d, a value that was never read is 0, so that a pool
// without metrics goes on serving: a filter must not take "not known" for "full", and scorers do not take it
// for "idle". A stale value counts as it stands.
class UtilizationFilter final : public Plugin, public Filter {
 public:
  struct Condition {
    LoadMetric metric;
    double limit;
  };

  UtilizationFilter(std::string type, std::string name, std::vector<Condition> conditions,
                    bool fallback_on_empty, DataSlot<InFlightLoad> slot)
      : Plugin(std::move(type), std::move(name)),
        conditions_(std::move(conditions)),
        fallback_on_empty_(fallback_on_empty),
        slot_(slot) {}

  void Apply(Context& context, std::span<const Position> candidates,
             std::span<DropReason> dropped) const override {
    static constexpr DropReason kReasons[] = {"too many active requests", "too many running requests",
                                              "queue is too long", "KV cache is too full"};  // by LoadMetric
    const std::span<const InFlightLoad> load = context.data.Read(slot_);
    bool any = false;
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const Metrics& metrics = context.pool[candidates[i]].metrics;
      for (const Condition& condition : conditions_) {
        const double value = condition.metric == LoadMetric::kActiveRequests
                                 ? static_cast<double>(ValueAt(load, candidates[i]).requests)
                                 : WithSample(metrics, condition.metric, [](const auto& sample) {
                                     return static_cast<double>(sample.value);
                                   });
        if (!(value > condition.limit)) continue;
        dropped[i] = kReasons[static_cast<std::size_t>(condition.metric)];
        break;
      }
      any = any || dropped[i] == nullptr;
    }
    if (!any && fallback_on_empty_) std::fill(dropped.begin(), dropped.end(), nullptr);
  }

 private:
  std::vector<Condition> conditions_;
  bool fallback_on_empty_;
  DataSlot<InFlightLoad> slot_;
};

// Keeps endpoints up to `deviations` standard deviations above the mean of the candidates. What does not
// count (freshness.h) stays and takes no part in the mean. There is always one at or below the mean, so it
// never leaves nothing.
class LoadOutlierFilter final : public Plugin, public Filter {
 public:
  LoadOutlierFilter(std::string type, std::string name, LoadMetric metric, double deviations,
                    FreshnessPolicy freshness, DataSlot<InFlightLoad> slot)
      : Plugin(std::move(type), std::move(name)),
        metric_(metric),
        deviations_(deviations),
        freshness_(freshness),
        slot_(slot) {}

  void Apply(Context& context, std::span<const Position> candidates,
             std::span<DropReason> dropped) const override {
    const FreshnessPolicy::Rule fresh = freshness_.At(context.now);
    const std::span<const InFlightLoad> load = context.data.Read(slot_);
    const auto value = [&](Position position) -> std::optional<double> {
      if (metric_ == LoadMetric::kActiveRequests) {
        return static_cast<double>(ValueAt(load, position).requests);
      }
      return WithSample(context.pool[position].metrics, metric_,
                        [&fresh](const auto& sample) -> std::optional<double> {
                          if (!fresh.Counts(sample)) return std::nullopt;
                          return static_cast<double>(sample.value);
                        });
    };

    double lowest = std::numeric_limits<double>::infinity();
    double count = 0;
    for (const Position candidate : candidates) {
      const std::optional<double> v = value(candidate);
      if (!v) continue;
      lowest = std::min(lowest, *v);
      count += 1;
    }
    if (count < 2) return;
    // Measured from the lowest value: equal values are then exactly at the mean, and none is above it by
    // rounding.
    double sum = 0;
    for (const Position candidate : candidates) {
      if (const std::optional<double> v = value(candidate)) sum += *v - lowest;
    }
    const double mean = sum / count;
    double squares = 0;
    for (const Position candidate : candidates) {
      if (const std::optional<double> v = value(candidate)) {
        squares += (*v - lowest - mean) * (*v - lowest - mean);
      }
    }
    const double limit = mean + deviations_ * std::sqrt(squares / count);
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const std::optional<double> v = value(candidates[i]);
      if (v && *v - lowest > limit) dropped[i] = "much busier than the others";
    }
  }

 private:
  LoadMetric metric_;
  double deviations_;
  FreshnessPolicy freshness_;
  DataSlot<InFlightLoad> slot_;
};

absl::StatusOr<std::unique_ptr<Plugin>> MakeUtilization(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  std::vector<UtilizationFilter::Condition> conditions;
  bool fallback_on_empty = false;
  bool counts_requests = false;
  const Value::List* list = read.OptionalList("conditions");
  for (std::size_t i = 0; list != nullptr && i < list->size(); ++i) {
    ParameterReader item = read.NestedItem("conditions", i, (*list)[i]);
    std::string name;
    double limit = 0;
    item.Optional("metric", &name);
    item.Optional("maxValue", &limit);
    const std::optional<LoadMetric> metric = FindMetric(name);
    if (!metric) {
      item.Reject("metric", absl::StrCat("\"", name, "\""),
                  "active-requests, running-requests, waiting-queue or kv-cache-utilization");
    }
    if (item.Raw("maxValue") == nullptr) item.Reject("maxValue", "missing", "a number");
    if (limit < 0) item.Reject("maxValue", absl::StrCat(limit), "at least 0");
    if (metric == LoadMetric::kKvCacheUtilization && limit > 1) {
      item.Reject("maxValue", absl::StrCat(limit), "at most 1");
    }
    if (absl::Status status = item.Finish(); !status.ok()) return status;
    conditions.push_back({*metric, limit});
    counts_requests = counts_requests || metric == LoadMetric::kActiveRequests;
  }
  if (conditions.empty()) read.Reject("conditions", "empty", "at least one condition");
  read.Optional("fallbackOnEmpty", &fallback_on_empty);
  const std::string producer = ReadProducer(read, "inFlightLoadProducerName", kInFlightProducerType);
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  return std::make_unique<UtilizationFilter>(builder.type(), builder.name(), std::move(conditions),
                                             fallback_on_empty,
                                             builder.Consumes<InFlightLoad>(producer, counts_requests));
}

absl::StatusOr<std::unique_ptr<Plugin>> MakeLoadOutlier(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  double deviations = 1;
  std::string name(kMetricNames[0]);
  read.Optional("standardDeviations", &deviations);
  read.Optional("metric", &name);
  if (deviations < 0) read.Reject("standardDeviations", absl::StrCat(deviations), "at least 0");
  const std::optional<LoadMetric> metric = FindMetric(name);
  if (!metric || metric == LoadMetric::kKvCacheUtilization) {
    read.Reject("metric", absl::StrCat("\"", name, "\""),
                "active-requests, running-requests or waiting-queue");
  }
  const FreshnessPolicy freshness = FreshnessPolicy::Read(builder, read);
  const std::string producer = ReadProducer(read, "inFlightLoadProducerName", kInFlightProducerType);
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  const bool counts_requests = metric == LoadMetric::kActiveRequests;
  return std::make_unique<LoadOutlierFilter>(builder.type(), builder.name(), *metric, deviations, freshness,
                                             builder.Consumes<InFlightLoad>(producer, counts_requests));
}

}  // namespace

void RegisterLoadFilters(PluginRegistry& registry) {
  MustRegister(registry, "utilization-filter", MakeUtilization, Stability::kExperimental);
  MustRegister(registry, "load-outlier-filter", MakeLoadOutlier);
}

}  // namespace llmd::sched
