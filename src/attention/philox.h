// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw (SC 2011).
#ifndef LLMD_ATTENTION_PHILOX_H_
#define LLMD_ATTENTION_PHILOX_H_

#include <array>
#include <cstdint>

namespace llmd::attention {

inline std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

// The draw of sampling.h: a multiple of 2^-24 in [0, 1).
inline float UniformDraw(uint64_t seed, uint64_t request, uint64_t step) {
  const auto low = [](uint64_t x) { return static_cast<uint32_t>(x); };
  const auto high = [](uint64_t x) { return static_cast<uint32_t>(x >> 32); };
  const auto words =
      Philox4x32({low(request), high(request), low(step), high(step)}, {low(seed), high(seed)});
  return static_cast<float>(words[0] >> 8) * 0x1p-24f;
}

}  // namespace llmd::attention

#endif  // LLMD_ATTENTION_PHILOX_H_
