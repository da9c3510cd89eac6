// How often requests were split over several endpoints, and why not.
//
// The handlers disagg-profile-handler and pd-profile-handler count every decision that found a decode
// endpoint. The counters are kept under the handler's name in Resources::states, so they go on when a
// scheduler replaces another, and the host reads them there:
//
//   auto counters = DisaggCountersOf(*resources.states, "disagg-profile-handler");
//   counters->decisions(DisaggKind::kPrefillDecode);
//   for (const auto& row : counters->absences(DisaggStage::kPrefill)) ...   // "prompt is shorter ..." 17
//
// Any thread may call anything; counting takes no lock and does not allocate.
#ifndef LLMD_SCHED_DISAGG_H_
#define LLMD_SCHED_DISAGG_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "llmd/sched/plugin_states.h"

namespace llmd::sched {

// Which stages took place. (spec: scheduling.md 1.5)
enum class DisaggKind : std::uint8_t { kDecodeOnly, kPrefillDecode, kEncodeDecode, kEncodePrefillDecode };
inline constexpr std::size_t kDisaggKinds = 4;
// "decode-only" and so on, the labels of llm-d's metric disagg_decision_total.
std::string_view ToString(DisaggKind kind);

enum class DisaggStage : std::uint8_t { kPrefill, kEncode };

class DisaggCounters {
 public:
  struct Absence {
    std::string reason;
    std::uint64_t count = 0;
  };

  void CountDecision(DisaggKind kind);
  // A stage that there is a profile for did not take place. `reason` is a string literal; null for unknown.
  void CountAbsence(DisaggStage stage, const char* reason);

  std::uint64_t decisions(DisaggKind kind) const;
  // Reasons in the order of their first appearance; those beyond the first 16 of a stage as "other reasons".
  std::vector<Absence> absences(DisaggStage stage) const;

 private:
  struct Row {
    std::atomic<const char*> reason = nullptr;
    std::atomic<std::uint64_t> count = 0;
  };
  struct Stage {
    std::array<Row, 16> rows;
    std::atomic<std::uint64_t> others = 0;
  };

  std::array<std::atomic<std::uint64_t>, kDisaggKinds> decisions_{};
  std::array<Stage, 2> stages_;
};

// Of the handler of that name; all zero before it has decided anything.
std::shared_ptr<DisaggCounters> DisaggCountersOf(PluginStates& states, std::string_view handler);

}  // namespace llmd::sched

#endif  // LLMD_SCHED_DISAGG_H_
