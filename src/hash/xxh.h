// xxHash, compiled into the one file that includes this. Not for public headers.
#ifndef SRC_HASH_XXH_H_
#define SRC_HASH_XXH_H_

#include <bit>
#include <cstdint>
#include <string_view>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "llmd/base/types.h"

namespace llmd::hash {

// Tokens are hashed as little-endian 32-bit words, here straight from memory.
static_assert(std::endian::native == std::endian::little, "llmd::hash needs a little-endian host");

inline std::uint64_t Xxh64(std::string_view text) { return XXH64(text.data(), text.size(), 0); }
inline std::uint64_t Xxh64(TokenSpan tokens) { return XXH64(tokens.data(), tokens.size_bytes(), 0); }

}  // namespace llmd::hash

#endif  // SRC_HASH_XXH_H_
