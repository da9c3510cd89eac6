// Completes and checks the flow control part of a configuration. Private to the component.
#ifndef SRC_SCHED_FLOW_CONTROL_CONFIG_H_
#define SRC_SCHED_FLOW_CONTROL_CONFIG_H_

#include <functional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "llmd/sched/config.h"
#include "llmd/sched/plugin.h"

namespace llmd::sched {

struct PluginAccess {
  std::function<Plugin*(std::string_view name)> find;      // null when unknown
  std::function<absl::Status(std::string_view type)> add;  // under its type as the name
};

// With the feature gate on: names the default policies where none is named, adds those that are absent, and
// refuses names of no plugin or of another kind, repeated priorities and negative durations.
absl::Status CompleteFlowControl(SchedulerConfig& config, const PluginAccess& plugins);

// Whether something is configured that has no effect with the feature gate off.
bool HasFlowControlSettings(const FlowControlConfig& config);

}  // namespace llmd::sched

#endif  // SRC_SCHED_FLOW_CONTROL_CONFIG_H_
