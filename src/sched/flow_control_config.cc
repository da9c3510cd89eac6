#include "src/sched/flow_control_config.h"

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "llmd/sched/flow_policy.h"
#include "src/sched/builtin_plugins.h"

namespace llmd::sched {
namespace {

// Sets an empty `name` to `default_name`; the plugin must be of the kind. `where` is the field's place.
template <typename Kind>
absl::Status CheckPolicy(const std::string& where, std::string_view kind, std::string_view default_name,
                         const PluginAccess& plugins, std::string& name) {
  if (name.empty()) name = default_name;
  const Plugin* plugin = plugins.find(name);
  const std::string problem = absl::StrCat(where, " is \"", name, "\", expected ");
  if (plugin == nullptr) return absl::InvalidArgumentError(problem + "the name of a plugin");
  if (dynamic_cast<const Kind*>(plugin) == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(problem, ToAbsl(kind), ", not a ", plugin->type()));
  }
  return absl::OkStatus();
}

absl::Status CheckBand(const std::string& where, const PluginAccess& plugins, PriorityBandConfig& band) {
  if (absl::Status s = CheckPolicy<FairnessPolicy>(where + ".fairnessPolicyRef", "a fairness policy",
                                                   kGlobalStrictFairnessType, plugins, band.fairness_policy);
      !s.ok()) {
    return s;
  }
  return CheckPolicy<OrderingPolicy>(where + ".orderingPolicyRef", "an ordering policy", kFcfsOrderingType,
                                     plugins, band.ordering_policy);
}

absl::Status CheckTtl(const std::string& where, std::string_view field, absl::Duration ttl) {
  if (ttl >= absl::ZeroDuration()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(where, ".", ToAbsl(field), " is ", absl::FormatDuration(ttl), ", expected at least 0"));
}

bool IsDefault(const PriorityBandConfig& band) {
  const PriorityBandConfig none;
  return band.max_requests == none.max_requests && band.max_bytes == none.max_bytes &&
         band.fairness_policy.empty() && band.ordering_policy.empty();
}

}  // namespace

std::string DescribePlace(const SourcePlace& place, std::string_view otherwise) {
  if (place.path.empty()) return std::string(otherwise);
  return place.line == 0 ? place.path : absl::StrCat("line ", place.line, ": ", place.path);
}

absl::Status CompleteFlowControl(FlowControlConfig& config, const PluginAccess& plugins) {
  for (const std::string_view type : {kFcfsOrderingType, kGlobalStrictFairnessType, kStaticUsageLimitType}) {
    if (plugins.find(type) != nullptr) continue;
    if (absl::Status s = plugins.add(type); !s.ok()) return s;
  }
  const std::string where = DescribePlace(config.place, "flowControl");
  if (absl::Status s = CheckTtl(where, "defaultRequestTTL", config.default_request_ttl); !s.ok()) return s;
  if (absl::Status s = CheckTtl(where, "noEndpointRequestTTL", config.no_endpoint_request_ttl); !s.ok())
    return s;
  for (std::size_t i = 0; i < config.bands.size(); ++i) {
    PriorityBandConfig& band = config.bands[i];
    const std::string band_where =
        DescribePlace(band.place, absl::StrCat("flowControl.priorityBands[", i, "]"));
    for (std::size_t j = 0; j < i; ++j) {
      if (config.bands[j].priority != band.priority) continue;
      return absl::InvalidArgumentError(
          absl::StrCat(band_where, ".priority is ", band.priority,
                       " like that of another band, expected distinct priorities"));
    }
    if (absl::Status s = CheckBand(band_where, plugins, band); !s.ok()) return s;
  }
  if (absl::Status s = CheckBand(DescribePlace(config.default_band.place, "flowControl.defaultPriorityBand"),
                                 plugins, config.default_band);
      !s.ok()) {
    return s;
  }
  if (config.default_negative_band) {
    PriorityBandConfig& band = *config.default_negative_band;
    const std::string band_where = DescribePlace(band.place, "flowControl.defaultNegativePriorityBand");
    if (absl::Status s = CheckBand(band_where, plugins, band); !s.ok()) return s;
  }
  return CheckPolicy<UsageLimitPolicy>(where + ".usageLimitPolicyPluginRef", "a usage limit policy",
                                       kStaticUsageLimitType, plugins, config.usage_limit_policy);
}

bool HasFlowControlSettings(const FlowControlConfig& config) {
  const FlowControlConfig none;
  return config.max_requests != none.max_requests || config.max_bytes != none.max_bytes ||
         config.default_request_ttl != none.default_request_ttl ||
         config.no_endpoint_request_ttl != none.no_endpoint_request_ttl || !config.bands.empty() ||
         !IsDefault(config.default_band) || config.default_negative_band.has_value() ||
         !config.usage_limit_policy.empty() || config.enable_eviction;
}

}  // namespace llmd::sched
