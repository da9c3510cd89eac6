// The endpoint that an earlier stage of a disaggregated request chose, so that a later stage can stay near
// it.
//
// Published by a profile handler between two profiles, of the request; read by topology-affinity-filter and
// topology-affinity-scorer. Plain value.
#ifndef LLMD_SCHED_PEER_ENDPOINT_H_
#define LLMD_SCHED_PEER_ENDPOINT_H_

#include <string_view>

#include "llmd/sched/endpoint.h"

namespace llmd::sched {

struct PeerEndpoint {
  static constexpr std::string_view kDataType = "peer-endpoint";

  Position position = 0;  // in the decision's pool
};

}  // namespace llmd::sched

#endif  // LLMD_SCHED_PEER_ENDPOINT_H_
