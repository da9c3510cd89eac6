// What one cache without a limit, shared by all endpoints and filled in the order of arrivals, would have
// served: no policy reuses more. Counted twice: in the engines' 16-token blocks under the engines' own rules
// (so that it compares with a simulated pool's hits), and for recorded requests in the trace's 512-token
// blocks (so that it compares with what is published about the trace).
#ifndef LLMD_EXAMPLES_TRACE_REPLAY_BOUND_H_
#define LLMD_EXAMPLES_TRACE_REPLAY_BOUND_H_

#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "examples/trace_replay/prompt.h"
#include "examples/trace_replay/workload.h"
#include "llmd/base/types.h"

namespace llmd::replay {

struct HitCount {
  std::uint64_t hit_blocks = 0;
  std::uint64_t blocks = 0;
  std::uint64_t hit_tokens = 0;
  std::uint64_t tokens = 0;

  double block_rate() const {
    return blocks > 0 ? static_cast<double>(hit_blocks) / static_cast<double>(blocks) : 0;
  }
  double token_rate() const {
    return tokens > 0 ? static_cast<double>(hit_tokens) / static_cast<double>(tokens) : 0;
  }
};

class InfiniteCache {
 public:
  // Requests in the order of arrival. Answers are cached as well, up to their last token but one, which is
  // the last that an engine computes.
  void Add(const WorkloadRequest& request, const PreparedRequest& prepared);

  // Full 16-token blocks of prompts; a hit leaves at least the prompt's last token to be computed.
  const HitCount& engine_blocks() const { return engine_blocks_; }
  // 512-token blocks of recorded prompts, the partial last one included; a hit counts 512 tokens, at most the
  // prompt.
  const HitCount& trace_blocks() const { return trace_blocks_; }
  // Hit tokens of each request, by the rule of engine_blocks().
  const std::vector<std::uint32_t>& hit_tokens() const { return hit_tokens_; }

 private:
  absl::flat_hash_set<BlockKey> engine_keys_;
  absl::flat_hash_set<StreamId> trace_ids_;
  HitCount engine_blocks_;
  HitCount trace_blocks_;
  std::vector<std::uint32_t> hit_tokens_;
};

}  // namespace llmd::replay

#endif  // LLMD_EXAMPLES_TRACE_REPLAY_BOUND_H_
