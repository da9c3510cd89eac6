#include "src/hash/xxh64_blocks.h"

#include <bit>
#include <cstdint>
#include <cstring>
#include <string>

#include "src/hash/xxh.h"

namespace llmd::hash {
namespace {

// XXH64 as its specification names the steps: four accumulators take the stripes ("rounds"), are merged into
// one, which takes the length and the bytes that fill no stripe, and is mixed a last time ("avalanche").
constexpr std::uint64_t kPrime1 = 0x9E3779B185EBCA87, kPrime2 = 0xC2B2AE3D27D4EB4F,
                        kPrime3 = 0x165667B19E3779F9, kPrime4 = 0x85EBCA77C2B2AE63,
                        kPrime5 = 0x27D4EB2F165667C5;
constexpr std::size_t kStripe = 32;
constexpr std::size_t kLanes = 8;

std::uint64_t Round(std::uint64_t accumulator, std::uint64_t input) {
  return std::rotl(accumulator + input * kPrime2, 31) * kPrime1;
}

std::uint64_t AddWord(std::uint64_t state, std::uint64_t word) {
  return std::rotl(state ^ Round(0, word), 27) * kPrime1 + kPrime4;
}

std::uint64_t Avalanche(std::uint64_t state) {
  state = (state ^ (state >> 33)) * kPrime2;
  state = (state ^ (state >> 29)) * kPrime3;
  return state ^ (state >> 32);
}

// The state after the stripes of `block` (whole ones) and the length of the message that begins with it.
std::uint64_t HashStripes(const char* block, std::size_t block_bytes, std::uint64_t message_bytes) {
  std::uint64_t v0 = kPrime1 + kPrime2, v1 = kPrime2, v2 = 0, v3 = 0 - kPrime1;
  for (const char* const end = block + block_bytes; block != end; block += kStripe) {
    std::uint64_t words[4];
    std::memcpy(words, block, sizeof(words));
    v0 = Round(v0, words[0]);
    v1 = Round(v1, words[1]);
    v2 = Round(v2, words[2]);
    v3 = Round(v3, words[3]);
  }
  std::uint64_t state = std::rotl(v0, 1) + std::rotl(v1, 7) + std::rotl(v2, 12) + std::rotl(v3, 18);
  for (const std::uint64_t v : {v0, v1, v2, v3}) state = (state ^ Round(0, v)) * kPrime1 + kPrime4;
  return state + message_bytes;
}

#if defined(__x86_64__)

#define LLMD_WIDE __attribute__((target("avx512f,avx512dq"))) inline

// Vector types of GCC and Clang rather than intrinsics: GCC 12 warns inside its own AVX-512 header.
using Words4 __attribute__((vector_size(32))) = std::uint64_t;
using Words8 __attribute__((vector_size(64))) = std::uint64_t;

template <int bits>
LLMD_WIDE Words8 WideRotate(Words8 x) {
  return (x << bits) | (x >> (64 - bits));
}

LLMD_WIDE Words8 WideRound(Words8 accumulator, Words8 input) {
  return WideRotate<31>(accumulator + input * kPrime2) * kPrime1;
}

LLMD_WIDE Words8 WideMerge(Words8 state, Words8 accumulator) {
  return (state ^ WideRound(Words8{}, accumulator)) * kPrime1 + kPrime4;
}

// A stripe of each of two blocks.
LLMD_WIDE Words8 LoadStripes(const char* low, const char* high) {
  Words4 a, b;
  std::memcpy(&a, low, sizeof(a));
  std::memcpy(&b, high, sizeof(b));
  return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7);
}

// HashStripes() of the kLanes blocks from `block` on. Each variable of the loop holds the accumulators of the
// two blocks in its name, paired so that the transposition below leaves the blocks in order.
LLMD_WIDE void WideHashStripes(const char* block, std::size_t block_bytes, std::uint64_t message_bytes,
                               std::uint64_t* states) {
  const std::size_t n = block_bytes;
  constexpr std::uint64_t s0 = kPrime1 + kPrime2, s1 = kPrime2, s2 = 0, s3 = 0 - kPrime1;
  Words8 of_02 = {s0, s1, s2, s3, s0, s1, s2, s3}, of_13 = of_02, of_46 = of_02, of_57 = of_02;
  for (const char* const end = block + n; block != end; block += kStripe) {
    of_02 = WideRound(of_02, LoadStripes(block, block + 2 * n));
    of_13 = WideRound(of_13, LoadStripes(block + n, block + 3 * n));
    of_46 = WideRound(of_46, LoadStripes(block + 4 * n, block + 6 * n));
    of_57 = WideRound(of_57, LoadStripes(block + 5 * n, block + 7 * n));
  }
  // To variables that hold one accumulator of all eight blocks: first accumulators 0 and 2, 1 and 3 of four.
  const Words8 even_0123 = __builtin_shufflevector(of_02, of_13, 0, 8, 2, 10, 4, 12, 6, 14);
  const Words8 odd_0123 = __builtin_shufflevector(of_02, of_13, 1, 9, 3, 11, 5, 13, 7, 15);
  const Words8 even_4567 = __builtin_shufflevector(of_46, of_57, 0, 8, 2, 10, 4, 12, 6, 14);
  const Words8 odd_4567 = __builtin_shufflevector(of_46, of_57, 1, 9, 3, 11, 5, 13, 7, 15);
  const Words8 v0 = __builtin_shufflevector(even_0123, even_4567, 0, 1, 4, 5, 8, 9, 12, 13);
  const Words8 v1 = __builtin_shufflevector(odd_0123, odd_4567, 0, 1, 4, 5, 8, 9, 12, 13);
  const Words8 v2 = __builtin_shufflevector(even_0123, even_4567, 2, 3, 6, 7, 10, 11, 14, 15);
  const Words8 v3 = __builtin_shufflevector(odd_0123, odd_4567, 2, 3, 6, 7, 10, 11, 14, 15);
  Words8 state = WideRotate<1>(v0) + WideRotate<7>(v1) + WideRotate<12>(v2) + WideRotate<18>(v3);
  state = WideMerge(WideMerge(WideMerge(WideMerge(state, v0), v1), v2), v3) + message_bytes;
  std::memcpy(states, &state, sizeof(state));
}

#undef LLMD_WIDE

#else

void WideHashStripes(const char*, std::size_t, std::uint64_t, std::uint64_t*) {}

#endif

// Calls `add` with HashStripes() of each block in turn.
template <typename Add>
void ForEachState(std::string_view bytes, std::size_t block_bytes, std::uint64_t message_bytes, bool wide,
                  const Add& add) {
  const char* block = bytes.data();
  std::size_t left = bytes.size() / block_bytes;
  for (; wide && left >= kLanes; left -= kLanes, block += kLanes * block_bytes) {
    std::uint64_t states[kLanes];
    WideHashStripes(block, block_bytes, message_bytes, states);
    for (const std::uint64_t state : states) add(state);
  }
  for (; left > 0; --left, block += block_bytes) add(HashStripes(block, block_bytes, message_bytes));
}

}  // namespace

