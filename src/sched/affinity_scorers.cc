// Scorers that prefer endpoints which have what the request needs: lora-affinity-scorer,
// header-label-affinity-scorer, mm-embeddings-cache-scorer. (spec: scheduling.md 2.4)
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "llmd/sched/encoder_cache.h"
#include "src/sched/builtin_plugins.h"
#include "src/sched/data_source.h"
#include "src/sched/freshness.h"

namespace llmd::sched {
namespace {

bool Contains(const std::vector<std::string>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// The adapter is loaded, could be, is about to be, or must wait for a place.
class LoraAffinityScorer final : public Plugin, public Scorer {
 public:
  LoraAffinityScorer(std::string type, std::string name, FreshnessPolicy freshness)
      : Plugin(std::move(type), std::move(name)), freshness_(freshness) {}

  void Score(Context& context, std::span<const Position> candidates,
             std::span<double> scores) const override {
    const FreshnessPolicy::Rule fresh = freshness_.At(context.now);
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const auto& adapters = context.pool[candidates[i]].metrics.adapters;
      if (!fresh.Counts(adapters)) continue;
      scores[i] = adapters.value == nullptr ? 0.0 : ScoreOf(*adapters.value, context.request.model);
    }
  }

 private:
  static double ScoreOf(const AdapterState& adapters, std::string_view model) {
    if (Contains(adapters.active, model)) return 1.0;
    const auto known = static_cast<std::int64_t>(adapters.active.size() + adapters.waiting.size());
    if (known < adapters.max_active) return 0.8;
    return Contains(adapters.waiting, model) ? 0.6 : 0.0;
  }

  FreshnessPolicy freshness_;
};

class HeaderLabelAffinityScorer final : public Plugin, public Scorer {
 public:
  HeaderLabelAffinityScorer(std::string type, std::string name, std::string header, std::string label)
      : Plugin(std::move(type), std::move(name)), header_(std::move(header)), label_(std::move(label)) {}

  // An absent or empty header matches nothing, not even an empty label.
  void Score(Context& context, std::span<const Position> candidates,
             std::span<double> scores) const override {
    const std::string_view wanted = context.request.FindHeader(header_).value_or(std::string_view());
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      scores[i] = 0;
      if (wanted.empty()) continue;
      const std::string* label = context.pool[candidates[i]].FindLabel(label_);
      if (label != nullptr && *label == wanted) scores[i] = 1;
    }
  }

 private:
  std::string header_;
  std::string label_;
};

class MmEmbeddingsCacheScorer final : public Plugin, public Scorer {
 public:
  MmEmbeddingsCacheScorer(std::string type, std::string name, DataSlot<EncoderCacheMatch> slot)
      : Plugin(std::move(type), std::move(name)), slot_(slot) {}

  void Score(Context& context, std::span<const Position> candidates,
             std::span<double> scores) const override {
    const std::span<const EncoderCacheMatch> matches = context.data.Read(slot_);
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const EncoderCacheMatch match = ValueAt(matches, candidates[i]);
      scores[i] = match.requested > 0
                      ? static_cast<double>(match.matched) / static_cast<double>(match.requested)
                      : 0.0;
    }
  }

 private:
  DataSlot<EncoderCacheMatch> slot_;
};

absl::StatusOr<std::unique_ptr<Plugin>> MakeLoraAffinity(PluginBuilder& builder) {
  absl::StatusOr<FreshnessPolicy> freshness = ParseFreshness(builder);
  if (!freshness.ok()) return freshness.status();
  return std::make_unique<LoraAffinityScorer>(builder.type(), builder.name(), *freshness);
}

absl::StatusOr<std::unique_ptr<Plugin>> MakeHeaderLabelAffinity(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  std::string header;
  std::string label;
  read.Optional("headerName", &header);
  read.Optional("labelKey", &label);
  if (header.empty()) read.Reject("headerName", "missing", "a header name");
  if (label.empty()) read.Reject("labelKey", "missing", "a label name");
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  return std::make_unique<HeaderLabelAffinityScorer>(builder.type(), builder.name(),
                                                     absl::AsciiStrToLower(header), std::move(label));
}

absl::StatusOr<std::unique_ptr<Plugin>> MakeMmEmbeddingsCache(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  const std::string producer = ReadProducer(read, "producerName", kEncoderCacheProducerType);
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  return std::make_unique<MmEmbeddingsCacheScorer>(builder.type(), builder.name(),
                                                   builder.Consumes<EncoderCacheMatch>(producer));
}

}  // namespace

void RegisterAffinityScorers(PluginRegistry& registry) {
  MustRegister(registry, "lora-affinity-scorer", MakeLoraAffinity);
  MustRegister(registry, "header-label-affinity-scorer", MakeHeaderLabelAffinity, Stability::kExperimental);
  MustRegister(registry, "mm-embeddings-cache-scorer", MakeMmEmbeddingsCache);
}

}  // namespace llmd::sched
