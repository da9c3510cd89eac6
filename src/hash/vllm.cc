#include "llmd/hash/vllm.h"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "src/hash/serialize.h"
#include "src/hash/sha256.h"
#include "src/hash/xxh.h"

namespace llmd::hash {
namespace {

struct AlgorithmName {
  VllmAlgorithm algorithm;
  std::string_view name;
};
constexpr AlgorithmName kNames[] = {
    {VllmAlgorithm::kSha256, "sha256"},        {VllmAlgorithm::kSha256Cbor, "sha256_cbor"},
    {VllmAlgorithm::kXxhash, "xxhash"},        {VllmAlgorithm::kXxhashCbor, "xxhash_cbor"},
    {VllmAlgorithm::kSha256Int, "sha256_int"}, {VllmAlgorithm::kSha256Cbor64bit, "sha256_cbor_64bit"},
};

bool UsesPickle(VllmAlgorithm algorithm) {
  return algorithm == VllmAlgorithm::kSha256 || algorithm == VllmAlgorithm::kXxhash ||
         algorithm == VllmAlgorithm::kSha256Int;
}

bool ParentIsInteger(VllmAlgorithm algorithm) {
  return algorithm == VllmAlgorithm::kSha256Int || algorithm == VllmAlgorithm::kSha256Cbor64bit;
}

// Digest of the `size` bytes at `data`, which have kSha256Padding bytes of room behind them.
Digest Finish(VllmAlgorithm algorithm, std::uint8_t* data, std::size_t size) {
  if (algorithm == VllmAlgorithm::kXxhash || algorithm == VllmAlgorithm::kXxhashCbor) {
    Digest digest;
    digest.size = 16;
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits(data, size));
    std::copy(std::begin(canonical.digest), std::end(canonical.digest), digest.bytes.begin());
    return digest;
  }
  const Digest digest = Sha256InPlace(data, size);
  if (algorithm != VllmAlgorithm::kSha256Cbor64bit) return digest;
  return *Digest::FromBytes(digest.span().subspan(24));
}

template <typename Writer, typename Tokens>
std::size_t WriteBlock(bool parent_is_integer, const Digest& parent, Tokens tokens, const ExtraKeys* extra,
                       std::uint8_t* out) {
  Writer writer(out);
  writer.BeginTuple(3);
  if (parent_is_integer || parent.size == 0) {
    writer.UnsignedInt(parent.span());
  } else {
    writer.Bytes(parent.span());
  }
  writer.Tokens(tokens);
  if (extra == nullptr || extra->empty()) {
    writer.None();
  } else {
    WriteExtraKeys(*extra, writer);
  }
  writer.EndTuple(3);
  return writer.Finish();
}

struct Serialized {
  std::uint8_t* data;
  std::size_t size;
};

template <typename Tokens>
Serialized Serialize(VllmAlgorithm algorithm, const Digest& parent, Tokens tokens, const ExtraKeys* extra,
                     Scratch& scratch) {
  std::size_t bound = SizeBound(tokens.size()) + kSha256Padding;
  if (extra != nullptr) bound += SizeBound(*extra);
  std::uint8_t* const data = scratch.Reserve(bound);
  const bool integer = ParentIsInteger(algorithm);
  if constexpr (std::is_same_v<Tokens, TokenSpan>) {
    const bool plain = (extra == nullptr || extra->empty()) && parent.size > 0 && !integer &&
                       tokens.size() >= kMinPlainTokens && tokens.size() <= kMaxPlainTokens;
    if (plain && UsesPickle(algorithm)) return {data, WritePlainPickle(parent, tokens, data)};
  }
  return {data, UsesPickle(algorithm) ? WriteBlock<PickleWriter>(integer, parent, tokens, extra, data)
                                      : WriteBlock<CborWriter>(integer, parent, tokens, extra, data)};
}

template <typename Tokens>
Digest HashOne(VllmAlgorithm algorithm, const Digest& parent, Tokens tokens, const ExtraKeys* extra,
               Scratch& scratch) {
  const Serialized block = Serialize(algorithm, parent, tokens, extra, scratch);
  return Finish(algorithm, block.data, block.size);
}

template <typename Tokens>
void HashAll(VllmAlgorithm algorithm, std::uint32_t block_size, Digest parent, Tokens tokens,
             std::span<const ExtraKeys> extra, std::vector<Digest>& out) {
  const std::size_t blocks = tokens.size() / block_size;
  out.reserve(out.size() + blocks);
  Scratch scratch;
  for (std::size_t i = 0; i < blocks; ++i) {
    parent = HashOne(algorithm, parent, tokens.subspan(i * block_size, block_size),
                     i < extra.size() ? &extra[i] : nullptr, scratch);
    out.push_back(parent);
  }
}

Digest HashText(VllmAlgorithm algorithm, std::string_view text) {
  Scratch scratch;
  std::uint8_t* const data = scratch.Reserve(text.size() + 64 + kSha256Padding);
  if (UsesPickle(algorithm)) {
    PickleWriter writer(data);
    writer.Text(text);
    return Finish(algorithm, data, writer.Finish());
  }
  CborWriter writer(data);
  writer.Text(text);
  return Finish(algorithm, data, writer.Finish());
}

}  // namespace

