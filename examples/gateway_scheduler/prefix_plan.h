// How prompts become the key chains that the configured prefix producers match.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_PREFIX_PLAN_H_
#define EXAMPLES_GATEWAY_SCHEDULER_PREFIX_PLAN_H_

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "llmd/base/types.h"
#include "llmd/gateway/openai_request.h"
#include "llmd/sched/endpoint_pool.h"
#include "llmd/sched/prefix_plan.h"
#include "llmd/sched/request.h"

namespace llmd::host {

using sched::PrefixPlan;

// One request's prompts with their chains, in buffers that are reused.
class PromptChains {
 public:
  // `tokens`: of each prompt, views that outlive prompts(). `block_size`: tokens per block that the engines
  // report, 0 when unknown.
  void Make(const PrefixPlan& plan, std::string_view model, std::string_view cache_salt,
            std::uint32_t block_size, std::span<const TokenSpan> tokens,
            std::span<const gateway::MediaItem> media);
  // The request counts as one prompt of which only the size is known.
  void MakeUnknown();

  std::span<const sched::Prompt> prompts() const { return prompts_; }

 private:
  struct Buffers {
    std::vector<BlockKey> exact;
    std::vector<BlockKey> approx;
    std::array<sched::KeyChain, 2> chains;
  };
  std::vector<Buffers> buffers_;
  std::vector<sched::MultimodalItem> items_;
  std::vector<sched::Prompt> prompts_;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_PREFIX_PLAN_H_
