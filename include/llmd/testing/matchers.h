// GoogleTest matchers for outcomes of a TestBed; header only, so that the library needs no GoogleTest.
//
//   EXPECT_THAT(outcome, Picks("a"));
//   EXPECT_THAT(outcome, ScoresOf("queue-scorer", UnorderedElementsAre(Pair("a", 1.0), Pair("b", 0.0))));
//   EXPECT_THAT(outcome, Drops("c", "decode-filter"));
//   EXPECT_THAT(outcome, Refuses(absl::StatusCode::kResourceExhausted, "rejected-saturated"));
//
// A failed expectation prints the decision's explanation.
#ifndef LLMD_TESTING_MATCHERS_H_
#define LLMD_TESTING_MATCHERS_H_

#include <gmock/gmock.h>

#include <map>
#include <ostream>
#include <string>

#include "llmd/sched/decision.h"
#include "llmd/testing/test_bed.h"

namespace llmd::testing {

inline void PrintTo(const Outcome& outcome, std::ostream* out) {
  *out << (outcome.status.ok() ? "decision" : outcome.status.ToString()) << "\n" << outcome.explanation;
}

// The primary profile's targets are exactly these, best first.
MATCHER_P(PicksInOrder, names, "") {
  return ::testing::ExplainMatchResult(::testing::ElementsAreArray(names), arg.targets(), result_listener);
}

// The endpoint that serves the request.
MATCHER_P(Picks, name, "") {
  if (arg.targets().empty()) {
    *result_listener << "nothing was picked";
    return false;
  }
  *result_listener << "picked " << arg.targets().front();
  return arg.targets().front() == name;
}

// The first target of another profile; "" when the profile was skipped or found none.
MATCHER_P2(PicksFor, profile, name, "") {
  const std::vector<std::string>& targets = arg.profile(profile).targets;
  const std::string first = targets.empty() ? "" : targets.front();
  *result_listener << "profile " << profile << " picked \"" << first << "\"";
  return first == name;
}

// Raw scores of a scorer in the primary profile, a map from endpoint to score.
MATCHER_P2(ScoresOf, scorer, matcher, "") {
  const auto& raw = arg.profile(arg.primary).raw;
  const auto it = raw.find(scorer);
  if (it == raw.end()) {
    *result_listener << "no scorer of that name ran";
    return false;
  }
  return ::testing::ExplainMatchResult(matcher, it->second, result_listener);
}

// Weighted sums in the primary profile, a map from endpoint to sum.
MATCHER_P(Totals, matcher, "") {
  return ::testing::ExplainMatchResult(matcher, arg.profile(arg.primary).totals, result_listener);
}

// A filter of any profile dropped the endpoint.
MATCHER_P2(Drops, endpoint, filter, "") {
  for (const auto& [name, profile] : arg.profiles) {
    for (const Outcome::Drop& drop : profile.drops) {
      if (drop.endpoint == endpoint && drop.filter == filter) return true;
    }
  }
  return false;
}

// A header that goes upstream.
MATCHER_P2(SendsHeader, name, value, "") {
  const auto it = arg.headers.find(name);
  *result_listener << (it == arg.headers.end() ? "it is not sent" : "its value is " + it->second);
  return it != arg.headers.end() && it->second == value;
}

// Ends with this code; `reason` as in x-llm-d-request-dropped-reason, "" for none.
MATCHER_P2(Refuses, code, reason, "") {
  const std::string given(sched::ToString(sched::GetDroppedReason(arg.status)));
  *result_listener << "the status is " << arg.status << ", the reason \"" << given << "\"";
  return arg.status.code() == code && given == reason;
}

}  // namespace llmd::testing

#endif  // LLMD_TESTING_MATCHERS_H_
