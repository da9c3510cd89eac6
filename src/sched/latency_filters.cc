// Filters that weigh predicted or estimated latency: prefix-cache-affinity-filter ("sticky until saturated"),
// slo-headroom-tier-filter. Neither leaves nothing. (spec: scheduling.md 2.3)
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "llmd/sched/in_flight.h"
#include "llmd/sched/latency.h"
#include "src/sched/builtin_plugins.h"
#include "src/sched/data_source.h"

namespace llmd::sched {
namespace {

// Keeps the endpoints that have most of the prompt, unless the wait there is much longer than elsewhere.
class PrefixCacheAffinityFilter final : public Plugin, public Filter {
 public:
  struct Options {
    double threshold = 0.8;
    double exploration = 0;
    double max_penalty_ms = 18000;
    bool from_predictor = false;
    double tokens_per_second = 15928;  // Qwen 32B on 2 H100, tensor parallel, vLLM 0.19
  };
  struct Slots {
    DataSlot<PrefixMatch> matches;
    DataSlot<InFlightLoad> load;
    DataSlot<LatencyPrediction> predictions;
  };

  PrefixCacheAffinityFilter(std::string type, std::string name, const Options& options, const Slots& slots)
      : Plugin(std::move(type), std::move(name)), options_(options), slots_(slots) {}

  void Apply(Context& context, std::span<const Position> candidates,
             std::span<DropReason> dropped) const override {
    if (candidates.size() <= 1 || options_.threshold <= 0) return;
    if (options_.exploration > 0 && context.random.Chance(options_.exploration)) return;
    const std::span<const PrefixMatch> matches = context.data.Read(slots_.matches);
    const std::span<const InFlightLoad> load = context.data.Read(slots_.load);
    const std::span<const LatencyPrediction> predictions = context.data.Read(slots_.predictions);
    const auto wait_ms = [&](Position position) {
      return options_.from_predictor ? Predicted(ValueAt(predictions, position))
                                     : Estimated(ValueAt(load, position));
    };

    // Shortest waits of both kinds; infinite without news.
    constexpr double kNever = std::numeric_limits<double>::infinity();
    double sticky_wait = kNever;
    double other_wait = kNever;
    std::size_t sticky = 0;
    for (const Position candidate : candidates) {
      const bool is_sticky = Sticky(ValueAt(matches, candidate));
      double& shortest = is_sticky ? sticky_wait : other_wait;
      shortest = std::min(shortest, wait_ms(candidate));
      sticky += is_sticky;
    }
    if (sticky == 0 || sticky == candidates.size()) return;
    // Infinite minus infinite is not more than anything: no news on both sides keeps to the sticky ones.
    if (options_.max_penalty_ms > 0 && sticky_wait - other_wait > options_.max_penalty_ms) return;
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      if (!Sticky(ValueAt(matches, candidates[i])))
        dropped[i] = "less of the prompt is cached than elsewhere";
    }
  }

 private:
  bool Sticky(const PrefixMatch& match) const {
    return match.total_blocks > 0 &&
           static_cast<double>(match.match_blocks) / match.total_blocks >= options_.threshold;
  }
  static double Predicted(const LatencyPrediction& prediction) {
    const bool usable = prediction.known && prediction.ttft_ms == prediction.ttft_ms;
    return usable ? prediction.ttft_ms : std::numeric_limits<double>::infinity();
  }
  double Estimated(const InFlightLoad& load) const {
    if (options_.max_penalty_ms == 0) return 0;  // not asked for; the throughput may be 0
    return std::max(static_cast<double>(load.tokens), 0.0) / options_.tokens_per_second * 1000;
  }

  Options options_;
  Slots slots_;
};

// Keeps the endpoints that are predicted to meet both objectives; with a small probability the others, so
// that they can show that they have recovered.
class SloHeadroomTierFilter final : public Plugin, public Filter {
 public:
  SloHeadroomTierFilter(std::string type, std::string name, double exploration,
                        DataSlot<LatencyPrediction> slot)
      : Plugin(std::move(type), std::move(name)), exploration_(exploration), slot_(slot) {}

