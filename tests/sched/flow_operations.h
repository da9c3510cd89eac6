// Operations on flow control, applied to the real controller and to its literal model at once.
#ifndef TESTS_SCHED_FLOW_OPERATIONS_H_
#define TESTS_SCHED_FLOW_OPERATIONS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tests/sched/flow_model.h"

namespace llmd::sched {

struct FlowOperation {
  enum class Kind : std::uint8_t {
    kEnqueue,
    kCancel,    // `id`
    kFinish,    // `id`
    kDispatch,  // up to `amount`
    kTick,
    kSaturation,  // becomes amount / 16; NaN for 255
    kPool,        // becomes empty when amount is 0
    kShutdown,
  };
  static constexpr std::uint8_t kKinds = 8;

  Kind kind = Kind::kTick;
  std::uint64_t id = 0;  // small numbers, so that operations meet
  std::uint8_t flow = 0;
  std::int32_t priority = 0;
  std::uint8_t amount = 0;                      // bytes, tokens, cycles
  std::uint8_t ttl = 0;                         // seconds; 0 for none
  std::uint8_t slo = 0;                         // milliseconds; 0 for none
  absl::Duration later = absl::ZeroDuration();  // time that passes before
};

// Configurations that differ in policies, limits and eviction.
FlowModelConfig FlowConfigNumber(std::uint64_t number);

// Null when both agree after each operation, and every request had exactly one terminal outcome at the end;
// otherwise what went wrong. A final shutdown is added. `stats` are
// those of the real one at the end.
std::optional<std::string> RunFlowOnBoth(const FlowModelConfig& config,
                                         const std::vector<FlowOperation>& operations,
                                         FlowControlStats* stats = nullptr);

}  // namespace llmd::sched

#endif  // TESTS_SCHED_FLOW_OPERATIONS_H_
