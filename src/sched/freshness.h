// Which measured values count: the parameters `unscraped` and `metricsStalenessThreshold` of every plugin
// that reads metrics. Private to the component.
//
// A value that was never read, or is older than the threshold, does not count, so that an endpoint does not
// look idle for lack of news. `unscraped: idle` takes every value as it stands, 0 when never read, which is
// what llm-d does and what Compatibility::unscraped_looks_idle makes the default.
#ifndef SRC_SCHED_FRESHNESS_H_
#define SRC_SCHED_FRESHNESS_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "llmd/sched/endpoint.h"
#include "llmd/sched/registry.h"

namespace llmd::sched {

class FreshnessPolicy {
 public:
  // Reads the two parameters; the caller goes on reading and calls Finish().
  static FreshnessPolicy Read(const PluginBuilder& builder, ParameterReader& read) {
    FreshnessPolicy policy;
    std::string unscraped = builder.compatibility().unscraped_looks_idle ? "idle" : "worst";
    read.Optional("unscraped", &unscraped);
    read.Optional("metricsStalenessThreshold", &policy.max_age_);
    policy.any_ = unscraped == "idle";
    if (!policy.any_ && unscraped != "worst") read.Reject("unscraped", unscraped, "worst or idle");
    if (policy.max_age_ <= absl::ZeroDuration()) {
      read.Reject("metricsStalenessThreshold", absl::FormatDuration(policy.max_age_), "more than 0");
    }
    if (policy.any_ && policy.max_age_ != absl::InfiniteDuration()) {
      read.Reject("metricsStalenessThreshold", "given", "none with unscraped: idle");
    }
    return policy;
  }

  // Decides for one moment.
  class Rule {
   public:
    template <typename T>
    bool Counts(const Sample<T>& sample) const {
      return any_ || (sample.known() && sample.at >= oldest_);
    }

   private:
    friend class FreshnessPolicy;
    bool any_;
    absl::Time oldest_;
  };
  Rule At(absl::Time now) const {
    Rule rule;
    rule.any_ = any_;
    rule.oldest_ = now - max_age_;
    return rule;
  }

 private:
  bool any_ = false;
  absl::Duration max_age_ = absl::InfiniteDuration();
};

// For plugins without other parameters.
inline absl::StatusOr<FreshnessPolicy> ParseFreshness(const PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  const FreshnessPolicy policy = FreshnessPolicy::Read(builder, read);
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  return policy;
}

}  // namespace llmd::sched

#endif  // SRC_SCHED_FRESHNESS_H_
