#include "llmd/hash/trtllm.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "src/hash/sha256.h"

namespace llmd::hash {
namespace {

static_assert(std::endian::native == std::endian::little, "llmd::hash needs a little-endian host");

constexpr std::uint64_t kMultiplier = 0xBF58476D1CE4E5B9;
constexpr std::uint32_t kGolden = 0x9e3779b9;

std::uint64_t Combine(std::uint64_t seed, std::uint64_t value) {
  return seed ^ (value + (seed << 6) + (seed >> 2));
}

std::uint64_t Mix32(std::uint32_t value, std::uint64_t seed) {
  value = ((value >> 16) ^ value) * 0x45d9f3b;
  value = ((value >> 16) ^ value) * 0x45d9f3b;
  value = (value >> 16) ^ value;
  return Combine(seed, value + kGolden);  // wraps at 32 bits
}

std::uint64_t Mix64(std::uint64_t value, std::uint64_t seed) {
  value = (value ^ (value >> 30)) * kMultiplier;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EB;
  value ^= value >> 31;
  return Combine(seed, value + kGolden);
}

std::span<const std::uint8_t> Raw(TokenSpan tokens) {
  return {reinterpret_cast<const std::uint8_t*>(tokens.data()), tokens.size_bytes()};
}

// A mask of the fields present, then each as 64 little-endian bits.
Digest RootDigest(const TrtllmNamespace& ns) {
  std::uint8_t bytes[17] = {};
  std::size_t size = 1;
  const std::optional<std::uint64_t> fields[] = {ns.lora_task_id, ns.salt_id};
  for (int i = 0; i < 2; ++i) {
    if (!fields[i]) continue;
    bytes[0] |= static_cast<std::uint8_t>(1 << i);
    std::memcpy(bytes + size, &*fields[i], 8);
    size += 8;
  }
  return Sha256({bytes, size});
}

}  // namespace

std::uint64_t TrtllmSaltId(std::string_view cache_salt) {
  const Digest digest = Sha256(cache_salt);
  std::uint64_t id;
  std::memcpy(&id, digest.bytes.data(), sizeof(id));
  return id;
}

void TrtllmV1Keys(TokenSpan tokens, std::uint32_t tokens_per_block, const TrtllmNamespace& ns,
                  BlockKey parent, std::vector<BlockKey>& out) {
  if (tokens_per_block == 0) return;
  while (!tokens.empty()) {
    const TokenSpan block = tokens.first(std::min<std::size_t>(tokens_per_block, tokens.size()));
    tokens = tokens.subspan(block.size());
    std::uint64_t hash = block.size() ^ (parent * kMultiplier);
    if (parent == 0 && ns.salt_id) hash = Mix64(*ns.salt_id, hash);
    for (const TokenId token : block) hash = Mix32(token, hash);
    if (ns.lora_task_id) hash = Mix64(*ns.lora_task_id, hash);
    out.push_back(parent = hash);
  }
}

void TrtllmV2Digests(TokenSpan tokens, std::uint32_t tokens_per_block, const TrtllmNamespace& ns,
                     const Digest* parent, std::vector<Digest>& out) {
  if (tokens_per_block == 0) return;
  Digest digest = parent ? *parent : RootDigest(ns);
  while (!tokens.empty()) {
    const TokenSpan block = tokens.first(std::min<std::size_t>(tokens_per_block, tokens.size()));
    tokens = tokens.subspan(block.size());
    digest = Sha256Concat(digest.span(), Raw(block));
    out.push_back(digest);
  }
}

}  // namespace llmd::hash
