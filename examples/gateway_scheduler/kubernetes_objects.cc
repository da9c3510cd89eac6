#include "examples/gateway_scheduler/kubernetes_objects.h"

#include <arpa/inet.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"

namespace llmd::host {
namespace {

using nlohmann::json;

constexpr std::uint32_t kMaxWeight = 1'000'000;
constexpr std::size_t kMaxName = 253;

// Null where there is no such field, or `object` is none.
const json* Find(const json* object, std::string_view field) {
  if (object == nullptr || !object->is_object()) return nullptr;
  const auto it = object->find(field);
  return it == object->end() || it->is_null() ? nullptr : &*it;
}

const json* Find(const json& object, std::string_view a, std::string_view b) {
  return Find(Find(&object, a), b);
}

std::string Text(const json* value) {
  return value != nullptr && value->is_string() ? value->get_ref<const std::string&>() : std::string();
}

std::optional<std::int64_t> Integer(const json* value) {
  if (value == nullptr || !value->is_number_integer()) return std::nullopt;
  if (value->is_number_unsigned() &&
      value->get<std::uint64_t>() > std::uint64_t{std::numeric_limits<std::int64_t>::max()}) {
    return std::nullopt;
  }
  return value->get<std::int64_t>();
}

const json::array_t& Items(const json* value) {
  static const json::array_t kNone;
  return value != nullptr && value->is_array() ? value->get_ref<const json::array_t&>() : kNone;
}

// Part of ids, logs and headers.
bool IsName(std::string_view text) {
  return !text.empty() && text.size() <= kMaxName && std::all_of(text.begin(), text.end(), [](char c) {
    return absl::ascii_isalnum(c) || c == '-' || c == '.' || c == '_';
  });
}

absl::StatusOr<std::string> NameOf(const json& object) {
  std::string name = Text(Find(object, "metadata", "name"));
  if (!IsName(name)) return absl::InvalidArgumentError("metadata.name is missing or no name");
  return name;
}

std::string AddressOf(const json* value) {
  std::string text = Text(value);
  unsigned char binary[sizeof(in6_addr)];
  const bool valid =
      text.find('\0') == std::string::npos &&
      (::inet_pton(AF_INET, text.c_str(), binary) == 1 || ::inet_pton(AF_INET6, text.c_str(), binary) == 1);
  return valid ? text : std::string();
}

sched::Labels LabelsOf(const json* value) {
  sched::Labels labels;
  if (value == nullptr || !value->is_object()) return labels;
  for (const auto& [key, label] : value->items()) {
    if (label.is_string()) labels.emplace(key, label.get_ref<const std::string&>());
  }
  return labels;
}

bool Terminating(const json& object) { return Find(object, "metadata", "deletionTimestamp") != nullptr; }

std::optional<std::uint16_t> PortOf(std::optional<std::int64_t> number) {
  if (!number || *number < 1 || *number > 65535) return std::nullopt;
  return static_cast<std::uint16_t>(*number);
}

absl::Status AddPort(std::optional<std::uint16_t> port, std::vector<std::uint16_t>& ports) {
  if (!port) return absl::InvalidArgumentError("a target port is no number of 1 to 65535");
  if (std::find(ports.begin(), ports.end(), *port) != ports.end()) {
    return absl::InvalidArgumentError(absl::StrCat("target port ", *port, " is given twice, expected once"));
  }
  if (ports.size() == kMaxTargetPorts) {
    return absl::InvalidArgumentError(absl::StrCat("there are more than ", kMaxTargetPorts, " target ports"));
  }
  ports.push_back(*port);
  return absl::OkStatus();
}

PoolReference ReferenceOf(const json* value) {
  PoolReference reference;
  reference.name = Text(Find(value, "name"));
  const std::string group = Text(Find(value, "group"));
  if (!group.empty()) reference.group = group;
  const std::string kind = Text(Find(value, "kind"));
  if (!kind.empty() && kind != "InferencePool") reference.name.clear();  // no pool has this name
  return reference;
}

std::vector<RewriteTarget> TargetsOf(const json* value) {
  std::vector<RewriteTarget> targets;
  for (const json& item : Items(value)) {
    RewriteTarget target{.model = Text(Find(&item, "modelRewrite"))};
    if (target.model.empty()) continue;
    if (const json* weight = Find(&item, "weight"); weight != nullptr) {
      const std::optional<std::int64_t> number = Integer(weight);
      if (!number || *number < 0 || *number > kMaxWeight) continue;
      target.weight = static_cast<std::uint32_t>(*number);
    }
    targets.push_back(std::move(target));
  }
  return targets;
}

// The decimal number that a piece of the annotation begins with, as the reference reads it.
std::optional<std::uint16_t> LeadingPort(std::string_view text) {
  text = {absl::StripAsciiWhitespace(ToAbsl(text)).data(), absl::StripAsciiWhitespace(ToAbsl(text)).size()};
  if (text.starts_with('+')) text.remove_prefix(1);
  std::uint16_t port = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  if (error != std::errc() || port == 0) return std::nullopt;
  return port;
}

// Calls `take` with each piece between commas.
template <typename Take>
void ForEachPiece(std::string_view text, Take take) {
  for (std::size_t from = 0; from <= text.size();) {
    const std::size_t to = std::min(text.find(',', from), text.size());
    take(text.substr(from, to - from));
    from = to + 1;
  }
}

}  // namespace

absl::StatusOr<PodState> ReadPod(const json& object) {
  absl::StatusOr<std::string> name = NameOf(object);
  if (!name.ok()) return name.status();
  PodState pod;
  pod.name = *std::move(name);
  pod.pod_namespace = Text(Find(object, "metadata", "namespace"));
  pod.terminating = Terminating(object);
  pod.labels = LabelsOf(Find(object, "metadata", "labels"));
  const json* annotations = Find(object, "metadata", "annotations");
  for (const std::string_view key : {kActivePorts, kActivePortsOld}) {
    if (const json* value = Find(annotations, key); value != nullptr && value->is_string()) {
      pod.active_ports = Text(value);
      break;
    }
  }
  const json* status = Find(&object, "status");
  pod.address = AddressOf(Find(status, "podIP"));
  pod.node_address = AddressOf(Find(status, "hostIP"));
  for (const json& condition : Items(Find(status, "conditions"))) {
    if (Text(Find(&condition, "type")) == "Ready") {
      pod.ready = Text(Find(&condition, "status")) == "True";
      break;
    }
  }
  return pod;
}

absl::StatusOr<PoolState> ReadPool(const json& object) {
  PoolState pool;
  pool.terminating = Terminating(object);
  const json* spec = Find(&object, "spec");
  const json* selector = Find(spec, "selector");
  const json* match = Find(selector, "matchLabels");
  // A label of the old form may be called matchLabels, but its value is a text then.
  if (match == nullptr || !match->is_object()) match = selector;
  if (match == nullptr || !match->is_object() || match->empty()) {
    return absl::InvalidArgumentError("spec.selector has no labels");
  }
  const sched::Labels labels = LabelsOf(match);
  if (labels.size() != match->size()) {
    return absl::InvalidArgumentError("spec.selector has a label that is no text");
  }
  absl::StatusOr<LabelSelector> parsed = LabelSelector::FromLabels(labels);
  if (!parsed.ok())
    return absl::InvalidArgumentError(absl::StrCat("spec.selector: ", parsed.status().message()));
  pool.selector = *std::move(parsed);

  if (const json* number = Find(spec, "targetPortNumber"); number != nullptr) {
    if (absl::Status status = AddPort(PortOf(Integer(number)), pool.target_ports); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("spec.targetPortNumber: ", status.message()));
    }
  } else {
    for (const json& port : Items(Find(spec, "targetPorts"))) {
      if (absl::Status status = AddPort(PortOf(Integer(Find(&port, "number"))), pool.target_ports);
          !status.ok()) {
        return absl::InvalidArgumentError(absl::StrCat("spec.targetPorts: ", status.message()));
      }
    }
  }
  if (pool.target_ports.empty()) return absl::InvalidArgumentError("spec has no target port");

