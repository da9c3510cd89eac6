// Where an endpoint runs: host, rack, zone and region, so that stages of one request can be kept near each
// other.
//
// Published for each endpoint by topology-extractor from labels, read by topology-affinity-filter and
// topology-affinity-scorer. The views are into the labels of the pool that the decision is taken on. An empty
// name is unknown and is near nothing. Plain value.
#ifndef LLMD_SCHED_TOPOLOGY_H_
#define LLMD_SCHED_TOPOLOGY_H_

#include <string_view>

namespace llmd::sched {

struct Topology {
  static constexpr std::string_view kDataType = "Topology";

  std::string_view hostname = {};
  std::string_view rack = {};
  std::string_view zone = {};
  std::string_view region = {};
};

// Nearest first.
enum class TopologyLevel { kHost, kRack, kZone, kRegion, kNone };

// The nearest level that two places share. Levels are compared one by one: names of racks must differ between
// zones.
constexpr TopologyLevel CommonLevel(const Topology& a, const Topology& b) {
  const auto same = [](std::string_view x, std::string_view y) { return !x.empty() && x == y; };
  if (same(a.hostname, b.hostname)) return TopologyLevel::kHost;
  if (same(a.rack, b.rack)) return TopologyLevel::kRack;
  if (same(a.zone, b.zone)) return TopologyLevel::kZone;
  return same(a.region, b.region) ? TopologyLevel::kRegion : TopologyLevel::kNone;
}

}  // namespace llmd::sched

#endif  // LLMD_SCHED_TOPOLOGY_H_
