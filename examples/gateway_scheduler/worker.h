// What one thread of the host keeps for its decisions: the scheduler's workspace and warm buffers.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_WORKER_H_
#define EXAMPLES_GATEWAY_SCHEDULER_WORKER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "examples/gateway_scheduler/gateway.h"
#include "examples/gateway_scheduler/prefix_plan.h"
#include "llmd/base/random.h"
#include "llmd/gateway/openai_request.h"
#include "llmd/gateway/session_id.h"
#include "llmd/sched/scheduler.h"

namespace llmd::host {

// Not thread safe: one thread's.
class Worker {
 public:
  // `seed`: of request ids, tie seeds and weighted choices.
  Worker(Gateway& gateway, std::uint64_t seed);

  // Follows reloads; to be called before each use of what is below.
  void Refresh();

  gateway::OpenAiParser parser;
  Random random;
  std::shared_ptr<sched::Scheduler> scheduler;
  std::optional<sched::Workspace> workspace;
  PrefixPlan plan;
  // One decision's memory.
  sched::Decision decision;
  sched::Explanation explanation;
  PromptChains chains;
  std::vector<sched::Header> headers;
  std::vector<sched::Position> candidates;
  std::vector<TokenSpan> token_spans;

  // Adds x-session-id to `headers`, which lack it, when the client names its session in another way: this
  // host runs before the filters of a mesh that would (spec: gateway.md 4.2).
  void AddSessionHeader();

  // Leading blocks of the first prompt that the index holds at the endpoint, of the source that the
  // configuration uses (the exact one first), for reports.
  struct Held {
    std::uint32_t blocks = 0;
    std::uint32_t of = 0;
  };
  Held HeldAt(const sched::EndpointPool& pool, sched::EndpointHandle endpoint);

 private:
  Gateway& gateway_;
  std::uint64_t generation_ = 0;
  std::unique_ptr<sched::PrefixMatcher> matchers_[2];
  index::MatchResult match_;
  const gateway::SessionIdReader session_reader_;
  std::vector<gateway::HeaderView> header_views_;
  std::string session_scratch_;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_WORKER_H_
