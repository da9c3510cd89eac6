#include "llmd/hash/approx_prefix.h"

#include <algorithm>
#include <cstring>

#include "src/hash/xxh.h"
#include "src/hash/xxh64_blocks.h"

namespace llmd::hash {
namespace {

BlockKey ModelHash(std::string_view model, std::string_view cache_salt) {
  std::string text(model);
  text += cache_salt;
  return Xxh64(text);
}

}  // namespace

void ApproxPrefixKeys(TokenSpan tokens, std::string_view model, std::string_view cache_salt,
                      const ApproxPrefixOptions& options, std::vector<BlockKey>& out) {
  const std::size_t size = options.effective_block_size();
  std::uint64_t blocks = (tokens.size() + size - 1) / size;
  if (options.limited()) blocks = std::min(blocks, options.max_blocks());
  out.reserve(out.size() + blocks);
  const std::string_view bytes(reinterpret_cast<const char*>(tokens.data()),
                               std::min<std::size_t>(tokens.size(), blocks * size) * sizeof(TokenId));
  const std::size_t block_bytes = size * sizeof(TokenId);
  const BlockKey link = ChainBlockDigests(bytes, block_bytes, ModelHash(model, cache_salt), out);
  const std::size_t tail_bytes = bytes.size() % block_bytes;
  if (tail_bytes > 0) ChainBlockDigests(bytes.substr(bytes.size() - tail_bytes), tail_bytes, link, out);
}

void GaiePrefixKeys(std::string_view prompt, std::string_view model, std::string_view cache_salt,
                    std::uint32_t block_bytes, std::uint64_t max_blocks, std::vector<BlockKey>& out) {
  if (block_bytes == 0) return;
  const std::uint64_t blocks = std::min<std::uint64_t>(prompt.size() / block_bytes, max_blocks);
  out.reserve(out.size() + blocks);
  ChainBlocks(prompt.substr(0, blocks * block_bytes), block_bytes, ModelHash(model, cache_salt), out);
}

void EstimatePacker::AddAsset(std::string_view url_or_data, std::uint32_t count) {
  Align();
  const auto token = static_cast<TokenId>(Xxh64(url_or_data));
  char bytes[sizeof(token)];
  std::memcpy(bytes, &token, sizeof(token));
  bytes_.reserve(bytes_.size() + std::size_t{count} * sizeof(token));
  for (std::uint32_t i = 0; i < count; ++i) bytes_.append(bytes, sizeof(bytes));
}

void EstimatePacker::Finish(std::vector<TokenId>& out) {
  Align();
  const std::size_t old_size = out.size();
  out.resize(old_size + bytes_.size() / sizeof(TokenId));
  if (!bytes_.empty()) std::memcpy(out.data() + old_size, bytes_.data(), bytes_.size());
  bytes_.clear();
}

}  // namespace llmd::hash
