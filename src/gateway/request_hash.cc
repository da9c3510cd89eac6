#include "llmd/gateway/request_hash.h"

#include <algorithm>
#include <cstring>
#include <vector>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace llmd::gateway {

std::uint64_t XxHash64(std::string_view text, std::uint64_t seed) {
  return XXH64(text.data(), text.size(), seed);
}

std::uint64_t MurmurHash2(std::string_view text, std::uint64_t seed) {
  constexpr std::uint64_t kMultiplier = 0xc6a4a7935bd1e995;
  const auto mix = [](std::uint64_t v) { return v ^ (v >> 47); };
  // Little-endian, whatever the machine.
  const auto load = [](const char* p, std::size_t n) {
    std::uint64_t word = 0;
    for (std::size_t i = 0; i < n; ++i) word |= std::uint64_t{static_cast<unsigned char>(p[i])} << (8 * i);
    return word;
  };
  std::uint64_t hash = seed ^ (text.size() * kMultiplier);
  const char* p = text.data();
  for (const char* end = p + text.size() / 8 * 8; p != end; p += 8) {
    hash ^= mix(load(p, 8) * kMultiplier) * kMultiplier;
    hash *= kMultiplier;
  }
  if (const std::size_t tail = text.size() % 8; tail != 0) {
    hash ^= load(p, tail);
    hash *= kMultiplier;
  }
  return mix(mix(hash) * kMultiplier);
}

std::uint64_t HashHeaderValues(std::span<const std::string_view> values) {
  if (values.size() == 1) return XxHash64(values.front());
  std::vector<std::string_view> sorted(values.begin(), values.end());
  std::sort(sorted.begin(), sorted.end());
  std::uint64_t hash = 0;
  for (const std::string_view value : sorted) hash = XxHash64(value, hash);
  return hash;
}

}  // namespace llmd::gateway
