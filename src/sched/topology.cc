// topology-extractor, and two plugins that keep a stage near the endpoint that an earlier stage chose:
// topology-affinity-filter, topology-affinity-scorer. (spec: scheduling.md 2.1, 2.3)
#include "llmd/sched/topology.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "llmd/sched/peer_endpoint.h"
#include "src/sched/builtin_plugins.h"
#include "src/sched/data_source.h"

namespace llmd::sched {
namespace {

class TopologyExtractor final : public Plugin, public DataProducer {
 public:
  struct LabelNames {
    std::string hostname;
    std::string rack;
    std::string zone;
    std::string region;
  };

  TopologyExtractor(std::string type, std::string name, LabelNames labels, DataSlot<Topology> slot)
      : Plugin(std::move(type), std::move(name)), labels_(std::move(labels)), slot_(slot) {}

  std::unique_ptr<ThreadState> NewThreadState() const override { return std::make_unique<Known>(); }

  // Labels are looked up when another endpoint stands at a position than before; an identity does not change.
  void Produce(Context& context, ThreadState* state) const override {
    auto& known = static_cast<Known*>(state)->by_position;
    const std::span<const Endpoint> endpoints = context.pool.endpoints();
    known.resize(endpoints.size());
    const std::span<Topology> published = context.data.Publish(slot_);
    for (std::size_t i = 0; i < endpoints.size(); ++i) {
      if (known[i].identity != endpoints[i].identity) {
        known[i] = {endpoints[i].identity, TopologyOf(endpoints[i])};
      }
      published[i] = known[i].topology;
    }
  }

 private:
  // Holds the identities, so that their labels outlive the views.
  struct Known final : ThreadState {
    struct Entry {
      std::shared_ptr<const EndpointIdentity> identity;
      Topology topology;
    };
    std::vector<Entry> by_position;
  };

  Topology TopologyOf(const Endpoint& endpoint) const {
    const auto value = [&endpoint](const std::string& label) {
      const std::string* found = endpoint.FindLabel(label);
      return found != nullptr ? std::string_view(*found) : std::string_view();
    };
    return {value(labels_.hostname), value(labels_.rack), value(labels_.zone), value(labels_.region)};
  }

  LabelNames labels_;
  DataSlot<Topology> slot_;
};

// The data that both consumers read.
struct TopologyData {
  DataSlot<Topology> topology;
  RequestSlot<PeerEndpoint> peer;

  static TopologyData Declare(PluginBuilder& builder, std::string_view producer) {
    return {builder.Consumes<Topology>(producer),
            builder.ConsumesOfRequest<PeerEndpoint>(kDisaggHandlerType, /*required=*/false)};
  }

  // False when no earlier stage chose an endpoint, or nothing is known of the place of the one chosen.
  bool FindPeer(const Context& context, std::span<const Topology> all, Topology& place) const {
    const PeerEndpoint* chosen = context.data.Read(peer);
    if (chosen == nullptr || chosen->position >= all.size()) return false;
    place = all[chosen->position];
    return CommonLevel(place, place) != TopologyLevel::kNone;
  }
};

// A preference: when it would leave nothing it leaves everything.
class TopologyAffinityFilter final : public Plugin, public Filter {
 public:
  TopologyAffinityFilter(std::string type, std::string name, TopologyData data, TopologyLevel farthest)
      : Plugin(std::move(type), std::move(name)), data_(data), farthest_(farthest) {}

  void Apply(Context& context, std::span<const Position> candidates,
             std::span<DropReason> dropped) const override {
    const std::span<const Topology> all = context.data.Read(data_.topology);
    Topology peer;
    if (!data_.FindPeer(context, all, peer)) return;
    bool any = false;
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      if (CommonLevel(peer, all[candidates[i]]) <= farthest_) {
        any = true;
      } else {
        dropped[i] = "too far from the endpoint of the earlier stage";
      }
    }
    if (!any) std::fill(dropped.begin(), dropped.end(), nullptr);
  }

 private:
  TopologyData data_;
  TopologyLevel farthest_;
};

class TopologyAffinityScorer final : public Plugin, public Scorer {
 public:
  TopologyAffinityScorer(std::string type, std::string name, TopologyData data)
      : Plugin(std::move(type), std::move(name)), data_(data) {}

  void Score(Context& context, std::span<const Position> candidates,
             std::span<double> scores) const override {
    static constexpr double kScores[] = {1.0, 0.2, 0.05, 0.02, 0.0};  // by TopologyLevel
    const std::span<const Topology> all = context.data.Read(data_.topology);
    Topology peer;
    if (!data_.FindPeer(context, all, peer)) return;
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      scores[i] = kScores[static_cast<std::size_t>(CommonLevel(peer, all[candidates[i]]))];
    }
  }

 private:
  TopologyData data_;
};

absl::StatusOr<std::unique_ptr<Plugin>> MakeExtractor(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  const auto label = [&read](std::string_view field, std::string_view otherwise) {
    std::string name;
    read.Optional(field, &name);
    return name.empty() ? std::string(otherwise) : name;
  };
  TopologyExtractor::LabelNames labels;
  labels.hostname = label("hostname", "kubernetes.io/hostname");
  labels.rack = label("rack", "topology.kubernetes.io/rack");
  labels.zone = label("zone", "topology.kubernetes.io/zone");
  labels.region = label("region", "topology.kubernetes.io/region");
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  return std::make_unique<TopologyExtractor>(builder.type(), builder.name(), std::move(labels),
                                             builder.Produces<Topology>());
}

absl::StatusOr<std::unique_ptr<Plugin>> MakeFilter(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  static constexpr std::string_view kLevels[] = {"host", "rack", "zone", "region"};
  std::string level = "host";
  read.Optional("minAffinity", &level);
  const auto* found = std::find(std::begin(kLevels), std::end(kLevels), level);
  if (found == std::end(kLevels)) {
    read.Reject("minAffinity", absl::StrCat("\"", level, "\""), "host, rack, zone or region");
  }
  const std::string producer = ReadProducer(read, "topologyProducerName", kTopologyExtractorType);
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  return std::make_unique<TopologyAffinityFilter>(builder.type(), builder.name(),
                                                  TopologyData::Declare(builder, producer),
                                                  static_cast<TopologyLevel>(found - std::begin(kLevels)));
}

absl::StatusOr<std::unique_ptr<Plugin>> MakeScorer(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  const std::string producer = ReadProducer(read, "topologyProducerName", kTopologyExtractorType);
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  return std::make_unique<TopologyAffinityScorer>(builder.type(), builder.name(),
                                                  TopologyData::Declare(builder, producer));
}

}  // namespace

void RegisterTopology(PluginRegistry& registry) {
  MustRegister(registry, kTopologyExtractorType, MakeExtractor, Stability::kExperimental);
  registry.SetDefaultProducer(Topology::kDataType, kTopologyExtractorType);
  MustRegister(registry, "topology-affinity-filter", MakeFilter, Stability::kExperimental);
  MustRegister(registry, "topology-affinity-scorer", MakeScorer, Stability::kExperimental);
}

}  // namespace llmd::sched
