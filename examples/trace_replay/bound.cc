#include "examples/trace_replay/bound.h"

#include <algorithm>

namespace llmd::replay {

void InfiniteCache::Add(const WorkloadRequest& request, const PreparedRequest& prepared) {
  const std::size_t usable = (prepared.prompt_tokens - 1) / kBlockTokens;
  std::size_t hits = 0;
  while (hits < usable && engine_keys_.contains(prepared.digests[hits].low64())) ++hits;
  const std::size_t computed =
      (std::size_t{prepared.prompt_tokens} + prepared.output_tokens - 1) / kBlockTokens;
  for (std::size_t i = hits; i < computed; ++i) engine_keys_.insert(prepared.digests[i].low64());
  engine_blocks_.hit_blocks += hits;
  engine_blocks_.blocks += prepared.full_prompt_blocks();
  engine_blocks_.hit_tokens += hits * kBlockTokens;
  engine_blocks_.tokens += prepared.prompt_tokens;
  hit_tokens_.push_back(static_cast<std::uint32_t>(hits * kBlockTokens));

  if (!request.recorded) return;
  std::size_t known = 0;
  while (known < request.prompt.size() && trace_ids_.contains(request.prompt[known].stream)) ++known;
  for (std::size_t i = known; i < request.prompt.size(); ++i) trace_ids_.insert(request.prompt[i].stream);
  trace_blocks_.hit_blocks += known;
  trace_blocks_.blocks += request.prompt.size();
  trace_blocks_.hit_tokens +=
      std::min<std::uint64_t>(known * std::uint64_t{kTraceBlockTokens}, prepared.prompt_tokens);
  trace_blocks_.tokens += prepared.prompt_tokens;
}

}  // namespace llmd::replay
