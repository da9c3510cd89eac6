// precise-prefix-cache-producer, and the deprecated precise-prefix-cache-scorer. (spec: scheduling.md 2.2)
//
// With speculative indexing, what is sent to an endpoint counts as held there at once, until the engine's
// events tell, or for the TTL. Such knowledge is one more tier, of weight 1, from the first block on; so it
// takes part in the best of all tiers as the others do.
#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "src/sched/builtin_plugins.h"
#include "src/sched/decided_targets.h"
#include "src/sched/endpoint_index.h"
#include "src/sched/prefix_producer.h"

namespace llmd::sched {
namespace {

// Blocks of an endpoint: what can be sent to one within a TTL, and no bound in practice.
constexpr std::size_t kSpeculativeBlocks = std::size_t{1} << 20;

class PreciseProducer : public PrefixProducer, public PreRequest {
 public:
  PreciseProducer(std::string type, std::string name, DataSlot<PrefixMatch> slot, PrefixSourceIndex index,
                  const PreciseOptions& options, bool one_by_one, std::shared_ptr<EndpointIndex> speculation)
      : PrefixProducer(std::move(type), std::move(name), slot, kExactSource, std::move(index)),
        speculation_(std::move(speculation)) {
    tiers_ = options.tiers;
    tells_tiers_ = true;
    one_by_one_ = one_by_one;
  }

  absl::Status OnDecision(Context& context, const Decision& decision, std::span<const std::string> profiles,
                          Dispatch&) override {
    if (speculation_ == nullptr) return absl::OkStatus();
    EndpointIndex::Writer writer(*speculation_, context.pool, context.now, kSpeculativeBlocks);
    ForEachComputingTarget(decision, profiles, [&](Position target) {
      for (const Prompt& prompt : context.request.prompts) {
        const KeyChain* chain = ChainOf(prompt);
        if (chain != nullptr) writer.Record(context.pool[target].handle, chain->ns, chain->keys);
      }
    });
    return absl::OkStatus();
  }

 protected:
  std::unique_ptr<Extra> NewExtra() const override {
    return speculation_ == nullptr ? nullptr : std::make_unique<Speculation>(speculation_);
  }
  void AddRows(Context& context, const index::NamespaceId& ns, BlockKeySpan keys, Extra* extra,
               std::vector<EndpointDepth>& rows) const override {
    if (extra == nullptr) return;
    static_cast<Speculation&>(*extra).reader.Match(
        ns, keys, context.now, [&](EndpointHandle endpoint, std::uint32_t depth) {
          if (const std::optional<Position> position = context.pool.Find(endpoint)) {
            rows.push_back({*position, depth, kOtherTierWeight});
          }
        });
  }

 private:
  struct Speculation final : Extra {
    explicit Speculation(const std::shared_ptr<EndpointIndex>& index) : reader(index) {}
    EndpointIndex::Reader reader;
  };

  std::shared_ptr<EndpointIndex> speculation_;  // null: off
};

// The share of the prompt that an endpoint has.
void ScoreMatches(const Context& context, DataSlot<PrefixMatch> slot, std::span<const Position> candidates,
                  std::span<double> scores) {
  const std::span<const PrefixMatch> matches = context.data.Read(slot);
  if (matches.empty()) return;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    const PrefixMatch& match = matches[candidates[i]];
    scores[i] = match.total_blocks == 0 ? 0 : static_cast<double>(match.match_blocks) / match.total_blocks;
  }
}

// A scorer that brings its own producer.
class PreciseScorer final : public PreciseProducer, public Scorer {
 public:
  using PreciseProducer::PreciseProducer;

  void Score(Context& context, std::span<const Position> candidates,
             std::span<double> scores) const override {
    ScoreMatches(context, slot(), candidates, scores);
  }
};

// A scorer that reads the configured producer.
class BoundPreciseScorer final : public Plugin, public Scorer {
 public:
  BoundPreciseScorer(std::string type, std::string name, DataSlot<PrefixMatch> slot)
      : Plugin(std::move(type), std::move(name)), slot_(slot) {}

  void Score(Context& context, std::span<const Position> candidates,
             std::span<double> scores) const override {
    ScoreMatches(context, slot_, candidates, scores);
  }

 private:
  DataSlot<PrefixMatch> slot_;
};

template <typename T>
absl::StatusOr<std::unique_ptr<Plugin>> MakeProducer(PluginBuilder& builder, const PreciseOptions& options) {
  absl::StatusOr<PrefixSourceIndex> index = FindPrefixSource(builder, kExactSource);
  if (!index.ok()) return index.status();
  std::shared_ptr<EndpointIndex> speculation;
  if (options.speculative_indexing) {
    // One for each TTL: a change of it forgets what was speculated.
    speculation = builder.State<EndpointIndex>(
        absl::StrCat(builder.name(), " ", absl::FormatDuration(options.speculative_ttl)),
        options.speculative_ttl);
  }
  return std::make_unique<T>(builder.type(), builder.name(), builder.Produces<PrefixMatch>(),
                             *std::move(index), options,
                             builder.compatibility().tier_weights_added_one_by_one, std::move(speculation));
}

absl::StatusOr<std::unique_ptr<Plugin>> Make(PluginBuilder& builder) {
  const absl::StatusOr<PreciseOptions> options = ReadPreciseOptions(builder.Read());
  if (!options.ok()) return options.status();
  return MakeProducer<PreciseProducer>(builder, *options);
}

absl::StatusOr<std::unique_ptr<Plugin>> MakeScorer(PluginBuilder& builder) {
  const absl::StatusOr<PreciseOptions> options = ReadPreciseOptions(builder.Read());
  if (!options.ok()) return options.status();
  const std::vector<std::string> producers = builder.NamesOfType(kPreciseProducerType);
  if (producers.size() > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(builder.name(), ": plugins \"", producers[0], "\" and \"", producers[1], "\" are both ",
                     std::string(kPreciseProducerType), ", expected at most one"));
  }
  if (producers.empty()) return MakeProducer<PreciseScorer>(builder, *options);
  return std::make_unique<BoundPreciseScorer>(builder.type(), builder.name(),
                                              builder.Consumes<PrefixMatch>(producers[0]));
}

}  // namespace

void RegisterPreciseProducer(PluginRegistry& registry) {
  MustRegister(registry, kPreciseProducerType, Make);
  MustRegister(registry, "precise-prefix-cache-scorer", MakeScorer, Stability::kDeprecated,
               "precise-prefix-cache-producer and prefix-cache-scorer");
}

}  // namespace llmd::sched