  if (std::string protocol = Text(Find(spec, "appProtocol")); !protocol.empty()) {
    pool.app_protocol = std::move(protocol);
  }
  const json* picker = Find(spec, "endpointPickerRef");
  if (picker == nullptr) picker = Find(spec, "extensionRef");
  pool.fail_open = Text(Find(picker, "failureMode")) == "FailOpen";
  return pool;
}

absl::StatusOr<ObjectiveState> ReadObjective(const json& object) {
  absl::StatusOr<std::string> name = NameOf(object);
  if (!name.ok()) return name.status();
  ObjectiveState objective;
  objective.terminating = Terminating(object);
  const json* spec = Find(&object, "spec");
  if (const json* pool = Find(spec, "poolRef"); pool != nullptr) objective.pools.push_back(ReferenceOf(pool));
  for (const json& pool : Items(Find(spec, "poolRefs"))) objective.pools.push_back(ReferenceOf(&pool));
  if (const json* priority = Find(spec, "priority"); priority != nullptr) {
    const std::optional<std::int64_t> number = Integer(priority);
    if (!number || *number < std::numeric_limits<std::int32_t>::min() ||
        *number > std::numeric_limits<std::int32_t>::max()) {
      return absl::InvalidArgumentError("spec.priority is no number of 32 bits");
    }
    objective.priority = static_cast<std::int32_t>(*number);
  }
  return objective;
}

