#include "examples/gateway_scheduler/metric_names.h"

#include <algorithm>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "llmd/base/strings.h"

namespace llmd::host {
namespace {

Buckets UpTo(const Buckets& buckets, double limit) {
  return Buckets(buckets.begin(), std::upper_bound(buckets.begin(), buckets.end(), limit));
}

}  // namespace

absl::StatusOr<MetricNames> ParseMetricNames(std::string_view list) {
  MetricNames names{.current = false};
  for (const absl::string_view part : absl::StrSplit(ToAbsl(list), ',')) {
    const absl::string_view word = absl::StripAsciiWhitespace(part);
    if (word == "current") {
      names.current = true;
    } else if (word == "objective") {
      names.objective = true;
    } else if (word == "v0.2") {
      names.v0_2 = true;
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat("--metric-names has \"", word, "\", expected a list of current, objective and v0.2"));
    }
  }
  return names;
}

const Buckets& LatencyBuckets() {
  static const Buckets buckets = {0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8,  1,    1.25, 1.5, 2,
                                  3,     4,     5,    6,   8,   10,  15,  20,   30,   45,   60,  120,
                                  180,   240,   300,  360, 480, 600, 900, 1200, 1800, 2700, 3600};
  return buckets;
}

Buckets LatencyBucketsUpTo(double limit) { return UpTo(LatencyBuckets(), limit); }

const Buckets& SchedulerBuckets() {
  static const Buckets buckets = {0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1};
  return buckets;
}

const Buckets& TokenBuckets() {
  static const Buckets buckets = {1,    8,    16,    32,    64,    128,    256,    512,    1024,   2048,
                                  4096, 8192, 16384, 32778, 65536, 131072, 262144, 524288, 1048576};
  return buckets;
}

Buckets TokenBucketsUpTo(double limit) { return UpTo(TokenBuckets(), limit); }

const Buckets& RequestSizeBuckets() {
  static const Buckets buckets = [] {
    Buckets made;
    for (double bound = 64; bound <= 1073741824; bound *= 2) made.push_back(bound);
    return made;
  }();
  return buckets;
}

}  // namespace llmd::host
