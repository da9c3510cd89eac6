// Which running requests may be stopped and in which order, when nothing is configured. Private to the
// component.
#ifndef SRC_SCHED_EVICTION_POLICIES_H_
#define SRC_SCHED_EVICTION_POLICIES_H_

#include <algorithm>

#include "llmd/sched/flow_policy.h"

namespace llmd::sched {

// Those that may be shed.
class SheddableFilter : public EvictionFilter {
 public:
  bool MayEvict(const RunningRequest& request) const override { return request.priority < 0; }
};

// The lowest priority first, then the one dispatched last.
class PriorityThenTimeOrder : public EvictionOrder {
 public:
  OrderKey Key(const RunningRequest& request) const override {
    return {request.priority, kNever - absl::ToUnixNanos(std::max(request.dispatched, absl::UnixEpoch()))};
  }
};

}  // namespace llmd::sched

#endif  // SRC_SCHED_EVICTION_POLICIES_H_