  void Apply(Context& context, std::span<const Position> candidates,
             std::span<DropReason> dropped) const override {
    if (candidates.size() <= 1) return;
    const std::span<const LatencyPrediction> predictions = context.data.Read(slot_);
    std::size_t positive = 0;
    for (const Position candidate : candidates) positive += Meets(ValueAt(predictions, candidate));
    // Without any prediction none is positive, so all stay.
    if (positive == 0 || positive == candidates.size()) return;
    const bool explore = exploration_ > 0 && context.random.Chance(exploration_);
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      if (Meets(ValueAt(predictions, candidates[i])) != explore) continue;
      dropped[i] = explore ? "meets the objectives, and this request explores"
                           : "is not predicted to meet the objectives";
    }
  }

 private:
  // Not for NaN.
  static bool Meets(const LatencyPrediction& prediction) {
    return prediction.known && prediction.ttft_headroom_ms >= 0 && prediction.tpot_headroom_ms >= 0;
  }

  double exploration_;
  DataSlot<LatencyPrediction> slot_;
};

absl::StatusOr<std::unique_ptr<Plugin>> MakePrefixCacheAffinity(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  PrefixCacheAffinityFilter::Options options;
  std::string source = "prefillThroughput";
  read.Optional("affinityThreshold", &options.threshold);
  read.Optional("explorationProbability", &options.exploration);
  read.Optional("maxTTFTPenaltyMs", &options.max_penalty_ms);
  read.Optional("ttftSource", &source);
  read.Optional("peakPrefillThroughput", &options.tokens_per_second);
  const std::string prefix = ReadProducer(read, "prefixMatchInfoProducerName", kApproxProducerType);
  const std::string in_flight = ReadProducer(read, "inFlightLoadProducerName", kInFlightProducerType);
  const std::string predictor = ReadProducer(read, "latencyPredictionInfoProducerName", kLatencyProducerType);
  options.from_predictor = source == "latencyPredictor";
  const bool estimates = !options.from_predictor && options.max_penalty_ms > 0;
  if (options.threshold > 1) {
    read.Reject("affinityThreshold", absl::StrCat(options.threshold), "at most 1");
  }
  if (options.exploration < 0 || options.exploration > 1) {
    read.Reject("explorationProbability", absl::StrCat(options.exploration), "0..1");
  }
  if (options.max_penalty_ms < 0) {
    read.Reject("maxTTFTPenaltyMs", absl::StrCat(options.max_penalty_ms), "at least 0");
  }
  if (!options.from_predictor && source != "prefillThroughput") {
    read.Reject("ttftSource", absl::StrCat("\"", source, "\""), "prefillThroughput or latencyPredictor");
  }
  if (options.tokens_per_second < 0 || (estimates && options.tokens_per_second == 0)) {
    read.Reject("peakPrefillThroughput", absl::StrCat(options.tokens_per_second),
                estimates ? "more than 0" : "at least 0");
  }
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  const PrefixCacheAffinityFilter::Slots slots{
      builder.Consumes<PrefixMatch>(prefix), builder.Consumes<InFlightLoad>(in_flight, estimates),
      builder.Consumes<LatencyPrediction>(predictor, /*required=*/false)};
  return std::make_unique<PrefixCacheAffinityFilter>(builder.type(), builder.name(), options, slots);
}

absl::StatusOr<std::unique_ptr<Plugin>> MakeSloHeadroomTier(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  double exploration = 0.01;
  read.Optional("epsilonExploreNeg", &exploration);
  const std::string predictor = ReadProducer(read, "latencyPredictionInfoProducerName", kLatencyProducerType);
  if (exploration < 0 || exploration > 1) {
    read.Reject("epsilonExploreNeg", absl::StrCat(exploration), "0..1");
  }
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  const auto slot = builder.Consumes<LatencyPrediction>(predictor, /*required=*/false);
  return std::make_unique<SloHeadroomTierFilter>(builder.type(), builder.name(), exploration, slot);
}

}  // namespace

void RegisterLatencyFilters(PluginRegistry& registry) {
  MustRegister(registry, "prefix-cache-affinity-filter", MakePrefixCacheAffinity);
  MustRegister(registry, "slo-headroom-tier-filter", MakeSloHeadroomTier);
}

}  // namespace llmd::sched
