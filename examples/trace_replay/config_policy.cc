#include "examples/trace_replay/config_policy.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <sstream>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "examples/trace_replay/simulation.h"
#include "llmd/base/strings.h"
#include "llmd/sched/prefix.h"

namespace llmd::replay {
namespace {

using sched::Value;

// A stand-in for the library's reader: plugins and schedulingProfiles, nothing else.
Value ToValue(const YAML::Node& node) {
  if (node.IsMap()) {
    Value::Map map;
    for (const auto& field : node) map.emplace_back(field.first.as<std::string>(), ToValue(field.second));
    return Value::MakeMap(std::move(map));
  }
  if (node.IsSequence()) {
    Value::List list;
    for (const auto& element : node) list.push_back(ToValue(element));
    return Value::MakeList(std::move(list));
  }
  if (!node.IsScalar()) return {};
  const std::string text = node.Scalar();
  if (node.Tag() == "!") return text;  // quoted
  std::int64_t integer = 0;
  double number = 0;
  if (text == "true" || text == "false") return text == "true";
  if (absl::SimpleAtoi(text, &integer)) return integer;
  if (absl::SimpleAtod(text, &number)) return number;
  return text;
}

std::string ValueText(const Value& value) {
  if (const bool* b = value.AsBool()) return *b ? "true" : "false";
  if (const std::int64_t* i = value.AsInt()) return absl::StrCat(*i);
  if (const double* d = value.AsDouble()) return absl::StrCat(*d);
  if (const std::string* s = value.AsString()) return *s;
  std::vector<std::string> parts;
  if (const Value::List* list = value.AsList()) {
    for (const Value& element : *list) parts.push_back(ValueText(element));
    return absl::StrCat("[", absl::StrJoin(parts, ", "), "]");
  }
  if (const Value::Map* map = value.AsMap()) {
    for (const auto& [name, field] : *map) parts.push_back(absl::StrCat(name, ": ", ValueText(field)));
    return absl::StrCat("{", absl::StrJoin(parts, ", "), "}");
  }
  return "null";
}

// What the program cannot do with an approximate producer of these parameters.
absl::Status CheckApproximate(const sched::PluginSpec& spec, const std::string& source) {
  const absl::StatusOr<sched::ApproxPrefixOptions> options =
      sched::ParseApproxPrefixOptions(spec.name, spec.parameters);
  if (!options.ok()) return options.status();
  if (const std::uint32_t size = options->BlockSize(kBlockTokens); size != ApproxBlockTokens()) {
    return absl::InvalidArgumentError(absl::StrCat(source, ": ", spec.name, ": blocks of ", size,
                                                   " tokens, expected ", ApproxBlockTokens(),
                                                   ", which is what this program makes keys for"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<sched::SchedulerConfig> ReadConfigText(std::string_view text, const std::string& source) {
  sched::SchedulerConfig config;
  config.source = source;
  try {
    const YAML::Node root = YAML::Load(std::string(text));
    for (const auto& plugin : root["plugins"]) {
      sched::PluginSpec spec;
      spec.type = plugin["type"].as<std::string>("");
      spec.name = plugin["name"].as<std::string>("");
      if (plugin["parameters"]) spec.parameters = ToValue(plugin["parameters"]);
      config.plugins.push_back(std::move(spec));
    }
    for (const auto& profile : root["schedulingProfiles"]) {
      sched::ProfileSpec spec;
      spec.name = profile["name"].as<std::string>("");
      for (const auto& ref : profile["plugins"]) {
        sched::PluginRef made{.plugin = ref["pluginRef"].as<std::string>("")};
        if (ref["weight"]) made.weight = ref["weight"].as<double>();
        spec.plugins.push_back(std::move(made));
      }
      config.profiles.push_back(std::move(spec));
    }
  } catch (const YAML::Exception& e) {
    return absl::InvalidArgumentError(absl::StrCat(source, ": line ", e.mark.line + 1, ": ", e.msg));
  }
  if (config.plugins.empty()) return absl::InvalidArgumentError(absl::StrCat(source, ": plugins: none"));
  return config;
}

std::string WriteConfigText(const sched::SchedulerConfig& config) {
  std::string out = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n";
  for (const sched::PluginSpec& spec : config.plugins) {
    absl::StrAppend(&out, "- type: ", spec.type, "\n");
    if (!spec.name.empty() && spec.name != spec.type) absl::StrAppend(&out, "  name: ", spec.name, "\n");
    if (!spec.parameters.is_null()) {
      absl::StrAppend(&out, "  parameters: ", ValueText(spec.parameters), "\n");
    }
  }
  absl::StrAppend(&out, "schedulingProfiles:\n");
  for (const sched::ProfileSpec& profile : config.profiles) {
    absl::StrAppend(&out, "- name: ", profile.name, "\n  plugins:\n");
    for (const sched::PluginRef& ref : profile.plugins) {
      absl::StrAppend(&out, "  - pluginRef: ", ref.plugin, "\n");
      if (ref.weight) absl::StrAppend(&out, "    weight: ", *ref.weight, "\n");
    }
  }
  return out;
}

absl::StatusOr<Policy> MakeConfigPolicy(std::string_view text, const std::string& source) {
  absl::StatusOr<sched::SchedulerConfig> config = ReadConfigText(text, source);
  if (!config.ok()) return config.status();
  Policy policy;
  policy.name = source.substr(source.find_last_of('/') + 1);
  policy.name = policy.name.substr(0, policy.name.find_last_of('.'));
  policy.text = absl::StrCat("config ", source, "\n", ToAbsl(text));
  policy.config = *std::move(config);
  // A trial with indexes that know nothing says which producers there will be.
  Expectation unused;
  const auto scheduler = sched::Scheduler::Create(policy.config, MakeRegistry(&unused), EmptyResources());
  if (!scheduler.ok()) return scheduler.status();
  std::string producer;
  for (const sched::PluginSpec& spec : (*scheduler)->config().plugins) {
    if (spec.type == kApproxProducer) {
      if (absl::Status s = CheckApproximate(spec, source); !s.ok()) return s;
      policy.uses_approx = true;
      if (producer.empty()) producer = spec.name;
    } else if (spec.type == kExactProducer || spec.type == "precise-prefix-cache-scorer") {
      policy.uses_exact = true;
      producer = spec.name;
    }
  }
  std::vector<std::string> parts;
  for (const sched::ProfileSpec& profile : (*scheduler)->config().profiles) {
    for (const sched::PluginRef& ref : profile.plugins) {
      parts.push_back(ref.weight ? absl::StrCat(ref.plugin, " ", *ref.weight) : ref.plugin);
    }
  }
  policy.description = absl::StrCat(source, ": ", absl::StrJoin(parts, ", "));
  if (!producer.empty()) AddProbe(producer, policy);
  return policy;
}

absl::StatusOr<Policy> ReadConfigPolicy(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) return absl::NotFoundError(absl::StrCat("config: ", path, " cannot be read"));
  return MakeConfigPolicy(text.str(), path);
}

absl::StatusOr<Policy> MakePolicyFromText(std::string_view text) {
  const auto rest = [&](std::string_view kind) {
    return text.substr(0, kind.size()) == kind ? std::optional(text.substr(kind.size())) : std::nullopt;
  };
  if (const auto name = rest("policy ")) return MakePolicy(*name);
  if (const auto weights = rest("weights ")) return MakeMix(*weights);
  if (const auto config = rest("config ")) {
    const std::size_t line = std::min(config->find('\n'), config->size());
    return MakeConfigPolicy(config->substr(std::min(line + 1, config->size())),
                            std::string(config->substr(0, line)));
  }
  return absl::InvalidArgumentError("text: names no policy of this program");
}

}  // namespace llmd::replay
