// The hosts that a consistent hash spreads requests over, as Envoy knows them.
//
// A host is known to the hash by its key alone. Envoy's key is, in this order: the text at `envoy.lb` /
// `hash_key` of the host's metadata; the host name, when the cluster hashes by it; else the address, which
// EnvoyAddressKey() spells as Envoy does (spec: gateway.md 4.5). Which hosts take part is the caller's
// choice: Envoy takes the healthy ones of the chosen priority, or all when too few are healthy (panic).
//
// The order of hosts is that of the cluster's configuration. It matters for a ring by rounding alone, and for
// Maglev not at all.
#ifndef LLMD_GATEWAY_HASH_HOSTS_H_
#define LLMD_GATEWAY_HASH_HOSTS_H_

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "llmd/sched/endpoint_pool.h"

namespace llmd::gateway {

struct HashHost {
  std::string key = {};        // not empty, unique
  std::uint32_t weight = 1;    // at least 1; the sum of a locality's below 2^32
  std::uint32_t locality = 0;  // index into locality weights, when there are any
};

// What Pick() gives when there is no host.
inline constexpr std::uint32_t kNoHost = ~std::uint32_t{0};

// "10.0.0.1:8000", "[::1]:80". An IPv6 address becomes its canonical text; what is no IP stays as it is.
std::string EnvoyAddressKey(std::string_view address, std::uint16_t port);

// The endpoints of a pool by address, each of weight 1, so that a pick is a position.
std::vector<HashHost> HashHostsOf(const sched::EndpointPool& pool);

// Hosts with their share of the traffic. Participants keep the order of the hosts; without locality weights
// every host is one.
struct NormalizedHosts {
  struct Participant {
    std::uint32_t host = 0;  // index into the hosts given
    double weight = 0;       // shares sum to about 1
  };
  std::vector<Participant> participants = {};
  double min_weight = 1;
  double max_weight = 0;
};

// With `locality_weights`, a locality has its weight's share of the traffic and hosts of a locality of weight
// 0 take no part. InvalidArgument for an empty or repeated key, a weight of 0, a sum of weights of 2^32 or
// more, a locality without weight.
absl::StatusOr<NormalizedHosts> Normalize(std::span<const HashHost> hosts,
                                          std::span<const std::uint32_t> locality_weights = {});

}  // namespace llmd::gateway

#endif  // LLMD_GATEWAY_HASH_HOSTS_H_
