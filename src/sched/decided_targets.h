// The endpoints that a decision sends a request to. Private to the component.
#ifndef SRC_SCHED_DECIDED_TARGETS_H_
#define SRC_SCHED_DECIDED_TARGETS_H_

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "llmd/sched/decision.h"

namespace llmd::sched {

inline constexpr std::string_view kPrefillProfile = "prefill";

// The first target of a profile that ran and found one.
inline std::optional<Position> TargetOf(const Decision& decision, std::size_t profile) {
  if (profile >= decision.profiles.size()) return std::nullopt;
  const ProfileResult& result = decision.profiles[profile];
  if (result.state != ProfileState::kDone || result.targets.empty()) return std::nullopt;
  return result.targets.front();
}

// That of the profile of this name, or of the primary one when the name is empty.
inline std::optional<Position> TargetOf(const Decision& decision, std::span<const std::string> profiles,
                                        std::string_view name) {
  if (name.empty()) return TargetOf(decision, decision.primary);
  for (std::size_t i = 0; i < profiles.size(); ++i) {
    if (profiles[i] == name) return TargetOf(decision, i);
  }
  return std::nullopt;
}

// Calls `visit` with the primary target, then with that of the profile named "prefill" if it is another one.
template <typename Visit>
void ForEachComputingTarget(const Decision& decision, std::span<const std::string> profiles,
                            const Visit& visit) {
  if (const std::optional<Position> target = TargetOf(decision, decision.primary)) visit(*target);
  for (std::size_t i = 0; i < profiles.size(); ++i) {
    if (i == decision.primary || profiles[i] != kPrefillProfile) continue;
    if (const std::optional<Position> target = TargetOf(decision, i)) visit(*target);
  }
}

}  // namespace llmd::sched

#endif  // SRC_SCHED_DECIDED_TARGETS_H_