std::string_view ToString(VllmAlgorithm algorithm) {
  for (const AlgorithmName& entry : kNames) {
    if (entry.algorithm == algorithm) return entry.name;
  }
  return "unknown";
}

absl::StatusOr<VllmAlgorithm> ParseVllmAlgorithm(std::string_view name) {
  for (const AlgorithmName& entry : kNames) {
    if (entry.name == name) return entry.algorithm;
  }
  if (name == "builtin") {
    return absl::InvalidArgumentError(
        "hash algorithm \"builtin\" cannot be reproduced outside the engine's process: it is Python's "
        "hash(), whose "
        "value of None (before Python 3.12) and of strings differs between processes. Run the engine with "
        "--prefix-caching-hash-algo sha256_cbor, or let the router compute its own keys from the tokens of "
        "events");
  }
  if (name == "sha256_msgpack" || name == "xxhash_msgpack") {
    return absl::InvalidArgumentError(
        absl::StrCat("hash algorithm \"", ToAbsl(name), "\" is a proposal that no vLLM release contains"));
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "unknown hash algorithm \"", ToAbsl(name),
      "\": expected sha256, sha256_cbor, xxhash, xxhash_cbor, sha256_cbor_64bit (vLLM 0.10.0 and "
      "0.10.1) or sha256_int (sha256 up to vLLM 0.10.1)"));
}

absl::StatusOr<VllmHasher> VllmHasher::Create(const VllmHashOptions& options) {
  if (options.block_size == 0) return absl::InvalidArgumentError("block_size is 0, must be at least 1");
  Digest none_hash;
  switch (options.none_hash.kind) {
    case NoneHash::Kind::kVllmDefault:
      if (options.algorithm != VllmAlgorithm::kSha256 && options.algorithm != VllmAlgorithm::kSha256Cbor) {
        return absl::InvalidArgumentError(absl::StrCat(
            "none_hash: with ", ToAbsl(ToString(options.algorithm)),
            " and PYTHONHASHSEED not set, NONE_HASH is random in each engine process. Set PYTHONHASHSEED "
            "and give its text, or give the NONE_HASH value"));
      }
      none_hash = HashText(options.algorithm, NoneHash::kVllmDefaultSeed);
      break;
    case NoneHash::Kind::kSeedText:
      none_hash = HashText(options.algorithm, options.none_hash.seed_text);
      break;
    case NoneHash::Kind::kRaw:
      none_hash = options.none_hash.raw;
      if (none_hash.size == 0 || none_hash.size > Digest::kMaxSize) {
        return absl::InvalidArgumentError(
            absl::StrCat("none_hash has ", none_hash.size, " bytes, must be 1 .. 32"));
      }
      break;
    case NoneHash::Kind::kIntegerZero:
      break;
  }
  return VllmHasher(options.algorithm, options.block_size, none_hash);
}

void VllmHasher::HashBlocks(TokenSpan tokens, const Digest* parent, std::span<const ExtraKeys> extra,
                            std::vector<Digest>& out) const {
  HashAll(algorithm_, block_size_, parent ? *parent : none_hash_, tokens, extra, out);
}

void VllmHasher::HashBlocks(std::span<const std::int64_t> tokens, const Digest* parent,
                            std::span<const ExtraKeys> extra, std::vector<Digest>& out) const {
  HashAll(algorithm_, block_size_, parent ? *parent : none_hash_, tokens, extra, out);
}

