// Bounds on label values that clients choose, so that no client can fill the memory with series.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_LABEL_LIMITS_H_
#define EXAMPLES_GATEWAY_SCHEDULER_LABEL_LIMITS_H_

#include <cstddef>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "llmd/base/strings.h"

namespace llmd::host {

// (spec: gateway.md 3)
inline constexpr char kOtherLabel[] = "other";

struct LabelLimits {
  std::size_t models = 1000;        // distinct, model_name and target_model_name together
  std::size_t fairness_ids = 1000;  // distinct
  std::size_t priorities = 64;      // distinct
  // Combinations of all of them. Each may cost some kilobytes and, in a scrape, some 300 lines.
  std::size_t label_sets = 4000;
  std::vector<std::string> configured_models = {};  // named in the configuration: always kept
};

// The first `limit` distinct values, and those that are exempt. Any thread.
class LabelCap {
 public:
  explicit LabelCap(std::size_t limit, const std::vector<std::string>& exempt = {})
      : limit_(limit), exempt_(exempt.begin(), exempt.end()) {}

  // Whether the value keeps its name.
  bool Admit(std::string_view value) {
    if (exempt_.contains(ToAbsl(value))) return true;
    {
      const std::shared_lock<std::shared_mutex> lock(mutex_);
      if (seen_.contains(ToAbsl(value))) return true;
      if (seen_.size() >= limit_) return false;
    }
    const std::unique_lock<std::shared_mutex> lock(mutex_);
    if (seen_.contains(ToAbsl(value))) return true;
    if (seen_.size() >= limit_) return false;
    seen_.emplace(value);
    return true;
  }

 private:
  const std::size_t limit_;
  const absl::flat_hash_set<std::string> exempt_;
  std::shared_mutex mutex_;
  absl::flat_hash_set<std::string> seen_;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_LABEL_LIMITS_H_
