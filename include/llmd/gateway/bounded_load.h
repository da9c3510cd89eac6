// A bound on what stickiness may cost: a host that is too busy passes its requests on, always to the same
// other hosts for one hash. Envoy's hash_balance_factor (spec: gateway.md 4.7), bit for bit.
//
//   const std::uint32_t host = ring.Pick(hash);
//   const std::uint32_t final_host = bounded.Pick(host, hash, active, total, scratch);
//
// Immutable, for any number of threads; the counts of active requests and the scratch buffer are the
// caller's. O(1) while the host has room, else O(hosts); allocates nothing once the scratch buffer has grown.
#ifndef LLMD_GATEWAY_BOUNDED_LOAD_H_
#define LLMD_GATEWAY_BOUNDED_LOAD_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "llmd/gateway/hash_hosts.h"

namespace llmd::gateway {

class BoundedLoad {
 public:
  // A host may have `balance_factor` percent of its share of the active requests: at least 100, or 0 for no
  // bound. `normalized` is the ring's or table's.
  static absl::StatusOr<BoundedLoad> Create(std::uint32_t balance_factor, const NormalizedHosts& normalized);

  // `host` is the hash's pick, also on a retry. `active` has the number of active requests of each host, by
  // index; `total_active` is the cluster's, this request not included. A host beyond `active` has none.
  std::uint32_t Pick(std::uint32_t host, std::uint64_t hash, std::span<const std::uint32_t> active,
                     std::uint64_t total_active, std::vector<std::uint32_t>& scratch) const;

 private:
  BoundedLoad() = default;

  std::uint32_t balance_factor_ = 0;
  std::vector<NormalizedHosts::Participant> participants_;
  std::vector<double> weight_of_host_;
};

}  // namespace llmd::gateway

#endif  // LLMD_GATEWAY_BOUNDED_LOAD_H_
