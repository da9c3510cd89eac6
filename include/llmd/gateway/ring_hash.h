// Envoy's ring hash load balancer, so that a picker and a mesh that falls back to the ring agree.
//
// Every host owns points of a 64-bit circle, in proportion to its weight; a request belongs to the owner of
// the first point at or after its hash (request_hash.h). Points depend on a host's key and their number
// alone: when a host leaves, about its own share of the requests moves and no other. The result is Envoy's
// bit for bit (spec: gateway.md 4.5), provided that hosts, weights, their order and the ring's sizes are the
// deployment's: another minimum size gives other picks.
//
// Immutable: any number of threads may pick from one ring. A change of hosts or weights is a new ring,
// published by the host as std::shared_ptr<const RingHash> beside the pool that it was made of. With n points
// (at least min_ring_size, so about 4096 for Istio's usual setting, and at most max_ring_size): built in O(n
// log n), 16 bytes a point; Pick() looks at a point or two after an index by the hash's upper bits, O(log n)
// at worst, and allocates nothing.
#ifndef LLMD_GATEWAY_RING_HASH_H_
#define LLMD_GATEWAY_RING_HASH_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "llmd/gateway/hash_hosts.h"

namespace llmd::gateway {

enum class RingHashFunction : std::uint8_t { kXxHash, kMurmurHash2 };

inline constexpr std::uint64_t kMaxRingSize = 8'388'608;

struct RingHashOptions {
  std::uint64_t min_ring_size = 1024;  // 1 .. max_ring_size
  std::uint64_t max_ring_size = kMaxRingSize;
  RingHashFunction function = RingHashFunction::kXxHash;
  std::vector<std::uint32_t> locality_weights = {};  // empty: localities do not matter
};

class RingHash {
 public:
  // InvalidArgument as Normalize(), and for sizes out of range. No hosts give an empty ring.
  static absl::StatusOr<RingHash> Create(std::span<const HashHost> hosts,
                                         const RingHashOptions& options = {});

  // Index of a host; kNoHost when there is none. The a-th retry takes the a-th point after the first one,
  // which may belong to the same host.
  std::uint32_t Pick(std::uint64_t hash, std::uint32_t attempt = 0) const;

  // Points of the circle.
  std::size_t size() const { return hashes_.size(); }
  std::uint64_t hash(std::size_t point) const { return hashes_[point]; }
  std::uint32_t host(std::size_t point) const { return hosts_[point]; }

  const NormalizedHosts& normalized() const { return normalized_; }

 private:
  RingHash() = default;

  NormalizedHosts normalized_;
  std::vector<std::uint64_t> hashes_;  // ascending
  std::vector<std::uint32_t> hosts_;   // beside hashes_
  std::vector<std::uint32_t> starts_;  // upper bits of a hash -> the first point that has them or more
  int shift_ = 63;
};

}  // namespace llmd::gateway

#endif  // LLMD_GATEWAY_RING_HASH_H_
