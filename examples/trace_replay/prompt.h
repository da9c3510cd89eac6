// A request made concrete: its tokens, the engine's block hashes and the router's keys.
//
// Made once for each request and shared by the simulations of all policies; freed when the last of them has
// served the request. The chain of hashes covers the tokens that will be generated too, since a simulated
// engine knows them.
#ifndef LLMD_EXAMPLES_TRACE_REPLAY_PROMPT_H_
#define LLMD_EXAMPLES_TRACE_REPLAY_PROMPT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "examples/trace_replay/workload.h"
#include "llmd/base/types.h"
#include "llmd/hash/digest.h"
#include "llmd/hash/vllm.h"

namespace llmd::replay {

inline constexpr std::string_view kModel = "meta-llama/Llama-3.1-8B-Instruct";
inline constexpr std::uint32_t kBlockTokens = 16;  // of the simulated engines

struct PreparedRequest {
  std::size_t index = 0;  // in the workload
  Nanos arrival = 0;
  std::uint32_t prompt_tokens = 0;
  std::uint32_t output_tokens = 0;
  std::vector<TokenId> tokens;        // prompt, then output
  std::vector<hash::Digest> digests;  // vLLM's sha256 of every full block of `tokens`
  std::vector<BlockKey> exact_keys;   // content keys of the prompt's full blocks
  std::vector<BlockKey> approx_keys;  // chain of the approximate index, empty unless asked for

  std::size_t full_prompt_blocks() const { return prompt_tokens / kBlockTokens; }
};

struct PrepareOptions {
  std::uint32_t approx_block_tokens = 0;  // 0: no approximate chain
  bool exact_keys = true;
};

class PromptMaker {
 public:
  static absl::StatusOr<PromptMaker> Create(const PrepareOptions& options);

  std::shared_ptr<const PreparedRequest> Make(std::size_t index, const WorkloadRequest& request) const;

 private:
  PromptMaker(const PrepareOptions& options, hash::VllmHasher hasher)
      : options_(options), hasher_(std::move(hasher)) {}

  PrepareOptions options_;
  hash::VllmHasher hasher_;
};

}  // namespace llmd::replay

#endif  // LLMD_EXAMPLES_TRACE_REPLAY_PROMPT_H_
