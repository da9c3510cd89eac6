// Memory of the index: blocks of any size from a few large pools, in constant time, with little waste.
//
// A two-level segregated fit allocator (Masmano et al., "TLSF: a new dynamic memory allocator for real-time
// systems", ECRTS 2004): free blocks are binned by size, neighbours coalesce at once, a pool that is wholly
// free goes back to the system. Pools ask for huge pages, since a match is bound by address translation as
// much as by cache misses. One thread allocates and frees; any thread may read the blocks.
#ifndef SRC_INDEX_ARENA_H_
#define SRC_INDEX_ARENA_H_

#include <array>
#include <cstddef>
#include <cstdint>

namespace llmd::index {

class Arena {
 public:
  // The largest block that Allocate() gives.
  static constexpr std::size_t kMaxBytes = std::size_t{6} << 20;

  // Pools are at most `pool_bytes`, rounded up to what kMaxBytes needs where a block asks for it.
  explicit Arena(std::size_t pool_bytes);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Memory aligned to a cache line. Aborts when the system has none, as operator new does without exceptions.
  void* Allocate(std::size_t bytes);
  void Free(void* memory);
  // The usable size of an allocated block, at least what was asked for.
  static std::size_t UsableBytes(const void* memory);

  std::size_t used_bytes() const { return used_bytes_; }          // in allocated blocks, headers included
  std::size_t reserved_bytes() const { return reserved_bytes_; }  // in pools

 private:
  struct Block;
  struct Pool;
  static constexpr int kFirstBits = 6;     // sizes are multiples of 64 bytes
  static constexpr int kSecondBits = 4;    // 16 bins per power of two
  static constexpr int kFirstLevels = 18;  // up to 2^23 bytes

  struct Bin {
    int first;
    int second;
  };
  static Bin BinOf(std::size_t bytes);
  Block* TakeFit(std::size_t bytes);
  void Insert(Block* block);
  void Unlink(Block* block);
  void AddPool(std::size_t block_bytes);
  void DropPool(Block* block);

  std::size_t pool_bytes_;
  std::size_t used_bytes_ = 0;
  std::size_t reserved_bytes_ = 0;
  Pool* pools_ = nullptr;
  std::uint32_t first_map_ = 0;
  std::array<std::uint32_t, kFirstLevels> second_map_{};
  std::array<std::array<Block*, 1 << kSecondBits>, kFirstLevels> bins_{};
};

}  // namespace llmd::index

#endif  // SRC_INDEX_ARENA_H_
