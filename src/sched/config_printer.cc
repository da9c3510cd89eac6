// A SchedulerConfig as YAML. Own writer: what is written must be read back as the same types.
#include <charconv>
#include <cmath>
#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "llmd/sched/config_file.h"
#include "src/sched/config_text.h"
#include "src/sched/yaml_value.h"

namespace llmd::sched {
namespace {

// Letters, digits and a few signs, none of which has a meaning where they may stand.
bool IsPlain(std::string_view text) {
  constexpr std::string_view kSigns = "_-./@";
  if (text.empty() || text[0] == '-' || text[0] == '.' || text[0] == '@') return false;
  for (const char c : text) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (!letter && kSigns.find(c) == std::string_view::npos) return false;
  }
  return ResolvePlainScalar(text).AsString() != nullptr;
}

std::string Text(std::string_view text) {
  if (IsPlain(text)) return std::string(text);
  constexpr char kHex[] = "0123456789abcdef";
  std::string out = "\"";
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    if (c == '"' || c == '\\') {
      out += {'\\', text[i]};
    } else if (c == '\n') {
      out += "\\n";
    } else if (c < 0x20 || c == 0x7F) {
      out += {'\\', 'x', kHex[c >> 4], kHex[c & 15]};
    } else {
      out += text[i];
    }
  }
  return out + "\"";
}

// The shortest text that reads as the same number, and not as an integer.
std::string Number(double d) {
  if (std::isnan(d)) return ".nan";
  if (std::isinf(d)) return d > 0 ? ".inf" : "-.inf";
  char buffer[40];
  const auto [end, error] = std::to_chars(buffer, buffer + sizeof(buffer), d);
  std::string out(buffer, error == std::errc() ? end : buffer);
  if (out.find_first_of(".e") == std::string::npos) out += ".0";
  return out;
}

class Printer {
 public:
  std::string Take() { return std::move(out_); }

  void Line(std::string_view text) {
    out_.append(2 * depth_, ' ');
    absl::StrAppend(&out_, dash_ ? "- " : "", ToAbsl(text), "\n");
    if (dash_) {
      ++depth_;
      dash_ = false;
    }
  }
  void Field(std::string_view name, std::string_view value) {
    Line(absl::StrCat(ToAbsl(name), ": ", ToAbsl(value)));
  }
  void TextField(std::string_view name, std::string_view value) { Field(name, Text(value)); }

  // What `body` prints is indented below "name:".
  template <typename Body>
  void Nested(std::string_view name, const Body& body) {
    Line(absl::StrCat(ToAbsl(name), ":"));
    ++depth_;
    body();
    --depth_;
  }
  // An element of a list: the first line that `body` prints gets the dash, all later ones are indented.
  template <typename Body>
  void Item(const Body& body) {
    const std::size_t depth = depth_;
    dash_ = true;
    body();
    dash_ = false;
    depth_ = depth;
  }
  void Reference(std::string_view name, std::string_view plugin) {
    Nested(name, [&] { TextField("pluginRef", plugin); });
  }

  void PrintValue(std::string_view name, const Value& value) {
    const Value::Map* map = value.AsMap();
    const Value::List* list = value.AsList();
    if (map != nullptr && !map->empty()) {
      Nested(name, [&] { Fields(*map); });
    } else if (list != nullptr && !list->empty()) {
      Nested(name, [&] { Items(*list); });
    } else {
      Field(name, Scalar(value));
    }
  }

 private:
  void Fields(const Value::Map& map) {
    for (const Value::Field& field : map) PrintValue(Key(field.first), field.second);
  }
  void Items(const Value::List& list) {
    for (const Value& item : list) {
      const Value::Map* map = item.AsMap();
      const Value::List* inner = item.AsList();
      if (map != nullptr && !map->empty()) {
        Item([&] { Fields(*map); });
      } else if (inner != nullptr && !inner->empty()) {
        // A list in a list begins on a line of its own.
        Line("-");
        ++depth_;
        Items(*inner);
        --depth_;
      } else {
        Item([&] { Line(Scalar(item)); });
      }
    }
  }
  // A key that is not quoted keeps its text whatever its type; "<<" would merge.
  static std::string Key(std::string_view key) { return Text(key); }
  static std::string Scalar(const Value& value) {
    if (const bool* b = value.AsBool()) return *b ? "true" : "false";
    if (const std::int64_t* i = value.AsInt()) return absl::StrCat(*i);
    if (const double* d = value.AsDouble()) return Number(*d);
    if (const std::string* s = value.AsString()) return Text(*s);
    if (value.AsList() != nullptr) return "[]";
    return value.AsMap() != nullptr ? "{}" : "null";
  }

