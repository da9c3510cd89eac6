// Value types that flow through every component: token ids and block keys.
//
// A *block* is a fixed number of consecutive tokens whose KV cache is stored, hashed and shared as a unit.
// A *block key* is 64 bits that stand for a block, either for its own tokens (local) or for the whole prompt
// up to its end (chained); which of the two, and which function, is the business of the component that made
// the key. All types here are plain values: copy freely, no ownership, no threads.
#ifndef LLMD_BASE_TYPES_H_
#define LLMD_BASE_TYPES_H_

#include <cstdint>
#include <span>

namespace llmd {

// Token id of a tokenizer's vocabulary. Engines publish 32-bit ids; wider ids exist only as hash-function
// input.
using TokenId = std::uint32_t;
using TokenSpan = std::span<const TokenId>;

// 64-bit key of a block. Every value is legal, zero included, unless a function says otherwise.
using BlockKey = std::uint64_t;
using BlockKeySpan = std::span<const BlockKey>;

}  // namespace llmd

#endif  // LLMD_BASE_TYPES_H_
