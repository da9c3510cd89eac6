// What the exporters need to know of a scheduler's configuration, as plain values.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_SCHEDULER_FACTS_H_
#define EXAMPLES_GATEWAY_SCHEDULER_SCHEDULER_FACTS_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "llmd/sched/decision.h"
#include "llmd/sched/disagg.h"
#include "llmd/sched/scheduler.h"

namespace llmd::host {

struct PluginId {
  std::string name = {};
  std::string type = {};
};

struct SchedulerFacts {
  explicit SchedulerFacts(const sched::Scheduler& scheduler);

  // Which stages the decision uses; nullopt without a handler that splits requests.
  std::optional<sched::DisaggKind> Kind(const sched::Decision& decision) const;
  // Bytes of text that a block of the prompt stands for, by llm-d's rule of four characters a token.
  // `reported` is the endpoint's block size, 0 when unknown.
  double BlockBytes(std::uint32_t reported) const;

  const sched::Scheduler* scheduler;  // for comparison alone
  std::optional<PluginId> prefix_producer;
  bool precise = false;                        // that producer is fed by KV events
  std::optional<PluginId> disagg_handler;      // with `prefill` or `encode`
  std::optional<std::size_t> prefill, encode;  // profiles
  std::vector<std::string> in_flight_producers;
  std::string saturation_detector;
  std::uint64_t max_queued_requests = 0;  // 0: no limit
  std::uint64_t max_queued_bytes = 0;

 private:
  std::optional<std::uint32_t> fixed_block_tokens_;
  sched::ApproxPrefixOptions approx_;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_SCHEDULER_FACTS_H_