Digest VllmHasher::HashBlock(TokenSpan tokens, const Digest* parent, const ExtraKeys* extra) const {
  Scratch scratch;
  return HashOne(algorithm_, parent ? *parent : none_hash_, tokens, extra, scratch);
}

Digest VllmHasher::HashBlock(std::span<const std::int64_t> tokens, const Digest* parent,
                             const ExtraKeys* extra) const {
  Scratch scratch;
  return HashOne(algorithm_, parent ? *parent : none_hash_, tokens, extra, scratch);
}

std::string VllmHasher::Preimage(std::span<const std::int64_t> tokens, const Digest* parent,
                                 const ExtraKeys* extra) const {
  Scratch scratch;
  const Serialized block = Serialize(algorithm_, parent ? *parent : none_hash_, tokens, extra, scratch);
  return {reinterpret_cast<const char*>(block.data), block.size};
}

// --- Chain ---

VllmChain::VllmChain(const VllmHasher& hasher, ExtraKeyBuilder extras)
    : hasher_(hasher), extras_(std::move(extras)) {}

void VllmChain::Append(TokenSpan block) {
  const Digest* parent = digests_.empty() ? nullptr : &digests_.back();
  Digest digest;
  if (extras_.empty()) {
    digest = hasher_.HashBlock(block, parent, nullptr);
  } else {
    const ExtraKeys keys = extras_.ForBlock(digests_.size());
    digest = hasher_.HashBlock(block, parent, &keys);
  }
  digests_.push_back(digest);
  keys_.push_back(digest.low64());
}

std::span<const Digest> VllmChain::Extend(TokenSpan tokens) {
  const std::size_t before = digests_.size();
  const std::size_t size = hasher_.block_size();
  if (!tail_.empty()) {
    const std::size_t missing = std::min(size - tail_.size(), tokens.size());
    tail_.insert(tail_.end(), tokens.begin(), tokens.begin() + missing);
    tokens = tokens.subspan(missing);
    if (tail_.size() < size) return {};
    Append(tail_);
    tail_.clear();
  }
  for (; tokens.size() >= size; tokens = tokens.subspan(size)) Append(tokens.first(size));
  tail_.assign(tokens.begin(), tokens.end());
  return digests().subspan(before);
}

void VllmChain::Clear() {
  tail_.clear();
  digests_.clear();
  keys_.clear();
}

// --- Groups ---

void GroupDigests(std::span<const Digest> fine, std::uint32_t factor, std::vector<Digest>& out) {
  if (factor == 0) return;
  for (std::size_t end = factor; end <= fine.size(); end += factor) out.push_back(fine[end - 1]);
}

void GroupDigestsConcatenated(std::span<const Digest> fine, std::uint32_t factor,
                              std::vector<std::string>& out) {
  if (factor == 0) return;
  for (; fine.size() >= factor; fine = fine.subspan(factor)) {
    std::string& joined = out.emplace_back();
    for (const Digest& digest : fine.first(factor)) {
      joined.append(reinterpret_cast<const char*>(digest.bytes.data()), digest.size);
    }
  }
}

std::string PoolKey(const Digest& digest, std::uint32_t group_id) {
  std::string key(reinterpret_cast<const char*>(digest.bytes.data()), digest.size);
  for (int shift = 24; shift >= 0; shift -= 8) key.push_back(static_cast<char>(group_id >> shift));
  return key;
}

absl::StatusOr<PoolKeyParts> ParsePoolKey(std::string_view key) {
  if (key.size() < 5 || key.size() > Digest::kMaxSize + 4) {
    return absl::InvalidArgumentError(absl::StrCat("pool key has ", key.size(), " bytes, must be 5 .. 36"));
  }
  const std::span<const std::uint8_t> bytes(reinterpret_cast<const std::uint8_t*>(key.data()), key.size());
  PoolKeyParts parts;
  parts.digest = *Digest::FromBytes(bytes.first(bytes.size() - 4));
  for (const std::uint8_t byte : bytes.last(4)) parts.group_id = parts.group_id << 8 | byte;
  return parts;
}

BlockKey ExternalKey(std::string_view hash_bytes) {
  BlockKey key = 0;
  for (const char c : hash_bytes.substr(hash_bytes.size() > 8 ? hash_bytes.size() - 8 : 0)) {
    key = key << 8 | static_cast<std::uint8_t>(c);
  }
  return key;
}

}  // namespace llmd::hash
