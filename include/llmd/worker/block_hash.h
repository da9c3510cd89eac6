// The name under which a full block is cached: a chained digest of all tokens up to its end.
#ifndef LLMD_WORKER_BLOCK_HASH_H_
#define LLMD_WORKER_BLOCK_HASH_H_

#include <array>
#include <cstdint>

namespace llmd::worker {

// Bytes at and after `size` are zero.
struct BlockHash {
  std::array<std::uint8_t, 32> bytes{};
  std::uint8_t size = 0;

  friend bool operator==(const BlockHash&, const BlockHash&) = default;
};

}  // namespace llmd::worker

#endif  // LLMD_WORKER_BLOCK_HASH_H_
