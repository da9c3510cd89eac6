#include "llmd/hash/lmcache.h"

namespace llmd::hash {

absl::StatusOr<VllmAlgorithm> ParseLmcacheAlgorithm(std::string_view name) {
  if (name == "sha256_cbor_64bit") return VllmAlgorithm::kSha256Cbor;
  return ParseVllmAlgorithm(name);
}

void LmcacheChunkHashes(const VllmHasher& hasher, TokenSpan tokens, bool save_unfull_chunk,
                        std::vector<Digest>& out) {
  const std::size_t before = out.size();
  hasher.HashBlocks(tokens, nullptr, {}, out);
  const TokenSpan rest = tokens.last(tokens.size() % hasher.block_size());
  if (rest.empty() || !save_unfull_chunk) return;
  out.push_back(hasher.HashBlock(rest, out.size() == before ? nullptr : &out.back(), nullptr));
}

}  // namespace llmd::hash
