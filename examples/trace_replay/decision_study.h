// A log of decisions, taken again: is each the same, and what would other policies have decided?
//
// The second question holds states fixed: each decision is taken in the moment that was recorded, with the
// recorded loads and matches. That another policy's own decisions would have filled other caches and queues
// is not modelled; its hit rate and load are what the recorded matches and the requests' tokens add up to.
#ifndef LLMD_EXAMPLES_TRACE_REPLAY_DECISION_STUDY_H_
#define LLMD_EXAMPLES_TRACE_REPLAY_DECISION_STUDY_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "examples/trace_replay/policy.h"

namespace llmd::replay {

struct StudyOptions {
  std::size_t examples = 3;  // decisions told of each policy, of those that differ
  bool explain = false;      // with all scores
  std::function<void(std::size_t bytes_done)> progress = {};
};

// What one policy decided.
struct DecidedFigures {
  std::string policy;
  std::string description;
  std::uint64_t failed = 0;   // no endpoint
  std::uint64_t changed = 0;  // another target than recorded, or a failure where there was none or reverse
  std::uint64_t differs_first = 0;   // from the first of the other policies
  std::uint64_t matched_tokens = 0;  // at the targets, by the recorded matches
  std::uint64_t prompt_tokens = 0;   // of decided requests
  std::map<std::string, std::uint64_t>
      load;  // prompt and output tokens by endpoint that ever was in the pool
  std::vector<std::string> examples;
  std::vector<std::string> missing;  // data it reads and the log does not have
  std::uint64_t from_record = 0;     // answers of plugins with a memory: taken from the record,
  std::uint64_t without_memory = 0;  // and computed without one

  double hit_rate() const {
    return prompt_tokens > 0 ? static_cast<double>(matched_tokens) / static_cast<double>(prompt_tokens) : 0;
  }
  double imbalance() const;  // busiest / mean
};

struct DecisionStudy {
  std::string text;                     // the log's, naming the recorded policy
  std::vector<std::string> unrecorded;  // data that no codec knows: their producers run again
  std::uint64_t decisions = 0;
  std::uint64_t bytes = 0;
  std::size_t endpoints = 0;  // that ever were in the pool
  std::string verified_by;    // the policy whose decisions were compared; empty: none is the recorded one
  std::uint64_t equal = 0;    // bit for bit
  std::string difference;     // the first one
  bool has_matches = false;
  DecidedFigures recorded;
  std::vector<DecidedFigures> others;
};

// The recorded policy is rebuilt from the log's text, or is the one among `others` with the same
// configuration. Errors: the log's, or a policy's that cannot be built.
absl::StatusOr<DecisionStudy> StudyDecisions(std::span<const std::byte> log, std::vector<Policy> others,
                                             const StudyOptions& options);

}  // namespace llmd::replay

#endif  // LLMD_EXAMPLES_TRACE_REPLAY_DECISION_STUDY_H_
