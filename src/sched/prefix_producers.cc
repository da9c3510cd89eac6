// precise-prefix-cache-producer and approx-prefix-cache-producer: from matches of the index to PrefixMatch
// for each endpoint. (spec: scheduling.md 2.2)
//
// Both count leading blocks only: a holder that lacks block i has nothing behind it. An endpoint may have
// several holders, one a tier; block i then counts with the best weight among the tiers that hold it.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "src/sched/builtin_plugins.h"

namespace llmd::sched {
namespace {

constexpr double kOtherTierWeight = 1.0;

struct TierWeight {
  std::string tier;
  double weight = 1.0;
};

// Adds up the rows of matches by endpoint. One decision's memory, kept warm.
class MatchSum final : public ThreadState {
 public:
  explicit MatchSum(std::unique_ptr<PrefixMatcher> m) : matcher(std::move(m)) {}

  void Begin(std::size_t pool_size) {
    sums_.assign(pool_size, {});
    total_blocks = 0;
    block_size = 0;
  }

  // Adds the rows of one prompt. `weights` are by tier of `table`, `classes` the distinct ones, descending.
  void Add(const EndpointPool& pool, const HolderTable& table) {
    for (Sum& sum : sums_) sum.depth = 0;
    for (const double weight : classes) {
      for (const index::HolderDepth& row : rows) {
        if (row.slot >= table.by_slot.size()) continue;
        const HolderBinding& binding = table.by_slot[row.slot];
        if (binding.endpoint.generation == 0 || weights[binding.tier] != weight) continue;
        const std::optional<Position> position = pool.Find(binding.endpoint);
        if (!position) continue;
        Sum& sum = sums_[*position];
        if (row.depth <= sum.depth) continue;
        sum.weighted += weight * (row.depth - sum.depth);
        sum.cached += row.depth - sum.depth;
        sum.depth = row.depth;
      }
    }
  }

  void Publish(std::span<PrefixMatch> matches) const {
    constexpr double kMax = std::numeric_limits<std::uint32_t>::max();
    for (std::size_t i = 0; i < matches.size(); ++i) {
      matches[i] = {static_cast<std::uint32_t>(std::min(sums_[i].weighted, kMax)), total_blocks, block_size,
                    sums_[i].cached};
    }
  }

  std::unique_ptr<PrefixMatcher> matcher;
  index::MatchResult rows;
  std::vector<double> weights;
  std::vector<double> classes;
  std::uint32_t total_blocks = 0;
  std::uint32_t block_size = 0;

 private:
  struct Sum {
    double weighted = 0;
    std::uint32_t cached = 0;
    std::uint32_t depth = 0;  // of the prompt at hand
  };
  std::vector<Sum> sums_;
};

// What both producers share.
class PrefixProducer : public Plugin, public DataProducer {
 public:
  PrefixProducer(std::string type, std::string name, DataSlot<PrefixMatch> slot, PrefixSource source,
                 PrefixSourceIndex index, std::vector<TierWeight> tiers)
      : Plugin(std::move(type), std::move(name)),
        slot_(slot),
        source_(source),
        index_(std::move(index)),
        tiers_(std::move(tiers)) {}

  std::unique_ptr<ThreadState> NewThreadState() const override {
    return std::make_unique<MatchSum>(index_.new_matcher());
  }

  void Produce(Context& context, ThreadState* state) const override {
    auto& sum = static_cast<MatchSum&>(*state);
    const HolderTable& table = context.pool.holders(source_);
    sum.Begin(context.pool.size());
    WeighTiers(table, sum);
    for (const Prompt& prompt : context.request.prompts) {
      const KeyChain* chain = ChainOf(prompt);
      if (chain == nullptr) continue;
      const BlockKeySpan keys = Cut(*chain);
      if (keys.empty()) continue;
      sum.total_blocks += static_cast<std::uint32_t>(keys.size());
      sum.block_size = chain->block_size;
      sum.matcher->Match(chain->ns, keys, sum.rows);
      sum.Add(context.pool, table);
    }
    if (sum.total_blocks > 0) sum.Publish(context.data.Publish(slot_));
  }

