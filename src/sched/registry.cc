#include "llmd/sched/registry.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "src/sched/builtin_plugins.h"

namespace llmd::sched {

const PluginRegistry& PluginRegistry::Builtin() {
  static const PluginRegistry& builtin = *[] {
    auto* registry = new PluginRegistry;
    RegisterAdmitters(*registry);
    RegisterAffinityScorers(*registry);
    RegisterBurstProducer(*registry);
    RegisterConcurrencyDetector(*registry);
    RegisterContextLength(*registry);
    RegisterDeciders(*registry);
    RegisterDisaggHandlers(*registry);
    RegisterEncoderCacheProducer(*registry);
    RegisterEndpointAttribute(*registry);
    RegisterEvictionPolicies(*registry);
    RegisterFairnessPolicies(*registry);
    RegisterHostPlugins(*registry);
    RegisterInFlightProducer(*registry);
    RegisterLabelFilters(*registry);
    RegisterLatencyFilters(*registry);
    RegisterLatencyProducer(*registry);
    RegisterLatencyScorer(*registry);
    RegisterLoadFilters(*registry);
    RegisterLoadScorers(*registry);
    RegisterMetricScorers(*registry);
    RegisterNoHitLruScorer(*registry);
    RegisterOrderingPolicies(*registry);
    RegisterP2pSourceProducer(*registry);
    RegisterPickers(*registry);
    RegisterPreciseProducer(*registry);
    RegisterPrefixProducers(*registry);
    RegisterPrefixScorer(*registry);
    RegisterProfileHandlers(*registry);
    RegisterProgramFairness(*registry);
    RegisterRequestIdentity(*registry);
    RegisterRoleFilters(*registry);
    RegisterSessionAffinity(*registry);
    RegisterTopology(*registry);
    RegisterUsageLimitPolicies(*registry);
    RegisterUtilizationDetector(*registry);
    RegisterMulticlusterAliases(*registry);
    return registry;
  }();
  return builtin;
}

std::vector<std::string> PluginBuilder::NamesOfType(std::string_view type) const {
  std::vector<std::string> names;
  if (environment_.config == nullptr) return names;
  for (const PluginSpec& plugin : environment_.config->plugins) {
    if (plugin.type == type) names.push_back(plugin.name.empty() ? plugin.type : plugin.name);
  }
  return names;
}

absl::Status PluginBuilder::BadReference(std::string_view field, std::string_view plugin,
                                         const absl::Status& error) const {
  ParameterReader read = Read();
  read.Reject(field, absl::StrCat("\"", ToAbsl(plugin), "\""),
              absl::StrCat("the name of a plugin (", error.message(), ")"));
  return read.Complaint();
}

absl::Status PluginBuilder::WrongKind(std::string_view field, const Plugin& plugin) const {
  ParameterReader read = Read();
  read.Reject(field, absl::StrCat("\"", plugin.name(), "\""),
              absl::StrCat("a plugin of another kind than ", plugin.type()));
  return read.Complaint();
}

absl::Status PluginRegistry::Register(std::string_view type, Factory factory, Stability stability,
                                      std::string_view advice) {
  if (type.empty()) return absl::InvalidArgumentError("plugin type: name is empty");
  if (!entries_.emplace(std::string(type), Entry{std::move(factory), stability, std::string(advice)})
           .second) {
    return absl::AlreadyExistsError(absl::StrCat("plugin type ", ToAbsl(type), " is registered already"));
  }
  return absl::OkStatus();
}

void PluginRegistry::SetDefaultProducer(std::string_view data_type, std::string_view type) {
  default_producers_[std::string(data_type)] = std::string(type);
}

const PluginRegistry::Entry* PluginRegistry::Find(std::string_view type) const {
  const auto it = entries_.find(type);
  return it == entries_.end() ? nullptr : &it->second;
}

std::string_view PluginRegistry::DefaultProducer(std::string_view data_type) const {
  const auto it = default_producers_.find(data_type);
  return it == default_producers_.end() ? std::string_view() : it->second;
}

std::vector<std::string> PluginRegistry::Types() const {
  std::vector<std::string> types;
  for (const auto& [type, entry] : entries_) types.push_back(type);
  return types;
}

}  // namespace llmd::sched
