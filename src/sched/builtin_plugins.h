// The groups of built-in plugin types; each file registers its own. Private to the component.
#ifndef SRC_SCHED_BUILTIN_PLUGINS_H_
#define SRC_SCHED_BUILTIN_PLUGINS_H_

#include <memory>
#include <string_view>

#include "absl/status/status.h"
#include "llmd/sched/registry.h"

namespace llmd::sched {

void RegisterHostPlugins(PluginRegistry& registry);
void RegisterLabelFilters(PluginRegistry& registry);
void RegisterMetricScorers(PluginRegistry& registry);
void RegisterMulticlusterAliases(PluginRegistry& registry);  // last, for it copies other types
void RegisterPickers(PluginRegistry& registry);
void RegisterPrefixProducers(PluginRegistry& registry);
void RegisterPrefixScorer(PluginRegistry& registry);
void RegisterProfileHandlers(PluginRegistry& registry);
void RegisterRoleFilters(PluginRegistry& registry);
void RegisterUtilizationDetector(PluginRegistry& registry);

// Registers a type known to be new.
inline void MustRegister(PluginRegistry& registry, std::string_view type, PluginRegistry::Factory factory,
                         Stability stability = Stability::kStable, std::string_view advice = {}) {
  registry.Register(type, std::move(factory), stability, advice).IgnoreError();
}

inline constexpr std::string_view kApproxProducerType = "approx-prefix-cache-producer";
inline constexpr std::string_view kPreciseProducerType = "precise-prefix-cache-producer";
inline constexpr std::string_view kSingleProfileHandlerType = "single-profile-handler";
inline constexpr std::string_view kUtilizationDetectorType = "utilization-detector";
inline constexpr std::string_view kConcurrencyDetectorType = "concurrency-detector";
inline constexpr std::string_view kInFlightProducerType = "inflight-load-producer";
inline constexpr std::string_view kLatencyProducerType = "predicted-latency-producer";
inline constexpr std::string_view kDisaggHandlerType = "disagg-profile-handler";
inline constexpr std::string_view kMetricsSourceType = "metrics-data-source";
inline constexpr std::string_view kMetricsExtractorType = "core-metrics-extractor";
inline constexpr std::string_view kPassthroughParserType = "passthrough-parser";
inline constexpr std::string_view kGlobalStrictFairnessType = "global-strict-fairness-policy";
inline constexpr std::string_view kFcfsOrderingType = "fcfs-ordering-policy";
inline constexpr std::string_view kStaticUsageLimitType = "static-usage-limit-policy";
inline constexpr std::string_view kMaxScorePickerType = "max-score-picker";

}  // namespace llmd::sched

#endif  // SRC_SCHED_BUILTIN_PLUGINS_H_
