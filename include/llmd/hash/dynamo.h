// Dynamo's block hashes, and the Mooncake conductor's, which are the same with another seed.
//
// The *local* hash covers a block's own tokens; its router keys a radix tree by local hashes. The *sequence*
// hash chains them and stands for the whole prefix. Free functions: no state, any thread. Source: spec, block
// hashing 4 and 7; dynamo: lib/kv-router/src/protocols.rs, lib/tokens/src/lib.rs.
#ifndef LLMD_HASH_DYNAMO_H_
#define LLMD_HASH_DYNAMO_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "llmd/base/types.h"

namespace llmd::hash {

inline constexpr std::uint64_t kDynamoSeed = 1337;

// Seed of local hashes under a LoRA adapter and a cache namespace (salt); empty ones do not count.
std::uint64_t DynamoLocalSeed(std::string_view lora_name, std::string_view cache_namespace,
                              std::uint64_t base = kDynamoSeed);

// The 64 bits that stand for a multimodal item: the first 16 digits of 64 hexadecimal ones, else a hash of
// the text.
std::uint64_t DynamoMultimodalHash(std::string_view identifier);

struct DynamoBlocks {
  std::uint32_t block_size = 16;     // tokens, at least 1 (0 yields no blocks)
  std::uint64_t seed = kDynamoSeed;  // DynamoLocalSeed()
  bool eagle = false;                // each block covers block_size + 1 tokens, at a stride of block_size
};

// Appends the local hash of each full block. `multimodal` holds per block the hashes of the items in it, in
// any order; missing entries are empty.
void DynamoLocalHashes(TokenSpan tokens, const DynamoBlocks& blocks, std::vector<BlockKey>& out,
                       std::span<const std::vector<std::uint64_t>> multimodal = {});

// Appends the sequence hash of each local hash. `parent`: sequence hash of the block before the first;
// nullopt at the start of a prompt.
void DynamoSequenceHashes(BlockKeySpan local, std::optional<BlockKey> parent, std::vector<BlockKey>& out,
                          std::uint64_t seed = kDynamoSeed);

// Mooncake store keys are opaque; only those that are entirely a decimal or 0x-hexadecimal u64 are sequence
// hashes.
std::optional<BlockKey> ParseMooncakeKey(std::string_view key);

}  // namespace llmd::hash

#endif  // LLMD_HASH_DYNAMO_H_
