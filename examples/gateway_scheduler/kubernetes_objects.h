// What we read from the cluster's objects, and the endpoints that follow from it (spec: gateway.md 7.1-7.3).
//
// Plain functions from JSON to values. What is missing or of another type than expected never fails more than
// the object that it belongs to, and where one can go on without it, not even that.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_KUBERNETES_OBJECTS_H_
#define EXAMPLES_GATEWAY_SCHEDULER_KUBERNETES_OBJECTS_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "absl/status/statusor.h"
#include "examples/gateway_scheduler/label_selector.h"
#include "examples/gateway_scheduler/request_tables.h"
#include "llmd/sched/endpoint.h"

namespace llmd::host {

inline constexpr std::string_view kPoolGroup = "inference.networking.k8s.io";       // v1
inline constexpr std::string_view kPoolGroupOld = "inference.networking.x-k8s.io";  // v1alpha2
// Of InferenceObjective and InferenceModelRewrite, now and before; v1alpha2.
inline constexpr std::string_view kObjectiveGroups[] = {"llm-d.ai", "inference.networking.x-k8s.io"};
inline constexpr std::string_view kActivePorts = "llm-d.ai/active-ports";  // annotation
inline constexpr std::string_view kActivePortsOld = "inference.networking.k8s.io/active-ports";
inline constexpr std::size_t kMaxTargetPorts = 8;

struct PodState {
  std::string name = {};
  std::string pod_namespace = {};
  std::string address = {};  // empty: not known yet, or no IP
  std::string node_address = {};
  bool ready = false;        // condition Ready is True
  bool terminating = false;  // has a deletionTimestamp
  sched::Labels labels = {};
  std::optional<std::string> active_ports = {};  // the annotation
  friend bool operator==(const PodState&, const PodState&) = default;
};

struct PoolState {
  LabelSelector selector = {};
  std::vector<std::uint16_t> target_ports = {};
  std::string app_protocol = "http";
  bool fail_open = false;
  bool terminating = false;  // as good as deleted
  friend bool operator==(const PoolState&, const PoolState&) = default;
};

// A reference to a pool by an objective or a rewrite.
struct PoolReference {
  std::string group = std::string(kPoolGroup);
  std::string name = {};
  friend bool operator==(const PoolReference&, const PoolReference&) = default;
};

struct ObjectiveState {
  std::vector<PoolReference> pools = {};
  std::int32_t priority = 0;
  bool terminating = false;
};

struct RewriteState {
  PoolReference pool = {};
  RewriteObject object = {};
  bool terminating = false;
};

// An error only for an object without name, which cannot be told from others.
absl::StatusOr<PodState> ReadPod(const nlohmann::json& object);
// Both forms: selector.matchLabels with targetPorts, selector with targetPortNumber.
absl::StatusOr<PoolState> ReadPool(const nlohmann::json& object);
absl::StatusOr<ObjectiveState> ReadObjective(const nlohmann::json& object);
absl::StatusOr<RewriteState> ReadRewrite(const nlohmann::json& object);

// 1 to 8 different ones of 1 to 65535.
absl::StatusOr<std::vector<std::uint16_t>> CheckTargetPorts(std::span<const int> ports);

// Adds an endpoint per active target port of a pod that is ready and stays; nothing for others.
void AppendEndpoints(const PodState& pod, const std::vector<std::uint16_t>& target_ports,
                     std::vector<sched::EndpointMetadata>& endpoints);

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_KUBERNETES_OBJECTS_H_
