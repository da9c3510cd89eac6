// From a configuration to a scheduler: defaults, plugins, data dependencies, profiles. (spec:
// scheduling.md 1.4, 3.2, 3.3)
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "src/sched/builtin_plugins.h"
#include "src/sched/config_checks.h"
#include "src/sched/config_text.h"
#include "src/sched/flow_control_config.h"
#include "src/sched/scheduler_impl.h"

namespace llmd::sched {
namespace {

absl::Status Error(const std::string& message) { return absl::InvalidArgumentError(message); }

// A complaint about what stands at `place`, which is named unless the complaint names one.
absl::Status Placed(const absl::Status& status, const SourcePlace& place) {
  if (place.path.empty() || absl::StartsWith(status.message(), "line ")) return status;
  return absl::Status(status.code(), absl::StrCat(PlaceText(place), ": ", status.message()));
}

class Builder {
 public:
  Builder(const PluginRegistry& registry, const Resources& resources, Scheduler::Impl& impl)
      : registry_(registry),
        environment_{resources,
                     impl.layout,
                     *impl.states,
                     impl.config.compatibility,
                     [this](std::string_view name) { return FindOrMake(name); },
                     [&impl](std::string warning) { impl.warnings.push_back(std::move(warning)); },
                     &impl.config},
        impl_(impl) {}

  absl::Status Build();

 private:
  struct Entry {
    enum class State { kPending, kBeingMade, kMade };

    State state = State::kPending;
    Plugin* plugin = nullptr;
    std::vector<std::uint32_t> produced;
    std::vector<std::uint32_t> consumed;
  };

  absl::Status CheckNames();
  absl::Status MakePlugins();
  absl::Status Make(std::size_t index);
  absl::StatusOr<Plugin*> FindOrMake(std::string_view name);
  // A plugin that is not in the configuration; it has the type as its name.
  absl::Status AddPlugin(std::string_view type);
  void AddDefaultProfile();
  absl::Status AddMissingProducers();
  absl::Status OrderProducers();
  absl::Status ChooseHandler();
  absl::Status AddDefaultPicker();
  absl::Status ChooseDetector();
  absl::Status AddHostDefaults();
  absl::Status CheckReferences();
  absl::Status ChooseFlowPolicies();
  absl::Status BindHandler();
  absl::Status AddProfile(ProfileSpec& spec);

