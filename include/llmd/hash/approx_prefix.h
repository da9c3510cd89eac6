// Prefix chains of approximate-prefix routers: llm-d-router over token ids, GAIE v1 over prompt bytes.
//
// These routers guess what an endpoint holds from what was sent there, so their chains need match no engine.
// All are XXH64 with seed 0 and start from the hash of model and salt. Free functions: no state, any thread.
// Source: spec, block hashing 3; llm-d-router: .../dataproducer/prefixhash/hashing.go,
// gateway-api-inference-extension.
#ifndef LLMD_HASH_APPROX_PREFIX_H_
#define LLMD_HASH_APPROX_PREFIX_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "llmd/base/types.h"

namespace llmd::hash {

struct ApproxPrefixOptions {
  // Tokens per block: configured, or the engine's. Raised to kMinBlockSize.
  std::uint32_t block_size = 16;
  std::uint64_t max_prefix_tokens = 131072;  // wins over max_prefix_blocks; 0: not set
  std::uint64_t max_prefix_blocks = 2048;    // 0: not set; both 0: no limit

  static constexpr std::uint32_t kMinBlockSize = 64;
  std::uint32_t effective_block_size() const {
    return block_size < kMinBlockSize ? kMinBlockSize : block_size;
  }
  bool limited() const { return max_prefix_tokens != 0 || max_prefix_blocks != 0; }
  // Blocks hashed at most, when limited().
  std::uint64_t max_blocks() const {
    return max_prefix_tokens != 0 ? max_prefix_tokens / effective_block_size() : max_prefix_blocks;
  }
};

// llm-d-router: appends one key per block of `tokens`. The last block may be partial and is hashed too. A
// request of several prompts hashes each by itself.
void ApproxPrefixKeys(TokenSpan tokens, std::string_view model, std::string_view cache_salt,
                      const ApproxPrefixOptions& options, std::vector<BlockKey>& out);

// GAIE v1.1 to v1.5: appends one key per full block of `block_bytes` (0: none) prompt bytes, at most
// `max_blocks`.
void GaiePrefixKeys(std::string_view prompt, std::string_view model, std::string_view cache_salt,
                    std::uint32_t block_bytes, std::uint64_t max_blocks, std::vector<BlockKey>& out);
inline constexpr std::uint32_t kGaieBlockBytes = 64;
inline constexpr std::uint64_t kGaieMaxBlocks = 256;

// The router's stand-in for a tokenizer: request bytes as little-endian 32-bit pseudo tokens.
class EstimatePacker {
 public:
  // Text follows earlier text without a gap.
  void AddText(std::string_view text) { bytes_.append(text); }
  // An image, video or audio asset, given by URL or data: `count` copies of one pseudo token, aligned to 4
  // bytes.
  void AddAsset(std::string_view url_or_data, std::uint32_t count);
  // Appends the pseudo tokens, the last one zero-padded, and starts anew.
  void Finish(std::vector<TokenId>& out);

 private:
  void Align() { bytes_.resize((bytes_.size() + 3) / 4 * 4, '\0'); }

  std::string bytes_;
};

}  // namespace llmd::hash

#endif  // LLMD_HASH_APPROX_PREFIX_H_