 protected:
  // The leading blocks that take part.
  virtual BlockKeySpan Cut(const KeyChain& chain) const { return chain.keys; }

  const KeyChain* ChainOf(const Prompt& prompt) const {
    return source_ < prompt.chains.size() ? &prompt.chains[source_] : nullptr;
  }
  PrefixSource source() const { return source_; }
  const PrefixSourceIndex& index() const { return index_; }

 private:
  void WeighTiers(const HolderTable& table, MatchSum& sum) const {
    sum.weights.clear();
    sum.classes.clear();
    for (const std::string& tier : table.tiers) {
      double weight = kOtherTierWeight;
      for (const TierWeight& known : tiers_) {
        if (known.tier == tier) weight = known.weight;
      }
      sum.weights.push_back(weight);
      if (std::find(sum.classes.begin(), sum.classes.end(), weight) == sum.classes.end()) {
        sum.classes.push_back(weight);
      }
    }
    std::sort(sum.classes.begin(), sum.classes.end(), std::greater<>());
  }

  DataSlot<PrefixMatch> slot_;
  PrefixSource source_;
  PrefixSourceIndex index_;
  std::vector<TierWeight> tiers_;
};

class ApproxPrefixProducer final : public PrefixProducer, public PreRequest {
 public:
  ApproxPrefixProducer(std::string type, std::string name, DataSlot<PrefixMatch> slot, PrefixSource source,
                       PrefixSourceIndex index, const ApproxPrefixOptions& options)
      : PrefixProducer(std::move(type), std::move(name), slot, source, std::move(index), {}),
        options_(options) {}

  // The prompts are now expected at the primary target and at the prefiller.
  absl::Status OnDecision(Context& context, const Decision& decision, std::span<const std::string> profiles,
                          Dispatch&) override {
    if (index().record == nullptr) return absl::OkStatus();
    for (std::size_t i = 0; i < decision.profiles.size(); ++i) {
      const bool records = i == decision.primary || profiles[i] == "prefill";
      if (records && decision.profiles[i].state == ProfileState::kDone) {
        Record(context, decision.profiles[i].targets.front());
      }
    }
    return absl::OkStatus();
  }

 protected:
  BlockKeySpan Cut(const KeyChain& chain) const override {
    return chain.keys.first(std::min(chain.keys.size(), options_.MaxBlocks(chain.block_size)));
  }

 private:
  void Record(const Context& context, Position target) const {
    const std::vector<index::HolderId>& holders = context.pool.holders(source()).first_of;
    const std::uint32_t slot = context.pool[target].handle.slot;
    if (slot >= holders.size() || holders[slot].generation == 0) return;
    for (const Prompt& prompt : context.request.prompts) {
      const KeyChain* chain = ChainOf(prompt);
      if (chain == nullptr) continue;
      const BlockKeySpan keys = Cut(*chain);
      if (!keys.empty()) index().record(holders[slot], chain->ns, keys, context.now);
    }
  }

