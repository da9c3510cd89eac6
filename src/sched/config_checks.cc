#include "src/sched/config_checks.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "src/sched/builtin_plugins.h"
#include "src/sched/config_text.h"

namespace llmd::sched {
namespace {

constexpr std::string_view kDefaultParsers[] = {"openai-parser", "anthropic-parser", "vllmhttp-parser",
                                                kPassthroughParserType};

bool IsHostPlugin(const Plugin& plugin, HostPlugin::Kind kind) {
  const auto* host = dynamic_cast<const HostPlugin*>(&plugin);
  return host != nullptr && host->kind() == kind;
}

class Checker {
 public:
  Checker(const SchedulerConfig& config, const std::function<const Plugin*(std::string_view)>& find)
      : config_(config), find_(find) {}

  absl::Status CheckDataLayer() const;
  absl::Status CheckParsers(const std::function<void(std::string)>& warn) const;

 private:
  absl::Status Reject(std::string_view path, std::string_view name, std::string_view expected) const {
    return absl::InvalidArgumentError(absl::StrCat(ReferenceText(config_, path), " is \"", ToAbsl(name),
                                                   "\", expected ", ToAbsl(expected)));
  }
  // `accepts` says whether the plugin will do; `what` is "a data source".
  template <typename Accepts>
  absl::Status Check(std::string_view path, std::string_view name, std::string_view what,
                     const Accepts& accepts) const {
    const Plugin* plugin = find_(name);
    if (plugin == nullptr) return Reject(path, name, "the name of a plugin");
    if (!accepts(*plugin)) return Reject(path, name, absl::StrCat(ToAbsl(what), ", not a ", plugin->type()));
    return absl::OkStatus();
  }
  absl::Status CheckKind(std::string_view path, std::string_view name, std::string_view what,
                         HostPlugin::Kind kind) const {
    return Check(path, name, what, [kind](const Plugin& plugin) { return IsHostPlugin(plugin, kind); });
  }
  absl::Status CheckSource(std::string_view path, const DataSourceConfig& source) const;

  const SchedulerConfig& config_;
  const std::function<const Plugin*(std::string_view)>& find_;
};

absl::Status Checker::CheckSource(std::string_view path, const DataSourceConfig& source) const {
  absl::Status status = CheckKind(absl::StrCat(ToAbsl(path), ".pluginRef"), source.plugin, "a data source",
                                  HostPlugin::Kind::kDataSource);
  // A producer may be fed by a source as well: the precise one learns of endpoints so.
  const auto extracts = [](const Plugin& plugin) {
    return IsHostPlugin(plugin, HostPlugin::Kind::kExtractor) ||
           dynamic_cast<const DataProducer*>(&plugin) != nullptr;
  };
  std::vector<std::string> types;
  for (std::size_t i = 0; status.ok() && i < source.extractors.size(); ++i) {
    const std::string& name = source.extractors[i];
    const std::string at = absl::StrCat(ToAbsl(path), ".extractors[", i, "].pluginRef");
    status = Check(at, name, "an extractor", extracts);
    if (!status.ok()) break;
    const std::string& type = find_(name)->type();
    if (std::find(types.begin(), types.end(), type) != types.end()) {
      status = Reject(at, name, absl::StrCat("one extractor of type ", type, " for a source"));
    }
    types.push_back(type);
  }
  return status;
}

absl::Status Checker::CheckDataLayer() const {
  const DataLayerConfig& layer = config_.data_layer;
  for (std::size_t i = 0; i < layer.sources.size(); ++i) {
    absl::Status s = CheckSource(absl::StrCat("dataLayer.sources[", i, "]"), layer.sources[i]);
    if (!s.ok()) return s;
  }
  struct Reference {
    std::string_view path;
    const std::string& name;
    std::string_view what;
    HostPlugin::Kind kind;
  };
  const Reference references[] = {
      {"dataLayer.discovery.pluginRef", layer.discovery, "a discovery", HostPlugin::Kind::kDiscovery},
      {"dataLayer.peerDiscovery.pluginRef", layer.peer_discovery, "a discovery",
       HostPlugin::Kind::kDiscovery},
      {"dataLayer.crossReplicaSyncerPluginRef", layer.cross_replica_syncer, "a syncer",
       HostPlugin::Kind::kSyncer}};
  for (const Reference& reference : references) {
    if (reference.name.empty()) continue;
    if (absl::Status s = CheckKind(reference.path, reference.name, reference.what, reference.kind); !s.ok()) {
      return s;
    }
  }
  return absl::OkStatus();
}

absl::Status Checker::CheckParsers(const std::function<void(std::string)>& warn) const {
  for (std::size_t i = 0; i < config_.parsers.size(); ++i) {
    const std::string path = absl::StrCat("requestHandler.parsers[", i, "].pluginRef");
    absl::Status s = CheckKind(path, config_.parsers[i], "a parser", HostPlugin::Kind::kParser);
    if (!s.ok()) return s;
    if (find_(config_.parsers[i])->type() == kPassthroughParserType && i + 1 < config_.parsers.size()) {
      warn(absl::StrCat(ReferenceText(config_, path),
                        " claims every request, so the parsers after it are idle"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<std::string_view> AddDefaultReferences(SchedulerConfig& config) {
  std::vector<std::string_view> types;
  if (config.parsers.empty()) {
    for (const std::string_view parser : kDefaultParsers) {
      config.parsers.emplace_back(parser);
      types.push_back(parser);
    }
  }
  std::vector<DataSourceConfig>& sources = config.data_layer.sources;
  const bool has_metrics = std::any_of(sources.begin(), sources.end(), [](const DataSourceConfig& source) {
    return source.plugin == kMetricsSourceType;
  });
  if (config.data_layer.inject_defaults && !has_metrics) {
    sources.push_back({std::string(kMetricsSourceType), {std::string(kMetricsExtractorType)}});
    types.push_back(kMetricsSourceType);
    types.push_back(kMetricsExtractorType);
  }
  return types;
}

absl::Status CheckHostReferences(const SchedulerConfig& config,
                                 const std::function<const Plugin*(std::string_view)>& find,
                                 const std::function<void(std::string)>& warn) {
  const Checker checker(config, find);
  if (absl::Status s = checker.CheckDataLayer(); !s.ok()) return s;
  return checker.CheckParsers(warn);
}

std::string ReferenceText(const SchedulerConfig& config, std::string_view path, std::uint32_t line) {
  const auto it = config.reference_lines.find(std::string(path));
  return PlaceText({std::string(path), it == config.reference_lines.end() ? line : it->second});
}

}  // namespace llmd::sched
