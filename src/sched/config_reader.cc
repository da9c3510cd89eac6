// From a document's values to a SchedulerConfig. (spec: scheduling.md 3.1)
#include <limits>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "src/sched/config_text.h"

namespace llmd::sched {
namespace {

std::string Quoted(std::string_view text) { return absl::StrCat("\"", ToAbsl(text), "\""); }

class ConfigReader {
 public:
  ConfigReader(const Value& document, std::vector<std::string>& warnings)
      : document_(document), warnings_(warnings) {}

  absl::StatusOr<SchedulerConfig> Read();

 private:
  using Item = absl::Status (ConfigReader::*)(ParameterReader& read, const SourcePlace& place);

  // Calls `item` for each map of the list in `field`.
  absl::Status ReadList(ParameterReader& read, std::string_view path, std::string_view field, Item item);
  // The pluginRef of a map; empty and an error when it is missing.
  std::string ReadReference(ParameterReader& read, std::string_view field, const SourcePlace& place);
  // {pluginRef} in `field`; nothing when absent.
  absl::Status ReadOnlyReference(ParameterReader& read, std::string_view path, std::string_view field,
                                 std::string* out);
  void NoteReference(std::string_view path, std::uint32_t line) {
    config_.reference_lines[std::string(path)] = line;
  }
  std::uint32_t LineOf(const Value* value) const { return value == nullptr ? 0 : value->line(); }

  void ReadHeader(ParameterReader& read);
  absl::Status ReadFeatureGates(ParameterReader& read);
  absl::Status ReadPlugin(ParameterReader& read, const SourcePlace& place);
  absl::Status ReadProfile(ParameterReader& read, const SourcePlace& place);
  absl::Status ReadProfilePlugin(ParameterReader& read, const SourcePlace& place);
  absl::Status ReadDataLayer(ParameterReader& document);
  absl::Status ReadSource(ParameterReader& read, const SourcePlace& place);
  absl::Status ReadExtractor(ParameterReader& read, const SourcePlace& place);
  absl::Status ReadFlowControl(ParameterReader& document);
  absl::Status ReadBand(ParameterReader& read, const SourcePlace& place);
  void ReadBandFields(ParameterReader& read, PriorityBandConfig& band);
  absl::Status ReadDefaultBand(ParameterReader& flow, std::string_view field, PriorityBandConfig& band);
  absl::Status ReadRequestHandler(ParameterReader& document);
  absl::Status ReadParser(ParameterReader& read, const SourcePlace& place);
  absl::Status ReadDeprecated(ParameterReader& document);
  absl::Status ReadCompatibility(ParameterReader& document);

