// SHA-256 for short messages: no allocation, no look-up of an implementation per call.
#ifndef SRC_HASH_SHA256_H_
#define SRC_HASH_SHA256_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "llmd/hash/digest.h"

namespace llmd::hash {

// Room that Sha256InPlace() needs behind the message: 0x80, up to 63 zeros, the length.
inline constexpr std::size_t kSha256Padding = 72;

// Digest of the `size` bytes at `message`; overwrites the kSha256Padding bytes behind them.
Digest Sha256InPlace(std::uint8_t* message, std::size_t size);

// Digest of a || b.
Digest Sha256Concat(std::span<const std::uint8_t> a, std::span<const std::uint8_t> b);

}  // namespace llmd::hash

#endif  // SRC_HASH_SHA256_H_
