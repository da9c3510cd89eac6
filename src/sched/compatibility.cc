#include "llmd/sched/compatibility.h"

namespace llmd::sched {

std::span<const CompatibilityField> CompatibilityFields() {
  static constexpr CompatibilityField kFields[] = {
      {"unscrapedLooksIdle", &Compatibility::unscraped_looks_idle},
      {"tierWeightsAddedOneByOne", &Compatibility::tier_weights_added_one_by_one},
      {"lruPositionIsGlobal", &Compatibility::lru_position_is_global},
      {"admissionDenialIsInternal", &Compatibility::admission_denial_is_internal},
      {"deciderReadsDefaultProducer", &Compatibility::decider_reads_default_producer},
      {"staleIsSaturated", &Compatibility::stale_is_saturated},
      {"firstRankAlone", &Compatibility::first_rank_alone},
  };
  return kFields;
}

Compatibility Compatibility::LlmD() {
  Compatibility all;
  for (const CompatibilityField& field : CompatibilityFields()) all.*field.member = true;
  return all;
}

}  // namespace llmd::sched
