// vLLM's prefix-cache block hashes, for every --prefix-caching-hash-algo and every rule for the first parent.
//
//   digest_i = H(serialize((digest_{i-1}, tokens of block i, extra keys of block i))),   digest_{-1} =
//   NONE_HASH
//
// Only full blocks are hashed. VllmHasher is immutable after Create(): share it between threads, copy it
// freely. VllmChain follows one request as tokens arrive; one thread at a time. Neither allocates per block
// once the output vectors have grown, except for blocks with extra keys. Events carry Digest::low64() or
// the whole digest.
//
// Pickle (sha256, xxhash) depends on Python object identity: an object that occurs twice in one block is
// written once and then referred to. Only tags (extra_keys.h) are known to be one object, and what every
// CPython has once: the empty text and bytes, single characters up to U+00FF. Other equal texts are written
// out each time, as vLLM does for identifiers that it received separately. CBOR has no such hazard. Source:
// spec, block hashing 1; vllm: vllm/v1/core/kv_cache_utils.py, vllm/utils/hashing.py.
#ifndef LLMD_HASH_VLLM_H_
#define LLMD_HASH_VLLM_H_

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llmd/base/types.h"
#include "llmd/hash/digest.h"
#include "llmd/hash/extra_keys.h"

namespace llmd::hash {

enum class VllmAlgorithm : std::uint8_t {
  kSha256,          // pickle protocol 5, SHA-256: default since 0.10.2
  kSha256Cbor,      // canonical CBOR, SHA-256: 0.10.2 and later
  kXxhash,          // pickle protocol 5, XXH3-128
  kXxhashCbor,      // canonical CBOR, XXH3-128
  kSha256Int,       // up to 0.10.1, `sha256`: as kSha256, but the parent is hashed as a 256-bit integer
  kSha256Cbor64bit  // 0.10.0 and 0.10.1: low 64 bits of SHA-256 over CBOR; the parent is that integer. 8-byte
                    // digests
};

// The name as in --prefix-caching-hash-algo; "sha256_int" stands for kSha256Int, which has no name of its own
// there.
std::string_view ToString(VllmAlgorithm algorithm);
// Inverse of ToString(). `builtin` and unknown names are refused with the reason.
absl::StatusOr<VllmAlgorithm> ParseVllmAlgorithm(std::string_view name);

// How the parent of a first block comes about.
struct NoneHash {
  enum class Kind : std::uint8_t { kVllmDefault, kSeedText, kRaw, kIntegerZero };

  // PYTHONHASHSEED is set to `text` (the empty string counts): NONE_HASH = H(serialize(text)).
  static NoneHash SeedText(std::string_view text) { return {Kind::kSeedText, std::string(text), {}}; }
  // PYTHONHASHSEED is not set, vLLM 0.29 or later, sha256 or sha256_cbor. Everywhere else NONE_HASH is random
  // when the variable is not set, and Create() refuses this policy.
  static NoneHash VllmDefault() { return {}; }
  // NONE_HASH itself, e.g. the 32 random bytes of a release before that default.
  static NoneHash Raw(const Digest& value) { return {Kind::kRaw, {}, value}; }
  // The integer 0, as LMCache uses without vLLM.
  static NoneHash IntegerZero() { return {Kind::kIntegerZero, {}, {}}; }

  static constexpr std::string_view kVllmDefaultSeed = "vllm-none-hash";

  Kind kind = Kind::kVllmDefault;
  std::string seed_text;
  Digest raw;
};

struct VllmHashOptions {
  VllmAlgorithm algorithm = VllmAlgorithm::kSha256;
  NoneHash none_hash = NoneHash::VllmDefault();
  std::uint32_t block_size = 16;  // tokens, at least 1: the hash block size where groups differ
};

class VllmHasher {
 public:
  static absl::StatusOr<VllmHasher> Create(const VllmHashOptions& options);

  // Appends to `out` the digests of the floor(tokens.size() / block_size()) full blocks of `tokens`, which
  // follow the block `parent` (null: start of a prompt). `extra` holds one entry per block, or fewer: missing
  // ones are None.
  void HashBlocks(TokenSpan tokens, const Digest* parent, std::span<const ExtraKeys> extra,
                  std::vector<Digest>& out) const;
  // The same for ids beyond 32 bits (or negative), which exist only as hash-function input.
  void HashBlocks(std::span<const std::int64_t> tokens, const Digest* parent,
                  std::span<const ExtraKeys> extra, std::vector<Digest>& out) const;

  // The digest of one block of any length. `parent` null: first block. `extra` null or empty: None.
  Digest HashBlock(TokenSpan tokens, const Digest* parent, const ExtraKeys* extra) const;
  Digest HashBlock(std::span<const std::int64_t> tokens, const Digest* parent, const ExtraKeys* extra) const;
  // The bytes that HashBlock() hashes: to compare with another implementation.
  std::string Preimage(std::span<const std::int64_t> tokens, const Digest* parent,
                       const ExtraKeys* extra) const;

  VllmAlgorithm algorithm() const { return algorithm_; }
  std::uint32_t block_size() const { return block_size_; }
  const Digest& none_hash() const { return none_hash_; }

 private:
  VllmHasher(VllmAlgorithm algorithm, std::uint32_t block_size, const Digest& none_hash)
      : algorithm_(algorithm), block_size_(block_size), none_hash_(none_hash) {}

  VllmAlgorithm algorithm_;
  std::uint32_t block_size_;
  Digest none_hash_;
};

// The blocks of one request, extended as its tokens become known.
class VllmChain {
 public:
  // `extras` must have been built for the hasher's block size.
  explicit VllmChain(const VllmHasher& hasher, ExtraKeyBuilder extras = {});

  // Takes the next tokens and returns the digests of the blocks they completed, valid until the next call.
  // Tokens of an incomplete block are kept.
  std::span<const Digest> Extend(TokenSpan tokens);
  // Forgets all tokens; keeps memory.
  void Clear();

  std::span<const Digest> digests() const { return digests_; }
  // low64() of each digest: the keys that events carry by default.
  BlockKeySpan keys() const { return keys_; }
  std::uint64_t token_count() const {
    return digests_.size() * std::uint64_t{hasher_.block_size()} + tail_.size();
  }

 private:
  void Append(TokenSpan block);

  VllmHasher hasher_;
  ExtraKeyBuilder extras_;
  std::vector<TokenId> tail_;
  std::vector<Digest> digests_;
  std::vector<BlockKey> keys_;
};

// --- Groups of layers whose blocks are `factor` hash blocks long ---

// The group's block digests: the last fine digest inside each block. `factor` 0 gives nothing.
void GroupDigests(std::span<const Digest> fine, std::uint32_t factor, std::vector<Digest>& out);
// The older form: the `factor` fine digests of each block, concatenated. Same low 64 bits.
void GroupDigestsConcatenated(std::span<const Digest> fine, std::uint32_t factor,
                              std::vector<std::string>& out);
// Key of the engine's block pool and of offload stores: digest || big-endian 32-bit group id.
std::string PoolKey(const Digest& digest, std::uint32_t group_id);
// Splits a PoolKey. Error when it is shorter than 5 bytes or its digest longer than 32.
struct PoolKeyParts {
  Digest digest;
  std::uint32_t group_id = 0;
};
absl::StatusOr<PoolKeyParts> ParsePoolKey(std::string_view key);
// The 64-bit key of a hash published as bytes (any length; concatenated digests included): its last eight
// bytes.
BlockKey ExternalKey(std::string_view hash_bytes);

}  // namespace llmd::hash

#endif  // LLMD_HASH_VLLM_H_
