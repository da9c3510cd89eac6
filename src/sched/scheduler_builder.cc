// From a configuration to a scheduler: defaults, plugins, data dependencies, profiles. (spec:
// scheduling.md 1.4, 3.2, 3.3)
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "src/sched/builtin_plugins.h"
#include "src/sched/scheduler_impl.h"

namespace llmd::sched {
namespace {

class Builder {
 public:
  Builder(const PluginRegistry& registry, const Resources& resources, Scheduler::Impl& impl)
      : registry_(registry), resources_(resources), impl_(impl) {}

  absl::Status Build(const SchedulerConfig& config);

 private:
  struct Entry {
    Plugin* plugin;
    std::vector<std::uint32_t> produced;
    std::vector<std::uint32_t> consumed;
  };

  absl::Status AddPlugin(std::string_view type, std::string_view name, const Value& parameters);
  absl::Status AddMissingProducers();
  absl::Status OrderProducers();
  absl::Status ChooseHandler(std::size_t profiles);
  absl::Status AddDefaultPicker(const std::vector<ProfileSpec>& profiles);
  absl::Status AddProfile(const ProfileSpec& spec);

  Plugin* Find(std::string_view name) const {
    for (const Entry& entry : entries_) {
      if (entry.plugin->name() == name) return entry.plugin;
    }
    return nullptr;
  }
  template <typename Kind>
  Plugin* FirstOf() const {
    for (const Entry& entry : entries_) {
      if (dynamic_cast<Kind*>(entry.plugin) != nullptr) return entry.plugin;
    }
    return nullptr;
  }
  const Entry* ProducerOf(std::uint32_t slot) const {
    for (const Entry& entry : entries_) {
      if (std::find(entry.produced.begin(), entry.produced.end(), slot) != entry.produced.end())
        return &entry;
    }
    return nullptr;
  }

