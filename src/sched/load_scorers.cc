// Scorers of load with a fixed scale: load-aware-scorer (scraped queue), active-request-scorer and
// token-load-scorer (what this router has in flight). (spec: scheduling.md 2.4)
//
// The scraped queue counts as freshness.h says. In-flight load is the router's own and always known: an
// endpoint without it has none.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "llmd/sched/in_flight.h"
#include "src/sched/builtin_plugins.h"
#include "src/sched/data_source.h"
#include "src/sched/freshness.h"

namespace llmd::sched {
namespace {

// Half at an empty queue, falling to 0 at `threshold` waiting requests.
class LoadAwareScorer final : public Plugin, public Scorer {
 public:
  LoadAwareScorer(std::string type, std::string name, std::int64_t threshold, FreshnessPolicy freshness)
      : Plugin(std::move(type), std::move(name)),
        threshold_(static_cast<double>(threshold)),
        freshness_(freshness) {}

  void Score(Context& context, std::span<const Position> candidates,
             std::span<double> scores) const override {
    const FreshnessPolicy::Rule fresh = freshness_.At(context.now);
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const Sample<std::int64_t>& queue = context.pool[candidates[i]].metrics.waiting_requests;
      if (!fresh.Counts(queue)) continue;
      const double waiting = std::clamp(static_cast<double>(queue.value), 0.0, threshold_);
      scores[i] = 0.5 * (1 - waiting / threshold_);
    }
  }

 private:
  double threshold_;
  FreshnessPolicy freshness_;
};

// 1 for an idle endpoint; a busy one is compared with the busiest.
class ActiveRequestScorer final : public Plugin, public Scorer {
 public:
  ActiveRequestScorer(std::string type, std::string name, DataSlot<InFlightLoad> slot,
                      std::int64_t idle_threshold, double max_busy_score)
      : Plugin(std::move(type), std::move(name)),
        slot_(slot),
        idle_threshold_(idle_threshold),
        max_busy_score_(max_busy_score) {}

  void Score(Context& context, std::span<const Position> candidates,
             std::span<double> scores) const override {
    const std::span<const InFlightLoad> load = context.data.Read(slot_);
    std::int64_t most = 0;
    for (const Position candidate : candidates) most = std::max(most, ValueAt(load, candidate).requests);
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const std::int64_t requests = ValueAt(load, candidates[i]).requests;
      // Above the threshold both numbers are positive.
      scores[i] = requests <= idle_threshold_
                      ? 1.0
                      : static_cast<double>(most - requests) / static_cast<double>(most) * max_busy_score_;
    }
  }

 private:
  DataSlot<InFlightLoad> slot_;
  std::int64_t idle_threshold_;
  double max_busy_score_;
};

// 1 without tokens, falling to 0 at the threshold; the request's own cost on the endpoint included.
class TokenLoadScorer final : public Plugin, public Scorer {
 public:
  TokenLoadScorer(std::string type, std::string name, DataSlot<InFlightLoad> load,
                  DataSlot<UncachedRequestTokens> cost, std::int64_t threshold)
      : Plugin(std::move(type), std::move(name)),
        load_(load),
        cost_(cost),
        threshold_(static_cast<double>(threshold)) {}

  void Score(Context& context, std::span<const Position> candidates,
             std::span<double> scores) const override {
    const std::span<const InFlightLoad> load = context.data.Read(load_);
    const std::span<const UncachedRequestTokens> cost = context.data.Read(cost_);
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      // Summed as doubles: a sum of hostile integers could overflow.
      const double tokens = static_cast<double>(ValueAt(load, candidates[i]).tokens) +
                            static_cast<double>(ValueAt(cost, candidates[i]).tokens);
      scores[i] = 1 - std::clamp(tokens, 0.0, threshold_) / threshold_;
    }
  }

 private:
  DataSlot<InFlightLoad> load_;
  DataSlot<UncachedRequestTokens> cost_;
  double threshold_;
};

// As llm-d does, a threshold that makes no sense gives way to the default.
std::int64_t PositiveOr(std::int64_t value, std::int64_t otherwise) { return value > 0 ? value : otherwise; }

absl::StatusOr<std::unique_ptr<Plugin>> MakeLoadAware(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  std::int64_t threshold = 0;
  read.Optional("threshold", &threshold);
  const FreshnessPolicy freshness = FreshnessPolicy::Read(builder, read);
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  return std::make_unique<LoadAwareScorer>(builder.type(), builder.name(), PositiveOr(threshold, 128),
                                           freshness);
}

absl::StatusOr<std::unique_ptr<Plugin>> MakeActiveRequest(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  std::int64_t idle_threshold = 0;
  double max_busy_score = 1;
  read.Optional("idleThreshold", &idle_threshold);
  read.Optional("maxBusyScore", &max_busy_score);
  const std::string producer = ReadProducer(read, "inFlightLoadProducerName", kInFlightProducerType);
  const bool has_timeout = read.Raw("requestTimeout") != nullptr;
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  if (has_timeout) builder.Warn(absl::StrCat(builder.name(), ": requestTimeout has no effect"));
  if (max_busy_score < 0 || max_busy_score > 1) max_busy_score = 1;
  return std::make_unique<ActiveRequestScorer>(builder.type(), builder.name(),
                                               builder.Consumes<InFlightLoad>(producer),
                                               std::max<std::int64_t>(idle_threshold, 0), max_busy_score);
}

absl::StatusOr<std::unique_ptr<Plugin>> MakeTokenLoad(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  std::int64_t threshold = 0;
  read.Optional("queueThresholdTokens", &threshold);
  const std::string producer = ReadProducer(read, "inFlightLoadProducerName", kInFlightProducerType);
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  const auto load = builder.Consumes<InFlightLoad>(producer);
  const auto cost = builder.Consumes<UncachedRequestTokens>(producer);
  return std::make_unique<TokenLoadScorer>(builder.type(), builder.name(), load, cost,
                                           PositiveOr(threshold, 4194304));
}

}  // namespace

void RegisterLoadScorers(PluginRegistry& registry) {
  MustRegister(registry, "load-aware-scorer", MakeLoadAware);
  MustRegister(registry, "active-request-scorer", MakeActiveRequest);
  MustRegister(registry, "token-load-scorer", MakeTokenLoad);
}

}  // namespace llmd::sched
