// The groups of built-in plugin types; each file registers its own. Private to the component.
#ifndef SRC_SCHED_BUILTIN_PLUGINS_H_
#define SRC_SCHED_BUILTIN_PLUGINS_H_

#include <cassert>
#include <memory>
#include <string_view>

#include "absl/status/status.h"
#include "llmd/sched/registry.h"

namespace llmd::sched {

void RegisterAdmitters(PluginRegistry& registry);
void RegisterAffinityScorers(PluginRegistry& registry);
void RegisterBurstProducer(PluginRegistry& registry);
void RegisterConcurrencyDetector(PluginRegistry& registry);
void RegisterContextLength(PluginRegistry& registry);
void RegisterDeciders(PluginRegistry& registry);
void RegisterDisaggHandlers(PluginRegistry& registry);
void RegisterEncoderCacheProducer(PluginRegistry& registry);
void RegisterEndpointAttribute(PluginRegistry& registry);
void RegisterEvictionPolicies(PluginRegistry& registry);
void RegisterFairnessPolicies(PluginRegistry& registry);
void RegisterHostPlugins(PluginRegistry& registry);
void RegisterInFlightProducer(PluginRegistry& registry);
void RegisterLabelFilters(PluginRegistry& registry);
void RegisterLatencyFilters(PluginRegistry& registry);
void RegisterLatencyProducer(PluginRegistry& registry);
void RegisterLatencyScorer(PluginRegistry& registry);
void RegisterLoadFilters(PluginRegistry& registry);
void RegisterLoadScorers(PluginRegistry& registry);
void RegisterMetricScorers(PluginRegistry& registry);
void RegisterMulticlusterAliases(PluginRegistry& registry);  // last, for it copies other types
void RegisterNoHitLruScorer(PluginRegistry& registry);
void RegisterOrderingPolicies(PluginRegistry& registry);
void RegisterP2pSourceProducer(PluginRegistry& registry);
void RegisterPickers(PluginRegistry& registry);
void RegisterPreciseProducer(PluginRegistry& registry);
void RegisterPrefixProducers(PluginRegistry& registry);
void RegisterPrefixScorer(PluginRegistry& registry);
void RegisterProfileHandlers(PluginRegistry& registry);
void RegisterProgramFairness(PluginRegistry& registry);
void RegisterRequestIdentity(PluginRegistry& registry);
void RegisterRoleFilters(PluginRegistry& registry);
void RegisterSessionAffinity(PluginRegistry& registry);
void RegisterTopology(PluginRegistry& registry);
void RegisterUsageLimitPolicies(PluginRegistry& registry);
void RegisterUtilizationDetector(PluginRegistry& registry);

// Registers a type known to be new.
inline void MustRegister(PluginRegistry& registry, std::string_view type, PluginRegistry::Factory factory,
                         Stability stability = Stability::kStable, std::string_view advice = {}) {
  [[maybe_unused]] const absl::Status status = registry.Register(type, std::move(factory), stability, advice);
  assert(status.ok());
}

inline constexpr std::string_view kApproxProducerType = "approx-prefix-cache-producer";
inline constexpr std::string_view kPreciseProducerType = "precise-prefix-cache-producer";
inline constexpr std::string_view kSingleProfileHandlerType = "single-profile-handler";
inline constexpr std::string_view kUtilizationDetectorType = "utilization-detector";
inline constexpr std::string_view kConcurrencyDetectorType = "concurrency-detector";
inline constexpr std::string_view kInFlightProducerType = "inflight-load-producer";
inline constexpr std::string_view kEncoderCacheProducerType = "mm-embeddings-cache-producer";
inline constexpr std::string_view kSessionIdProducerType = "session-id-producer";
inline constexpr std::string_view kLatencyProducerType = "predicted-latency-producer";
inline constexpr std::string_view kDisaggHandlerType = "disagg-profile-handler";
inline constexpr std::string_view kTopologyExtractorType = "topology-extractor";
inline constexpr std::string_view kPdHandlerType = "pd-profile-handler";
inline constexpr std::string_view kPrefixDeciderType = "prefix-based-pd-decider";
inline constexpr std::string_view kFcfsOrderingType = "fcfs-ordering-policy";
inline constexpr std::string_view kGlobalStrictFairnessType = "global-strict-fairness-policy";
inline constexpr std::string_view kMetricsSourceType = "metrics-data-source";
inline constexpr std::string_view kMetricsExtractorType = "core-metrics-extractor";
inline constexpr std::string_view kPassthroughParserType = "passthrough-parser";
inline constexpr std::string_view kStaticUsageLimitType = "static-usage-limit-policy";
inline constexpr std::string_view kMaxScorePickerType = "max-score-picker";

}  // namespace llmd::sched

#endif  // SRC_SCHED_BUILTIN_PLUGINS_H_
