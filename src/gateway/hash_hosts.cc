#include "llmd/gateway/hash_hosts.h"

#include <arpa/inet.h>

#include <algorithm>
#include <limits>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"

namespace llmd::gateway {
namespace {

constexpr std::uint64_t kMaxSum = std::numeric_limits<std::uint32_t>::max();

absl::Status CheckHosts(std::span<const HashHost> hosts, std::size_t localities) {
  absl::flat_hash_set<absl::string_view> keys;
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < hosts.size(); ++i) {
    const HashHost& host = hosts[i];
    if (host.key.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("hosts[", i, "].key is empty, expected a text"));
    }
    if (!keys.insert(host.key).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("hosts[", i, "].key is \"", host.key, "\" again, expected distinct keys"));
    }
    if (host.weight == 0) {
      return absl::InvalidArgumentError(absl::StrCat("hosts[", i, "].weight is 0, expected at least 1"));
    }
    if (localities != 0 && host.locality >= localities) {
      return absl::InvalidArgumentError(absl::StrCat("hosts[", i, "].locality is ", host.locality,
                                                     ", expected less than the ", localities,
                                                     " locality weights"));
    }
    sum += host.weight;
  }
  if (sum > kMaxSum) {
    return absl::InvalidArgumentError(
        absl::StrCat("the sum of weights is ", sum, ", expected at most ", kMaxSum));
  }
  return absl::OkStatus();
}

}  // namespace

std::string EnvoyAddressKey(std::string_view address, std::uint16_t port) {
  if (address.find(':') == std::string_view::npos) return absl::StrCat(ToAbsl(address), ":", port);
  in6_addr binary;
  char text[INET6_ADDRSTRLEN];
  if (inet_pton(AF_INET6, std::string(address).c_str(), &binary) == 1 &&
      inet_ntop(AF_INET6, &binary, text, sizeof text) != nullptr) {
    return absl::StrCat("[", text, "]:", port);
  }
  return absl::StrCat("[", ToAbsl(address), "]:", port);
}

std::vector<HashHost> HashHostsOf(const sched::EndpointPool& pool) {
  std::vector<HashHost> hosts;
  hosts.reserve(pool.size());
  for (const sched::Endpoint& endpoint : pool.endpoints()) {
    hosts.push_back({.key = EnvoyAddressKey(endpoint.metadata().address, endpoint.metadata().port)});
  }
  return hosts;
}

absl::StatusOr<NormalizedHosts> Normalize(std::span<const HashHost> hosts,
                                          std::span<const std::uint32_t> locality_weights) {
  if (absl::Status status = CheckHosts(hosts, locality_weights.size()); !status.ok()) return status;
  NormalizedHosts normalized;
  normalized.participants.reserve(hosts.size());
  // The order of operations is Envoy's: the roundings must be the same.
  const auto add_locality = [&](std::uint32_t locality, bool all, double share) {
    std::uint64_t sum = 0;
    for (const HashHost& host : hosts) {
      if (all || host.locality == locality) sum += host.weight;
    }
    for (std::uint32_t i = 0; i < hosts.size(); ++i) {
      if (!all && hosts[i].locality != locality) continue;
      const double weight = hosts[i].weight * share / sum;
      normalized.participants.push_back({i, weight});
      normalized.min_weight = std::min(normalized.min_weight, weight);
      normalized.max_weight = std::max(normalized.max_weight, weight);
    }
  };
  if (locality_weights.empty()) {
    add_locality(0, true, 1.0);
    return normalized;
  }
  std::uint64_t sum = 0;
  for (const std::uint32_t weight : locality_weights) sum += weight;
  if (sum > kMaxSum) {
    return absl::InvalidArgumentError(
        absl::StrCat("the sum of locality weights is ", sum, ", expected at most ", kMaxSum));
  }
  for (std::uint32_t i = 0; i < locality_weights.size(); ++i) {
    if (locality_weights[i] != 0) add_locality(i, false, static_cast<double>(locality_weights[i]) / sum);
  }
  return normalized;
}

}  // namespace llmd::gateway
