#include "examples/trace_replay/prompt.h"

#include <utility>

#include "llmd/hash/approx_prefix.h"
#include "llmd/ingest/kv_event_ingestor.h"

namespace llmd::replay {

absl::StatusOr<PromptMaker> PromptMaker::Create(const PrepareOptions& options) {
  absl::StatusOr<hash::VllmHasher> hasher =
      hash::VllmHasher::Create({.algorithm = hash::VllmAlgorithm::kSha256, .block_size = kBlockTokens});
  if (!hasher.ok()) return hasher.status();
  return PromptMaker(options, *std::move(hasher));
}

std::shared_ptr<const PreparedRequest> PromptMaker::Make(std::size_t index,
                                                         const WorkloadRequest& request) const {
  auto made = std::make_shared<PreparedRequest>();
  made->index = index;
  made->arrival = request.arrival;
  made->prompt_tokens = request.prompt_tokens();
  made->output_tokens = request.output.tokens;
  made->tokens.resize(std::size_t{made->prompt_tokens} + made->output_tokens);
  std::span<TokenId> rest(made->tokens);
  for (const Segment& segment : request.prompt) {
    FillTokens(segment.stream, rest.first(segment.tokens));
    rest = rest.subspan(segment.tokens);
  }
  FillTokens(request.output.stream, rest);

  hasher_.HashBlocks(TokenSpan(made->tokens), nullptr, {}, made->digests);
  const TokenSpan prompt = TokenSpan(made->tokens).first(made->prompt_tokens);
  if (options_.exact_keys) {
    ingest::ContentKeys({.tokens = prompt, .block_size = kBlockTokens, .cache_salt = {}, .items = {}},
                        made->exact_keys);
  }
  if (options_.approx_block_tokens > 0) {
    hash::ApproxPrefixKeys(prompt, kModel, "", {.block_size = options_.approx_block_tokens},
                           made->approx_keys);
  }
  return made;
}

}  // namespace llmd::replay
