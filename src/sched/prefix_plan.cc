#include "llmd/sched/prefix_plan.h"

#include <string>
#include <utility>

namespace llmd::sched {

absl::StatusOr<PrefixPlan> PrefixPlan::From(const SchedulerConfig& config) {
  PrefixPlan plan;
  for (const PluginSpec& plugin : config.plugins) {
    const std::string& name = plugin.name.empty() ? plugin.type : plugin.name;
    if (plugin.type == "precise-prefix-cache-producer") {
      absl::StatusOr<PreciseOptions> options = ParsePreciseOptions(name, plugin.parameters);
      if (!options.ok()) return options.status();
      plan.precise = *std::move(options);
    } else if (plugin.type == "approx-prefix-cache-producer") {
      absl::StatusOr<ApproxPrefixOptions> options = ParseApproxPrefixOptions(name, plugin.parameters);
      if (!options.ok()) return options.status();
      plan.approx = *options;
    }
  }
  return plan;
}

}  // namespace llmd::sched
