// Where an endpoint publishes its KV events (spec: kv-events.md 7). Plain functions.
//
// The publisher listens at the endpoint's address, on the configured port plus the endpoint's rank. Labels of
// the endpoint replace these ports, which are then taken as they are: a number, or a range for a server with
// several publishers behind one address and port (data-parallel ranks of one front end); 0 means none. One
// more label says what a removal of a block of the GPU means (ingest::PublisherOptions::gpu_removal).
//
//   llmd.ai/kv-events-port: "5557"        llmd.ai/kv-events-port: "5557-5560"
//   llmd.ai/kv-replay-port: "5657"        llmd.ai/kv-replay-port: "5657-5660"   as many
//   llmd.ai/kv-removal: "refcount"        or "set", the default
#ifndef EXAMPLES_GATEWAY_SCHEDULER_KV_ADDRESSES_H_
#define EXAMPLES_GATEWAY_SCHEDULER_KV_ADDRESSES_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "llmd/index/types.h"
#include "llmd/sched/endpoint.h"
#include "llmd/sched/prefix.h"

namespace llmd::host {

inline constexpr std::string_view kKvEventsPortLabel = "llmd.ai/kv-events-port";
inline constexpr std::string_view kKvReplayPortLabel = "llmd.ai/kv-replay-port";
// The model of the publisher's events where its topic does not say.
inline constexpr std::string_view kKvModelLabel = "llmd.ai/kv-model";
inline constexpr std::string_view kKvRemovalLabel = "llmd.ai/kv-removal";

inline constexpr int kMaxKvPublishersPerEndpoint = 64;

struct KvAddress {
  std::string events = {};  // tcp://10.0.0.7:5557; empty: none
  std::string replay = {};  // empty: none
  friend bool operator==(const KvAddress&, const KvAddress&) = default;
};

// One for each publisher of the endpoint, at least one; the publisher with index i of a range is the i-th.
// InvalidArgument names the label or the port that is out of range.
absl::StatusOr<std::vector<KvAddress>> KvAddressesOf(const sched::EndpointMetadata& endpoint,
                                                     const sched::PreciseOptions::KvEvents& options);

// InvalidArgument names the label and its value.
absl::StatusOr<index::RemovalPolicy> KvRemovalOf(const sched::EndpointMetadata& endpoint);

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_KV_ADDRESSES_H_
