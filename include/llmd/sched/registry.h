// Plugin types by name: how a configuration's "type" and "parameters" become an object.
//
// Builtin() has every type of this library; a host copies it and adds its own:
//
//   PluginRegistry registry = PluginRegistry::Builtin();
//   registry.Register("my-scorer", [](PluginBuilder& b) -> absl::StatusOr<std::unique_ptr<Plugin>> {
//     return std::make_unique<MyScorer>(b.name(), b.Consumes<PrefixMatch>("approx-prefix-cache-producer"));
//   });
//
// A value type; building schedulers from a const registry on several threads is fine.
#ifndef LLMD_SCHED_REGISTRY_H_
#define LLMD_SCHED_REGISTRY_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llmd/sched/compatibility.h"
#include "llmd/sched/config.h"
#include "llmd/sched/data.h"
#include "llmd/sched/latency.h"
#include "llmd/sched/parameters.h"
#include "llmd/sched/plugin.h"
#include "llmd/sched/plugin_states.h"
#include "llmd/sched/prefix.h"

namespace llmd::sched {

// What the host lends to plugins.
struct Resources {
  std::vector<PrefixSourceIndex> prefix_sources = {};  // by PrefixSource; entries may be empty
  std::shared_ptr<PluginStates> states = {};           // null: a scheduler has its own
  LatencyPredictor latency_predictor = {};             // of predicted-latency-producer; may be empty
};

// What a scheduler under construction offers to factories.
struct PluginEnvironment {
  const Resources& resources;
  DataLayout& layout;
  PluginStates& states;
  const Compatibility& compatibility;
  // A plugin of the same configuration by name, made on the spot if need be. NotFound for an unknown name.
  std::function<absl::StatusOr<Plugin*>(std::string_view name)> find_plugin;
  std::function<void(std::string warning)> warn;
  const SchedulerConfig* config = nullptr;  // null for a plugin made by itself
};

// What a factory may use.
class PluginBuilder {
 public:
  PluginBuilder(const PluginSpec& spec, PluginEnvironment& environment)
      : spec_(spec), environment_(environment) {}

  const std::string& type() const { return spec_.type; }
  const std::string& name() const { return spec_.name.empty() ? spec_.type : spec_.name; }
  const Value& parameters() const { return spec_.parameters; }
  // Reads the parameters; complaints name the place in the file, or the plugin.
  ParameterReader Read() const {
    return spec_.place.path.empty() ? ParameterReader(name(), spec_.parameters)
                                    : ParameterReader::At(spec_.place.path + ".parameters", spec_.parameters);
  }
  const Resources& resources() const { return environment_.resources; }
  const Compatibility& compatibility() const { return environment_.compatibility; }
  void Warn(std::string warning) { environment_.warn(std::move(warning)); }
  // What the plugin is a part of, for advice and defaults that depend on it: plugins as given (plus those
  // added so far), profiles as given. Null for a plugin made by itself.
  const SchedulerConfig* config() const { return environment_.config; }

  // The plugin publishes T under its own name, for every endpoint or for the request.
  template <typename T>
  DataSlot<T> Produces() {
    return {Produced(environment_.layout.Declare<T>(name()).index)};
  }
  template <typename T>
  RequestSlot<T> ProducesForRequest() {
    return {Produced(environment_.layout.DeclareForRequest<T>(name()).index)};
  }
  // The plugin reads T of the plugin named `producer`. A required one must exist or have a default.
  template <typename T>
  DataSlot<T> Consumes(std::string_view producer, bool required = true) {
    return {Consumed(environment_.layout.Declare<T>(producer).index, required)};
  }
  template <typename T>
  RequestSlot<T> ConsumesOfRequest(std::string_view producer, bool required = true) {
    return {Consumed(environment_.layout.DeclareForRequest<T>(producer).index, required)};
  }

  // The plugin of that name, which must be of this kind. `field` is the parameter that names it.
  template <typename Kind>
  absl::StatusOr<Kind*> Reference(std::string_view field, std::string_view plugin) {
    absl::StatusOr<Plugin*> found = environment_.find_plugin(plugin);
    if (!found.ok()) return BadReference(field, plugin, found.status());
    Kind* kind = dynamic_cast<Kind*>(*found);
    if (kind == nullptr) return WrongKind(field, **found);
    return kind;
  }

  // The plugins of that type in the configuration.
  std::vector<std::string> NamesOfType(std::string_view type) const;

  // Memory kept under a plugin's name beyond the scheduler's life; T is made with `args` at first.
  template <typename T, typename... Args>
  std::shared_ptr<T> State(std::string_view plugin, const Args&... args) {
    return environment_.states.GetOrMake<T>(plugin, [&] { return std::make_shared<T>(args...); });
  }

  const std::vector<std::uint32_t>& produced() const { return produced_; }
  const std::vector<std::uint32_t>& consumed() const { return consumed_; }

 private:
  std::uint32_t Produced(std::uint32_t slot) {
    produced_.push_back(slot);
    return slot;
  }
  std::uint32_t Consumed(std::uint32_t slot, bool required) {
    if (required) environment_.layout.entries()[slot].required = true;
    consumed_.push_back(slot);
    return slot;
  }
  absl::Status BadReference(std::string_view field, std::string_view plugin, const absl::Status& error) const;
  absl::Status WrongKind(std::string_view field, const Plugin& plugin) const;

  const PluginSpec& spec_;
  PluginEnvironment& environment_;
  std::vector<std::uint32_t> produced_;
  std::vector<std::uint32_t> consumed_;
};

// How far a plugin type is to be trusted, as llm-d grades it.
enum class Stability : std::uint8_t {
  kStable,
  kExperimental,  // refused unless SchedulerConfig::allow_experimental
  kDeprecated,    // accepted with a warning
};

class PluginRegistry {
 public:
  using Factory = std::function<absl::StatusOr<std::unique_ptr<Plugin>>(PluginBuilder&)>;

  // Every type of this library.
  static const PluginRegistry& Builtin();

  struct Entry {
    Factory factory;
    Stability stability = Stability::kStable;
    std::string advice = {};  // of a deprecated type: what to use instead
  };

  // AlreadyExists for a known type name, InvalidArgument for an empty one.
  absl::Status Register(std::string_view type, Factory factory, Stability stability = Stability::kStable,
                        std::string_view advice = {});
  // `type` is created, without parameters and under its type name, when some plugin requires `data_type` of a
  // producer of that name and none is configured.
  void SetDefaultProducer(std::string_view data_type, std::string_view type);

  // Null when unknown.
  const Entry* Find(std::string_view type) const;
  // Empty when there is none.
  std::string_view DefaultProducer(std::string_view data_type) const;
  std::vector<std::string> Types() const;

 private:
  std::map<std::string, Entry, std::less<>> entries_;
  std::map<std::string, std::string, std::less<>> default_producers_;
};

}  // namespace llmd::sched

#endif  // LLMD_SCHED_REGISTRY_H_
