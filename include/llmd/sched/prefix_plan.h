// Which key chains a configuration wants of a prompt: what a host that hashes prompts asks its scheduler.
// A plain value, for any thread.
#ifndef LLMD_SCHED_PREFIX_PLAN_H_
#define LLMD_SCHED_PREFIX_PLAN_H_

#include <optional>

#include "absl/status/statusor.h"
#include "llmd/sched/config.h"
#include "llmd/sched/prefix.h"

namespace llmd::sched {

struct PrefixPlan {
  std::optional<PreciseOptions> precise = {};      // precise-prefix-cache-producer: the chain of kExactSource
  std::optional<ApproxPrefixOptions> approx = {};  // approx-prefix-cache-producer: of kApproximateSource

  // `config`: as Scheduler::config() gives it, with every default. InvalidArgument for parameters that the
  // producer would not take.
  static absl::StatusOr<PrefixPlan> From(const SchedulerConfig& config);
  bool wants_tokens() const { return precise.has_value() || approx.has_value(); }
};

}  // namespace llmd::sched

#endif  // LLMD_SCHED_PREFIX_PLAN_H_