  const Value& document_;
  std::vector<std::string>& warnings_;
  std::string api_version_;
  SchedulerConfig config_;
};

absl::StatusOr<SchedulerConfig> ConfigReader::Read() {
  ParameterReader read = ParameterReader::At("", document_);
  ReadHeader(read);
  if (!read.Complaint().ok()) return read.Complaint();
  if (absl::Status s = ReadFeatureGates(read); !s.ok()) return s;
  if (absl::Status s = ReadList(read, "", "plugins", &ConfigReader::ReadPlugin); !s.ok()) return s;
  if (absl::Status s = ReadList(read, "", "schedulingProfiles", &ConfigReader::ReadProfile); !s.ok())
    return s;
  if (absl::Status s = ReadDataLayer(read); !s.ok()) return s;
  if (absl::Status s = ReadFlowControl(read); !s.ok()) return s;
  if (absl::Status s = ReadRequestHandler(read); !s.ok()) return s;
  if (absl::Status s = ReadDeprecated(read); !s.ok()) return s;
  if (absl::Status s = ReadCompatibility(read); !s.ok()) return s;
  if (absl::Status s = read.Finish(); !s.ok()) return s;
  if (api_version_ == kOldApiVersion) UpgradeOldConfig(config_, warnings_);
  return std::move(config_);
}

void ConfigReader::ReadHeader(ParameterReader& read) {
  const std::string versions = absl::StrCat(ToAbsl(kApiVersion), " or ", ToAbsl(kOldApiVersion));
  std::string kind;
  const Value* version = read.Raw("apiVersion");
  read.Optional("apiVersion", &api_version_);
  read.Optional("kind", &kind);
  if (version == nullptr) {
    read.Reject("apiVersion", "missing", versions);
  } else if (api_version_ == kOldApiVersion) {
    warnings_.push_back(absl::StrCat("line ", version->line(), ": apiVersion ", api_version_,
                                     " is deprecated, use ", ToAbsl(kApiVersion)));
  } else if (api_version_ == kNextApiVersion) {
    warnings_.push_back(absl::StrCat("line ", version->line(), ": apiVersion ", api_version_, " is read as ",
                                     ToAbsl(kApiVersion)));
  } else if (api_version_ != kApiVersion) {
    read.Reject("apiVersion", Quoted(api_version_), versions);
  }
  if (kind != kConfigKind) read.Reject("kind", kind.empty() ? "missing" : Quoted(kind), kConfigKind);
}

absl::Status ConfigReader::ReadFeatureGates(ParameterReader& read) {
  const Value::List* gates = read.OptionalList("featureGates");
  if (gates == nullptr) return read.Complaint();
  std::set<std::string, std::less<>> seen;
  for (std::size_t i = 0; i < gates->size(); ++i) {
    const Value& item = (*gates)[i];
    // Wrapped in a map of its own, so that complaints have the item's path and line.
    const std::string path = absl::StrCat("featureGates[", i, "]");
    const Value fields = Value::MakeMap({{path, item}});
    ParameterReader gate = ParameterReader::At("", fields);
    std::string text;
    gate.Optional(path, &text);
    if (item.is_null()) gate.Reject(path, "null", "\"name\", \"name=true\" or \"name=false\"");
    const std::size_t equals = text.find('=');
    const std::string name = text.substr(0, equals);
    const std::string value = equals == std::string::npos ? "true" : text.substr(equals + 1);
    if (value != "true" && value != "false") gate.Reject(path, Quoted(text), "a value of true or false");
    if (!seen.insert(name).second) gate.Reject(path, Quoted(text), "each feature gate once");
    const bool on = value == "true";
    if (name == "flowControl") {
      config_.feature_gates.flow_control = on;
    } else if (name == "haPopulateNonLeaderDatastore") {
      config_.feature_gates.ha_populate_non_leader_datastore = on;
    } else if ((name == "dataLayer" || name == "prepareDataPlugins") && on) {
      warnings_.push_back(absl::StrCat("line ", item.line(), ": ", path, ": ", name, " is always on by now"));
    } else {
      gate.Reject(path, Quoted(text), "flowControl or haPopulateNonLeaderDatastore");
    }
    if (!gate.Complaint().ok()) return gate.Complaint();
  }
  return absl::OkStatus();
}

absl::Status ConfigReader::ReadList(ParameterReader& read, std::string_view path, std::string_view field,
                                    Item item) {
  const Value::List* list = read.OptionalList(field);
  if (!read.Complaint().ok()) return read.Complaint();
  const std::string prefix = absl::StrCat(ToAbsl(path), path.empty() ? "" : ".", ToAbsl(field));
  for (std::size_t i = 0; list != nullptr && i < list->size(); ++i) {
    ParameterReader fields = read.NestedItem(field, i, (*list)[i]);
    const SourcePlace place{absl::StrCat(prefix, "[", i, "]"), (*list)[i].line()};
    if (!fields.Complaint().ok()) return fields.Complaint();
    if (absl::Status s = (this->*item)(fields, place); !s.ok()) return s;
    if (absl::Status s = fields.Finish(); !s.ok()) return s;
  }
  return absl::OkStatus();
}

std::string ConfigReader::ReadReference(ParameterReader& read, std::string_view field,
                                        const SourcePlace& place) {
  std::string plugin;
  read.Optional(field, &plugin);
  if (plugin.empty()) read.Reject(field, "missing", "the name of a plugin");
  const Value* value = read.Raw(field);
  NoteReference(absl::StrCat(place.path, ".", ToAbsl(field)), value == nullptr ? place.line : value->line());
  return plugin;
}

absl::Status ConfigReader::ReadOnlyReference(ParameterReader& read, std::string_view path,
                                             std::string_view field, std::string* out) {
  const Value* value = read.Raw(field);
  if (value == nullptr) return read.Complaint();
  ParameterReader fields = read.Nested(field);
  if (!fields.Complaint().ok()) return fields.Complaint();
  const std::string prefix = absl::StrCat(ToAbsl(path), path.empty() ? "" : ".", ToAbsl(field));
  *out = ReadReference(fields, "pluginRef", {prefix, value->line()});
  return fields.Finish();
}

absl::Status ConfigReader::ReadPlugin(ParameterReader& read, const SourcePlace& place) {
  PluginSpec plugin;
  plugin.place = place;
  read.Optional("name", &plugin.name);
  read.Optional("type", &plugin.type);
  if (plugin.type.empty()) read.Reject("type", "missing", "a plugin type");
  if (const Value* parameters = read.Raw("parameters")) {
    plugin.parameters = *parameters;
    if (parameters->AsMap() == nullptr) read.Reject("parameters", parameters->kind(), "a map");
  }
  config_.plugins.push_back(std::move(plugin));
  return read.Complaint();
}

absl::Status ConfigReader::ReadProfile(ParameterReader& read, const SourcePlace& place) {
  ProfileSpec profile;
  profile.place = place;
  read.Optional("name", &profile.name);
  if (profile.name.empty()) read.Reject("name", "missing", "the profile's name");
  if (!read.Complaint().ok()) return read.Complaint();
  config_.profiles.push_back(std::move(profile));
  return ReadList(read, place.path, "plugins", &ConfigReader::ReadProfilePlugin);
}

absl::Status ConfigReader::ReadProfilePlugin(ParameterReader& read, const SourcePlace& place) {
  PluginRef ref;
  ref.place = place;
  read.Optional("pluginRef", &ref.plugin);
  if (ref.plugin.empty()) read.Reject("pluginRef", "missing", "the name of a plugin");
  double weight = 1;
  read.Optional("weight", &weight);
  if (read.Raw("weight") != nullptr) ref.weight = weight;
  config_.profiles.back().plugins.push_back(std::move(ref));
  return read.Complaint();
}

absl::Status ConfigReader::ReadDataLayer(ParameterReader& document) {
  DataLayerConfig& layer = config_.data_layer;
  const Value* value = document.Raw("dataLayer");
  ParameterReader read = document.Nested("dataLayer");
  if (value == nullptr || !read.Complaint().ok()) return read.Complaint();
  layer.place = {"dataLayer", value->line()};
  read.Optional("injectDefaults", &layer.inject_defaults);
  if (absl::Status s = ReadList(read, "dataLayer", "sources", &ConfigReader::ReadSource); !s.ok()) return s;
  if (absl::Status s = ReadOnlyReference(read, "dataLayer", "discovery", &layer.discovery); !s.ok()) return s;
  if (absl::Status s = ReadOnlyReference(read, "dataLayer", "peerDiscovery", &layer.peer_discovery);
      !s.ok()) {
    return s;
  }
  if (read.Raw("crossReplicaSyncerPluginRef") != nullptr) {
    layer.cross_replica_syncer = ReadReference(read, "crossReplicaSyncerPluginRef", layer.place);
  }
  read.Optional("crossReplicaSyncInterval", &layer.cross_replica_sync_interval);
  if (layer.cross_replica_sync_interval <= absl::ZeroDuration()) {
    read.Reject("crossReplicaSyncInterval", Quoted(absl::FormatDuration(layer.cross_replica_sync_interval)),
                "more than 0");
  }
  return read.Finish();
}

absl::Status ConfigReader::ReadSource(ParameterReader& read, const SourcePlace& place) {
  DataSourceConfig source;
  source.place = place;
  source.plugin = ReadReference(read, "pluginRef", place);
  config_.data_layer.sources.push_back(std::move(source));
  if (!read.Complaint().ok()) return read.Complaint();
  return ReadList(read, place.path, "extractors", &ConfigReader::ReadExtractor);
}

absl::Status ConfigReader::ReadExtractor(ParameterReader& read, const SourcePlace& place) {
  config_.data_layer.sources.back().extractors.push_back(ReadReference(read, "pluginRef", place));
  return read.Complaint();
}

absl::Status ConfigReader::ReadFlowControl(ParameterReader& document) {
  FlowControlConfig& flow = config_.flow_control;
  const Value* value = document.Raw("flowControl");
  ParameterReader read = document.Nested("flowControl");
  if (value == nullptr || !read.Complaint().ok()) return read.Complaint();
  flow.place = {"flowControl", value->line()};
  read.OptionalQuantity("maxBytes", &flow.max_bytes);
  read.OptionalQuantity("maxRequests", &flow.max_requests);
  read.Optional("defaultRequestTTL", &flow.default_request_ttl);
  // It follows the other one when only that is given.
  if (read.Raw("defaultRequestTTL") != nullptr) flow.no_endpoint_request_ttl = flow.default_request_ttl;
  read.Optional("noEndpointRequestTTL", &flow.no_endpoint_request_ttl);
  if (flow.default_request_ttl < absl::ZeroDuration()) {
    read.Reject("defaultRequestTTL", Quoted(absl::FormatDuration(flow.default_request_ttl)), "at least 0");
  }
  if (flow.no_endpoint_request_ttl < absl::ZeroDuration()) {
    read.Reject("noEndpointRequestTTL", Quoted(absl::FormatDuration(flow.no_endpoint_request_ttl)),
                "at least 0");
  }
  if (absl::Status s = ReadDefaultBand(read, "defaultPriorityBand", flow.default_band); !s.ok()) return s;
  if (read.Raw("defaultNegativePriorityBand") != nullptr) {
    absl::Status s =
        ReadDefaultBand(read, "defaultNegativePriorityBand", flow.default_negative_band.emplace());
    if (!s.ok()) return s;
  }
  if (absl::Status s = ReadList(read, "flowControl", "priorityBands", &ConfigReader::ReadBand); !s.ok())
    return s;
  if (read.Raw("usageLimitPolicyPluginRef") != nullptr) {
    flow.usage_limit_policy = ReadReference(read, "usageLimitPolicyPluginRef", flow.place);
  }
  absl::Status s = ReadOnlyReference(read, "flowControl", "saturationDetector", &flow.saturation_detector);
  if (!s.ok()) return s;
  read.Optional("enableEviction", &flow.enable_eviction);
  return read.Finish();
}

absl::Status ConfigReader::ReadBand(ParameterReader& read, const SourcePlace& place) {
  PriorityBandConfig band;
  band.place = place;
  ReadBandFields(read, band);
  if (read.Raw("priority") == nullptr) read.Reject("priority", "missing", "the band's priority");
  for (const PriorityBandConfig& other : config_.flow_control.bands) {
    if (other.priority == band.priority) {
      read.Reject("priority", absl::StrCat(band.priority),
                  absl::StrCat("a priority of its own, not that of ", other.place.path));
    }
  }
  config_.flow_control.bands.push_back(std::move(band));
  return read.Complaint();
}

void ConfigReader::ReadBandFields(ParameterReader& read, PriorityBandConfig& band) {
  constexpr std::int64_t kMin = std::numeric_limits<std::int32_t>::min();
  constexpr std::int64_t kMax = std::numeric_limits<std::int32_t>::max();
  const PriorityBandConfig defaults;
  std::int64_t priority = 0;
  read.Optional("priority", &priority);
  if (priority < kMin || priority > kMax) {
    read.Reject("priority", absl::StrCat(priority), absl::StrCat(kMin, " to ", kMax));
  }
  band.priority = static_cast<std::int32_t>(priority);
  read.OptionalQuantity("maxRequests", &band.max_requests);
  read.OptionalQuantity("maxBytes", &band.max_bytes);
  if (band.max_requests == 0) band.max_requests = defaults.max_requests;
  if (band.max_bytes == 0) band.max_bytes = defaults.max_bytes;
  if (read.Raw("fairnessPolicyRef") != nullptr) {
    band.fairness_policy = ReadReference(read, "fairnessPolicyRef", band.place);
  }
  if (read.Raw("orderingPolicyRef") != nullptr) {
    band.ordering_policy = ReadReference(read, "orderingPolicyRef", band.place);
  }
}

absl::Status ConfigReader::ReadDefaultBand(ParameterReader& flow, std::string_view field,
                                           PriorityBandConfig& band) {
  const Value* value = flow.Raw(field);
  if (value == nullptr) return flow.Complaint();
  ParameterReader read = flow.Nested(field);
  if (!read.Complaint().ok()) return read.Complaint();
  band.place = {absl::StrCat("flowControl.", ToAbsl(field)), value->line()};
  ReadBandFields(read, band);
  return read.Finish();
}

absl::Status ConfigReader::ReadRequestHandler(ParameterReader& document) {
  if (document.Raw("requestHandler") == nullptr) return document.Complaint();
  ParameterReader read = document.Nested("requestHandler");
  if (!read.Complaint().ok()) return read.Complaint();
  if (absl::Status s = ReadList(read, "requestHandler", "parsers", &ConfigReader::ReadParser); !s.ok())
    return s;
  return read.Finish();
}

absl::Status ConfigReader::ReadParser(ParameterReader& read, const SourcePlace& place) {
  config_.parsers.push_back(ReadReference(read, "pluginRef", place));
  return read.Complaint();
}

// Fields at the top that have found another place since; the new place wins.
absl::Status ConfigReader::ReadDeprecated(ParameterReader& document) {
  const auto read = [&](std::string_view field, std::string_view successor, bool taken,
                        std::string* out) -> absl::Status {
    const Value* value = document.Raw(field);
    if (value == nullptr) return document.Complaint();
    if (absl::Status s = ReadOnlyReference(document, "", field, out); !s.ok()) return s;
    warnings_.push_back(absl::StrCat("line ", value->line(), ": ", ToAbsl(field), " is deprecated, use ",
                                     ToAbsl(successor), taken ? ", which is given as well and wins" : ""));
    return absl::OkStatus();
  };
  std::string detector;
  std::string& in_force = config_.flow_control.saturation_detector;
  absl::Status s = read("saturationDetector", "flowControl.saturationDetector", !in_force.empty(), &detector);
  if (!s.ok()) return s;
  if (in_force.empty() && !detector.empty()) {
    in_force = detector;
    NoteReference("flowControl.saturationDetector.pluginRef",
                  config_.reference_lines["saturationDetector.pluginRef"]);
  }
  std::string parser;
  s = read("parser", "requestHandler.parsers", !config_.parsers.empty(), &parser);
  if (!s.ok()) return s;
  if (config_.parsers.empty() && !parser.empty()) {
    config_.parsers.push_back(parser);
    NoteReference("requestHandler.parsers[0].pluginRef", config_.reference_lines["parser.pluginRef"]);
  }
  return absl::OkStatus();
}

absl::Status ConfigReader::ReadCompatibility(ParameterReader& document) {
  const Value* value = document.Raw("compatibility");
  if (value == nullptr) return document.Complaint();
  if (const std::string* name = value->AsString()) {
    if (*name != "llm-d")
      document.Reject("compatibility", Quoted(*name), "llm-d, or a map of names and booleans");
    config_.compatibility = Compatibility::LlmD();
    return document.Complaint();
  }
  ParameterReader read = document.Nested("compatibility");
  for (const CompatibilityField& field : CompatibilityFields()) {
    read.Optional(field.name, &(config_.compatibility.*field.member));
  }
  return read.Finish();
}

}  // namespace

absl::StatusOr<SchedulerConfig> ReadConfig(const Value& document, std::vector<std::string>& warnings) {
  return ConfigReader(document, warnings).Read();
}

absl::Status WithSource(const absl::Status& status, std::string_view source) {
  constexpr std::size_t kHead = 1500;
  constexpr std::size_t kTail = 500;
  const auto continues = [](char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; };
  std::string message = absl::StrCat(ToAbsl(source), ": ", status.message());
  if (message.size() > kHead + kTail) {
    std::size_t head = kHead;
    std::size_t tail = message.size() - kTail;
    while (continues(message[head])) --head;
    while (continues(message[tail])) ++tail;
    message.replace(head, tail - head, " ... ");
  }
  std::string line;
  for (const char c : message) {
    if ((c >= 0 && c < 0x20) || c == 0x7F) {
      absl::StrAppend(&line, "\\x", absl::Hex(c, absl::kZeroPad2));
    } else {
      line += c;
    }
  }
  return absl::Status(status.code(), line);
}

std::string PlaceText(const SourcePlace& place, std::string_view otherwise) {
  if (place.path.empty()) return std::string(otherwise);
  return place.line == 0 ? place.path : absl::StrCat("line ", place.line, ": ", place.path);
}

}  // namespace llmd::sched
