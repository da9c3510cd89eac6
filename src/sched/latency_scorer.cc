// latency-scorer: by the room that predicted latencies leave to the request's objectives; without
// predictions, by cache, queue and prefix. (spec: scheduling.md 2.5)
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "llmd/sched/latency.h"
#include "src/sched/builtin_plugins.h"
#include "src/sched/data_source.h"
#include "src/sched/freshness.h"

namespace llmd::sched {
namespace {

struct LatencyScorerOptions {
  // Normalize() makes each group of weights sum up to 1.
  double ttft_weight = 0.8;
  double tpot_weight = 0.2;
  bool most_headroom = false;
  double kv_weight = 1;
  double queue_weight = 1;
  double prefix_weight = 1;
};

// The endpoints of the first group that has any share the scores; the others get 0.
enum class Group { kWithinObjectives, kIdle, kOnlyTpotMissed, kOnlyTtftMissed, kBothMissed };

// Milliseconds, so large that no sane prediction is changed and so small that differences stay finite.
constexpr double kMaxHeadroom = 1e15;

struct Headroom {
  bool known = false;
  double ttft = 0;  // within +-kMaxHeadroom
  double tpot = 0;
  std::int64_t dispatched = 0;

  // NaN is no prediction.
  static Headroom Of(const LatencyPrediction& prediction) {
    const double ttft = prediction.ttft_headroom_ms;
    const double tpot = prediction.tpot_headroom_ms;
    if (!prediction.known || ttft != ttft || tpot != tpot) return {};
    return {true, std::clamp(ttft, -kMaxHeadroom, kMaxHeadroom),
            std::clamp(tpot, -kMaxHeadroom, kMaxHeadroom), prediction.dispatched_requests};
  }

  // An endpoint without prediction counts as within the objectives, at headroom 0.
  Group GroupOf() const {
    if (ttft >= 0 && tpot >= 0) return Group::kWithinObjectives;
    if (dispatched <= 0) return Group::kIdle;
    if (ttft >= 0) return Group::kOnlyTpotMissed;
    return tpot >= 0 ? Group::kOnlyTtftMissed : Group::kBothMissed;
  }
};

// Of one group's absolute headrooms.
struct Spread {
  double min = std::numeric_limits<double>::infinity();
  double max = 0;

  void Add(double headroom) {
    min = std::min(min, std::fabs(headroom));
    max = std::max(max, std::fabs(headroom));
  }
  bool flat() const { return max - min <= 1e-9; }
  double PlaceOf(double headroom) const { return flat() ? 0.5 : (std::fabs(headroom) - min) / (max - min); }
};

class LatencyScorer final : public Plugin, public Scorer {
 public:
  LatencyScorer(std::string type, std::string name, const LatencyScorerOptions& options,
                DataSlot<LatencyPrediction> predictions, DataSlot<PrefixMatch> matches,
                FreshnessPolicy freshness)
      : Plugin(std::move(type), std::move(name)),
        options_(options),
        predictions_(predictions),
        matches_(matches),
        freshness_(freshness) {}

  void Score(Context& context, std::span<const Position> candidates,
             std::span<double> scores) const override {
    const std::span<const LatencyPrediction> predictions = context.data.Read(predictions_);
    bool any = false;
    Group best = Group::kBothMissed;
    for (const Position candidate : candidates) {
      const Headroom headroom = Headroom::Of(ValueAt(predictions, candidate));
      any = any || headroom.known;
      best = std::min(best, headroom.GroupOf());
    }
    if (any) {
      ScoreGroup(predictions, best, candidates, scores);
    } else {
      ScoreComposite(context, candidates, scores);
    }
  }

 private:
  void ScoreGroup(std::span<const LatencyPrediction> predictions, Group group,
                  std::span<const Position> candidates, std::span<double> scores) const {
    Spread ttft, tpot;
    for (const Position candidate : candidates) {
      const Headroom headroom = Headroom::Of(ValueAt(predictions, candidate));
      if (headroom.GroupOf() != group) continue;
      ttft.Add(headroom.ttft);
      tpot.Add(headroom.tpot);
    }
    double alpha = options_.ttft_weight;
    double beta = options_.tpot_weight;
    if (ttft.flat() != tpot.flat()) {  // the one that tells endpoints apart decides alone
      alpha = ttft.flat() ? 0 : 1;
      beta = ttft.flat() ? 1 : 0;
    }
    // Who misses an objective should miss it by as little as possible.
    const bool most = options_.most_headroom && group == Group::kWithinObjectives;
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const Headroom headroom = Headroom::Of(ValueAt(predictions, candidates[i]));
      scores[i] = 0;
      if (headroom.GroupOf() != group) continue;
      const double place = alpha * ttft.PlaceOf(headroom.ttft) + beta * tpot.PlaceOf(headroom.tpot);
      scores[i] = (std::floor((most ? place : 1 - place) * 100) + 1) / 100;
    }
  }

