#include "src/sched/flow_control_config.h"

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "llmd/sched/flow_policy.h"
#include "src/sched/builtin_plugins.h"
#include "src/sched/config_checks.h"
#include "src/sched/config_text.h"

namespace llmd::sched {
namespace {

// Checks names of policies and sets those that are empty.
class PolicyNames {
 public:
  PolicyNames(const SchedulerConfig& config, const PluginAccess& plugins)
      : config_(config), plugins_(plugins) {}

  template <typename Kind>
  absl::Status Check(const std::string& path, std::uint32_t line, std::string_view kind,
                     std::string_view default_name, std::string& name) const {
    if (name.empty()) name = default_name;
    const Plugin* plugin = plugins_.find(name);
    const std::string problem =
        absl::StrCat(ReferenceText(config_, path, line), " is \"", name, "\", expected ");
    if (plugin == nullptr) return absl::InvalidArgumentError(problem + "the name of a plugin");
    if (dynamic_cast<const Kind*>(plugin) == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(problem, ToAbsl(kind), ", not a ", plugin->type()));
    }
    return absl::OkStatus();
  }

  absl::Status CheckBand(const std::string& path, PriorityBandConfig& band) const {
    absl::Status status =
        Check<FairnessPolicy>(path + ".fairnessPolicyRef", band.place.line, "a fairness policy",
                              kGlobalStrictFairnessType, band.fairness_policy);
    if (!status.ok()) return status;
    return Check<OrderingPolicy>(path + ".orderingPolicyRef", band.place.line, "an ordering policy",
                                 kFcfsOrderingType, band.ordering_policy);
  }

 private:
  const SchedulerConfig& config_;
  const PluginAccess& plugins_;
};

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

absl::Status CompleteFlowControl(SchedulerConfig& config, const PluginAccess& plugins) {
  for (const std::string_view type : {kFcfsOrderingType, kGlobalStrictFairnessType, kStaticUsageLimitType}) {
    if (plugins.find(type) != nullptr) continue;
    if (absl::Status s = plugins.add(type); !s.ok()) return s;
  }
  FlowControlConfig& flow = config.flow_control;
  const std::string where = PlaceText(flow.place, "flowControl");
  if (absl::Status s = CheckTtl(where, "defaultRequestTTL", flow.default_request_ttl); !s.ok()) return s;
  if (absl::Status s = CheckTtl(where, "noEndpointRequestTTL", flow.no_endpoint_request_ttl); !s.ok())
    return s;
  const PolicyNames names(config, plugins);
  for (std::size_t i = 0; i < flow.bands.size(); ++i) {
    PriorityBandConfig& band = flow.bands[i];
    const std::string path = absl::StrCat("flowControl.priorityBands[", i, "]");
    for (std::size_t j = 0; j < i; ++j) {
      if (flow.bands[j].priority != band.priority) continue;
      return absl::InvalidArgumentError(
          absl::StrCat(PlaceText(band.place, path), ".priority is ", band.priority,
                       " like that of another band, expected distinct priorities"));
    }
    if (absl::Status s = names.CheckBand(path, band); !s.ok()) return s;
  }
  if (absl::Status s = names.CheckBand("flowControl.defaultPriorityBand", flow.default_band); !s.ok())
    return s;
  if (flow.default_negative_band) {
    absl::Status s = names.CheckBand("flowControl.defaultNegativePriorityBand", *flow.default_negative_band);
    if (!s.ok()) return s;
  }
  return names.Check<UsageLimitPolicy>("flowControl.usageLimitPolicyPluginRef", flow.place.line,
                                       "a usage limit policy", kStaticUsageLimitType,
                                       flow.usage_limit_policy);
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
