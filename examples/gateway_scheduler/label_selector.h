// A Kubernetes label selector: comma-separated requirements that must all hold.
//
//   app=vllm,role!=prefill,tier in (a, b),zone notin (x),gpu,!draining
//
// A plain value, immutable after Parse(); any thread may match.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_LABEL_SELECTOR_H_
#define EXAMPLES_GATEWAY_SCHEDULER_LABEL_SELECTOR_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "llmd/sched/endpoint.h"

namespace llmd::host {

class LabelSelector {
 public:
  LabelSelector() = default;  // matches everything
  // Empty text matches everything. InvalidArgument shows the requirement that makes no sense.
  static absl::StatusOr<LabelSelector> Parse(std::string_view text);

  bool Matches(const sched::Labels& labels) const;

 private:
  struct Requirement {
    std::string key = {};
    std::vector<std::string> values = {};  // empty: the key alone
    bool negated = false;
  };
  static absl::StatusOr<Requirement> ParseRequirement(std::string_view text);

  std::vector<Requirement> requirements_;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_LABEL_SELECTOR_H_
