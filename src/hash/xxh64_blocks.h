// Chains of XXH64 (seed 0) over blocks of equal size.
//
// Only the last few operations of a link wait for the link before it; the 32-byte stripes of the blocks,
// nearly all of the work, do not. Where the CPU has AVX-512 the stripes of eight blocks are hashed side by
// side, and overlap with the links of the eight blocks before. The result is XXH64, bit for bit, on every
// path.
#ifndef SRC_HASH_XXH64_BLOCKS_H_
#define SRC_HASH_XXH64_BLOCKS_H_

#include <cstddef>
#include <string_view>
#include <vector>

#include "llmd/base/types.h"

namespace llmd::hash {

// Whether this CPU can hash eight blocks side by side.
bool HasWideXxh64();

// Both append one link per block of `block_bytes` (> 0) bytes, a remainder of `bytes` is ignored, and return
// the last link, or `link` when there is none. `wide` may be true only if HasWideXxh64().

// link = XXH64(LE64(XXH64(block)) || LE64(link))
BlockKey ChainBlockDigests(std::string_view bytes, std::size_t block_bytes, BlockKey link,
                           std::vector<BlockKey>& out, bool wide = HasWideXxh64());

// link = XXH64(block || LE64(link))
BlockKey ChainBlocks(std::string_view bytes, std::size_t block_bytes, BlockKey link,
                     std::vector<BlockKey>& out, bool wide = HasWideXxh64());

}  // namespace llmd::hash

#endif  // SRC_HASH_XXH64_BLOCKS_H_
