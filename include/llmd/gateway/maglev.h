// Envoy's Maglev load balancer: a table of a prime number of slots in which every host owns slots in
// proportion to its weight; a request belongs to the owner of the slot of its hash. Spread more evenly than a
// ring's, with a cheaper look-up; but when a host leaves, some requests of other hosts move as well. Bit for
// bit Envoy's (spec: gateway.md 4.6), whatever the order of hosts.
//
// Immutable, published like a RingHash. With N slots: built in O(N log N) for weights of one order of
// magnitude (at worst N times the hosts, when one host outweighs all), 2 bytes a slot up to 65535 hosts and 4
// beyond; Pick() is one division and one read, and allocates nothing.
#ifndef LLMD_GATEWAY_MAGLEV_H_
#define LLMD_GATEWAY_MAGLEV_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "llmd/gateway/hash_hosts.h"

namespace llmd::gateway {

inline constexpr std::uint64_t kMaxMaglevTableSize = 5'000'011;

struct MaglevOptions {
  std::uint64_t table_size = 65537;                  // prime, 2 .. kMaxMaglevTableSize
  std::vector<std::uint32_t> locality_weights = {};  // empty: localities do not matter
};

class Maglev {
 public:
  // InvalidArgument as Normalize(), and for a table size out of range or not prime. No hosts give a table
  // without slots.
  static absl::StatusOr<Maglev> Create(std::span<const HashHost> hosts, const MaglevOptions& options = {});

  // Index of a host; kNoHost when there is none. A retry looks at another slot, which may be the same host's.
  std::uint32_t Pick(std::uint64_t hash, std::uint32_t attempt = 0) const {
    if (attempt > 0) hash ^= 0 - std::uint64_t{attempt};
    if (size() == 0) return kNoHost;
    return host(hash % size());
  }

  std::size_t size() const { return narrow_.empty() ? wide_.size() : narrow_.size(); }
  std::uint32_t host(std::size_t slot) const { return narrow_.empty() ? wide_[slot] : narrow_[slot]; }

  const NormalizedHosts& normalized() const { return normalized_; }

 private:
  Maglev() = default;

  NormalizedHosts normalized_;
  std::vector<std::uint16_t> narrow_;  // one of the two is empty
  std::vector<std::uint32_t> wide_;
};

}  // namespace llmd::gateway

#endif  // LLMD_GATEWAY_MAGLEV_H_
