#include "llmd/hash/dynamo.h"

#include <algorithm>
#include <charconv>
#include <cstring>

#include "llmd/hash/digest.h"
#include "src/hash/xxh.h"

namespace llmd::hash {

std::uint64_t DynamoLocalSeed(std::string_view lora_name, std::string_view cache_namespace,
                              std::uint64_t base) {
  if (!lora_name.empty()) base += XXH3_64bits_withSeed(lora_name.data(), lora_name.size(), 0);
  if (!cache_namespace.empty())
    base += XXH3_64bits_withSeed(cache_namespace.data(), cache_namespace.size(), 1);
  return base;
}

std::uint64_t DynamoMultimodalHash(std::string_view identifier) {
  if (identifier.size() == 64) {
    if (const auto digest = Digest::FromHex(identifier)) return digest->first64();
  }
  return XXH3_64bits(identifier.data(), identifier.size());
}

void DynamoLocalHashes(TokenSpan tokens, const DynamoBlocks& blocks, std::vector<BlockKey>& out,
                       std::span<const std::vector<std::uint64_t>> multimodal) {
  if (blocks.block_size == 0) return;
  const std::size_t stride = blocks.block_size;
  const std::size_t window = stride + (blocks.eagle ? 1 : 0);
  const std::size_t count = tokens.size() < window ? 0 : (tokens.size() - window) / stride + 1;
  out.reserve(out.size() + count);
  std::vector<std::uint64_t> items;
  std::vector<std::uint8_t> buffer;
  for (std::size_t i = 0; i < count; ++i) {
    const TokenSpan block = tokens.subspan(i * stride, window);
    if (i >= multimodal.size() || multimodal[i].empty()) {
      out.push_back(XXH3_64bits_withSeed(block.data(), block.size_bytes(), blocks.seed));
      continue;
    }
    items = multimodal[i];
    std::sort(items.begin(), items.end());
    buffer.resize(block.size_bytes() + items.size() * sizeof(items[0]));
    std::memcpy(buffer.data(), block.data(), block.size_bytes());
    std::memcpy(buffer.data() + block.size_bytes(), items.data(), items.size() * sizeof(items[0]));
    out.push_back(XXH3_64bits_withSeed(buffer.data(), buffer.size(), blocks.seed));
  }
}

void DynamoSequenceHashes(BlockKeySpan local, std::optional<BlockKey> parent, std::vector<BlockKey>& out,
                          std::uint64_t seed) {
  out.reserve(out.size() + local.size());
  for (const BlockKey block : local) {
    const BlockKey link[2] = {parent.value_or(0), block};
    parent = parent ? XXH3_64bits_withSeed(link, sizeof(link), seed) : block;
    out.push_back(*parent);
  }
}

std::optional<BlockKey> ParseMooncakeKey(std::string_view key) {
  int base = 10;
  if (key.starts_with("0x") || key.starts_with("0X")) {
    key.remove_prefix(2);
    base = 16;
  }
  BlockKey value = 0;
  const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), value, base);
  if (error != std::errc() || end != key.data() + key.size()) return std::nullopt;
  return value;
}

}  // namespace llmd::hash
