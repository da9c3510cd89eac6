// TensorRT-LLM's block hashes: the default `v1_block_key` (64 bits) and `v2_sha256` (32 bytes).
//
// A request's last block may be partial and is hashed with the tokens it has; pass only whole blocks to leave
// it out. Free functions: no state, any thread. Source: spec, block hashing 8; TensorRT-LLM:
// tensorrt_llm/runtime/kv_cache_hash.py, tensorrt_llm/runtime/kv_cache_manager_v2/_block_radix_tree.py.
#ifndef LLMD_HASH_TRTLLM_H_
#define LLMD_HASH_TRTLLM_H_

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "llmd/base/types.h"
#include "llmd/hash/digest.h"

namespace llmd::hash {

struct TrtllmNamespace {
  std::optional<std::uint64_t> lora_task_id;
  std::optional<std::uint64_t> salt_id;  // TrtllmSaltId()
};

// The 64 bits that stand for a cache salt. The C++ V1 engine mixes std::hash of the salt instead, which
// cannot be reproduced: salted v1 keys match only workers with KV cache manager V2.
std::uint64_t TrtllmSaltId(std::string_view cache_salt);

// v1_block_key: appends one key per block of `tokens_per_block` tokens (0: none). `parent` 0: start of a
// prompt.
void TrtllmV1Keys(TokenSpan tokens, std::uint32_t tokens_per_block, const TrtllmNamespace& ns,
                  BlockKey parent, std::vector<BlockKey>& out);

// v2_sha256: appends one digest per block; `parent` null: start of a prompt. Digest::first64() is
// v2_sha256_64. Only text tokens (ids below 2^31); a multimodal block hashes the item's digest in place of a
// token.
void TrtllmV2Digests(TokenSpan tokens, std::uint32_t tokens_per_block, const TrtllmNamespace& ns,
                     const Digest* parent, std::vector<Digest>& out);

}  // namespace llmd::hash

#endif  // LLMD_HASH_TRTLLM_H_
