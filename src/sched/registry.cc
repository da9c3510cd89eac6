#include "llmd/sched/registry.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "src/sched/builtin_plugins.h"

namespace llmd::sched {

const PluginRegistry& PluginRegistry::Builtin() {
  static const PluginRegistry& builtin = *[] {
    auto* registry = new PluginRegistry;
    RegisterLabelFilters(*registry);
    RegisterMetricScorers(*registry);
    RegisterPickers(*registry);
    RegisterPrefixProducers(*registry);
    RegisterPrefixScorer(*registry);
    RegisterProfileHandlers(*registry);
    RegisterRoleFilters(*registry);
    return registry;
  }();
  return builtin;
}

absl::Status PluginRegistry::Register(std::string_view type, Factory factory) {
  if (type.empty()) return absl::InvalidArgumentError("plugin type: name is empty");
  if (!factories_.emplace(std::string(type), std::move(factory)).second) {
    return absl::AlreadyExistsError(absl::StrCat("plugin type ", ToAbsl(type), " is registered already"));
  }
  return absl::OkStatus();
}

void PluginRegistry::SetDefaultProducer(std::string_view data_type, std::string_view type) {
  default_producers_[std::string(data_type)] = std::string(type);
}

const PluginRegistry::Factory* PluginRegistry::Find(std::string_view type) const {
  const auto it = factories_.find(type);
  return it == factories_.end() ? nullptr : &it->second;
}

std::string_view PluginRegistry::DefaultProducer(std::string_view data_type) const {
  const auto it = default_producers_.find(data_type);
  return it == default_producers_.end() ? std::string_view() : it->second;
}

std::vector<std::string> PluginRegistry::Types() const {
  std::vector<std::string> types;
  for (const auto& [type, factory] : factories_) types.push_back(type);
  return types;
}

}  // namespace llmd::sched
