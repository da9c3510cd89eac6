#include "llmd/sched/endpoint_pool.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"

namespace llmd::sched {
namespace {

std::uint8_t RolesOf(const Labels& labels) {
  const auto it = labels.find(kRoleLabel);
  if (it == labels.end()) return kRoleDecode;
  const std::string& role = it->second;
  if (role == "decode") return kRoleDecode;
  if (role == "prefill") return kRolePrefill;
  if (role == "encode") return kRoleEncode;
  if (role == "prefill-decode" || role == "both") return kRolePrefill | kRoleDecode;
  if (role == "encode-prefill") return kRoleEncode | kRolePrefill;
  if (role == "encode-prefill-decode") return kRoleEncode | kRolePrefill | kRoleDecode;
  return 0;
}

std::string HostPort(const EndpointMetadata& metadata) {
  const bool bare_ipv6 = metadata.address.find(':') != std::string::npos && metadata.address.front() != '[';
  return bare_ipv6 ? absl::StrCat("[", metadata.address, "]:", metadata.port)
                   : absl::StrCat(metadata.address, ":", metadata.port);
}

}  // namespace

EndpointIdentity::EndpointIdentity(EndpointMetadata m)
    : metadata(std::move(m)),
      id(absl::StrCat(metadata.pod_namespace, "/", metadata.name)),
      host_port(HostPort(metadata)),
      roles(RolesOf(metadata.labels)) {}

const std::string* Endpoint::FindLabel(std::string_view label) const {
  const auto it = metadata().labels.find(label);
  return it == metadata().labels.end() ? nullptr : &it->second;
}

const Attribute* Endpoint::FindAttribute(std::string_view name) const {
  for (const Attribute& attribute : attributes) {
    if (attribute.name == name) return &attribute;
  }
  return nullptr;
}

absl::StatusOr<EndpointHandle> EndpointPool::Add(EndpointMetadata metadata) {
  if (metadata.name.empty()) return absl::InvalidArgumentError("endpoint: name is empty");
  if (metadata.address.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("endpoint ", metadata.name, ": address is empty"));
  }
  if (metadata.port == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("endpoint ", metadata.name, ": port 0, expected 1..65535"));
  }
  auto identity = std::make_shared<const EndpointIdentity>(std::move(metadata));
  if (FindId(identity->id))
    return absl::AlreadyExistsError(absl::StrCat("endpoint ", identity->id, " exists"));

  std::uint32_t slot;
  if (free_slots_.empty()) {
    slot = static_cast<std::uint32_t>(slots_.size());
    slots_.emplace_back();
  } else {
    slot = free_slots_.back();
    free_slots_.pop_back();
  }
  if (++slots_[slot].generation == 0) slots_[slot].generation = 1;
  slots_[slot].position = static_cast<Position>(endpoints_.size());
  Endpoint endpoint;
  endpoint.handle = {slot, slots_[slot].generation};
  slot_of_id_.emplace(identity->id, slot);
  endpoint.identity = std::move(identity);
  endpoints_.push_back(std::move(endpoint));
  return endpoints_.back().handle;
}

bool EndpointPool::Remove(EndpointHandle endpoint) {
  const std::optional<Position> position = Find(endpoint);
  if (!position) return false;
  for (HolderTable& table : holders_) {
    for (HolderBinding& binding : table.by_slot) {
      if (binding.endpoint == endpoint) binding = {};
    }
    if (endpoint.slot < table.first_of.size()) table.first_of[endpoint.slot] = {};
  }
  slot_of_id_.erase(endpoints_[*position].id());
  endpoints_.erase(endpoints_.begin() + *position);
  for (Position p = *position; p < endpoints_.size(); ++p) slots_[endpoints_[p].handle.slot].position = p;
  slots_[endpoint.slot].position = kNoPosition;
  free_slots_.push_back(endpoint.slot);
  return true;
}

std::optional<Position> EndpointPool::FindId(std::string_view id) const {
  const auto it = slot_of_id_.find(ToAbsl(id));
  if (it == slot_of_id_.end()) return std::nullopt;
  return slots_[it->second].position;
}

Metrics* EndpointPool::mutable_metrics(EndpointHandle endpoint) {
  const std::optional<Position> position = Find(endpoint);
  return position ? &endpoints_[*position].metrics : nullptr;
}

bool EndpointPool::SetAttribute(EndpointHandle endpoint, std::string_view name, Sample<double> sample) {
  const std::optional<Position> position = Find(endpoint);
  if (!position) return false;
  std::vector<Attribute>& attributes = endpoints_[*position].attributes;
  for (Attribute& attribute : attributes) {
    if (attribute.name == name) {
      attribute.sample = sample;
      return true;
    }
  }
  attributes.push_back({std::string(name), sample});
  return true;
}

absl::Status EndpointPool::BindHolder(PrefixSource source, index::HolderId holder, EndpointHandle endpoint,
                                      std::string_view tier) {
  if (source >= kMaxPrefixSources) {
    return absl::InvalidArgumentError(
        absl::StrCat("prefix source ", source, ", expected less than ", kMaxPrefixSources));
  }
  if (holder.generation == 0) return absl::InvalidArgumentError("holder: generation 0 is not a holder");
  if (!Find(endpoint)) {
    return absl::NotFoundError(absl::StrCat("endpoint slot ", endpoint.slot, " generation ",
                                            endpoint.generation, " is not in the pool"));
  }
  UnbindHolder(source, {holder.slot, 0});
  if (source >= holders_.size()) holders_.resize(source + 1);
  HolderTable& table = holders_[source];
  if (holder.slot >= table.by_slot.size()) table.by_slot.resize(holder.slot + 1);
  if (endpoint.slot >= table.first_of.size()) table.first_of.resize(endpoint.slot + 1);
  auto it = std::find(table.tiers.begin(), table.tiers.end(), tier);
  if (it == table.tiers.end()) it = table.tiers.insert(it, std::string(tier));
  table.by_slot[holder.slot] = {endpoint, static_cast<std::uint32_t>(it - table.tiers.begin()),
                                holder.generation};
  if (table.first_of[endpoint.slot].generation == 0) table.first_of[endpoint.slot] = holder;
  return absl::OkStatus();
}

void EndpointPool::UnbindHolder(PrefixSource source, index::HolderId holder) {
  if (source >= holders_.size() || holder.slot >= holders_[source].by_slot.size()) return;
  HolderTable& table = holders_[source];
  HolderBinding& binding = table.by_slot[holder.slot];
  if (binding.endpoint.generation == 0) return;
  if (holder.generation != 0 && binding.generation != holder.generation) return;
  const EndpointHandle endpoint = binding.endpoint;
  binding = {};
  index::HolderId& first = table.first_of[endpoint.slot];
  if (first.slot != holder.slot) return;
  first = {};
  for (std::size_t slot = 0; slot < table.by_slot.size(); ++slot) {
    if (table.by_slot[slot].endpoint == endpoint) {
      first = {static_cast<std::uint16_t>(slot), table.by_slot[slot].generation};
      break;
    }
  }
}

const HolderTable& EndpointPool::holders(PrefixSource source) const {
  static const HolderTable& empty = *new HolderTable;
  return source < holders_.size() ? holders_[source] : empty;
}

}  // namespace llmd::sched
