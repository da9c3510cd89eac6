// The digest of a block: up to 32 bytes, and the two 64-bit keys that engines cut from it.
//
// Engines hash a block to 16 or 32 bytes and publish 64 of those bits. vLLM publishes the low bits, SGLang
// the first ones: mixing them up is the most common interoperability bug, so there is no default here, only
// low64() and first64(). A chain continues from the whole digest, never from a 64-bit key. Plain value: copy
// freely.
#ifndef LLMD_HASH_DIGEST_H_
#define LLMD_HASH_DIGEST_H_

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "llmd/base/types.h"

namespace llmd::hash {

struct Digest {
  static constexpr std::size_t kMaxSize = 32;

  std::array<std::uint8_t, kMaxSize> bytes{};  // the first `size` count; the rest is zero
  std::uint8_t size = 0;                       // 0 .. 32; see NoneHash::IntegerZero() for 0

  // nullopt when there are more than 32 bytes.
  static std::optional<Digest> FromBytes(std::span<const std::uint8_t> data);
  // `text` is an even number of hexadecimal digits, at most 64; otherwise nullopt.
  static std::optional<Digest> FromHex(std::string_view text);

  std::span<const std::uint8_t> span() const { return {bytes.data(), size}; }
  std::string hex() const;

  // The last eight bytes, big-endian (fewer when the digest is shorter): what vLLM publishes by default.
  BlockKey low64() const { return Read(size > 8 ? size - 8 : 0, size); }
  // The first eight bytes, big-endian: what SGLang publishes, reinterpreted as a signed integer.
  BlockKey first64() const { return Read(0, size < 8 ? size : 8); }

  friend bool operator==(const Digest& a, const Digest& b) {
    return a.size == b.size && std::equal(a.bytes.begin(), a.bytes.begin() + a.size, b.bytes.begin());
  }

 private:
  BlockKey Read(std::size_t begin, std::size_t end) const {
    BlockKey key = 0;
    for (std::size_t i = begin; i < end; ++i) key = key << 8 | bytes[i];
    return key;
  }
};

// SHA-256 of `data`, by OpenSSL.
Digest Sha256(std::span<const std::uint8_t> data);
Digest Sha256(std::string_view data);

}  // namespace llmd::hash

#endif  // LLMD_HASH_DIGEST_H_
