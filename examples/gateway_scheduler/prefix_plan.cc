#include "examples/gateway_scheduler/prefix_plan.h"

#include <span>
#include <utility>

#include "llmd/hash/approx_prefix.h"
#include "llmd/index/types.h"
#include "llmd/ingest/kv_event_ingestor.h"

namespace llmd::host {

void PromptChains::Make(const PrefixPlan& plan, std::string_view model, std::string_view cache_salt,
                        std::uint32_t block_size, std::span<const TokenSpan> tokens,
                        std::span<const gateway::MediaItem> media) {
  if (buffers_.size() < tokens.size()) buffers_.resize(tokens.size());
  prompts_.clear();
  items_.clear();
  std::vector<ingest::MultimodalItem> engine_items;
  for (const gateway::MediaItem& item : media) {
    items_.push_back(
        {.modality = item.modality, .hash = item.hash, .offset = item.offset, .length = item.length});
    if (item.length == 0) continue;  // where it stands among the tokens is not known
    engine_items.push_back({.identifier = item.hash,
                            .offset = static_cast<std::uint32_t>(item.offset),
                            .length = static_cast<std::uint32_t>(item.length)});
  }
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    Buffers& buffers = buffers_[i];
    buffers.chains = {};
    if (plan.precise) {
      const std::uint32_t size = static_cast<std::uint32_t>(plan.precise->block_size);
      ingest::ContentKeys(
          {.tokens = tokens[i], .block_size = size, .cache_salt = cache_salt, .items = engine_items},
          buffers.exact);
      buffers.chains[sched::kExactSource] = {
          .ns = ingest::RequestNamespace(model, "", size), .block_size = size, .keys = buffers.exact};
    }
    if (plan.approx) {
      const std::uint32_t size = plan.approx->BlockSize(block_size);
      buffers.approx.clear();
      hash::ApproxPrefixKeys(
          tokens[i], model, cache_salt,
          {.block_size = size, .max_prefix_tokens = 0, .max_prefix_blocks = plan.approx->MaxBlocks(size)},
          buffers.approx);
      buffers.chains[sched::kApproximateSource] = {
          .ns = index::MakeNamespace({.model = model, .block_size = size}),
          .block_size = size,
          .keys = buffers.approx};
    }
    prompts_.push_back({.token_count = tokens[i].size(), .tokens = tokens[i], .chains = buffers.chains});
  }
  if (!prompts_.empty()) prompts_.front().items = items_;
}

void PromptChains::MakeUnknown() {
  prompts_.clear();
  items_.clear();
}

}  // namespace llmd::host
