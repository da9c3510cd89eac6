// What trace_replay can be asked to do. Each mode prints its results and returns what went wrong.
#ifndef LLMD_EXAMPLES_TRACE_REPLAY_MODES_H_
#define LLMD_EXAMPLES_TRACE_REPLAY_MODES_H_

#include "absl/status/status.h"
#include "examples/trace_replay/options.h"

namespace llmd::replay {

// Policies on simulated engines, side by side; records the decisions of one if asked to.
absl::Status RunComparison(const Options& options);
// Decisions of a log, taken again.
absl::Status RunDecisions(const Options& options);
// Weights and thresholds fitted to a workload.
absl::Status RunFit(const Options& options);

}  // namespace llmd::replay

#endif  // LLMD_EXAMPLES_TRACE_REPLAY_MODES_H_