  std::string out_;
  std::size_t depth_ = 0;
  bool dash_ = false;
};

void PrintFeatureGates(Printer& p, const FeatureGates& gates) {
  const FeatureGates defaults;
  const auto item = [&p](std::string_view name, bool on) {
    p.Item([&] { p.Line(Text(absl::StrCat(ToAbsl(name), on ? "" : "=false"))); });
  };
  const bool ha_differs = gates.ha_populate_non_leader_datastore != defaults.ha_populate_non_leader_datastore;
  if (gates.flow_control == defaults.flow_control && !ha_differs) return;
  p.Nested("featureGates", [&] {
    if (gates.flow_control != defaults.flow_control) item("flowControl", gates.flow_control);
    if (ha_differs) item("haPopulateNonLeaderDatastore", gates.ha_populate_non_leader_datastore);
  });
}

void PrintPlugins(Printer& p, const SchedulerConfig& config) {
  if (config.plugins.empty()) return;
  p.Nested("plugins", [&] {
    for (const PluginSpec& plugin : config.plugins) {
      p.Item([&] {
        p.TextField("type", plugin.type);
        if (!plugin.name.empty() && plugin.name != plugin.type) p.TextField("name", plugin.name);
        if (!plugin.parameters.is_null()) p.PrintValue("parameters", plugin.parameters);
      });
    }
  });
}

void PrintProfiles(Printer& p, const SchedulerConfig& config) {
  if (config.profiles.empty()) return;
  p.Nested("schedulingProfiles", [&] {
    for (const ProfileSpec& profile : config.profiles) {
      p.Item([&] {
        p.TextField("name", profile.name);
        if (profile.plugins.empty()) return;
        p.Nested("plugins", [&] {
          for (const PluginRef& ref : profile.plugins) {
            p.Item([&] {
              p.TextField("pluginRef", ref.plugin);
              if (ref.weight) p.Field("weight", Number(*ref.weight));
            });
          }
        });
      });
    }
  });
}

void PrintDataLayer(Printer& p, const DataLayerConfig& layer) {
  const DataLayerConfig defaults;
  const bool interval_differs = layer.cross_replica_sync_interval != defaults.cross_replica_sync_interval;
  if (layer.inject_defaults && layer.sources.empty() && layer.discovery.empty() &&
      layer.peer_discovery.empty() && layer.cross_replica_syncer.empty() && !interval_differs) {
    return;
  }
  p.Nested("dataLayer", [&] {
    p.Field("injectDefaults", layer.inject_defaults ? "true" : "false");
    if (!layer.sources.empty()) {
      p.Nested("sources", [&] {
        for (const DataSourceConfig& source : layer.sources) {
          p.Item([&] {
            p.TextField("pluginRef", source.plugin);
            if (source.extractors.empty()) return;
            p.Nested("extractors", [&] {
              for (const std::string& extractor : source.extractors) {
                p.Item([&] { p.TextField("pluginRef", extractor); });
              }
            });
          });
        }
      });
    }
    if (!layer.discovery.empty()) p.Reference("discovery", layer.discovery);
    if (!layer.peer_discovery.empty()) p.Reference("peerDiscovery", layer.peer_discovery);
    if (!layer.cross_replica_syncer.empty()) {
      p.TextField("crossReplicaSyncerPluginRef", layer.cross_replica_syncer);
    }
    if (interval_differs) {
      p.TextField("crossReplicaSyncInterval", absl::FormatDuration(layer.cross_replica_sync_interval));
    }
  });
}

