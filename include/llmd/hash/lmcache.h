// LMCache's chunk hashes: vLLM's function over chunks of tokens, without extra keys.
//
// Build the VllmHasher with the chunk size (256 by default) as its block size, LMCache's own algorithm
// (pre_caching_hash_algorithm), and NONE_HASH as that algorithm gives it; NoneHash::IntegerZero() when
// LMCache runs without vLLM. LMCache's default algorithm, `builtin`, cannot be reproduced. Source: spec,
// block hashing 6; LMCache: lmcache/v1/token_database.py.
#ifndef LLMD_HASH_LMCACHE_H_
#define LLMD_HASH_LMCACHE_H_

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "llmd/base/types.h"
#include "llmd/hash/vllm.h"

namespace llmd::hash {

inline constexpr std::uint32_t kLmcacheChunkSize = 256;

// As ParseVllmAlgorithm(), but LMCache takes `sha256_cbor_64bit` as an alias of `sha256_cbor`.
absl::StatusOr<VllmAlgorithm> ParseLmcacheAlgorithm(std::string_view name);

// Appends the digest of each chunk of hasher.block_size() tokens; the last, shorter one only with
// `save_unfull_chunk` (LMCache's default).
void LmcacheChunkHashes(const VllmHasher& hasher, TokenSpan tokens, bool save_unfull_chunk,
                        std::vector<Digest>& out);

}  // namespace llmd::hash

#endif  // LLMD_HASH_LMCACHE_H_
