// no-hit-lru-scorer: prompts that nobody has go to the endpoint that got such a prompt longest ago, so that
// caches fill evenly. (spec: scheduling.md 2.4)
#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "src/sched/builtin_plugins.h"
#include "src/sched/decided_targets.h"
#include "src/sched/recency.h"

namespace llmd::sched {
namespace {

// Whether the profiles of this decision saw a cold prompt. With several profiles: all of them.
struct ColdPrompt {
  static constexpr std::string_view kDataType = "ColdPrompt";

  bool scored = false;
  bool cold = true;
};

// Room for sorting. Not read by others.
struct UsedCandidate {
  static constexpr std::string_view kDataType = "UsedCandidate";

  std::uint64_t use = 0;
  std::uint32_t index = 0;  // among the candidates
  std::uint32_t rest = 0;   // remembered uses, of anything, between the next older candidate's and this one
};

class NoHitLruScorer final : public Plugin, public DataProducer, public Scorer, public PreRequest {
 public:
  NoHitLruScorer(std::string type, std::string name, DataSlot<PrefixMatch> prefix,
                 RequestSlot<ColdPrompt> cold, DataSlot<UsedCandidate> used, bool global,
                 std::shared_ptr<Recency> recency)
      : Plugin(std::move(type), std::move(name)),
        prefix_(prefix),
        cold_(cold),
        used_(used),
        global_(global),
        recency_(std::move(recency)) {}

  // Its data are written by Score().
  void Produce(Context& context, ThreadState*) const override { context.data.Publish(cold_); }

  void Score(Context& context, std::span<const Position> candidates,
             std::span<double> scores) const override {
    const bool cold = IsCold(context, candidates);
    const ColdPrompt* before = context.data.Read(cold_);
    const bool still_cold = cold && (before == nullptr || before->cold);
    context.data.Publish(cold_) = {.scored = true, .cold = still_cold};
    if (!cold) {
      std::fill(scores.begin(), scores.end(), 0.5);
    } else if (candidates.size() == 1) {
      scores[0] = 1;
    } else if (!candidates.empty()) {
      Rank(context, candidates, scores);
    }
  }

  absl::Status OnDecision(Context& context, const Decision& decision, std::span<const std::string> profiles,
                          Dispatch&) override {
    const ColdPrompt* cold = context.data.Read(cold_);
    if (cold == nullptr || !cold->scored || !cold->cold) return absl::OkStatus();
    ForEachComputingTarget(decision, profiles,
                           [&](Position target) { recency_->Use(context.pool[target].handle); });
    return absl::OkStatus();
  }

 private:
  bool IsCold(const Context& context, std::span<const Position> candidates) const {
    const std::span<const PrefixMatch> matches = context.data.Read(prefix_);
    if (matches.empty()) return true;
    return std::all_of(candidates.begin(), candidates.end(),
                       [&](Position p) { return matches[p].match_blocks == 0; });
  }

  // Those never used first, in order; then the used ones, oldest first.
  void Rank(Context& context, std::span<const Position> candidates, std::span<double> scores) const {
    const double last = static_cast<double>(candidates.size() - 1);
    std::span<UsedCandidate> used = context.data.Publish(used_);
    std::size_t used_count = 0;
    std::size_t unused_count = 0;
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const std::uint64_t use = recency_->LastUse(context.pool[candidates[i]].handle);
      if (use != 0) {
        used[used_count++] = {.use = use, .index = static_cast<std::uint32_t>(i)};
      } else {
        scores[i] = 1 - static_cast<double>(unused_count++) / last;
      }
    }
    used = used.first(used_count);
    const auto older = [](const UsedCandidate& a, const UsedCandidate& b) { return a.use < b.use; };
    std::sort(used.begin(), used.end(), older);
    if (global_) CountRest(used);
    std::size_t position = 0;
    for (const UsedCandidate& candidate : used) {
      position += candidate.rest;
      scores[candidate.index] = std::max(0.0, 1 - static_cast<double>(unused_count + position) / last);
      if (!global_) ++position;
    }
  }

  // For llm-d's position: that in the whole memory.
  void CountRest(std::span<UsedCandidate> used) const {
    recency_->ForEachUse([&](std::uint64_t use) {
      const auto next = std::upper_bound(
          used.begin(), used.end(), use,
          [](std::uint64_t value, const UsedCandidate& candidate) { return value < candidate.use; });
      if (next != used.end()) ++next->rest;
    });
  }

  DataSlot<PrefixMatch> prefix_;
  RequestSlot<ColdPrompt> cold_;
  DataSlot<UsedCandidate> used_;
  bool global_;
  std::shared_ptr<Recency> recency_;
};

absl::StatusOr<std::unique_ptr<Plugin>> Make(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  std::int64_t size = 0;
  std::string prefix;
  read.Optional("lruSize", &size);
  read.Optional("prefixMatchInfoProducerName", &prefix);
  for (const std::string_view field : {"prefixPluginType", "prefixPluginName"}) {
    std::string ignored;
    read.Optional(field, &ignored);
    if (!ignored.empty()) {
      builder.Warn(absl::StrCat(builder.name(), ": ", ToAbsl(field), " is without effect, use ",
                                "prefixMatchInfoProducerName"));
    }
  }
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  constexpr std::int64_t kDefaultSize = 1024;
  const auto matches =
      builder.Consumes<PrefixMatch>(prefix.empty() ? kApproxProducerType : std::string_view(prefix));
  auto recency = builder.State<Recency>(builder.name());
  recency->SetCapacity(static_cast<std::size_t>(size > 0 ? size : kDefaultSize));
  return std::make_unique<NoHitLruScorer>(
      builder.type(), builder.name(), matches, builder.ProducesForRequest<ColdPrompt>(),
      builder.Produces<UsedCandidate>(), builder.compatibility().lru_position_is_global, std::move(recency));
}

}  // namespace

void RegisterNoHitLruScorer(PluginRegistry& registry) { MustRegister(registry, "no-hit-lru-scorer", Make); }

}  // namespace llmd::sched