  const PluginRegistry& registry_;
  const Resources& resources_;
  Scheduler::Impl& impl_;
  std::vector<Entry> entries_;
};

absl::Status Error(const std::string& message) { return absl::InvalidArgumentError(message); }

absl::Status Builder::Build(const SchedulerConfig& config) {
  for (const PluginSpec& spec : config.plugins) {
    if (absl::Status s = AddPlugin(spec.type, spec.name.empty() ? spec.type : spec.name, spec.parameters);
        !s.ok()) {
      return s;
    }
  }

  std::vector<ProfileSpec> profiles = config.profiles;
  if (profiles.empty()) {
    ProfileSpec all{"default", {}};
    for (const Entry& entry : entries_) {
      if (dynamic_cast<Filter*>(entry.plugin) != nullptr || dynamic_cast<Scorer*>(entry.plugin) != nullptr ||
          dynamic_cast<Picker*>(entry.plugin) != nullptr) {
        all.plugins.push_back({entry.plugin->name(), std::nullopt});
      }
    }
    profiles.push_back(std::move(all));
  }
  if (absl::Status s = ChooseHandler(profiles.size()); !s.ok()) return s;
  if (absl::Status s = AddDefaultPicker(profiles); !s.ok()) return s;
  if (absl::Status s = AddMissingProducers(); !s.ok()) return s;
  if (absl::Status s = OrderProducers(); !s.ok()) return s;
  for (const ProfileSpec& spec : profiles) {
    if (absl::Status s = AddProfile(spec); !s.ok()) return s;
  }
  for (const Entry& entry : entries_) {
    if (auto* pre_request = dynamic_cast<PreRequest*>(entry.plugin))
      impl_.pre_requests.push_back(pre_request);
  }
  return impl_.handler->Bind(impl_.profile_names);
}

absl::Status Builder::AddPlugin(std::string_view type, std::string_view name, const Value& parameters) {
  if (type.empty()) return Error(absl::StrCat("plugin \"", ToAbsl(name), "\" is missing a type"));
  if (Find(name) != nullptr) return Error(absl::StrCat("plugin name \"", ToAbsl(name), "\" is used twice"));
  const PluginRegistry::Factory* factory = registry_.Find(type);
  if (factory == nullptr) return Error(absl::StrCat("plugin type \"", ToAbsl(type), "\" is not registered"));
  PluginBuilder builder(type, name, parameters, resources_, impl_.layout);
  absl::StatusOr<std::unique_ptr<Plugin>> plugin = (*factory)(builder);
  if (!plugin.ok()) return plugin.status();
  if (*plugin == nullptr || (*plugin)->name() != name) {
    return absl::InternalError(
        absl::StrCat("plugin type \"", ToAbsl(type), "\" made a plugin of another name"));
  }
  if (!builder.produced().empty() && dynamic_cast<DataProducer*>(plugin->get()) == nullptr) {
    return absl::InternalError(
        absl::StrCat("plugin \"", ToAbsl(name), "\" declares data and is no producer"));
  }
  entries_.push_back({plugin->get(), builder.produced(), builder.consumed()});
  impl_.plugins.push_back(*std::move(plugin));
  return absl::OkStatus();
}

absl::Status Builder::AddMissingProducers() {
  // Adding a plugin may declare further data, which the loop then reaches.
  for (std::uint32_t slot = 0; slot < impl_.layout.entries().size(); ++slot) {
    const DataLayout::Entry& data = impl_.layout.entries()[slot];
    if (!data.required || ProducerOf(slot) != nullptr) continue;
    const std::string type = data.data_type;
    const std::string producer = data.producer;
    if (registry_.DefaultProducer(type) != producer || Find(producer) != nullptr) {
      return Error(absl::StrCat("no plugin named \"", producer, "\" produces ", type));
    }
    if (absl::Status s = AddPlugin(producer, producer, Value()); !s.ok()) return s;
    if (ProducerOf(slot) == nullptr)
      return Error(absl::StrCat("plugin \"", producer, "\" does not produce ", type));
  }
  for (const std::uint32_t slot : impl_.layout.type_conflicts()) {
    const DataLayout::Entry& data = impl_.layout.entries()[slot];
    return Error(absl::StrCat(data.data_type, " of \"", data.producer, "\" is declared with two types"));
  }
  return absl::OkStatus();
}

absl::Status Builder::OrderProducers() {
  std::vector<const Entry*> waiting;
  for (const Entry& entry : entries_) {
    if (dynamic_cast<DataProducer*>(entry.plugin) != nullptr) waiting.push_back(&entry);
  }
  // Repeatedly takes the first one that waits for no other.
  while (!waiting.empty()) {
    const auto waits = [&](const Entry* entry) {
      return std::any_of(entry->consumed.begin(), entry->consumed.end(), [&](std::uint32_t slot) {
        const Entry* producer = ProducerOf(slot);
        return producer != nullptr && std::find(waiting.begin(), waiting.end(), producer) != waiting.end();
      });
    };
    const auto next = std::find_if_not(waiting.begin(), waiting.end(), waits);
    if (next == waiting.end()) {
      return Error(absl::StrCat("data producers depend on each other in a circle, plugin \"",
                                waiting.front()->plugin->name(), "\" among them"));
    }
    impl_.producers.push_back(dynamic_cast<DataProducer*>((*next)->plugin));
    waiting.erase(next);
  }
  return absl::OkStatus();
}

absl::Status Builder::ChooseHandler(std::size_t profiles) {
  for (const Entry& entry : entries_) {
    auto* handler = dynamic_cast<ProfileHandler*>(entry.plugin);
    if (handler == nullptr) continue;
    if (impl_.handler != nullptr) {
      return Error(
          absl::StrCat("plugin \"", entry.plugin->name(), "\" is a second profile handler, expected one"));
    }
    impl_.handler = handler;
  }
  if (impl_.handler != nullptr) return absl::OkStatus();
  if (profiles > 1) return Error(absl::StrCat("no profile handler for ", profiles, " profiles"));
  if (absl::Status s = AddPlugin(kSingleProfileHandlerType, kSingleProfileHandlerType, Value()); !s.ok())
    return s;
  impl_.handler = dynamic_cast<ProfileHandler*>(entries_.back().plugin);
  return absl::OkStatus();
}

absl::Status Builder::AddDefaultPicker(const std::vector<ProfileSpec>& profiles) {
  if (profiles.empty() || FirstOf<Picker>() != nullptr) return absl::OkStatus();
  return AddPlugin(kMaxScorePickerType, kMaxScorePickerType, Value());
}

absl::Status Builder::AddProfile(const ProfileSpec& spec) {
  const std::vector<std::string>& names = impl_.profile_names;
  if (spec.name.empty()) return Error("a profile is missing a name");
  if (std::find(names.begin(), names.end(), spec.name) != names.end()) {
    return Error(absl::StrCat("profile name \"", spec.name, "\" is used twice"));
  }
  Profile profile(spec.name);
  for (const PluginRef& ref : spec.plugins) {
    const std::string where = absl::StrCat("profile \"", spec.name, "\": plugin \"", ref.plugin, "\"");
    if (ref.plugin.empty())
      return Error(absl::StrCat("profile \"", spec.name, "\": an entry is missing pluginRef"));
    Plugin* plugin = Find(ref.plugin);
    if (plugin == nullptr) return Error(absl::StrCat(where, " is not defined"));
    const auto* filter = dynamic_cast<Filter*>(plugin);
    const auto* scorer = dynamic_cast<Scorer*>(plugin);
    const auto* picker = dynamic_cast<Picker*>(plugin);
    if (filter == nullptr && scorer == nullptr && picker == nullptr) {
      return Error(
          absl::StrCat(where, " is of type ", plugin->type(), ", expected a filter, scorer or picker"));
    }
    const double weight = ref.weight.value_or(1.0);
    if (!std::isfinite(weight))
      return Error(absl::StrCat(where, ": weight is ", weight, ", expected a finite number"));
    if (filter != nullptr) profile.AddFilter(filter, plugin->name());
    if (scorer != nullptr) profile.AddScorer(scorer, plugin->name(), weight);
    if (picker != nullptr) {
      if (profile.has_picker()) return Error(absl::StrCat(where, " is a second picker, expected one"));
      profile.SetPicker(picker);
    }
  }
  if (!profile.has_picker()) profile.SetPicker(dynamic_cast<Picker*>(FirstOf<Picker>()));
  impl_.profile_names.push_back(spec.name);
  impl_.profiles.push_back(std::move(profile));
  return absl::OkStatus();
}

}  // namespace

SchedulerConfig SchedulerConfig::Default() {
  return {.plugins = {{"", "queue-scorer", {}},
                      {"", "kv-cache-utilization-scorer", {}},
                      {"", "prefix-cache-scorer", {}}},
          .profiles = {
              {"default",
               {{"queue-scorer", 2.0}, {"kv-cache-utilization-scorer", 2.0}, {"prefix-cache-scorer", 3.0}}}}};
}

absl::StatusOr<std::unique_ptr<Scheduler>> Scheduler::Create(const SchedulerConfig& config,
                                                             const PluginRegistry& registry,
                                                             const Resources& resources) {
  auto impl = std::make_unique<Impl>();
  if (absl::Status status = Builder(registry, resources, *impl).Build(config); !status.ok()) return status;
  return std::unique_ptr<Scheduler>(new Scheduler(std::move(impl)));
}

}  // namespace llmd::sched
