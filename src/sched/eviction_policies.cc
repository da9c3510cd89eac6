// sheddable-eviction-filter, priority-then-time-eviction-order-policy. (spec: scheduling.md 2.7)
#include "src/sched/eviction_policies.h"

#include <memory>

#include "src/sched/builtin_plugins.h"

namespace llmd::sched {
namespace {

class SheddableFilterPlugin final : public Plugin, public SheddableFilter {
 public:
  using Plugin::Plugin;
};

class PriorityThenTimePlugin final : public Plugin, public PriorityThenTimeOrder {
 public:
  using Plugin::Plugin;
};

template <typename PluginType>
absl::StatusOr<std::unique_ptr<Plugin>> Make(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  return std::make_unique<PluginType>(builder.type(), builder.name());
}

}  // namespace

void RegisterEvictionPolicies(PluginRegistry& registry) {
  MustRegister(registry, "sheddable-eviction-filter", Make<SheddableFilterPlugin>, Stability::kExperimental);
  MustRegister(registry, "priority-then-time-eviction-order-policy", Make<PriorityThenTimePlugin>,
               Stability::kExperimental);
}

}  // namespace llmd::sched
