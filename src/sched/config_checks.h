// Checks and defaults of what a configuration hands to the host: data layer and parsers. Private to the
// component.
#ifndef SRC_SCHED_CONFIG_CHECKS_H_
#define SRC_SCHED_CONFIG_CHECKS_H_

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "llmd/sched/config.h"
#include "llmd/sched/plugin.h"

namespace llmd::sched {

// Completes parsers and data sources; returns the types of plugins that they now refer to. (spec:
// scheduling.md 3.2, items 7 and 9)
std::vector<std::string_view> AddDefaultReferences(SchedulerConfig& config);

// That each reference names a plugin of the right kind. `find` returns null for an unknown name.
absl::Status CheckHostReferences(const SchedulerConfig& config,
                                 const std::function<const Plugin*(std::string_view name)>& find,
                                 const std::function<void(std::string)>& warn);

// "line 12: requestHandler.parsers[0].pluginRef", with `line` where that of the reference is not known, or
// the path alone.
std::string ReferenceText(const SchedulerConfig& config, std::string_view path, std::uint32_t line = 0);

}  // namespace llmd::sched

#endif  // SRC_SCHED_CONFIG_CHECKS_H_
