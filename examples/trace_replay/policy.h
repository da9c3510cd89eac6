// Routing policies as configurations of the scheduler, and the two plugins that this host adds to it.
//
//   random       random-picker
//   round-robin  round-robin-picker, defined here
//   least-queue  queue 1, running 1
//   approx       approx-prefix 3, queue 2, kv 2      llm-d's default weights (spec: scheduling.md 3.2)
//   exact        exact-prefix 3, queue 2, kv 2       the same, with the index that is fed by KV events
//
// A mix of one's own is written `exact-prefix=3,queue=2,kv=2,running=1`. Configuration files:
// config_policy.h.
#ifndef LLMD_EXAMPLES_TRACE_REPLAY_POLICY_H_
#define LLMD_EXAMPLES_TRACE_REPLAY_POLICY_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "llmd/sched/data_codec.h"
#include "llmd/sched/prefix.h"
#include "llmd/sched/registry.h"
#include "llmd/sched/scheduler.h"

namespace llmd::replay {

struct Policy {
  std::string name;
  std::string description;  // scorers with weights, picker
  std::string text;         // what MakePolicyFromText() makes it from again
  sched::SchedulerConfig config;
  bool uses_exact = false;
  bool uses_approx = false;
};

// "random", "round-robin", "least-queue", "approx", "exact", in the order in which they are reported.
const std::vector<std::string>& PolicyNames();
// A policy by name. InvalidArgument lists the names.
absl::StatusOr<Policy> MakePolicy(std::string_view name);
// A mix of scorers. InvalidArgument names the part, its value and what was expected.
absl::StatusOr<Policy> MakeMix(std::string_view weights);

inline constexpr char kDefaultWeights[] = "exact-prefix=3,queue=2,kv=2";  // of exact
inline constexpr char kExactProducer[] = "precise-prefix-cache-producer";
inline constexpr char kApproxProducer[] = "approx-prefix-cache-producer";
inline constexpr char kProbe[] = "prefix-probe";  // type of a plugin of this program

// Has the matches of this producer noted as the policy's Expectation.
void AddProbe(const std::string& producer, Policy& policy);

// What the scheduler's producers expected of the chosen endpoint in the last decision.
struct Expectation {
  bool known = false;
  std::uint32_t blocks = 0;
  std::uint32_t block_tokens = 0;
};

// Indexes that hold nothing, for schedulers that are not to decide, or by recorded matches.
sched::Resources EmptyResources();

// The round-robin picker's turn, so that decision records have it.
struct Turn {
  static constexpr std::string_view kDataType = "RoundRobinTurn";

  sched::Position next = 0;
};
// Of the built-in data and Turn.
sched::DataCodecs MakeCodecs();

// The built-in plugins, round-robin-picker, and prefix-probe, which writes each decision's Expectation (of
// the exact index where there is one) to `expectation`. The registry and schedulers made from it must not
// outlive that.
sched::PluginRegistry MakeRegistry(Expectation* expectation);

}  // namespace llmd::replay

template <>
struct llmd::sched::DataFields<llmd::replay::Turn> {
  static void Visit(llmd::replay::Turn& value, FieldCoder& field) { field(value.next); }
};

#endif  // LLMD_EXAMPLES_TRACE_REPLAY_POLICY_H_
