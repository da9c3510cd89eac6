// p2p-source-producer: from which peer an endpoint may pull blocks that it lacks. (spec: scheduling.md 2.8)
#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "src/sched/builtin_plugins.h"
#include "src/sched/decided_targets.h"

namespace llmd::sched {
namespace {

constexpr char kHeader[] = "x-kv-cache-source-host-port";

struct PullSource {
  static constexpr std::string_view kDataType = "PullSource";

  Position position = 0;
  std::uint64_t tokens = 0;
};

// FNV-1a, as a number in [0, 1).
double Coordinate(std::string_view text) {
  std::uint32_t hash = 2166136261u;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619u;
  return hash * 0x1p-32;
}

// Peers serve from their cpu tier; a producer that does not tell tiers apart is taken at its word.
std::uint64_t ServableTokens(const PrefixMatch& match) {
  return std::uint64_t{match.tiers_known ? match.cpu_blocks : match.cached_blocks} * match.block_size;
}

class P2pSourceProducer final : public Plugin, public DataProducer, public PreRequest {
 public:
  P2pSourceProducer(std::string type, std::string name, DataSlot<PrefixMatch> prefix,
                    RequestSlot<PullSource> source, std::string prefill, std::uint64_t min_delta)
      : Plugin(std::move(type), std::move(name)),
        prefix_(prefix),
        source_(source),
        prefill_(std::move(prefill)),
        min_delta_(min_delta) {}

  // Of the candidates within a block of the best, one by chance, the less likely the longer its queue.
  void Produce(Context& context, ThreadState*) const override {
    const std::span<const PrefixMatch> matches = context.data.Read(prefix_);
    if (matches.empty()) return;
    std::uint64_t most = 0;
    for (const Position p : context.candidates) most = std::max(most, ServableTokens(matches[p]));
    if (most == 0) return;
    const auto qualifies = [&](Position p) {
      const std::uint64_t tokens = ServableTokens(matches[p]);
      return tokens > 0 && tokens + matches[p].block_size >= most;
    };
    double total = 0;
    for (const Position p : context.candidates) {
      if (qualifies(p)) total += Weight(context.pool[p]);
    }
    double rest = Coordinate(context.request.id) * total;
    Position chosen = 0;
    for (const Position p : context.candidates) {
      if (!qualifies(p)) continue;
      chosen = p;
      const double weight = Weight(context.pool[p]);
      if (rest < weight) break;
      rest -= weight;
    }
    context.data.Publish(source_) = {chosen, ServableTokens(matches[chosen])};
  }

  absl::Status OnDecision(Context& context, const Decision& decision, std::span<const std::string> profiles,
                          Dispatch& dispatch) override {
    HeaderEdit edit{kHeader, std::nullopt};  // what a client sends does not pass
    std::optional<Position> computing = TargetOf(decision, profiles, prefill_);
    if (!computing) computing = TargetOf(decision, decision.primary);
    const PullSource* source = context.data.Read(source_);
    const std::span<const PrefixMatch> matches = context.data.Read(prefix_);
    if (computing && source != nullptr && source->position != *computing && !matches.empty()) {
      const PrefixMatch& own = matches[*computing];
      const std::uint64_t held = std::uint64_t{own.cached_blocks} * own.block_size;
      if (source->tokens >= held + min_delta_) edit.value = context.pool[source->position].host_port();
    }
    dispatch.headers.push_back(std::move(edit));
    return absl::OkStatus();
  }

 private:
  static double Weight(const Endpoint& endpoint) {
    const std::int64_t waiting = endpoint.metrics.waiting_requests.value;
    return 1.0 / (1.0 + static_cast<double>(std::max<std::int64_t>(0, waiting)));
  }

  DataSlot<PrefixMatch> prefix_;
  RequestSlot<PullSource> source_;
  std::string prefill_;
  std::uint64_t min_delta_;
};

absl::StatusOr<std::unique_ptr<Plugin>> Make(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  std::int64_t min_delta = 1;
  std::string prefill = std::string(kPrefillProfile);
  std::string prefix;
  read.Optional("minCachedTokenDelta", &min_delta);
  read.Optional("prefillProfileName", &prefill);
  read.Optional("prefixMatchInfoProducerName", &prefix);
  if (min_delta < 1) read.Reject("minCachedTokenDelta", absl::StrCat(min_delta), "at least 1");
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  if (prefill.empty()) prefill = kPrefillProfile;
  const auto matches =
      builder.Consumes<PrefixMatch>(prefix.empty() ? kApproxProducerType : std::string_view(prefix));
  return std::make_unique<P2pSourceProducer>(builder.type(), builder.name(), matches,
                                             builder.ProducesForRequest<PullSource>(), std::move(prefill),
                                             static_cast<std::uint64_t>(min_delta));
}

}  // namespace

void RegisterP2pSourceProducer(PluginRegistry& registry) {
  MustRegister(registry, "p2p-source-producer", Make, Stability::kExperimental);
}

}  // namespace llmd::sched
