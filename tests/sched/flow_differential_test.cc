// The controller equals its literal model under random streams of operations, for every mix of policies.
#include <gtest/gtest.h>

#include <array>

#include "llmd/base/random.h"
#include "tests/sched/flow_operations.h"

namespace llmd::sched {
namespace {

using Kind = FlowOperation::Kind;

std::vector<FlowOperation> RandomOperations(std::uint64_t seed, std::size_t count) {
  Random random(seed);
  // Each stream has a temper: how much arrives for each dispatch, and how time passes.
  const double arrivals = 0.2 + 0.4 * random.Uniform();
  const double rare = random.Chance(0.5) ? 0.02 : 0.002;
  static constexpr std::int32_t kPriorities[] = {-7, -3, -1, 0, 1, 2, 2, 9, 1000};
  std::vector<FlowOperation> operations;
  while (operations.size() < count) {
    FlowOperation op;
    op.id = random.Below(200);
    op.flow = static_cast<std::uint8_t>(random.Below(8));
    op.priority = kPriorities[random.Below(std::size(kPriorities))];
    op.amount = static_cast<std::uint8_t>(random.Below(200));
    op.ttl = random.Chance(0.3) ? static_cast<std::uint8_t>(random.Between(1, 12)) : 0;
    op.slo = random.Chance(0.5) ? static_cast<std::uint8_t>(random.Between(1, 255)) : 0;
    op.later = random.Chance(0.3) ? absl::Milliseconds(random.Exponential(60)) : absl::ZeroDuration();
    if (random.Chance(rare)) op.later = absl::Seconds(random.Exponential(200));
    const double kind = random.Uniform();
    if (kind < arrivals) {
      op.kind = Kind::kEnqueue;
    } else if (kind < arrivals + 0.05) {
      op.kind = Kind::kCancel;
    } else if (kind < arrivals + 0.2) {
      op.kind = Kind::kFinish;
    } else if (kind < arrivals + 0.27) {
      op.kind = Kind::kSaturation;
      op.amount = random.Chance(0.01) ? 255 : static_cast<std::uint8_t>(random.Below(28));
    } else if (kind < arrivals + 0.28) {
      op.kind = Kind::kPool;
      op.amount = random.Chance(0.7) ? 1 : 0;
    } else if (kind < arrivals + 0.3) {
      op.kind = Kind::kTick;
    } else {
      op.kind = Kind::kDispatch;
      op.amount = static_cast<std::uint8_t>(random.Chance(0.1) ? random.Below(6) : random.Between(0, 2));
    }
    operations.push_back(op);
  }
  return operations;
}

TEST(FlowDifferential, EqualsTheModel) {
  std::array<std::uint64_t, FlowOutcome::kKinds> seen = {};
  std::uint64_t unconfirmed = 0;
  for (std::uint64_t seed = 1; seed <= 432; ++seed) {
    FlowControlStats stats;
    const std::optional<std::string> difference =
        RunFlowOnBoth(FlowConfigNumber(seed * 7919), RandomOperations(seed, 1500), &stats);
    ASSERT_EQ(difference.value_or(""), "") << "seed " << seed;
    for (std::size_t i = 0; i < seen.size(); ++i) seen[i] += stats.outcomes[i];
    unconfirmed += stats.unconfirmed_evictions;
  }
  // The streams reach every outcome; the rejection after a shutdown comes in no random stream.
  for (std::size_t i = 0; i < seen.size(); ++i) {
    const auto kind = static_cast<FlowOutcome::Kind>(i);
    if (kind == FlowOutcome::Kind::kRejectedShuttingDown) continue;
    EXPECT_GE(seen[i], 100u) << ToString(kind);
  }
  EXPECT_GE(unconfirmed, 100u);
}

TEST(FlowDifferential, ALongStream) {
  for (std::uint64_t seed = 1001; seed <= 1003; ++seed) {
    const std::optional<std::string> difference =
        RunFlowOnBoth(FlowConfigNumber(seed), RandomOperations(seed, 30000));
    ASSERT_EQ(difference.value_or(""), "") << "seed " << seed;
  }
}

}  // namespace
}  // namespace llmd::sched
