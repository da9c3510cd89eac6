// Where this library differs from llm-d's endpoint picker on purpose, and how to get llm-d's behaviour back.
//
// Every field is false for what this library does by itself and true for what llm-d does;
// docs/compatibility.md gives the reasons. A configuration file says `compatibility: llm-d` for all of them,
// or names single ones: `compatibility: {unscrapedLooksIdle: true}`. Plain value.
#ifndef LLMD_SCHED_COMPATIBILITY_H_
#define LLMD_SCHED_COMPATIBILITY_H_

#include <span>
#include <string_view>

namespace llmd::sched {

struct Compatibility {
  // A metric that was never read counts as 0, so such an endpoint looks idle.
  bool unscraped_looks_idle = false;
  // A tier-weighted match adds the weights block by block, so that 10 blocks of 0.8 truncate to 7.
  bool tier_weights_added_one_by_one = false;
  // no-hit-lru-scorer ranks by the position in its whole memory, endpoints that are no candidates included.
  bool lru_position_is_global = false;
  // An admitter's denial becomes Internal (500) whatever its code.
  bool admission_denial_is_internal = false;
  // The prefix-based decider reads the approximate producer's data whatever the configuration names.
  bool decider_reads_default_producer = false;
  // An endpoint whose metrics are stale counts as full in a saturation, so that a scrape that fails
  // everywhere stops all traffic.
  bool stale_is_saturated = false;
  // Of a metric's series that differ in the data-parallel rank alone, the first counts instead of their sum
  // or mean.
  bool first_rank_alone = false;

  static Compatibility LlmD();
};

// The fields by the names used in configuration files.
struct CompatibilityField {
  std::string_view name;
  bool Compatibility::*member;
};
std::span<const CompatibilityField> CompatibilityFields();

}  // namespace llmd::sched

#endif  // LLMD_SCHED_COMPATIBILITY_H_
