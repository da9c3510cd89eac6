#include "llmd/sched/decision.h"

#include "absl/strings/cord.h"
#include "llmd/base/strings.h"

namespace llmd::sched {
namespace {

constexpr absl::string_view kPayload = "llmd/dropped-reason";

}  // namespace

std::string_view ToString(DroppedReason reason) {
  switch (reason) {
    case DroppedReason::kNone:
      return "";
    case DroppedReason::kSaturated:
      return "rejected-saturated";
    case DroppedReason::kNoEndpoints:
      return "rejected-no-endpoints";
    case DroppedReason::kTtlExpired:
      return "rejected-ttl-expired";
    case DroppedReason::kContextCancelled:
      return "rejected-context-cancelled";
    case DroppedReason::kShuttingDown:
      return "rejected-shutting-down";
    case DroppedReason::kEvicted:
      return "evicted";
    case DroppedReason::kEvictedQueuePressure:
      return "evicted-queue-pressure";
    case DroppedReason::kEvictedPriority:
      return "evicted-priority";
  }
  return "";
}

absl::Status WithDroppedReason(absl::Status status, DroppedReason reason) {
  status.SetPayload(kPayload, absl::Cord(ToAbsl(ToString(reason))));
  return status;
}

DroppedReason GetDroppedReason(const absl::Status& status) {
  const auto payload = status.GetPayload(kPayload);
  if (!payload) return DroppedReason::kNone;
  for (int i = 0; i <= static_cast<int>(DroppedReason::kEvictedPriority); ++i) {
    const auto reason = static_cast<DroppedReason>(i);
    if (*payload == ToAbsl(ToString(reason))) return reason;
  }
  return DroppedReason::kNone;
}

}  // namespace llmd::sched
