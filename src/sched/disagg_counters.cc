#include <algorithm>

#include "llmd/sched/disagg.h"

namespace llmd::sched {

std::string_view ToString(DisaggKind kind) {
  switch (kind) {
    case DisaggKind::kDecodeOnly:
      return "decode-only";
    case DisaggKind::kPrefillDecode:
      return "prefill-decode";
    case DisaggKind::kEncodeDecode:
      return "encode-decode";
    case DisaggKind::kEncodePrefillDecode:
      return "encode-prefill-decode";
  }
  return "";
}

void DisaggCounters::CountDecision(DisaggKind kind) {
  decisions_[static_cast<std::size_t>(kind)].fetch_add(1, std::memory_order_relaxed);
}

void DisaggCounters::CountAbsence(DisaggStage stage, const char* reason) {
  if (reason == nullptr) reason = "unknown";
  Stage& counts = stages_[static_cast<std::size_t>(stage)];
  for (Row& row : counts.rows) {
    const char* known = row.reason.load(std::memory_order_relaxed);
    // Whoever comes first takes a free row; a loser looks at what the winner put there.
    if (known == nullptr && row.reason.compare_exchange_strong(known, reason, std::memory_order_relaxed)) {
      known = reason;
    }
    if (known != reason) continue;
    row.count.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  counts.others.fetch_add(1, std::memory_order_relaxed);
}

std::uint64_t DisaggCounters::decisions(DisaggKind kind) const {
  return decisions_[static_cast<std::size_t>(kind)].load(std::memory_order_relaxed);
}

std::vector<DisaggCounters::Absence> DisaggCounters::absences(DisaggStage stage) const {
  const Stage& counts = stages_[static_cast<std::size_t>(stage)];
  std::vector<Absence> absences;
  const auto add = [&absences](std::string_view reason, std::uint64_t count) {
    // The same text may be several literals.
    const auto it = std::find_if(absences.begin(), absences.end(),
                                 [reason](const Absence& absence) { return absence.reason == reason; });
    if (it != absences.end()) {
      it->count += count;
    } else if (count > 0) {
      absences.push_back({std::string(reason), count});
    }
  };
  for (const Row& row : counts.rows) {
    const char* reason = row.reason.load(std::memory_order_relaxed);
    if (reason != nullptr) add(reason, row.count.load(std::memory_order_relaxed));
  }
  add("other reasons", counts.others.load(std::memory_order_relaxed));
  return absences;
}

std::shared_ptr<DisaggCounters> DisaggCountersOf(PluginStates& states, std::string_view handler) {
  return states.GetOrMake<DisaggCounters>(handler, [] { return std::make_shared<DisaggCounters>(); });
}

}  // namespace llmd::sched
