// llm-d request keys: 64-bit chained block keys that a router computes from tokens on both sides.
//
// They do not depend on the engine's hashes: the event side computes them from the tokens of stored events,
// the request side from the prompt's tokens, and the engine's hash is only looked up for parents and
// removals. Hence no shared seed with the engine. The key 0 means "no key" upstream. RequestKeyHasher is
// immutable after Create(): share it between threads. Source: spec, block hashing 2; llm-d-kv-cache:
// pkg/kvcache/kvblock/token_processor.go.
#ifndef LLMD_HASH_REQUEST_KEYS_H_
#define LLMD_HASH_REQUEST_KEYS_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "llmd/base/types.h"
#include "llmd/hash/extra_keys.h"

namespace llmd::hash {

enum class RequestKeyAlgorithm : std::uint8_t {
  kCborFnv,         // "cbor-fnv": FNV-1a 64 over canonical CBOR; the default
  kCborFnvNoModel,  // "cbor-fnv-no-model": kv-cache-manager up to 0.4, where the root does not cover the
                    // model
  kXxh64,           // "xxh64": the router's alternative
};
std::string_view ToString(RequestKeyAlgorithm algorithm);
absl::StatusOr<RequestKeyAlgorithm> ParseRequestKeyAlgorithm(std::string_view name);

struct RequestKeyOptions {
  RequestKeyAlgorithm algorithm = RequestKeyAlgorithm::kCborFnv;
  std::string hash_seed;
  std::uint32_t block_size = 16;  // tokens, at least 1
};

// The extra strings of one block, in order: multimodal identifiers, then on block 0 the cache salt.
using ExtraStrings = std::vector<std::string>;

class RequestKeyHasher {
 public:
  static absl::StatusOr<RequestKeyHasher> Create(const RequestKeyOptions& options);

  // Parent of a first block. A LoRA adapter's name replaces the model's.
  BlockKey Root(std::string_view model_or_lora) const;

  // Appends the keys of the full blocks of `tokens`, which follow `parent` (Root() or the key of an earlier
  // block). `extra` holds one entry per block, or fewer: missing ones are empty.
  void HashBlocks(TokenSpan tokens, BlockKey parent, std::span<const ExtraStrings> extra,
                  std::vector<BlockKey>& out) const;

  RequestKeyAlgorithm algorithm() const { return algorithm_; }
  std::uint32_t block_size() const { return block_size_; }

 private:
  RequestKeyHasher(RequestKeyAlgorithm algorithm, std::uint32_t block_size, std::uint64_t init)
      : algorithm_(algorithm), block_size_(block_size), init_(init) {}

  RequestKeyAlgorithm algorithm_;
  std::uint32_t block_size_;
  std::uint64_t init_;
};

// Request side: extra strings of each of the first `block_count` blocks.
std::vector<ExtraStrings> ExtraStringsOfRequest(const RequestExtras& extras, std::uint32_t block_size,
                                                std::uint64_t block_count);
// Event side: from the extra keys that a stored event carries for a block. Takes every bare string and the
// first element of (string, int) pairs. The first bare occurrence of `lora_name` is dropped, since the root
// covers it.
ExtraStrings ExtraStringsOfEvent(const ExtraKeys& keys, std::string_view lora_name);
// Per-block extras of `from.size()` engine blocks, spread over `block_count` index blocks that cover the same
// tokens: larger engine blocks are replicated, smaller ones merged in order. Exact only when the counts are
// equal.
std::vector<ExtraStrings> RealignExtraStrings(std::span<const ExtraStrings> from, std::size_t block_count);

}  // namespace llmd::hash

#endif  // LLMD_HASH_REQUEST_KEYS_H_