void PrintBand(Printer& p, const PriorityBandConfig& band) {
  p.Field("priority", absl::StrCat(band.priority));
  p.Field("maxRequests", absl::StrCat(band.max_requests));
  p.Field("maxBytes", absl::StrCat(band.max_bytes));
  if (!band.fairness_policy.empty()) p.TextField("fairnessPolicyRef", band.fairness_policy);
  if (!band.ordering_policy.empty()) p.TextField("orderingPolicyRef", band.ordering_policy);
}

bool SameBand(const PriorityBandConfig& a, const PriorityBandConfig& b) {
  return a.priority == b.priority && a.max_requests == b.max_requests && a.max_bytes == b.max_bytes &&
         a.fairness_policy == b.fairness_policy && a.ordering_policy == b.ordering_policy;
}

// Without the feature gate only the detector counts, and the rest is printed only if it was set.
void PrintFlowControl(Printer& p, const SchedulerConfig& config) {
  const FlowControlConfig& flow = config.flow_control;
  const FlowControlConfig defaults;
  const bool limits = flow.max_requests != defaults.max_requests || flow.max_bytes != defaults.max_bytes ||
                      flow.default_request_ttl != defaults.default_request_ttl ||
                      flow.no_endpoint_request_ttl != defaults.no_endpoint_request_ttl ||
                      flow.enable_eviction;
  const bool bands = !flow.bands.empty() || flow.default_negative_band.has_value() ||
                     !SameBand(flow.default_band, defaults.default_band);
  const bool all = config.feature_gates.flow_control || limits || bands || !flow.usage_limit_policy.empty();
  if (!all && flow.saturation_detector.empty()) return;
  p.Nested("flowControl", [&] {
    if (!flow.saturation_detector.empty()) p.Reference("saturationDetector", flow.saturation_detector);
    if (!all) return;
    p.Field("maxRequests", absl::StrCat(flow.max_requests));
    p.Field("maxBytes", absl::StrCat(flow.max_bytes));
    p.TextField("defaultRequestTTL", absl::FormatDuration(flow.default_request_ttl));
    p.TextField("noEndpointRequestTTL", absl::FormatDuration(flow.no_endpoint_request_ttl));
    p.Field("enableEviction", flow.enable_eviction ? "true" : "false");
    if (!flow.usage_limit_policy.empty()) p.TextField("usageLimitPolicyPluginRef", flow.usage_limit_policy);
    p.Nested("defaultPriorityBand", [&] { PrintBand(p, flow.default_band); });
    if (flow.default_negative_band) {
      p.Nested("defaultNegativePriorityBand", [&] { PrintBand(p, *flow.default_negative_band); });
    }
    if (!flow.bands.empty()) {
      p.Nested("priorityBands", [&] {
        for (const PriorityBandConfig& band : flow.bands) p.Item([&] { PrintBand(p, band); });
      });
    }
  });
}

void PrintParsers(Printer& p, const SchedulerConfig& config) {
  if (config.parsers.empty()) return;
  p.Nested("requestHandler", [&] {
    p.Nested("parsers", [&] {
      for (const std::string& parser : config.parsers) {
        p.Item([&] { p.TextField("pluginRef", parser); });
      }
    });
  });
}

void PrintCompatibility(Printer& p, const Compatibility& compatibility) {
  std::size_t set = 0;
  for (const CompatibilityField& field : CompatibilityFields()) set += compatibility.*field.member ? 1 : 0;
  if (set == 0) return;
  if (set == CompatibilityFields().size()) return p.Field("compatibility", "llm-d");
  p.Nested("compatibility", [&] {
    for (const CompatibilityField& field : CompatibilityFields()) {
      if (compatibility.*field.member) p.Field(field.name, "true");
    }
  });
}

}  // namespace

std::string PrintConfig(const SchedulerConfig& config) {
  Printer p;
  p.Field("apiVersion", kApiVersion);
  p.Field("kind", kConfigKind);
  PrintCompatibility(p, config.compatibility);
  PrintFeatureGates(p, config.feature_gates);
  PrintPlugins(p, config);
  PrintProfiles(p, config);
  PrintDataLayer(p, config.data_layer);
  PrintFlowControl(p, config);
  PrintParsers(p, config);
  return p.Take();
}

}  // namespace llmd::sched
