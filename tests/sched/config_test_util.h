// Fixtures of configuration tests: files, and equality of configurations whatever their places.
#ifndef TESTS_SCHED_CONFIG_TEST_UTIL_H_
#define TESTS_SCHED_CONFIG_TEST_UTIL_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "llmd/sched/config_file.h"

namespace llmd::sched {

inline std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// The .yaml files of a folder below tests/sched, by name.
inline std::vector<std::string> FilesIn(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(LLMD_SOURCE_DIR "/tests/sched/" + folder)) {
    if (entry.path().extension() == ".yaml") names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}

inline std::string TestName(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param.substr(0, info.param.find('.'));
  for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
  return name;
}

inline bool Same(const Value& a, const Value& b) {
  if (a.kind() != b.kind()) return false;
  if (a.AsBool() != nullptr) return *a.AsBool() == *b.AsBool();
  if (a.AsInt() != nullptr) return *a.AsInt() == *b.AsInt();
  if (a.AsDouble() != nullptr) {
    return (*a.AsDouble() != *a.AsDouble() && *b.AsDouble() != *b.AsDouble()) ||
           std::bit_cast<std::uint64_t>(*a.AsDouble()) == std::bit_cast<std::uint64_t>(*b.AsDouble());
  }
  if (a.AsString() != nullptr) return *a.AsString() == *b.AsString();
  if (a.AsList() != nullptr) return std::ranges::equal(*a.AsList(), *b.AsList(), Same);
  if (a.AsMap() == nullptr) return true;
  return std::ranges::equal(*a.AsMap(), *b.AsMap(), [](const Value::Field& x, const Value::Field& y) {
    return x.first == y.first && Same(x.second, y.second);
  });
}

inline bool Same(const PriorityBandConfig& a, const PriorityBandConfig& b) {
  return a.priority == b.priority && a.max_requests == b.max_requests && a.max_bytes == b.max_bytes &&
         a.fairness_policy == b.fairness_policy && a.ordering_policy == b.ordering_policy;
}

// Everything that a file can say; a name that is the type is as good as none.
inline ::testing::AssertionResult Same(const SchedulerConfig& a, const SchedulerConfig& b) {
  const auto name = [](const PluginSpec& plugin) { return plugin.name.empty() ? plugin.type : plugin.name; };
  const auto differ = [](const char* what) { return ::testing::AssertionFailure() << what << " differ"; };
  const bool plugins =
      std::ranges::equal(a.plugins, b.plugins, [&](const PluginSpec& x, const PluginSpec& y) {
        return name(x) == name(y) && x.type == y.type && Same(x.parameters, y.parameters);
      });
  if (!plugins) return differ("plugins");
  const auto same_ref = [](const PluginRef& x, const PluginRef& y) {
    return x.plugin == y.plugin && x.weight == y.weight;
  };
  const bool profiles =
      std::ranges::equal(a.profiles, b.profiles, [&](const ProfileSpec& x, const ProfileSpec& y) {
        return x.name == y.name && std::ranges::equal(x.plugins, y.plugins, same_ref);
      });
  if (!profiles) return differ("profiles");
  if (a.feature_gates.flow_control != b.feature_gates.flow_control ||
      a.feature_gates.ha_populate_non_leader_datastore != b.feature_gates.ha_populate_non_leader_datastore) {
    return differ("feature gates");
  }
  const FlowControlConfig& f = a.flow_control;
  const FlowControlConfig& g = b.flow_control;
  if (f.max_requests != g.max_requests || f.max_bytes != g.max_bytes ||
      f.default_request_ttl != g.default_request_ttl ||
      f.no_endpoint_request_ttl != g.no_endpoint_request_ttl ||
      f.usage_limit_policy != g.usage_limit_policy || f.saturation_detector != g.saturation_detector ||
      f.enable_eviction != g.enable_eviction) {
    return differ("flow control settings");
  }
  const auto same_band = [](const PriorityBandConfig& x, const PriorityBandConfig& y) { return Same(x, y); };
  if (!Same(f.default_band, g.default_band) || !std::ranges::equal(f.bands, g.bands, same_band) ||
      f.default_negative_band.has_value() != g.default_negative_band.has_value() ||
      (f.default_negative_band && !Same(*f.default_negative_band, *g.default_negative_band))) {
    return differ("priority bands");
  }
  const DataLayerConfig& d = a.data_layer;
  const DataLayerConfig& e = b.data_layer;
  const bool sources = std::ranges::equal(d.sources, e.sources, [](const auto& x, const auto& y) {
    return x.plugin == y.plugin && x.extractors == y.extractors;
  });
  if (!sources || d.inject_defaults != e.inject_defaults || d.discovery != e.discovery ||
      d.peer_discovery != e.peer_discovery || d.cross_replica_syncer != e.cross_replica_syncer ||
      d.cross_replica_sync_interval != e.cross_replica_sync_interval) {
    return differ("data layers");
  }
  if (a.parsers != b.parsers) return differ("parsers");
  for (const CompatibilityField& field : CompatibilityFields()) {
    if (a.compatibility.*field.member != b.compatibility.*field.member) return differ("compatibility fields");
  }
  return ::testing::AssertionSuccess();
}

}  // namespace llmd::sched

#endif  // TESTS_SCHED_CONFIG_TEST_UTIL_H_
