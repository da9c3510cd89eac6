// Scorers of scraped load: queue-scorer, running-requests-size-scorer, kv-cache-utilization-scorer.
// (spec: scheduling.md 2.4)
//
// An endpoint whose value does not count (freshness.h) gets no score.
#include <algorithm>
#include <limits>
#include <memory>
#include <utility>

#include "src/sched/builtin_plugins.h"
#include "src/sched/freshness.h"

namespace llmd::sched {
namespace {

// (max - value) / (max - min) over the candidates; 1 for all when they are equal.
class LowestCountScorer final : public Plugin, public Scorer {
 public:
  using Member = Sample<std::int64_t> Metrics::*;
  LowestCountScorer(std::string type, std::string name, Member member, FreshnessPolicy freshness)
      : Plugin(std::move(type), std::move(name)), member_(member), freshness_(freshness) {}

  void Score(Context& context, std::span<const Position> candidates,
             std::span<double> scores) const override {
    const FreshnessPolicy::Rule fresh = freshness_.At(context.now);
    double low = std::numeric_limits<double>::infinity();
    double high = -low;
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const Sample<std::int64_t>& sample = context.pool[candidates[i]].metrics.*member_;
      if (!fresh.Counts(sample)) continue;
      scores[i] = static_cast<double>(sample.value);
      low = std::min(low, scores[i]);
      high = std::max(high, scores[i]);
    }
    const double range = high - low;
    for (double& score : scores) {
      if (score == score) score = range > 0 ? (high - score) / range : 1.0;
    }
  }

 private:
  Member member_;
  FreshnessPolicy freshness_;
};

// 1 - usage.
class KvCacheUtilizationScorer final : public Plugin, public Scorer {
 public:
  KvCacheUtilizationScorer(std::string type, std::string name, FreshnessPolicy freshness)
      : Plugin(std::move(type), std::move(name)), freshness_(freshness) {}

  void Score(Context& context, std::span<const Position> candidates,
             std::span<double> scores) const override {
    const FreshnessPolicy::Rule fresh = freshness_.At(context.now);
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const Sample<double>& usage = context.pool[candidates[i]].metrics.kv_cache_usage;
      if (fresh.Counts(usage)) scores[i] = 1.0 - usage.value;
    }
  }

 private:
  FreshnessPolicy freshness_;
};

void RegisterLowestCount(PluginRegistry& registry, std::string_view type, LowestCountScorer::Member member) {
  MustRegister(registry, type, [member](PluginBuilder& builder) -> absl::StatusOr<std::unique_ptr<Plugin>> {
    absl::StatusOr<FreshnessPolicy> freshness = ParseFreshness(builder);
    if (!freshness.ok()) return freshness.status();
    return std::make_unique<LowestCountScorer>(builder.type(), builder.name(), member, *freshness);
  });
}

}  // namespace

void RegisterMetricScorers(PluginRegistry& registry) {
  RegisterLowestCount(registry, "queue-scorer", &Metrics::waiting_requests);
  RegisterLowestCount(registry, "running-requests-size-scorer", &Metrics::running_requests);
  MustRegister(registry, "kv-cache-utilization-scorer",
               [](PluginBuilder& builder) -> absl::StatusOr<std::unique_ptr<Plugin>> {
                 absl::StatusOr<FreshnessPolicy> freshness = ParseFreshness(builder);
                 if (!freshness.ok()) return freshness.status();
                 return std::make_unique<KvCacheUtilizationScorer>(builder.type(), builder.name(),
                                                                   *freshness);
               });
}

}  // namespace llmd::sched
