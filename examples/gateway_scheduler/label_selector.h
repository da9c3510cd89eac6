// A Kubernetes label selector: "app=vllm,env in (prod, staging),!deprecated".
//
// Terms joined by commas, all of which must hold: key=value, key==value, key!=value, key in (a,b),
// key notin (a,b), key (is there), !key (is not). As in Kubernetes, != and notin hold for labels that are
// not there. A plain value; matching does not allocate.
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
  // The error names the term and its place. A selector without terms, which would match all there is, is
  // refused.
  static absl::StatusOr<LabelSelector> Parse(std::string_view text);
  // All of `labels`, which Parse() would accept as key=value.
  static absl::StatusOr<LabelSelector> FromLabels(const sched::Labels& labels);

  LabelSelector() = default;  // matches nothing
  bool Matches(const sched::Labels& labels) const;
  const std::string& text() const { return text_; }  // for the API server
  friend bool operator==(const LabelSelector&, const LabelSelector&) = default;

 private:
  struct Term {
    enum class Kind { kIn, kNotIn, kExists, kAbsent } kind = Kind::kExists;
    std::string key = {};
    std::vector<std::string> values = {};
    friend bool operator==(const Term&, const Term&) = default;
  };
  std::string text_;
  std::vector<Term> terms_;

  friend class LabelSelectorParser;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_LABEL_SELECTOR_H_
