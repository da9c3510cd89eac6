// Why a decision came out as it did: enough to print, to store and to check.
//
// Filled by Scheduler::Schedule() when the caller passes one; meant to be reused, and then filled without
// allocation. Names and reasons point into the scheduler, which must outlive the explanation; positions refer
// to the pool. For every scored endpoint the weighted values, added in the order of the scorers, give the
// total bit for bit.
#ifndef LLMD_SCHED_EXPLANATION_H_
#define LLMD_SCHED_EXPLANATION_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "llmd/sched/decision.h"
#include "llmd/sched/endpoint_pool.h"
#include "llmd/sched/plugin.h"

namespace llmd::sched {

struct Explanation {
  struct Drop {
    Position position = 0;
    std::string_view filter;
    DropReason reason = nullptr;
  };
  struct ScorerUse {
    std::string_view name;
    double weight = 0;
  };
  struct Profile {
    std::string_view name;
    ProfileState state = ProfileState::kPending;
    std::vector<Drop> drops;  // in the order of filters
    std::vector<ScorerUse> scorers;
    std::vector<ScoredEndpoint> totals;  // the endpoints left, in pool order
    std::vector<double> raw;             // [scorer][endpoint]: as the scorer gave it, kNoScore for no opinion
    std::vector<double> weighted;        // [scorer][endpoint]: clamped, times the weight
    std::uint64_t tie_seed = 0;
    std::vector<Position> picked;  // best first

    // Forgets a run, keeping the memory and the name.
    void Clear();
    double raw_at(std::size_t scorer, std::size_t endpoint) const {
      return raw[scorer * totals.size() + endpoint];
    }
    double weighted_at(std::size_t scorer, std::size_t endpoint) const {
      return weighted[scorer * totals.size() + endpoint];
    }
  };

  std::uint64_t seed = 0;
  std::size_t candidates = 0;
  std::vector<Profile> profiles;  // in the scheduler's order; kPending ones did not run
  std::uint32_t primary = 0;
  std::string_view refused_by;  // the admitter that turned the request away; empty: none

  // A table for people, endpoints by id; `pool` is the decision's.
  std::string ToString(const EndpointPool& pool) const;
};

}  // namespace llmd::sched

#endif  // LLMD_SCHED_EXPLANATION_H_