  ApproxPrefixOptions options_;
};

absl::StatusOr<PrefixSourceIndex> FindSource(const PluginBuilder& builder, PrefixSource source) {
  const std::vector<PrefixSourceIndex>& sources = builder.resources().prefix_sources;
  if (source >= sources.size() || sources[source].new_matcher == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat(builder.name(), ": the host gives no index as prefix source ", source));
  }
  return sources[source];
}

absl::StatusOr<std::vector<TierWeight>> ParseTiers(const PluginBuilder& builder, const Value& indexer) {
  std::vector<TierWeight> tiers = {{"gpu", 1.0}, {"cpu", 0.8}};
  ParameterReader read(absl::StrCat(builder.name(), ": indexerConfig"), indexer);
  if (const Value* backends = read.Raw("kvCacheBackendConfigs")) {
    tiers.clear();
    const Value::List* list = backends->AsList();
    if (list == nullptr) read.Reject("kvCacheBackendConfigs", backends->kind(), "a list");
    for (std::size_t i = 0; list != nullptr && i < list->size(); ++i) {
      ParameterReader backend(absl::StrCat(builder.name(), ": kvCacheBackendConfigs"), (*list)[i]);
      TierWeight tier;
      backend.Optional("name", &tier.tier);
      backend.Optional("weight", &tier.weight);
      if (tier.tier.empty()) backend.Reject("name", "missing", "a tier");
      if (tier.weight < 0) backend.Reject("weight", absl::StrCat(tier.weight), "at least 0");
      if (absl::Status status = backend.Finish(); !status.ok()) return status;
      tiers.push_back(std::move(tier));
    }
  }
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  return tiers;
}

absl::StatusOr<std::unique_ptr<Plugin>> MakePrecise(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  const Value none;
  const Value* indexer = read.Raw("indexerConfig");
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  absl::StatusOr<std::vector<TierWeight>> tiers = ParseTiers(builder, indexer != nullptr ? *indexer : none);
  if (!tiers.ok()) return tiers.status();
  absl::StatusOr<PrefixSourceIndex> index = FindSource(builder, kExactSource);
  if (!index.ok()) return index.status();
  return std::make_unique<PrefixProducer>(builder.type(), builder.name(), builder.Produces<PrefixMatch>(),
                                          kExactSource, *std::move(index), *std::move(tiers));
}

absl::StatusOr<std::unique_ptr<Plugin>> MakeApprox(PluginBuilder& builder) {
  absl::StatusOr<ApproxPrefixOptions> options =
      ParseApproxPrefixOptions(builder.name(), builder.parameters());
  if (!options.ok()) return options.status();
  absl::StatusOr<PrefixSourceIndex> index = FindSource(builder, kApproximateSource);
  if (!index.ok()) return index.status();
  return std::make_unique<ApproxPrefixProducer>(builder.type(), builder.name(),
                                                builder.Produces<PrefixMatch>(), kApproximateSource,
                                                *std::move(index), *options);
}

}  // namespace

std::uint32_t ApproxPrefixOptions::BlockSize(std::uint32_t reported) const {
  constexpr std::int64_t kMin = 64;
  const std::int64_t size = auto_tune && reported > 0 ? std::int64_t{reported} : block_size;
  return static_cast<std::uint32_t>(
      std::clamp<std::int64_t>(size, kMin, std::numeric_limits<std::int32_t>::max()));
}

std::size_t ApproxPrefixOptions::MaxBlocks(std::uint32_t block_size_tokens) const {
  if (max_prefix_tokens > 0 && block_size_tokens > 0) {
    return static_cast<std::size_t>(max_prefix_tokens / block_size_tokens);
  }
  if (max_prefix_blocks > 0) return static_cast<std::size_t>(max_prefix_blocks);
  return std::numeric_limits<std::size_t>::max();
}

std::size_t ApproxPrefixOptions::LruCapacity(std::uint64_t reported) const {
  if (auto_tune && reported > 0) return static_cast<std::size_t>(reported);
  return lru_capacity > 0 ? static_cast<std::size_t>(lru_capacity) : 31250;
}

absl::StatusOr<ApproxPrefixOptions> ParseApproxPrefixOptions(std::string_view owner,
                                                             const Value& parameters) {
  ParameterReader read(owner, parameters);
  ApproxPrefixOptions options;
  std::int64_t old_block_size = 0;
  read.Optional("autoTune", &options.auto_tune);
  read.Optional("blockSizeTokens", &options.block_size);
  read.Optional("blockSize", &old_block_size);
  read.Optional("maxPrefixTokensToMatch", &options.max_prefix_tokens);
  read.Optional("maxPrefixBlocksToMatch", &options.max_prefix_blocks);
  read.Optional("lruCapacityPerServer", &options.lru_capacity);
  if (old_block_size > 0 && options.block_size == 16) options.block_size = old_block_size;
  if (!options.auto_tune && options.block_size <= 0) {
    read.Reject("blockSizeTokens", absl::StrCat(options.block_size), "more than 0 without autoTune");
  }
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  return options;
}

void RegisterPrefixProducers(PluginRegistry& registry) {
  MustRegister(registry, kPreciseProducerType, MakePrecise);
  MustRegister(registry, kApproxProducerType, MakeApprox);
  registry.SetDefaultProducer(PrefixMatch::kDataType, kApproxProducerType);
}

}  // namespace llmd::sched
