#include "src/index/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>

namespace llmd::index {

namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::size_t RoundUp(std::size_t value, std::size_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace

// Header in front of each block; the payload starts at a cache line. `size` counts header and payload.
struct Arena::Block {
  static constexpr std::size_t kHeader = 16;
  static constexpr std::size_t kFree = 1;
  static constexpr std::size_t kLast = 2;  // nothing follows in the pool

  std::size_t size_and_flags;
  Block* previous;  // neighbour in memory; null for the first of a pool
  Block* next_free;
  Block* previous_free;

  std::size_t size() const { return size_and_flags & ~(kLine - 1); }
  bool free() const { return (size_and_flags & kFree) != 0; }
  bool last() const { return (size_and_flags & kLast) != 0; }
  void set_size(std::size_t size) { size_and_flags = size | (size_and_flags & (kLine - 1)); }
  void* payload() { return reinterpret_cast<char*>(this) + kHeader; }
  Block* next() {
    return last() ? nullptr : reinterpret_cast<Block*>(reinterpret_cast<char*>(this) + size());
  }
  static Block* Of(void* memory) { return reinterpret_cast<Block*>(static_cast<char*>(memory) - kHeader); }
};

struct Arena::Pool {
  Pool* next;
  Pool* previous;
  std::size_t bytes;        // of the mapping
  std::size_t block_bytes;  // of the one free block of an empty pool

  // The pool's header takes a line, less the header of the first block, whose payload must start a line.
  Block* first() { return reinterpret_cast<Block*>(reinterpret_cast<char*>(this) + kLine - Block::kHeader); }
};

Arena::Arena(std::size_t pool_bytes) : pool_bytes_(RoundUp(std::max(pool_bytes, kLine * 64), 4096)) {}

Arena::~Arena() {
  for (Pool* pool = pools_; pool != nullptr;) {
    Pool* next = pool->next;
    munmap(pool, pool->bytes);
    pool = next;
  }
}

Arena::Bin Arena::BinOf(std::size_t bytes) {
  const std::size_t units = bytes >> kFirstBits;
  if (units < (1u << kSecondBits)) return {0, static_cast<int>(units)};
  const int log = std::bit_width(units) - 1;
  return {log - kSecondBits + 1,
          static_cast<int>((units >> (log - kSecondBits)) & ((1u << kSecondBits) - 1))};
}

void Arena::Insert(Block* block) {
  const Bin bin = BinOf(block->size());
  Block*& head = bins_[bin.first][bin.second];
  block->size_and_flags |= Block::kFree;
  block->next_free = head;
  block->previous_free = nullptr;
  if (head != nullptr) head->previous_free = block;
  head = block;
  first_map_ |= 1u << bin.first;
  second_map_[bin.first] |= 1u << bin.second;
}

void Arena::Unlink(Block* block) {
  const Bin bin = BinOf(block->size());
  if (block->previous_free != nullptr) {
    block->previous_free->next_free = block->next_free;
  } else {
    bins_[bin.first][bin.second] = block->next_free;
    if (block->next_free == nullptr) {
      second_map_[bin.first] &= ~(1u << bin.second);
      if (second_map_[bin.first] == 0) first_map_ &= ~(1u << bin.first);
    }
  }
  if (block->next_free != nullptr) block->next_free->previous_free = block->previous_free;
  block->size_and_flags &= ~Block::kFree;
}

// A free block of at least `bytes`: the first of any bin whose blocks are all large enough.
Arena::Block* Arena::TakeFit(std::size_t bytes) {
  std::size_t rounded = bytes;
  const std::size_t units = bytes >> kFirstBits;
  if (units >= (1u << kSecondBits)) {
    const int log = std::bit_width(units) - 1;
    rounded += (std::size_t{1} << (log - kSecondBits + kFirstBits)) - 1;
  }
  Bin bin = BinOf(rounded);
  std::uint32_t seconds = second_map_[bin.first] & (~std::uint32_t{0} << bin.second);
  if (seconds == 0) {
    const std::uint32_t firsts = first_map_ & (~std::uint32_t{1} << bin.first);
    if (firsts == 0) return nullptr;
    bin.first = std::countr_zero(firsts);
    seconds = second_map_[bin.first];
  }
  bin.second = std::countr_zero(seconds);
  Block* block = bins_[bin.first][bin.second];
  Unlink(block);
  return block;
}

void Arena::AddPool(std::size_t block_bytes) {
  std::size_t bytes = RoundUp(std::max(pool_bytes_, block_bytes + kLine), 4096);
  const bool huge = bytes >= kHugePage;
  if (huge) bytes = RoundUp(bytes, kHugePage);
  // Over-map by a huge page and trim, so that the pool starts at one.
  const std::size_t mapped = huge ? bytes + kHugePage : bytes;
  void* memory = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return;
  auto start = reinterpret_cast<std::uintptr_t>(memory);
  if (huge) {
    const std::uintptr_t aligned = RoundUp(start, kHugePage);
    if (aligned > start) munmap(memory, aligned - start);
    if (start + mapped > aligned + bytes)
      munmap(reinterpret_cast<void*>(aligned + bytes), start + mapped - aligned - bytes);
    start = aligned;
    madvise(reinterpret_cast<void*>(start), bytes, MADV_HUGEPAGE);
  }
  auto* pool = reinterpret_cast<Pool*>(start);
  *pool = {pools_, nullptr, bytes, (bytes - kLine + Block::kHeader) & ~(kLine - 1)};
  if (pools_ != nullptr) pools_->previous = pool;
  pools_ = pool;
  reserved_bytes_ += bytes;
  Block* block = pool->first();
  block->size_and_flags = pool->block_bytes | Block::kLast;
  block->previous = nullptr;
  Insert(block);
}

void Arena::DropPool(Block* block) {
  auto* pool = reinterpret_cast<Pool*>(reinterpret_cast<char*>(block) - kLine + Block::kHeader);
  if (pool->previous != nullptr) {
    pool->previous->next = pool->next;
  } else {
    pools_ = pool->next;
  }
  if (pool->next != nullptr) pool->next->previous = pool->previous;
  reserved_bytes_ -= pool->bytes;
  munmap(pool, pool->bytes);
}

void* Arena::Allocate(std::size_t bytes) {
  const std::size_t need = RoundUp(std::max<std::size_t>(bytes, 1) + Block::kHeader, kLine);
  Block* block = bytes > kMaxBytes ? nullptr : TakeFit(need);
  if (block == nullptr && bytes <= kMaxBytes) {
    // A fresh pool must hold the block in the bin that TakeFit() looks into: up to 1/16 larger.
    AddPool(need + need / 8 + 2 * kLine);
    block = TakeFit(need);
  }
  if (block == nullptr) {
    std::fprintf(stderr, "llmd: the prefix index cannot allocate %zu bytes\n", bytes);
    std::abort();
  }
  if (const std::size_t rest = block->size() - need; rest >= kLine) {
    const bool last = block->last();
    block->size_and_flags = need;
    Block* tail = block->next();
    tail->size_and_flags = rest | (last ? Block::kLast : 0);
    tail->previous = block;
    if (Block* after = tail->next(); after != nullptr) after->previous = tail;
    Insert(tail);
  }
  used_bytes_ += block->size();
  return block->payload();
}

void Arena::Free(void* memory) {
  if (memory == nullptr) return;
  Block* block = Block::Of(memory);
  used_bytes_ -= block->size();
  if (Block* next = block->next(); next != nullptr && next->free()) {
    Unlink(next);
    block->size_and_flags = (block->size() + next->size()) | (next->last() ? Block::kLast : 0);
  }
  if (Block* previous = block->previous; previous != nullptr && previous->free()) {
    Unlink(previous);
    previous->size_and_flags = (previous->size() + block->size()) | (block->last() ? Block::kLast : 0);
    block = previous;
  }
  // The last pool stays, so that a lone block does not map and unmap it in turn.
  if (block->previous == nullptr && block->last() && (pools_->next != nullptr)) {
    DropPool(block);
    return;
  }
  if (Block* next = block->next(); next != nullptr) next->previous = block;
  Insert(block);
}

std::size_t Arena::UsableBytes(const void* memory) {
  return Block::Of(const_cast<void*>(memory))->size() - Block::kHeader;
}

}  // namespace llmd::index
