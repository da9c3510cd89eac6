// Plugin types that the host carries out. Private to the component.
#ifndef SRC_SCHED_HOST_PLUGINS_H_
#define SRC_SCHED_HOST_PLUGINS_H_

#include <memory>

#include "absl/status/statusor.h"
#include "llmd/sched/registry.h"

namespace llmd::sched {

inline std::unique_ptr<Plugin> MakeHostPlugin(const PluginBuilder& builder, HostPlugin::Kind kind) {
  return std::make_unique<HostPlugin>(builder.type(), builder.name(), kind, builder.parameters());
}

absl::StatusOr<std::unique_ptr<Plugin>> MakeMetricsExtractor(PluginBuilder& builder);

}  // namespace llmd::sched

#endif  // SRC_SCHED_HOST_PLUGINS_H_
