// predicted-latency-producer: what the host's model says of each candidate, against the request's objectives.
// (spec: scheduling.md 2.5)
#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "llmd/sched/encoder_cache.h"
#include "llmd/sched/in_flight.h"
#include "llmd/sched/latency.h"
#include "src/sched/builtin_plugins.h"
#include "src/sched/decided_targets.h"
#include "src/sched/running_slos.h"

namespace llmd::sched {
namespace {

struct LatencyOptions {
  double slo_buffer = 1;
  bool streaming = false;
  bool predict = true;
  std::string role_label = {};
};

struct LatencySlots {
  DataSlot<LatencyPrediction> prediction;
  DataSlot<PrefixMatch> prefix;
  DataSlot<InFlightLoad> load;
  std::optional<DataSlot<EncoderCacheMatch>> encoder;
};

// Milliseconds of the first of two headers that is there; 0 when neither is or it says nothing sensible.
double Objective(const Request& request, std::string_view name, std::string_view old_name) {
  std::optional<std::string_view> text = request.FindHeader(name);
  if (!text) text = request.FindHeader(old_name);
  double value = 0;
  if (!text || !absl::SimpleAtod(ToAbsl(*text), &value) || !std::isfinite(value) || value < 0) return 0;
  return value;
}
double TtftObjective(const Request& request) {
  return Objective(request, "x-llm-d-slo-ttft-ms", "x-slo-ttft-ms");
}
double TpotObjective(const Request& request) {
  return Objective(request, "x-llm-d-slo-tpot-ms", "x-slo-tpot-ms");
}

struct Buffers final : ThreadState {
  std::vector<LatencyFeatures> features;
  std::vector<LatencyEstimate> estimates;
};

// A request among those of its endpoint.
class Running final : public FlightState {
 public:
  Running(std::shared_ptr<RunningSlos> running, EndpointHandle endpoint, double tpot_ms)
      : running_(std::move(running)), endpoint_(endpoint), tpot_ms_(tpot_ms) {}
  ~Running() override { running_->Remove(endpoint_, tpot_ms_); }

 private:
  std::shared_ptr<RunningSlos> running_;
  EndpointHandle endpoint_;
  double tpot_ms_;
};

class LatencyProducer final : public Plugin, public DataProducer, public PreRequest {
 public:
  LatencyProducer(std::string type, std::string name, const LatencySlots& slots, LatencyOptions options,
                  LatencyPredictor predictor, std::shared_ptr<RunningSlos> running)
      : Plugin(std::move(type), std::move(name)),
        slots_(slots),
        options_(std::move(options)),
        predictor_(std::move(predictor)),
        running_(std::move(running)) {}

  std::unique_ptr<ThreadState> NewThreadState() const override { return std::make_unique<Buffers>(); }

  void Produce(Context& context, ThreadState* state) const override {
    if (predictor_ == nullptr || !options_.predict || context.candidates.empty()) return;
    auto& buffers = static_cast<Buffers&>(*state);
    Describe(context, buffers.features);
    buffers.estimates.assign(buffers.features.size(), {});
    if (!predictor_(buffers.features, buffers.estimates)) return;
    const double ttft = TtftObjective(context.request);
    const double tpot = TpotObjective(context.request);
    const std::span<LatencyPrediction> predictions = context.data.Publish(slots_.prediction);
    for (std::size_t i = 0; i < context.candidates.size(); ++i) {
      const Position p = context.candidates[i];
      const bool decodes = options_.streaming && buffers.features[i].role != "prefill";
      predictions[p] =
          Judge(buffers.estimates[i], ttft, tpot, decodes, running_->Get(context.pool[p].handle));
    }
  }

  absl::Status OnDecision(Context& context, const Decision& decision, std::span<const std::string>,
                          Dispatch& dispatch) override {
    const std::optional<Position> target = TargetOf(decision, decision.primary);
    if (!target) return absl::OkStatus();
    const EndpointHandle endpoint = context.pool[*target].handle;
    const double tpot = TpotObjective(context.request);
    if (running_->Add(endpoint, tpot)) {
      dispatch.flight.Attach(std::make_unique<Running>(running_, endpoint, tpot));
    }
    return absl::OkStatus();
  }

 private:
  LatencyPrediction Judge(const LatencyEstimate& estimate, double ttft_objective, double tpot_objective,
                          bool decodes, const RunningSlos::View& running) const {
    LatencyPrediction result{.dispatched_requests = running.requests};
    if (!std::isfinite(estimate.ttft_ms) || (decodes && !std::isfinite(estimate.tpot_ms))) return result;
    result.known = true;
    result.ttft_ms = estimate.ttft_ms;
    result.tpot_ms = std::isfinite(estimate.tpot_ms) ? estimate.tpot_ms : 0;
    result.ttft_valid = estimate.ttft_ms < ttft_objective;
    result.ttft_headroom_ms = ttft_objective - estimate.ttft_ms;
    result.tpot_valid = true;
    if (decodes) {
      double bound = tpot_objective * options_.slo_buffer;
      if (running.min_tpot_ms > 0) bound = std::min(bound, running.min_tpot_ms * options_.slo_buffer);
      result.tpot_valid = estimate.tpot_ms < bound;
      result.tpot_headroom_ms = bound - estimate.tpot_ms;
    }
    return result;
  }

