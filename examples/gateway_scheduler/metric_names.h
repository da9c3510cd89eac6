// Which of llm-d's names for its metrics are exported, and the buckets of the histograms.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_METRIC_NAMES_H_
#define EXAMPLES_GATEWAY_SCHEDULER_METRIC_NAMES_H_

#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace llmd::host {

// Generations of names; each may be on. (spec: gateway.md 3, 3.6)
struct MetricNames {
  bool current = true;     // llm_d_epp_*
  bool objective = false;  // inference_objective_*, inference_pool_*, inference_extension_*
  bool v0_2 = false;       // inference_model_*, inference_pool_*, inference_extension_*

  // Names that the two older generations share.
  bool older() const { return objective || v0_2; }
};

// "current,v0.2". InvalidArgument for an empty list or another word.
absl::StatusOr<MetricNames> ParseMetricNames(std::string_view list);

// (spec: gateway.md 3)
using Buckets = std::vector<double>;
const Buckets& LatencyBuckets();      // L
Buckets LatencyBucketsUpTo(double);   // L, cut
const Buckets& SchedulerBuckets();    // S
const Buckets& TokenBuckets();        // T, with the source's own 32778
Buckets TokenBucketsUpTo(double);     // To, Rb
const Buckets& RequestSizeBuckets();  // Qb

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_METRIC_NAMES_H_
