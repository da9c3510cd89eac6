// approx-prefix-cache-producer: matches against what was sent where. (spec: scheduling.md 2.2)
#include <algorithm>
#include <limits>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "src/sched/builtin_plugins.h"
#include "src/sched/decided_targets.h"
#include "src/sched/prefix_producer.h"

namespace llmd::sched {
namespace {

class ApproxPrefixProducer final : public PrefixProducer, public PreRequest {
 public:
  ApproxPrefixProducer(std::string type, std::string name, DataSlot<PrefixMatch> slot, PrefixSource source,
                       PrefixSourceIndex index, const ApproxPrefixOptions& options)
      : PrefixProducer(std::move(type), std::move(name), slot, source, std::move(index)), options_(options) {}

  // The prompts are now expected at the primary target and at the prefiller.
  absl::Status OnDecision(Context& context, const Decision& decision, std::span<const std::string> profiles,
                          Dispatch&) override {
    if (index().record == nullptr) return absl::OkStatus();
    ForEachComputingTarget(decision, profiles, [&](Position target) { Record(context, target); });
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

absl::StatusOr<std::unique_ptr<Plugin>> MakeApprox(PluginBuilder& builder) {
  absl::StatusOr<ApproxPrefixOptions> options =
      ParseApproxPrefixOptions(builder.name(), builder.parameters());
  if (!options.ok()) return options.status();
  absl::StatusOr<PrefixSourceIndex> index = FindPrefixSource(builder, kApproximateSource);
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
  MustRegister(registry, kApproxProducerType, MakeApprox);
  registry.SetDefaultProducer(PrefixMatch::kDataType, kApproxProducerType);
}

}  // namespace llmd::sched
