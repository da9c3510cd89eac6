// SGLang's page hashes: SHA-256 over the previous page's digest and this page's tokens.
//
// The cache salt and LoRA namespace are *not* covered: equal tokens under two salts give equal hashes, so an
// index must key on (hash, salt). Free functions: no state, any thread. Source: spec, block hashing 5;
// sglang: python/sglang/srt/mem_cache/hicache_storage.py, radix_cache.py.
#ifndef LLMD_HASH_SGLANG_H_
#define LLMD_HASH_SGLANG_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "llmd/base/types.h"
#include "llmd/hash/digest.h"

namespace llmd::hash {

// Appends the digest of each full page of `page_size` tokens (0: none). `parent` null: start of a prompt.
void SglangPageHashes(TokenSpan tokens, std::uint32_t page_size, const Digest* parent,
                      std::vector<Digest>& out);

// EAGLE: position i stands for tokens (i, i + 1), so `tokens` holds one more token than there are positions.
void SglangBigramPageHashes(TokenSpan tokens, std::uint32_t page_size, const Digest* parent,
                            std::vector<Digest>& out);

// The hash as KV events carry it: the first 64 bits as a signed integer.
inline std::int64_t SglangEventHash(const Digest& digest) {
  return static_cast<std::int64_t>(digest.first64());
}

}  // namespace llmd::hash

#endif  // LLMD_HASH_SGLANG_H_
