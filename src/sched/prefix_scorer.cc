// prefix-cache-scorer: the share of the prompt that an endpoint has. (spec: scheduling.md 2.2)
#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "src/sched/builtin_plugins.h"

namespace llmd::sched {
namespace {

class PrefixCacheScorer final : public Plugin, public Scorer {
 public:
  PrefixCacheScorer(std::string type, std::string name, DataSlot<PrefixMatch> slot, double length_weight,
                    double length_scale_tokens)
      : Plugin(std::move(type), std::move(name)),
        slot_(slot),
        length_weight_(length_weight),
        length_scale_tokens_(length_scale_tokens) {}

  void Score(Context& context, std::span<const Position> candidates,
             std::span<double> scores) const override {
    const std::span<const PrefixMatch> matches = context.data.Read(slot_);
    if (matches.empty()) return;
    for (std::size_t i = 0; i < candidates.size(); ++i) scores[i] = ScoreOf(matches[candidates[i]]);
  }

 private:
  double ScoreOf(const PrefixMatch& match) const {
    if (match.total_blocks == 0) return 0;
    const double ratio = static_cast<double>(match.match_blocks) / match.total_blocks;
    double length = 0;
    if (length_weight_ > 0 && match.block_size > 0) {
      const double tokens = static_cast<double>(match.match_blocks) * match.block_size;
      length = std::min(1.0, tokens / length_scale_tokens_);
      length *= length;
    }
    return length_weight_ * length + (1 - length_weight_) * ratio;
  }

  DataSlot<PrefixMatch> slot_;
  double length_weight_;
  double length_scale_tokens_;
};

absl::StatusOr<std::unique_ptr<Plugin>> Make(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  std::string producer;
  double length_weight = 0;
  double length_scale_tokens = 8192;
  read.Optional("prefixMatchInfoProducerName", &producer);
  read.Optional("matchLengthWeight", &length_weight);
  read.Optional("matchLengthScaleTokens", &length_scale_tokens);
  if (length_weight < 0 || length_weight > 1)
    read.Reject("matchLengthWeight", absl::StrCat(length_weight), "0..1");
  if (length_weight > 0 && length_scale_tokens <= 0) {
    read.Reject("matchLengthScaleTokens", absl::StrCat(length_scale_tokens), "more than 0");
  }
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  const auto slot =
      builder.Consumes<PrefixMatch>(producer.empty() ? kApproxProducerType : std::string_view(producer));
  return std::make_unique<PrefixCacheScorer>(builder.type(), builder.name(), slot, length_weight,
                                             length_scale_tokens);
}

}  // namespace

void RegisterPrefixScorer(PluginRegistry& registry) { MustRegister(registry, "prefix-cache-scorer", Make); }

}  // namespace llmd::sched
