// A seeded random source that gives the same numbers with every compiler and standard library.
//
// Components that need randomness take a `Random&`; the host owns it and chooses the seed, so a run can be
// replayed. Generator: xoshiro256** seeded by splitmix64 (Blackman and Vigna, "Scrambled linear pseudorandom
// number generators"). Not thread safe: one object per thread. Not for cryptography.
#ifndef LLMD_BASE_RANDOM_H_
#define LLMD_BASE_RANDOM_H_

#include <cmath>
#include <cstdint>
#include <utility>

namespace llmd {

// One step of splitmix64: advances `state` and returns 64 mixed bits.
inline std::uint64_t SplitMix64(std::uint64_t& state) {
  std::uint64_t z = (state += 0x9E3779B97F4A7C15u);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

class Random {
 public:
  explicit Random(std::uint64_t seed) {
    for (auto& word : state_) word = SplitMix64(seed);
  }

  // 64 uniform bits.
  std::uint64_t Next() {
    const std::uint64_t result = Rotl(state_[1] * 5, 7) * 9;
    const std::uint64_t t = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= t;
    state_[3] = Rotl(state_[3], 45);
    return result;
  }

  // Uniform in [0, n); 0 when n is 0. Multiply-shift: the bias is below n / 2^64.
  std::uint64_t Below(std::uint64_t n) {
    return static_cast<std::uint64_t>((static_cast<unsigned __int128>(Next()) * n) >> 64);
  }

  // Uniform in [lo, hi], both ends included.
  std::uint64_t Between(std::uint64_t lo, std::uint64_t hi) { return lo + Below(hi - lo + 1); }

  // Uniform in [0, 1) with 53 bits.
  double Uniform() { return static_cast<double>(Next() >> 11) * 0x1.0p-53; }

  // Exponential with the given mean (> 0).
  double Exponential(double mean) { return -mean * std::log1p(-Uniform()); }

  bool Chance(double probability) { return Uniform() < probability; }

  // Uniform permutation of `items` (Fisher-Yates).
  template <typename Range>
  void Shuffle(Range& items) {
    for (std::uint64_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[Below(i)]);
  }

 private:
  static std::uint64_t Rotl(std::uint64_t x, int k) { return (x << k) | (x >> (64 - k)); }

  std::uint64_t state_[4];
};

}  // namespace llmd

#endif  // LLMD_BASE_RANDOM_H_
