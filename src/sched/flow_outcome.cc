// What flow control answers to clients. (spec: scheduling.md 2.7, 1.1)
#include "llmd/base/strings.h"
#include "llmd/sched/flow_control.h"

namespace llmd::sched {

using Kind = FlowOutcome::Kind;

std::string_view ToString(Kind kind) {
  switch (kind) {
    case Kind::kDispatched:
      return "dispatched";
    case Kind::kRejectedCapacity:
      return "rejected-capacity";
    case Kind::kRejectedNoEndpoints:
      return "rejected-no-endpoints";
    case Kind::kRejectedShuttingDown:
      return "rejected-shutting-down";
    case Kind::kEvictedTtl:
      return "evicted-ttl";
    case Kind::kEvictedNoEndpoints:
      return "evicted-no-endpoints";
    case Kind::kEvictedCancelled:
      return "evicted-cancelled";
    case Kind::kEvictedShuttingDown:
      return "evicted-shutting-down";
    case Kind::kEvictRunning:
      return "evict-running";
  }
  return "";
}

DroppedReason GetDroppedReason(Kind kind) {
  switch (kind) {
    case Kind::kDispatched:
      return DroppedReason::kNone;
    case Kind::kRejectedCapacity:
      return DroppedReason::kSaturated;
    case Kind::kRejectedNoEndpoints:
    case Kind::kEvictedNoEndpoints:
      return DroppedReason::kNoEndpoints;
    case Kind::kRejectedShuttingDown:
    case Kind::kEvictedShuttingDown:
      return DroppedReason::kShuttingDown;
    case Kind::kEvictedTtl:
      return DroppedReason::kTtlExpired;
    case Kind::kEvictedCancelled:
      return DroppedReason::kContextCancelled;
    case Kind::kEvictRunning:
      return DroppedReason::kEvicted;
  }
  return DroppedReason::kNone;
}

absl::Status ToStatus(const FlowOutcome& outcome) {
  const auto status = [&outcome]() -> absl::Status {
    switch (outcome.kind) {
      case Kind::kDispatched:
        return absl::OkStatus();
      case Kind::kRejectedCapacity:
        return absl::ResourceExhaustedError("request rejected: the queue is at capacity");
      case Kind::kRejectedNoEndpoints:
        return absl::UnavailableError("no endpoints available, and the queue is at capacity");
      case Kind::kEvictedTtl:
        return absl::ResourceExhaustedError("request timed out in queue");
      case Kind::kEvictedNoEndpoints:
        return absl::UnavailableError("request timed out in queue: no endpoints available");
      case Kind::kEvictedCancelled:
        return absl::UnavailableError("client disconnected");
      case Kind::kRejectedShuttingDown:
      case Kind::kEvictedShuttingDown:
        return absl::UnavailableError("flow control is shutting down");
      case Kind::kEvictRunning:
        return absl::ResourceExhaustedError("request evicted in favour of a higher priority");
    }
    return absl::InternalError("unknown outcome of flow control");
  }();
  return status.ok() ? status : WithDroppedReason(status, GetDroppedReason(outcome.kind));
}

FlowItem MakeFlowItem(std::uint64_t id, const Request& request, const Scheduler& scheduler,
                      std::optional<absl::Time> received) {
  FlowItem item{.id = id,
                .flow = scheduler.FairnessId(request),
                .priority = request.priority,
                .bytes = request.size_bytes,
                .received = received};
  for (const std::string_view name : {"x-llm-d-slo-ttft-ms", "x-slo-ttft-ms"}) {
    const std::optional<std::string_view> value = request.FindHeader(name);
    if (!value) continue;
    item.slo_ttft = ParseSloMilliseconds(*value);
    break;
  }
  return item;
}

}  // namespace llmd::sched
