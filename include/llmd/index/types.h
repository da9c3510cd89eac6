// Names of the prefix index: namespaces, holders, blocks and what a match returns.
//
// A *namespace* separates chains that must never meet: model, LoRA adapter, cache salt and block size. A
// *holder* is one endpoint (address and port, data-parallel rank included) in one storage tier. Every block
// of a chain carries two keys: the *content key*, computed by the router from the block's tokens, by which
// chains are matched, and the *engine key*, the opaque 64-bit hash that the engine publishes, by which its
// later events name the block.
#ifndef LLMD_INDEX_TYPES_H_
#define LLMD_INDEX_TYPES_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "llmd/base/types.h"

namespace llmd::index {

using EngineKey = std::uint64_t;

// 128-bit fingerprint of a namespace. Computed anywhere, without the index, and stable across processes and
// versions: XXH3-128 over the length-prefixed fields.
struct NamespaceId {
  std::uint64_t hi = 0;
  std::uint64_t lo = 0;
  friend bool operator==(const NamespaceId&, const NamespaceId&) = default;
};

struct NamespaceKey {
  std::string_view model = {};
  std::string_view lora = {};        // empty for the base model
  std::string_view cache_salt = {};  // empty for none
  std::uint32_t block_size = 16;     // tokens
};

NamespaceId MakeNamespace(const NamespaceKey& key);

// How a block that was stored several times by one holder goes away.
enum class RemovalPolicy {
  kSet,       // the first removal forgets it (engines that announce each physical copy once)
  kRefcount,  // it goes with as many removals as stores (offload tiers that announce shared blocks
              // repeatedly)
};

struct HolderOptions {
  std::string endpoint = {};  // "address:port", as the scheduler names it
  std::optional<std::uint32_t> dp_rank = std::nullopt;
  std::string tier = "gpu";  // lower case; any string is its own tier
  RemovalPolicy removal = RemovalPolicy::kSet;
  // Holders with the same key space publish the same engine key for the same chain (one model, one engine
  // family). Engine keys of different key spaces are never compared.
  std::uint32_t key_space = 0;
};

// Handle of a holder. A slot is reused after Retire() with another generation, so a late event of a retired
// holder cannot touch its successor.
struct HolderId {
  std::uint16_t slot = 0;
  std::uint32_t generation = 0;  // 0 is never valid
  friend bool operator==(const HolderId&, const HolderId&) = default;
};

struct StoredBlock {
  EngineKey engine = 0;
  BlockKey content = 0;
};

// One row of a match: the holder in `slot` has the first `depth` blocks of the chain (depth >= 1).
struct HolderDepth {
  std::uint32_t slot = 0;
  std::uint32_t depth = 0;
  friend bool operator==(const HolderDepth&, const HolderDepth&) = default;
};

using MatchResult = std::vector<HolderDepth>;

}  // namespace llmd::index

#endif  // LLMD_INDEX_TYPES_H_
