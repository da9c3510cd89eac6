// Bursts: requests that arrive together and share prompts are placed together, so that a shared prefix is
// prefilled once instead of on every endpoint. (spec: scheduling.md 2.2)
//
// llm-d's burst-prefix-cache-producer holds requests for a window. A library has no timers, so the host
// drives the window, and the producer only reports what was decided:
//
//   1. Hold each request up to options.window after the first of its batch; when a batch has max_batch_size,
//      later ones of the window go on without a place.
//   2. PlaceBurst(batch, replicas, options): for each request of the batch, in order of arrival, a replica or
//      none.
//   3. For each request with a place: assignments->Assign(request id, endpoint, now), where `assignments` is
//      states->GetOrMake<BurstAssignments>(name of the plugin, [] { return
//      std::make_shared<BurstAssignments>(); }).
//   4. Schedule() every request as usual. The producer publishes a full match on the assigned endpoint.
//
// PlaceBurst() is a pure function. BurstAssignments: any thread may call anything, Find() takes no lock;
// memory is fixed, assignments expire by themselves.
#ifndef LLMD_SCHED_BURST_PLACEMENT_H_
#define LLMD_SCHED_BURST_PLACEMENT_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "llmd/base/types.h"
#include "llmd/sched/parameters.h"
#include "llmd/sched/session.h"

namespace llmd::sched {

// Parameters of burst-prefix-cache-producer.
struct BurstOptions {
  absl::Duration window = absl::Milliseconds(100);
  std::int64_t max_per_replica = -1;   // requests of one group; -1: no limit
  std::int64_t block_size = 64;        // tokens, of the keys
  std::int64_t max_prefix_tokens = 0;  // that take part; 0: all
  std::int64_t min_colocate_blocks =
      0;  // leading blocks that make requests of different prompts go together; 0: off
  std::int64_t max_batch_size = 1000;
  bool balance_by_tokens = false;  // the load of a replica is blocks, not requests

  // Leading blocks of a prompt that take part.
  std::size_t MaxBlocks() const;
};

absl::StatusOr<BurstOptions> ParseBurstOptions(std::string_view owner, const Value& parameters);

struct BurstRequest {
  std::span<const BlockKeySpan> prompts = {};  // chained block keys of each
};
struct BurstReplica {
  std::string_view name = {};
  std::int64_t running_requests = 0;
};

// For each request the index of a replica, or nothing for one that shares its prompt with no other.
//
// Requests with the same keys form a group. Groups of two and more are placed first, then single requests
// that share min_colocate_blocks leading blocks with another; among either the longest first, then in order.
// The first requests of a unit go to the replica that holds the longest prefix of it from earlier units, at
// least min_colocate_blocks, and is below its fair share of what is to be placed; if there is none, and for
// what max_per_replica leaves of the unit, to the least loaded (then fewest running requests, then first
// name).
std::vector<std::optional<std::size_t>> PlaceBurst(std::span<const BurstRequest> batch,
                                                   std::span<const BurstReplica> replicas,
                                                   const BurstOptions& options);

// Where the host has put requests, by request id.
class BurstAssignments {
 public:
  static constexpr std::size_t kCapacity = 16'384;
  static constexpr absl::Duration kTtl = absl::Seconds(60);

  BurstAssignments() : table_(kCapacity) {}

  void Assign(std::string_view request_id, EndpointHandle endpoint, absl::Time now) {
    table_.Use(request_id, endpoint, table_.Find(request_id, now, kTtl), now, kTtl);
  }
  std::optional<EndpointHandle> Find(std::string_view request_id, absl::Time now) const {
    return table_.Find(request_id, now, kTtl);
  }

 private:
  SessionTable table_;
};

}  // namespace llmd::sched

#endif  // LLMD_SCHED_BURST_PLACEMENT_H_
