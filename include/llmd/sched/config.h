// What a scheduler is made of, as plain values: llm-d's EndpointPickerConfig after reading.
//
// Filled in code, or by config_file.h from YAML. Completed by Scheduler::Create() as the spec (scheduling.md
// 3.2) says: no profile: one named "default" with every filter, scorer and picker in order; one profile and
// no handler: single-profile-handler; a profile without picker: the first picker of the plugins, or
// max-score-picker; a datum that is required and not produced: its default producer.
#ifndef LLMD_SCHED_CONFIG_H_
#define LLMD_SCHED_CONFIG_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "llmd/sched/compatibility.h"
#include "llmd/sched/parameters.h"

namespace llmd::sched {

// Where in a file something stands; nothing for what was made in code.
struct SourcePlace {
  std::string path = {};  // "plugins[2]"
  std::uint32_t line = 0;
};

struct PluginSpec {
  std::string name = {};  // empty: the type
  std::string type = {};
  Value parameters = {};
  SourcePlace place = {};
};

struct PluginRef {
  std::string plugin = {};            // a plugin's name
  std::optional<double> weight = {};  // of a scorer; 1 when absent. Any finite number
  SourcePlace place = {};
};

struct ProfileSpec {
  std::string name = {};
  std::vector<PluginRef> plugins = {};  // filters and scorers in order, and at most one picker
  SourcePlace place = {};
};

// Requests of one priority. (spec: scheduling.md 2.7)
struct PriorityBandConfig {
  std::int32_t priority = 0;
  std::uint64_t max_requests = 5000;     // queued at a time
  std::uint64_t max_bytes = 1000000000;  // of queued requests' bodies
  std::string fairness_policy = {};      // plugin names; empty: global-strict-fairness-policy
  std::string ordering_policy = {};      // empty: fcfs-ordering-policy
  SourcePlace place = {};
};

struct FlowControlConfig {
  std::uint64_t max_requests = 0;                                // queued in all bands; 0: no limit
  std::uint64_t max_bytes = 0;                                   // 0: no limit
  absl::Duration default_request_ttl = absl::Seconds(60);        // 0: none
  absl::Duration no_endpoint_request_ttl = absl::Seconds(60);    // while the pool is empty; 0: none
  std::vector<PriorityBandConfig> bands = {};                    // distinct priorities
  PriorityBandConfig default_band = {};                          // of priorities not listed
  std::optional<PriorityBandConfig> default_negative_band = {};  // of those below 0, when given
  std::string usage_limit_policy = {};   // plugin name; empty: static-usage-limit-policy
  std::string saturation_detector = {};  // plugin name; empty: utilization-detector
  bool enable_eviction = false;
  SourcePlace place = {};
};

// Which data sources feed which extractors. Carried out by the host.
struct DataSourceConfig {
  std::string plugin = {};
  std::vector<std::string> extractors = {};
  SourcePlace place = {};
};

struct DataLayerConfig {
  bool inject_defaults = true;
  std::vector<DataSourceConfig> sources = {};
  std::string discovery = {};  // plugin names
  std::string peer_discovery = {};
  std::string cross_replica_syncer = {};
  absl::Duration cross_replica_sync_interval = absl::Milliseconds(200);
  SourcePlace place = {};
};

struct FeatureGates {
  bool flow_control = false;
  bool ha_populate_non_leader_datastore = true;
};

struct SchedulerConfig {
  // What runs when nothing is configured: queue-scorer 2, kv-cache-utilization-scorer 2,
  // prefix-cache-scorer 3.
  static SchedulerConfig Default();

  std::vector<PluginSpec> plugins = {};
  std::vector<ProfileSpec> profiles = {};
  FeatureGates feature_gates = {};
  FlowControlConfig flow_control = {};
  DataLayerConfig data_layer = {};
  std::vector<std::string> parsers = {};  // plugin names, tried in order
  Compatibility compatibility = {};
  bool allow_experimental = false;  // plugin types that are alpha
  std::string source = {};          // the file's name, for messages
  // Where pluginRefs outside of the profiles stand in it, by their paths such as
  // "requestHandler.parsers[0].pluginRef".
  std::map<std::string, std::uint32_t> reference_lines = {};
};

}  // namespace llmd::sched

#endif  // LLMD_SCHED_CONFIG_H_
