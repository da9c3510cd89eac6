// The result of scheduling one request.
//
// A Decision is filled by Scheduler::Schedule() and meant to be reused: a warm one is refilled without
// allocation. Positions refer to the pool that the decision was taken on.
#ifndef LLMD_SCHED_DECISION_H_
#define LLMD_SCHED_DECISION_H_

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "llmd/sched/endpoint.h"

namespace llmd::sched {

// An endpoint and its weighted sum of scores, which may be any finite number.
struct ScoredEndpoint {
  Position position = 0;
  double score = 0;
};

enum class ProfileState : std::uint8_t {
  kPending,    // not looked at yet
  kRequested,  // to be run next
  kSkipped,    // the handler decided against it
  kFailed,     // ran, no endpoint
  kDone,       // ran, has targets
};

struct ProfileResult {
  ProfileState state = ProfileState::kPending;
  std::vector<Position> targets;       // best first; not empty when kDone
  std::vector<ScoredEndpoint> scored;  // every endpoint that passed the filters, in pool order
  std::uint16_t port = 0;              // where targets are to be reached; 0: at their own ports
  const char* skip_reason = nullptr;   // of kSkipped: a string literal that says why, if the handler does
};

struct Decision {
  std::vector<ProfileResult> profiles;  // in the scheduler's order of profiles
  std::uint32_t primary = 0;            // index into `profiles`

  const ProfileResult& primary_result() const { return profiles[primary]; }
  // The endpoint that serves the request. Only after an OK status.
  Position target() const { return primary_result().targets.front(); }
};

// Why a request was turned away, in the words of the header x-llm-d-request-dropped-reason.
enum class DroppedReason : std::uint8_t {
  kNone,
  kSaturated,
  kNoEndpoints,
  kTtlExpired,
  kContextCancelled,
  kShuttingDown,
  kEvicted,
  kEvictedQueuePressure,
  kEvictedPriority,
};

// "rejected-saturated" and so on; empty for kNone.
std::string_view ToString(DroppedReason reason);
// The reason travels as a payload of the status.
absl::Status WithDroppedReason(absl::Status status, DroppedReason reason);
DroppedReason GetDroppedReason(const absl::Status& status);

}  // namespace llmd::sched

#endif  // LLMD_SCHED_DECISION_H_