  // One for each of entries_; not to be kept by reference while another may be added.
  std::vector<PluginSpec>& specs() { return impl_.config.plugins; }
  Plugin* Find(std::string_view name) const {
    for (const Entry& entry : entries_) {
      if (entry.plugin != nullptr && entry.plugin->name() == name) return entry.plugin;
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

  // Where the first plugin stands that reads the slot.
  SourcePlace ConsumerOf(std::uint32_t slot) const {
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      const std::vector<std::uint32_t>& consumed = entries_[i].consumed;
      if (std::find(consumed.begin(), consumed.end(), slot) != consumed.end()) {
        return impl_.config.plugins[i].place;
      }
    }
    return {};
  }

  const PluginRegistry& registry_;
  PluginEnvironment environment_;
  Scheduler::Impl& impl_;
  std::vector<Entry> entries_;
};

absl::Status Builder::Build() {
  if (absl::Status s = CheckNames(); !s.ok()) return s;
  if (absl::Status s = MakePlugins(); !s.ok()) return s;
  AddDefaultProfile();
  if (absl::Status s = ChooseHandler(); !s.ok()) return s;
  if (absl::Status s = AddDefaultPicker(); !s.ok()) return s;
  if (absl::Status s = ChooseDetector(); !s.ok()) return s;
  if (absl::Status s = AddHostDefaults(); !s.ok()) return s;
  if (absl::Status s = CheckReferences(); !s.ok()) return s;
  if (absl::Status s = ChooseFlowPolicies(); !s.ok()) return s;
  impl_.default_prefix = impl_.layout.Declare<PrefixMatch>(kApproxProducerType);
  if (absl::Status s = AddMissingProducers(); !s.ok()) return s;
  if (absl::Status s = OrderProducers(); !s.ok()) return s;
  for (ProfileSpec& spec : impl_.config.profiles) {
    if (absl::Status s = AddProfile(spec); !s.ok()) return s;
  }
  for (const Entry& entry : entries_) {
    if (auto* hook = dynamic_cast<PreRequest*>(entry.plugin)) impl_.pre_requests.push_back(hook);
    if (auto* admitter = dynamic_cast<Admitter*>(entry.plugin)) {
      impl_.admitters.push_back({admitter, entry.plugin->name()});
    }
    if (auto* agent = dynamic_cast<AgentIdentity*>(entry.plugin)) impl_.agent_identities.push_back(agent);
  }
  return BindHandler();
}

absl::Status Builder::CheckNames() {
  for (std::size_t i = 0; i < specs().size(); ++i) {
    PluginSpec& spec = specs()[i];
    if (spec.type.empty()) {
      return Error(absl::StrCat(PlaceText(spec.place, absl::StrCat("plugin \"", spec.name, "\"")),
                                " is missing a type, expected a plugin type"));
    }
    if (spec.name.empty()) spec.name = spec.type;
    for (std::size_t j = 0; j < i; ++j) {
      if (specs()[j].name != spec.name) continue;
      return Error(absl::StrCat(PlaceText(spec.place, "plugins"), ": plugin name \"", spec.name,
                                "\" is used twice, expected distinct names"));
    }
  }
  return absl::OkStatus();
}

absl::Status Builder::MakePlugins() {
  entries_.resize(specs().size());
  for (std::size_t i = 0; i < specs().size(); ++i) {
    if (entries_[i].state == Entry::State::kMade) continue;
    if (absl::Status s = Make(i); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status Builder::Make(std::size_t index) {
  const PluginSpec spec = specs()[index];
  const auto where = [&spec] {
    return PlaceText(spec.place,
                     spec.name == spec.type ? "plugin" : absl::StrCat("plugin \"", spec.name, "\""));
  };
  const PluginRegistry::Entry* type = registry_.Find(spec.type);
  if (type == nullptr) {
    return Error(
        absl::StrCat(where(), ": type \"", spec.type, "\" is not registered, expected a plugin type"));
  }
  if (type->stability == Stability::kExperimental && !impl_.config.allow_experimental) {
    return Error(
        absl::StrCat(where(), ": type \"", spec.type,
                     "\" is experimental, expected one that is not, or experimental plugins allowed"));
  }
  if (type->stability == Stability::kDeprecated) {
    environment_.warn(absl::StrCat(where(), ": type \"", spec.type, "\" is deprecated",
                                   type->advice.empty() ? "" : ", use ", type->advice));
  }
  entries_[index].state = Entry::State::kBeingMade;
  PluginBuilder builder(spec, environment_);
  absl::StatusOr<std::unique_ptr<Plugin>> plugin = type->factory(builder);
  if (!plugin.ok()) return Placed(plugin.status(), spec.place);
  if (*plugin == nullptr || (*plugin)->name() != spec.name) {
    return absl::InternalError(absl::StrCat("plugin type \"", spec.type, "\" made a plugin of another name"));
  }
  const bool may_produce = dynamic_cast<DataProducer*>(plugin->get()) != nullptr ||
                           dynamic_cast<ProfileHandler*>(plugin->get()) != nullptr;
  if (!builder.produced().empty() && !may_produce) {
    return absl::InternalError(absl::StrCat("plugin \"", spec.name, "\" declares data and is no producer"));
  }
  entries_[index] = {Entry::State::kMade, plugin->get(), builder.produced(), builder.consumed()};
  impl_.plugins.push_back(*std::move(plugin));
  return absl::OkStatus();
}

absl::StatusOr<Plugin*> Builder::FindOrMake(std::string_view name) {
  for (std::size_t i = 0; i < specs().size(); ++i) {
    if (specs()[i].name != name) continue;
    if (entries_[i].state == Entry::State::kBeingMade)
      return Error("plugins refer to each other in a circle");
    if (entries_[i].state == Entry::State::kPending) {
      if (absl::Status s = Make(i); !s.ok()) return s;
    }
    return entries_[i].plugin;
  }
  return absl::NotFoundError("no such plugin");
}

absl::Status Builder::AddPlugin(std::string_view type) {
  specs().push_back({.name = std::string(type), .type = std::string(type)});
  entries_.emplace_back();
  return Make(entries_.size() - 1);
}

void Builder::AddDefaultProfile() {
  if (!impl_.config.profiles.empty()) return;
  ProfileSpec all{"default", {}};
  for (const Entry& entry : entries_) {
    if (dynamic_cast<Filter*>(entry.plugin) != nullptr || dynamic_cast<Scorer*>(entry.plugin) != nullptr ||
        dynamic_cast<Picker*>(entry.plugin) != nullptr) {
      all.plugins.push_back({.plugin = entry.plugin->name()});
    }
  }
  impl_.config.profiles.push_back(std::move(all));
}

absl::Status Builder::AddMissingProducers() {
  // Adding a plugin may declare further data, which the loop then reaches.
  for (std::uint32_t slot = 0; slot < impl_.layout.entries().size(); ++slot) {
    const DataLayout::Entry& data = impl_.layout.entries()[slot];
    if (absl::c_linear_search(impl_.layout.type_conflicts(), slot)) {
      return Placed(
          Error(absl::StrCat(data.data_type, " of \"", data.producer,
                             "\" is declared with two types, or both for endpoints and for the request")),
          ConsumerOf(slot));
    }
    if (!data.required || ProducerOf(slot) != nullptr) continue;
    const std::string type = data.data_type;
    const std::string producer = data.producer;
    if (registry_.DefaultProducer(type) != producer || Find(producer) != nullptr) {
      return Placed(Error(absl::StrCat("no plugin named \"", producer, "\" produces ", type,
                                       ", expected the name of one that does")),
                    ConsumerOf(slot));
    }
    if (absl::Status s = AddPlugin(producer); !s.ok()) return s;
    if (ProducerOf(slot) == nullptr)
      return Error(absl::StrCat("plugin \"", producer, "\" does not produce ", type));
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
      const Entry* first = waiting.front();
      return Placed(Error(absl::StrCat("data producers depend on each other in a circle, plugin \"",
                                       first->plugin->name(), "\" among them")),
                    impl_.config.plugins[static_cast<std::size_t>(first - entries_.data())].place);
    }
    impl_.producers.push_back({dynamic_cast<DataProducer*>((*next)->plugin), (*next)->plugin->name()});
    waiting.erase(next);
  }
  return absl::OkStatus();
}

absl::Status Builder::ChooseHandler() {
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    auto* handler = dynamic_cast<ProfileHandler*>(entries_[i].plugin);
    if (handler == nullptr) continue;
    if (impl_.handler != nullptr) {
      return Error(absl::StrCat(PlaceText(specs()[i].place, "plugins"), ": plugin \"", specs()[i].name,
                                "\" is a second profile handler, expected one"));
    }
    impl_.handler = handler;
  }
  if (impl_.handler != nullptr) return absl::OkStatus();
  const std::size_t profiles = impl_.config.profiles.size();
  if (profiles > 1) {
    return Placed(
        Error(absl::StrCat("plugins: no profile handler, expected one for ", profiles, " profiles")),
        impl_.config.profiles[1].place);
  }
  if (absl::Status s = AddPlugin(kSingleProfileHandlerType); !s.ok()) return s;
  impl_.handler = dynamic_cast<ProfileHandler*>(entries_.back().plugin);
  return absl::OkStatus();
}

absl::Status Builder::AddDefaultPicker() {
  return FirstOf<Picker>() != nullptr ? absl::OkStatus() : AddPlugin(kMaxScorePickerType);
}

absl::Status Builder::ChooseDetector() {
  FlowControlConfig& flow = impl_.config.flow_control;
  const bool named = !flow.saturation_detector.empty();
  if (!named) flow.saturation_detector = kUtilizationDetectorType;
  Plugin* plugin = Find(flow.saturation_detector);
  if (plugin == nullptr && flow.saturation_detector == kUtilizationDetectorType) {
    if (absl::Status s = AddPlugin(kUtilizationDetectorType); !s.ok()) return s;
    plugin = entries_.back().plugin;
  }
  const std::string where = ReferenceText(impl_.config, "flowControl.saturationDetector.pluginRef");
  if (plugin == nullptr) {
    return Error(
        absl::StrCat(where, " is \"", flow.saturation_detector, "\", expected the name of a plugin"));
  }
  impl_.detector = dynamic_cast<SaturationDetector*>(plugin);
  if (impl_.detector == nullptr) {
    return Error(absl::StrCat(where, " is \"", flow.saturation_detector,
                              "\", expected a saturation detector, not a ", plugin->type()));
  }
  return absl::OkStatus();
}

absl::Status Builder::ChooseFlowPolicies() {
  if (impl_.config.feature_gates.flow_control) {
    return CompleteFlowControl(impl_.config,
                               {.find = [this](std::string_view name) { return Find(name); },
                                .add = [this](std::string_view type) { return AddPlugin(type); }});
  }
  const FlowControlConfig& flow = impl_.config.flow_control;
  if (HasFlowControlSettings(flow)) {
    environment_.warn(PlaceText(flow.place, "flowControl") +
                      " has settings without effect: the feature gate flowControl is off");
  }
  return absl::OkStatus();
}

absl::Status Builder::AddHostDefaults() {
  for (const std::string_view type : AddDefaultReferences(impl_.config)) {
    if (Find(type) != nullptr) continue;
    if (absl::Status s = AddPlugin(type); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status Builder::CheckReferences() {
  return CheckHostReferences(
      impl_.config, [this](std::string_view name) { return static_cast<const Plugin*>(Find(name)); },
      environment_.warn);
}

absl::Status Builder::BindHandler() {
  absl::Status status = impl_.handler->Bind(impl_.profile_names);
  if (status.ok()) return status;
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    if (dynamic_cast<ProfileHandler*>(entries_[i].plugin) == impl_.handler)
      return Placed(status, specs()[i].place);
  }
  return status;
}

absl::Status Builder::AddProfile(ProfileSpec& spec) {
  const std::vector<std::string>& names = impl_.profile_names;
  if (spec.name.empty()) {
    return Error(absl::StrCat(PlaceText(spec.place, "a profile"), " is missing a name, expected one"));
  }
  if (std::find(names.begin(), names.end(), spec.name) != names.end()) {
    return Error(absl::StrCat(PlaceText(spec.place, "profiles"), ": profile name \"", spec.name,
                              "\" is used twice, expected distinct names"));
  }
  Profile profile(spec.name);
  for (PluginRef& ref : spec.plugins) {
    const std::string where = PlaceText(ref.place, absl::StrCat("profile \"", spec.name, "\""));
    if (ref.plugin.empty()) return Error(where + " is missing pluginRef, expected a plugin's name");
    Plugin* plugin = Find(ref.plugin);
    if (plugin == nullptr) {
      return Error(
          absl::StrCat(where, ": plugin \"", ref.plugin, "\" is not defined, expected the name of a plugin"));
    }
    const auto* filter = dynamic_cast<Filter*>(plugin);
    const auto* scorer = dynamic_cast<Scorer*>(plugin);
    const auto* picker = dynamic_cast<Picker*>(plugin);
    if (filter == nullptr && scorer == nullptr && picker == nullptr) {
      return Error(absl::StrCat(where, ": plugin \"", ref.plugin, "\" is of type ", plugin->type(),
                                ", expected a filter, scorer or picker"));
    }
    const double weight = ref.weight.value_or(1.0);
    if (!std::isfinite(weight)) {
      return Error(
          absl::StrCat(where, ": weight of \"", ref.plugin, "\" is ", weight, ", expected a finite number"));
    }
    const bool remembers = dynamic_cast<PreRequest*>(plugin) != nullptr;
    if (filter != nullptr) profile.AddFilter(filter, plugin->name(), remembers);
    if (scorer != nullptr) {
      profile.AddScorer(scorer, plugin->name(), weight, remembers);
      ref.weight = weight;
    }
    if (picker != nullptr) {
      if (profile.has_picker()) {
        return Error(absl::StrCat(where, ": plugin \"", ref.plugin, "\" is a second picker, expected one"));
      }
      profile.SetPicker(picker);
    }
  }
  if (!profile.has_picker()) {
    Plugin* picker = FirstOf<Picker>();
    profile.SetPicker(dynamic_cast<Picker*>(picker));
    spec.plugins.push_back({.plugin = picker->name()});
  }
  impl_.profile_names.push_back(spec.name);
  impl_.profiles.push_back(std::move(profile));
  return absl::OkStatus();
}

}  // namespace

SchedulerConfig SchedulerConfig::Default() {
  return {.plugins = {{.type = "queue-scorer"},
                      {.type = "kv-cache-utilization-scorer"},
                      {.type = "prefix-cache-scorer"}},
          .profiles = {
              {"default",
               {{"queue-scorer", 2.0}, {"kv-cache-utilization-scorer", 2.0}, {"prefix-cache-scorer", 3.0}}}}};
}

absl::StatusOr<std::unique_ptr<Scheduler>> Scheduler::Create(const SchedulerConfig& config,
                                                             const PluginRegistry& registry,
                                                             const Resources& resources) {
  auto impl = std::make_unique<Impl>();
  impl->config = config;
  impl->states = resources.states != nullptr ? resources.states : std::make_shared<PluginStates>();
  if (absl::Status status = Builder(registry, resources, *impl).Build(); !status.ok()) {
    if (config.source.empty()) return status;
    return WithSource(status, config.source);
  }
  return std::unique_ptr<Scheduler>(new Scheduler(std::move(impl)));
}

}  // namespace llmd::sched