bool HasWideXxh64() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq");
#else
  return false;
#endif
}

BlockKey ChainBlockDigests(std::string_view bytes, std::size_t block_bytes, BlockKey link,
                           std::vector<BlockKey>& out, bool wide) {
  const auto add = [&](std::uint64_t digest) {
    link = Avalanche(AddWord(AddWord(kPrime5 + 2 * sizeof(link), digest), link));
    out.push_back(link);
  };
  if (block_bytes % kStripe == 0) {
    ForEachState(bytes, block_bytes, block_bytes, wide, [&](std::uint64_t state) { add(Avalanche(state)); });
  } else {
    for (; bytes.size() >= block_bytes; bytes.remove_prefix(block_bytes)) {
      add(Xxh64(bytes.substr(0, block_bytes)));
    }
  }
  return link;
}

BlockKey ChainBlocks(std::string_view bytes, std::size_t block_bytes, BlockKey link,
                     std::vector<BlockKey>& out, bool wide) {
  if (block_bytes % kStripe == 0) {
    ForEachState(bytes, block_bytes, block_bytes + sizeof(link), wide, [&](std::uint64_t state) {
      link = Avalanche(AddWord(state, link));
      out.push_back(link);
    });
  } else {
    std::string message(block_bytes + sizeof(link), '\0');
    for (; bytes.size() >= block_bytes; bytes.remove_prefix(block_bytes)) {
      std::memcpy(message.data(), bytes.data(), block_bytes);
      std::memcpy(message.data() + block_bytes, &link, sizeof(link));
      link = Xxh64(message);
      out.push_back(link);
    }
  }
  return link;
}

}  // namespace llmd::hash
