// Choice among flows: global-strict-fairness-policy, round-robin-fairness-policy. (spec: scheduling.md 2.7)
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "llmd/sched/flow_policy.h"
#include "src/sched/builtin_plugins.h"
#include "src/sched/pairing_heap.h"

namespace llmd::sched {
namespace {

// The best head by the band's ordering policy, as if the flows were one queue.
class GlobalStrictSelector final : public FlowSelector {
 public:
  void Set(const FlowHead& head, absl::Time) override {
    if (head.flow >= nodes_.size()) nodes_.resize(head.flow + std::size_t{1});
    Node& node = nodes_[head.flow];
    if (node.set) Heap().Remove(head.flow);
    node = {head.key, head.sequence, true, {}};
    Heap().Push(head.flow);
  }
  void Clear(std::uint32_t flow, absl::Time) override {
    Heap().Remove(flow);
    nodes_[flow].set = false;
  }
  std::optional<std::uint32_t> Pick(absl::Time) override {
    if (root_ == kNoNode) return std::nullopt;
    return root_;
  }
  std::size_t MemoryBytes() const override { return nodes_.capacity() * sizeof(Node); }

 private:
  struct Node {
    OrderKey key;
    std::uint64_t sequence = 0;
    bool set = false;
    HeapLinks links;
  };
  struct Access {
    std::vector<Node>& nodes;
    HeapLinks& links(std::uint32_t node) const { return nodes[node].links; }
    bool less(std::uint32_t a, std::uint32_t b) const {
      return std::pair(nodes[a].key, nodes[a].sequence) < std::pair(nodes[b].key, nodes[b].sequence);
    }
  };
  PairingHeap<Access> Heap() { return {access_, root_}; }

  std::vector<Node> nodes_;
  std::uint32_t root_ = kNoNode;
  Access access_{nodes_};
};

// One request of each flow in turn, in the order of their ids.
class RoundRobinSelector final : public FlowSelector {
 public:
  void Set(const FlowHead& head, absl::Time) override {
    if (head.flow >= ids_.size()) ids_.resize(head.flow + std::size_t{1});
    if (ids_[head.flow].data() != nullptr) return;
    ids_[head.flow] = head.id;
    if (spare_.empty()) {
      flows_.emplace(head.id, head.flow);
      return;
    }
    Flows::node_type node = std::move(spare_.back());
    spare_.pop_back();
    node.key() = head.id;
    node.mapped() = head.flow;
    flows_.insert(std::move(node));
  }
  void Clear(std::uint32_t flow, absl::Time) override {
    spare_.push_back(flows_.extract(ids_[flow]));
    ids_[flow] = {};
  }
  std::optional<std::uint32_t> Pick(absl::Time) override {
    if (flows_.empty()) return std::nullopt;
    auto next = started_ ? flows_.upper_bound(std::string_view(last_)) : flows_.begin();
    if (next == flows_.end()) next = flows_.begin();
    started_ = true;
    last_ = next->first;
    return next->second;
  }
  std::size_t MemoryBytes() const override {
    return ids_.capacity() * sizeof(std::string_view) + spare_.capacity() * sizeof(Flows::node_type) +
           (flows_.size() + spare_.size()) * (sizeof(Flows::value_type) + kTreeNodeBytes) + last_.capacity();
  }

 private:
  static constexpr std::size_t kTreeNodeBytes = 4 * sizeof(void*);
  using Flows = std::map<std::string_view, std::uint32_t>;

  Flows flows_;                          // those that are set
  std::vector<Flows::node_type> spare_;  // tree nodes to use again
  std::vector<std::string_view> ids_;    // by flow; null when not set
  std::string last_;
  bool started_ = false;
};

template <typename Selector>
class Stateless final : public FairnessState {
 public:
  std::unique_ptr<FlowSelector> NewBand() override { return std::make_unique<Selector>(); }
};

template <typename Selector>
class SelectorPolicy final : public Plugin, public FairnessPolicy {
 public:
  using Plugin::Plugin;
  std::unique_ptr<FairnessState> NewState() const override { return std::make_unique<Stateless<Selector>>(); }
};

template <typename Selector>
absl::StatusOr<std::unique_ptr<Plugin>> Make(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  return std::make_unique<SelectorPolicy<Selector>>(builder.type(), builder.name());
}

}  // namespace

void RegisterFairnessPolicies(PluginRegistry& registry) {
  MustRegister(registry, kGlobalStrictFairnessType, Make<GlobalStrictSelector>);
  MustRegister(registry, "round-robin-fairness-policy", Make<RoundRobinSelector>);
}

}  // namespace llmd::sched