  // A value that does not count contributes nothing; an endpoint of which no load value counts gets no score.
  void ScoreComposite(Context& context, std::span<const Position> candidates,
                      std::span<double> scores) const {
    const FreshnessPolicy::Rule fresh = freshness_.At(context.now);
    const std::span<const PrefixMatch> matches = context.data.Read(matches_);
    double longest = 0;
    for (const Position candidate : candidates) {
      const Sample<std::int64_t>& queue = context.pool[candidate].metrics.waiting_requests;
      if (fresh.Counts(queue)) longest = std::max(longest, static_cast<double>(queue.value));
    }
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const Metrics& metrics = context.pool[candidates[i]].metrics;
      const PrefixMatch match = ValueAt(matches, candidates[i]);
      const double usage = metrics.kv_cache_usage.value;
      const bool has_usage = fresh.Counts(metrics.kv_cache_usage) && usage == usage;
      const bool has_queue = fresh.Counts(metrics.waiting_requests);
      if (!has_usage && !has_queue) continue;
      const double kv = has_usage ? 1 - std::clamp(usage, 0.0, 1.0) : 0.0;
      double queue = 0;
      if (has_queue) {
        const double waiting = std::max(static_cast<double>(metrics.waiting_requests.value), 0.0);
        queue = longest > 0 ? (longest - waiting) / longest : 1.0;
      }
      const double prefix =
          match.total_blocks > 0 ? static_cast<double>(match.match_blocks) / match.total_blocks : 0.0;
      const double composite =
          options_.kv_weight * kv + options_.queue_weight * queue + options_.prefix_weight * prefix;
      scores[i] = std::round(100 * composite) / 100;
    }
  }

  LatencyScorerOptions options_;
  DataSlot<LatencyPrediction> predictions_;
  DataSlot<PrefixMatch> matches_;
  FreshnessPolicy freshness_;
};

// Weights that do not sum up to something positive give way to the first of their group.
void Normalize(LatencyScorerOptions& options) {
  if (const double sum = options.ttft_weight + options.tpot_weight; sum > 0) {
    options.ttft_weight /= sum;
    options.tpot_weight /= sum;
  } else {
    options.ttft_weight = 1;
    options.tpot_weight = 0;
  }
  const double sum = options.kv_weight + options.queue_weight + options.prefix_weight;
  if (sum > 0) {
    options.kv_weight /= sum;
    options.queue_weight /= sum;
    options.prefix_weight /= sum;
  } else {
    options.kv_weight = 1;
    options.queue_weight = options.prefix_weight = 0;
  }
}

absl::StatusOr<std::unique_ptr<Plugin>> Make(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  LatencyScorerOptions options;
  std::string strategy = "least";
  read.Optional("ttftWeight", &options.ttft_weight);
  read.Optional("tpotWeight", &options.tpot_weight);
  read.Optional("compositeKVWeight", &options.kv_weight);
  read.Optional("compositeQueueWeight", &options.queue_weight);
  read.Optional("compositePrefixWeight", &options.prefix_weight);
  read.Optional("headroomSelectionStrategy", &strategy);
  options.most_headroom = strategy == "most";
  if (!options.most_headroom && strategy != "least") {
    read.Reject("headroomSelectionStrategy", absl::StrCat("\"", strategy, "\""), "least or most");
  }
  const std::string predictor = ReadProducer(read, "latencyPredictionInfoProducerName", kLatencyProducerType);
  const std::string prefix = ReadProducer(read, "prefixMatchInfoProducerName", kApproxProducerType);
  const FreshnessPolicy freshness = FreshnessPolicy::Read(builder, read);
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  Normalize(options);
  const auto predictions = builder.Consumes<LatencyPrediction>(predictor, /*required=*/false);
  const auto matches = builder.Consumes<PrefixMatch>(prefix, /*required=*/options.prefix_weight != 0);
  return std::make_unique<LatencyScorer>(builder.type(), builder.name(), options, predictions, matches,
                                         freshness);
}

}  // namespace

void RegisterLatencyScorer(PluginRegistry& registry) { MustRegister(registry, "latency-scorer", Make); }

}  // namespace llmd::sched
