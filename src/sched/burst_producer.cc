// burst-prefix-cache-producer: reports where the host has placed a request together with others of its burst.
// (spec: scheduling.md 2.2; burst_placement.h)
#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "llmd/sched/burst_placement.h"
#include "src/sched/builtin_plugins.h"

namespace llmd::sched {
namespace {

class BurstProducer final : public Plugin, public DataProducer {
 public:
  BurstProducer(std::string type, std::string name, DataSlot<PrefixMatch> slot, const BurstOptions& options,
                std::shared_ptr<BurstAssignments> assignments)
      : Plugin(std::move(type), std::move(name)),
        slot_(slot),
        options_(options),
        assignments_(std::move(assignments)) {}

  void Produce(Context& context, ThreadState*) const override {
    if (context.request.id.empty()) return;
    const std::optional<EndpointHandle> endpoint = assignments_->Find(context.request.id, context.now);
    if (!endpoint) return;
    const std::optional<Position> position = context.pool.Find(*endpoint);
    const std::uint32_t blocks = CountBlocks(context.request);
    if (!position || blocks == 0) return;
    const std::span<PrefixMatch> matches = context.data.Publish(slot_);
    for (PrefixMatch& match : matches) {
      match.total_blocks = blocks;
      match.block_size = static_cast<std::uint32_t>(options_.block_size);
    }
    matches[*position].match_blocks = blocks;
    matches[*position].cached_blocks = blocks;
  }

 private:
  // Of all prompts, as far as they take part.
  std::uint32_t CountBlocks(const Request& request) const {
    constexpr std::uint64_t kMost = std::uint64_t{1} << 31;
    const auto size = static_cast<std::uint64_t>(options_.block_size);
    std::uint64_t blocks = 0;
    for (const Prompt& prompt : request.prompts) {
      const std::uint64_t of_prompt = prompt.token_count / size + (prompt.token_count % size != 0 ? 1 : 0);
      blocks = std::min(kMost, blocks + std::min<std::uint64_t>({of_prompt, options_.MaxBlocks(), kMost}));
    }
    return static_cast<std::uint32_t>(blocks);
  }

  DataSlot<PrefixMatch> slot_;
  BurstOptions options_;
  std::shared_ptr<BurstAssignments> assignments_;
};

absl::StatusOr<BurstOptions> ReadOptions(ParameterReader read) {
  BurstOptions options;
  std::int64_t window_ms = 100;
  std::string balance = "requests";
  read.Optional("windowDurationMs", &window_ms);
  read.Optional("maxPerReplica", &options.max_per_replica);
  read.Optional("blockSizeTokens", &options.block_size);
  read.Optional("maxPrefixTokensToMatch", &options.max_prefix_tokens);
  read.Optional("minColocateBlocks", &options.min_colocate_blocks);
  read.Optional("maxBatchSize", &options.max_batch_size);
  read.Optional("balanceBy", &balance);
  if (window_ms < 1 || window_ms > 10'000) {
    read.Reject("windowDurationMs", absl::StrCat(window_ms), "1..10000");
  }
  if (options.max_per_replica != -1 && options.max_per_replica < 1) {
    read.Reject("maxPerReplica", absl::StrCat(options.max_per_replica), "at least 1, or -1 for no limit");
  }
  if (options.block_size < 1 || options.block_size > std::int64_t{1} << 30) {
    read.Reject("blockSizeTokens", absl::StrCat(options.block_size), "1..1073741824");
  }
  if (options.max_prefix_tokens < 0) {
    read.Reject("maxPrefixTokensToMatch", absl::StrCat(options.max_prefix_tokens), "at least 0");
  }
  if (options.min_colocate_blocks < 0) {
    read.Reject("minColocateBlocks", absl::StrCat(options.min_colocate_blocks), "at least 0");
  }
  if (options.max_batch_size < 1) {
    read.Reject("maxBatchSize", absl::StrCat(options.max_batch_size), "at least 1");
  }
  if (balance != "requests" && balance != "tokens") {
    read.Reject("balanceBy", absl::StrCat("\"", balance, "\""), "requests or tokens");
  }
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  options.window = absl::Milliseconds(window_ms);
  options.balance_by_tokens = balance == "tokens";
  return options;
}

absl::StatusOr<std::unique_ptr<Plugin>> Make(PluginBuilder& builder) {
  const absl::StatusOr<BurstOptions> options = ReadOptions(builder.Read());
  if (!options.ok()) return options.status();
  return std::make_unique<BurstProducer>(builder.type(), builder.name(), builder.Produces<PrefixMatch>(),
                                         *options, builder.State<BurstAssignments>(builder.name()));
}

}  // namespace

absl::StatusOr<BurstOptions> ParseBurstOptions(std::string_view owner, const Value& parameters) {
  return ReadOptions(ParameterReader(owner, parameters));
}

void RegisterBurstProducer(PluginRegistry& registry) {
  MustRegister(registry, "burst-prefix-cache-producer", Make, Stability::kExperimental);
}

}  // namespace llmd::sched
