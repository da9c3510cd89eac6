#include "src/sched/prefix_producer.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"

namespace llmd::sched {

void MatchSum::Begin(std::size_t pool_size, bool one_by_one) {
  sums_.assign(pool_size, {});
  total_blocks = 0;
  block_size = 0;
  one_by_one_ = one_by_one;
}

void MatchSum::Add(std::span<const EndpointDepth> rows) {
  weights_.clear();
  for (const EndpointDepth& row : rows) {
    if (std::find(weights_.begin(), weights_.end(), row.weight) == weights_.end()) {
      weights_.push_back(row.weight);
    }
  }
  // Heaviest first: what a lighter tier has beyond counts with the lighter weight.
  std::sort(weights_.begin(), weights_.end(), std::greater<>());
  for (const double weight : weights_) {
    for (const EndpointDepth& row : rows) {
      Sum& sum = sums_[row.position];
      if (row.weight != weight || row.depth <= sum.depth) continue;
      const std::uint32_t blocks = row.depth - sum.depth;
      if (one_by_one_ && weight != std::trunc(weight)) {
        for (std::uint32_t i = 0; i < blocks; ++i) sum.of_prompt += weight;
      } else {
        sum.of_prompt += weight * blocks;
      }
      sum.cached += blocks;
      sum.depth = row.depth;
    }
  }
}

void MatchSum::AddCpu(Position position, std::uint32_t depth) {
  sums_[position].cpu_depth = std::max(sums_[position].cpu_depth, depth);
}

void MatchSum::EndPrompt() {
  for (Sum& sum : sums_) {
    sum.weighted += std::exchange(sum.of_prompt, 0);
    sum.cpu += std::exchange(sum.cpu_depth, 0);
    sum.depth = 0;
  }
}

void MatchSum::Publish(std::span<PrefixMatch> matches, bool tiers_known) const {
  constexpr double kMax = std::numeric_limits<std::uint32_t>::max();
  for (std::size_t i = 0; i < matches.size(); ++i) {
    matches[i] = {.match_blocks = static_cast<std::uint32_t>(std::min(sums_[i].weighted, kMax)),
                  .total_blocks = total_blocks,
                  .block_size = block_size,
                  .cached_blocks = sums_[i].cached,
                  .tiers_known = tiers_known,
                  .cpu_blocks = sums_[i].cpu};
  }
}

struct PrefixProducer::State final : ThreadState {
  struct Tier {
    double weight = kOtherTierWeight;
    bool cpu = false;
  };

  MatchSum sum;
  std::unique_ptr<PrefixMatcher> matcher;
  index::MatchResult holders;
  std::vector<EndpointDepth> rows;
  std::vector<Tier> tiers;  // by tier of the holder table
  std::unique_ptr<Extra> extra;
};

PrefixProducer::PrefixProducer(std::string type, std::string name, DataSlot<PrefixMatch> slot,
                               PrefixSource source, PrefixSourceIndex index)
    : Plugin(std::move(type), std::move(name)), slot_(slot), source_(source), index_(std::move(index)) {}

std::unique_ptr<ThreadState> PrefixProducer::NewThreadState() const {
  auto state = std::make_unique<State>();
  state->matcher = index_.new_matcher();
  state->extra = NewExtra();
  return state;
}

void PrefixProducer::Produce(Context& context, ThreadState* thread_state) const {
  auto& state = static_cast<State&>(*thread_state);
  const HolderTable& table = context.pool.holders(source_);
  state.sum.Begin(context.pool.size(), one_by_one_);
  WeighTiers(table, state);
  for (const Prompt& prompt : context.request.prompts) {
    const KeyChain* chain = ChainOf(prompt);
    if (chain == nullptr) continue;
    const BlockKeySpan keys = Cut(*chain);
    if (keys.empty()) continue;
    state.sum.total_blocks += static_cast<std::uint32_t>(keys.size());
    state.sum.block_size = chain->block_size;
    state.matcher->Match(chain->ns, keys, state.holders);
    state.rows.clear();
    for (const index::HolderDepth& holder : state.holders) {
      if (holder.slot >= table.by_slot.size()) continue;
      const HolderBinding& binding = table.by_slot[holder.slot];
      if (binding.endpoint.generation == 0) continue;
      const std::optional<Position> position = context.pool.Find(binding.endpoint);
      if (!position) continue;
      state.rows.push_back({*position, holder.depth, state.tiers[binding.tier].weight});
      if (state.tiers[binding.tier].cpu) state.sum.AddCpu(*position, holder.depth);
    }
    AddRows(context, chain->ns, keys, state.extra.get(), state.rows);
    state.sum.Add(state.rows);
    state.sum.EndPrompt();
  }
  if (state.sum.total_blocks > 0) state.sum.Publish(context.data.Publish(slot_), tells_tiers_);
}

void PrefixProducer::WeighTiers(const HolderTable& table, State& state) const {
  state.tiers.clear();
  for (const std::string& name : table.tiers) {
    State::Tier tier{.cpu = name == "cpu"};
    for (const PreciseOptions::Tier& known : tiers_) {
      if (known.name == name) tier.weight = known.weight;
    }
    state.tiers.push_back(tier);
  }
}

absl::StatusOr<PrefixSourceIndex> FindPrefixSource(const PluginBuilder& builder, PrefixSource source) {
  const std::vector<PrefixSourceIndex>& sources = builder.resources().prefix_sources;
  if (source >= sources.size() || sources[source].new_matcher == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat(builder.name(), ": the host gives no index as prefix source ", source));
  }
  return sources[source];
}

}  // namespace llmd::sched
