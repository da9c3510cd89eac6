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

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llmd/sched/data.h"
#include "llmd/sched/parameters.h"
#include "llmd/sched/plugin.h"
#include "llmd/sched/prefix.h"

namespace llmd::sched {

// What the host lends to plugins.
struct Resources {
  std::vector<PrefixSourceIndex> prefix_sources;  // by PrefixSource; entries may be empty
};

// What a factory may use.
class PluginBuilder {
 public:
  PluginBuilder(std::string_view type, std::string_view name, const Value& parameters,
                const Resources& resources, DataLayout& layout)
      : type_(type), name_(name), parameters_(parameters), resources_(resources), layout_(layout) {}

  std::string type() const { return std::string(type_); }
  std::string name() const { return std::string(name_); }
  const Value& parameters() const { return parameters_; }
  const Resources& resources() const { return resources_; }

  // The plugin publishes T under its own name.
  template <typename T>
  DataSlot<T> Produces() {
    DataSlot<T> slot = layout_.Declare<T>(name_);
    produced_.push_back(slot.index);
    return slot;
  }
  // The plugin reads T of the plugin named `producer`. A required one must exist or have a default.
  template <typename T>
  DataSlot<T> Consumes(std::string_view producer, bool required = true) {
    DataSlot<T> slot = layout_.Declare<T>(producer);
    if (required) layout_.entries()[slot.index].required = true;
    consumed_.push_back(slot.index);
    return slot;
  }

  const std::vector<std::uint32_t>& produced() const { return produced_; }
  const std::vector<std::uint32_t>& consumed() const { return consumed_; }

 private:
  std::string_view type_;
  std::string_view name_;
  const Value& parameters_;
  const Resources& resources_;
  DataLayout& layout_;
  std::vector<std::uint32_t> produced_;
  std::vector<std::uint32_t> consumed_;
};

class PluginRegistry {
 public:
  using Factory = std::function<absl::StatusOr<std::unique_ptr<Plugin>>(PluginBuilder&)>;

  // Every type of this library.
  static const PluginRegistry& Builtin();

  // AlreadyExists for a known type name, InvalidArgument for an empty one.
  absl::Status Register(std::string_view type, Factory factory);
  // `type` is created, without parameters and under its type name, when some plugin requires `data_type` of a
  // producer of that name and none is configured.
  void SetDefaultProducer(std::string_view data_type, std::string_view type);

  // Null when unknown.
  const Factory* Find(std::string_view type) const;
  // Empty when there is none.
  std::string_view DefaultProducer(std::string_view data_type) const;
  std::vector<std::string> Types() const;

 private:
  std::map<std::string, Factory, std::less<>> factories_;
  std::map<std::string, std::string, std::less<>> default_producers_;
};

}  // namespace llmd::sched

#endif  // LLMD_SCHED_REGISTRY_H_
