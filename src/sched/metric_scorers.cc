// Scorers of scraped load: queue-scorer, running-requests-size-scorer, kv-cache-utilization-scorer.
// (spec: scheduling.md 2.4)
//
// An endpoint whose value was never read, or is older than `metricsStalenessThreshold`, gets no score, so it
// does not look idle. `unscraped: idle` takes every value as it stands, 0 when never read, which is what
// llm-d does.
#include <algorithm>
#include <limits>
#include <memory>
#include <utility>

#include "src/sched/builtin_plugins.h"

namespace llmd::sched {
namespace {

class FreshnessPolicy {
 public:
  static absl::StatusOr<FreshnessPolicy> Parse(const PluginBuilder& builder) {
    ParameterReader read(builder.name(), builder.parameters());
    FreshnessPolicy policy;
    std::string unscraped = "worst";
    read.Optional("unscraped", &unscraped);
    read.Optional("metricsStalenessThreshold", &policy.max_age_);
    policy.any_ = unscraped == "idle";
    if (!policy.any_ && unscraped != "worst") read.Reject("unscraped", unscraped, "worst or idle");
    if (policy.max_age_ <= absl::ZeroDuration()) {
      read.Reject("metricsStalenessThreshold", absl::FormatDuration(policy.max_age_), "more than 0");
    }
    if (policy.any_ && policy.max_age_ != absl::InfiniteDuration()) {
      read.Reject("metricsStalenessThreshold", "given", "none with unscraped: idle");
    }
    if (absl::Status status = read.Finish(); !status.ok()) return status;
    return policy;
  }

  // Decides for one moment.
  class Rule {
   public:
    template <typename T>
    bool Counts(const Sample<T>& sample) const {
      return any_ || (sample.known() && sample.at >= oldest_);
    }

   private:
    friend class FreshnessPolicy;
    bool any_;
    absl::Time oldest_;
  };
  Rule At(absl::Time now) const {
    Rule rule;
    rule.any_ = any_;
    rule.oldest_ = now - max_age_;
    return rule;
  }

 private:
  bool any_ = false;
  absl::Duration max_age_ = absl::InfiniteDuration();
};

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
    absl::StatusOr<FreshnessPolicy> freshness = FreshnessPolicy::Parse(builder);
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
                 absl::StatusOr<FreshnessPolicy> freshness = FreshnessPolicy::Parse(builder);
                 if (!freshness.ok()) return freshness.status();
                 return std::make_unique<KvCacheUtilizationScorer>(builder.type(), builder.name(),
                                                                   *freshness);
               });
}

}  // namespace llmd::sched
