#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "llmd/hash/dynamo.h"
#include "llmd/ingest/kv_event_ingestor.h"
#include "src/ingest/block_extras.h"

namespace llmd::ingest {

void ContentKeys(const PromptBlocks& prompt, std::vector<BlockKey>& out) {
  out.clear();
  if (prompt.block_size == 0) return;
  const std::uint64_t blocks = prompt.tokens.size() / prompt.block_size;
  if (blocks == 0) return;
  BlockExtras extras;
  for (const MultimodalItem& item : prompt.items) {
    if (item.length == 0) continue;
    const std::uint64_t value = hash::DynamoMultimodalHash(item.identifier);
    const std::uint64_t last = (std::uint64_t{item.offset} + item.length - 1) / prompt.block_size;
    for (std::uint64_t i = item.offset / prompt.block_size; i <= std::min(last, blocks - 1); ++i) {
      extras.Add(i, value);
    }
  }
  if (!prompt.cache_salt.empty()) extras.Add(0, prompt.cache_salt);
  hash::DynamoLocalHashes(prompt.tokens, {.block_size = prompt.block_size}, out, extras.values());
}

index::NamespaceId RequestNamespace(std::string_view model, std::string_view lora, std::uint32_t block_size) {
  return index::MakeNamespace({.model = lora.empty() ? model : lora, .block_size = block_size});
}

}  // namespace llmd::ingest