absl::StatusOr<RewriteState> ReadRewrite(const json& object) {
  absl::StatusOr<std::string> name = NameOf(object);
  if (!name.ok()) return name.status();
  RewriteState rewrite;
  rewrite.terminating = Terminating(object);
  rewrite.object.name = *std::move(name);
  std::string error;
  const std::string created = Text(Find(object, "metadata", "creationTimestamp"));
  if (!created.empty() && !absl::ParseTime(absl::RFC3339_full, created, &rewrite.object.created, &error)) {
    rewrite.object.created = absl::InfiniteFuture();
  }
  const json* spec = Find(&object, "spec");
  rewrite.pool = ReferenceOf(Find(spec, "poolRef"));
  for (const json& item : Items(Find(spec, "rules"))) {
    RewriteRule rule{.targets = TargetsOf(Find(&item, "targets"))};
    const json* matches = Find(&item, "matches");
    // Only what is surely meant for all models is taken for it.
    rule.generic = item.is_object() && (matches == nullptr || (matches->is_array() && matches->empty()));
    for (const json& match : Items(matches)) {
      const json* model = Find(&match, "model");
      const std::string type = Text(Find(model, "type"));
      const std::string value = Text(Find(model, "value"));
      if ((type.empty() || type == "Exact") && !value.empty()) rule.models.push_back(value);
    }
    rewrite.object.rules.push_back(std::move(rule));
  }
  return rewrite;
}

absl::StatusOr<std::vector<std::uint16_t>> CheckTargetPorts(std::span<const int> ports) {
  std::vector<std::uint16_t> checked;
  for (const int port : ports) {
    if (absl::Status status = AddPort(PortOf(port), checked); !status.ok()) return status;
  }
  if (checked.empty()) return absl::InvalidArgumentError("there is no target port");
  return checked;
}

void AppendEndpoints(const PodState& pod, const std::vector<std::uint16_t>& target_ports,
                     std::vector<sched::EndpointMetadata>& endpoints) {
  if (!pod.ready || pod.terminating || pod.address.empty()) return;
  std::vector<std::uint16_t> active = target_ports;
  if (pod.active_ports) {
    active.clear();
    ForEachPiece(*pod.active_ports, [&](std::string_view piece) {
      const std::optional<std::uint16_t> port = LeadingPort(piece);
      const auto is = [&](const auto& ports) {
        return std::find(ports.begin(), ports.end(), *port) != ports.end();
      };
      if (port && is(target_ports) && !is(active)) active.push_back(*port);
    });
  }
  for (std::uint32_t rank = 0; rank < target_ports.size(); ++rank) {
    if (std::find(active.begin(), active.end(), target_ports[rank]) == active.end()) continue;
    endpoints.push_back({.name = absl::StrCat(pod.name, "-rank-", rank),
                         .pod_namespace = pod.pod_namespace,
                         .address = pod.address,
                         .port = target_ports[rank],
                         .node_address = pod.node_address,
                         .labels = pod.labels,
                         .rank = rank});
  }
}

}  // namespace llmd::host