  // What is not known is 0, as the model was trained.
  void Describe(const Context& context, std::vector<LatencyFeatures>& features) const {
    const std::span<const PrefixMatch> matches = context.data.Read(slots_.prefix);
    const std::span<const InFlightLoad> loads = context.data.Read(slots_.load);
    std::span<const EncoderCacheMatch> encoder;
    if (slots_.encoder) encoder = context.data.Read(*slots_.encoder);
    const auto tokens =
        static_cast<std::int64_t>(std::min<std::size_t>(context.request.token_count(), std::size_t{1} << 40));
    features.clear();
    for (const Position p : context.candidates) {
      const Endpoint& endpoint = context.pool[p];
      const double usage = endpoint.metrics.kv_cache_usage.value;
      LatencyFeatures& f = features.emplace_back();
      f.kv_cache_usage = usage > 0 ? std::min(usage, 1.0) : 0;
      f.input_tokens = tokens;
      f.waiting_requests = std::max<std::int64_t>(0, endpoint.metrics.waiting_requests.value);
      f.running_requests = std::max<std::int64_t>(
          0, loads.empty() ? endpoint.metrics.running_requests.value : loads[p].requests);
      if (!loads.empty()) f.prefill_tokens_in_flight = loads[p].tokens;
      if (!matches.empty() && matches[p].total_blocks > 0) {
        f.prefix_ratio = static_cast<double>(matches[p].match_blocks) / matches[p].total_blocks;
      }
      if (!encoder.empty()) {
        f.encoder_items = encoder[p].requested;
        f.encoder_items_cached = encoder[p].matched;
      }
      if (!options_.role_label.empty()) {
        if (const std::string* role = endpoint.FindLabel(options_.role_label)) f.role = *role;
      }
    }
  }

  LatencySlots slots_;
  LatencyOptions options_;
  LatencyPredictor predictor_;
  std::shared_ptr<RunningSlos> running_;
};

absl::StatusOr<std::unique_ptr<Plugin>> Make(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  LatencyOptions options;
  std::string prefix;
  std::string load;
  bool encoder_features = false;
  // Of the training and of per-request memory, which are the host's and the flights'.
  double sampling_mean = 1000;
  std::int64_t decode_samples = 0;
  absl::Duration context_ttl = absl::Minutes(5);
  read.Optional("sloBufferFactor", &options.slo_buffer);
  read.Optional("contextTTL", &context_ttl);
  read.Optional("streamingMode", &options.streaming);
  read.Optional("endpointRoleLabel", &options.role_label);
  read.Optional("predictInProduce", &options.predict);
  read.Optional("useEncoderCacheFeatures", &encoder_features);
  read.Optional("samplingMean", &sampling_mean);
  read.Optional("maxDecodeTokenSamplesForPrediction", &decode_samples);
  read.Optional("prefixMatchInfoProducerName", &prefix);
  read.Optional("inFlightLoadProducerName", &load);
  if (options.slo_buffer <= 0) {
    read.Reject("sloBufferFactor", absl::StrCat(options.slo_buffer), "more than 0");
  }
  if (sampling_mean <= 0) read.Reject("samplingMean", absl::StrCat(sampling_mean), "more than 0");
  if (decode_samples < 0) {
    read.Reject("maxDecodeTokenSamplesForPrediction", absl::StrCat(decode_samples), "at least 0");
  }
  if (context_ttl <= absl::ZeroDuration()) {
    read.Reject("contextTTL", absl::FormatDuration(context_ttl), "more than 0");
  }
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  const LatencyPredictor& predictor = builder.resources().latency_predictor;
  if (predictor == nullptr && options.predict) {
    builder.Warn(absl::StrCat(builder.name(), ": the host gives no latency predictor, nothing is predicted"));
  }
  LatencySlots slots;
  slots.prediction = builder.Produces<LatencyPrediction>();
  // Producers that are named must exist; the default ones are used when there.
  slots.prefix = builder.Consumes<PrefixMatch>(
      prefix.empty() ? kApproxProducerType : std::string_view(prefix), !prefix.empty());
  slots.load = builder.Consumes<InFlightLoad>(load.empty() ? kInFlightProducerType : std::string_view(load),
                                              !load.empty());
  if (encoder_features) slots.encoder = builder.Consumes<EncoderCacheMatch>(kEncoderCacheProducerType);
  return std::make_unique<LatencyProducer>(builder.type(), builder.name(), slots, std::move(options),
                                           predictor, builder.State<RunningSlos>(builder.name()));
}

}  // namespace

void RegisterLatencyProducer(PluginRegistry& registry) {
  MustRegister(registry, kLatencyProducerType, Make);
  registry.SetDefaultProducer(LatencyPrediction::kDataType, kLatencyProducerType);
}

}  // namespace llmd::sched
