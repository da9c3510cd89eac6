// CUDA's functions of a warp and of a block: shuffles, votes, barriers.
#ifndef LLMD_TESTS_CUDA_EMULATOR_WARP_FUNCTIONS_H_
#define LLMD_TESTS_CUDA_EMULATOR_WARP_FUNCTIONS_H_

#include <bit>
#include <cstring>

#include "tests/cuda/emulator/kernel_side.h"

namespace llmd::emulator {

// A lane's value and what it gets. `source` is the lane that it wants.
template <typename T>
struct Exchange {
  T value;
  int source;
  T result;
};

template <typename T>
T Shuffle(const char* name, unsigned mask, T value, int source, Site site) {
  Exchange<T> mine{value, source, value};
  Collective(
      name, mask, &mine,
      [](void* const(&arguments)[32], unsigned lanes) {
        for (unsigned rest = lanes; rest != 0; rest &= rest - 1) {
          auto& to = *static_cast<Exchange<T>*>(arguments[std::countr_zero(rest)]);
          if ((lanes >> to.source & 1) != 0) {
            to.result = static_cast<Exchange<T>*>(arguments[to.source])->value;
          } else {  // undefined on a device
            std::memset(static_cast<void*>(&to.result), 0xff, sizeof(T));
          }
        }
      },
      site);
  return mine.result;
}

// Of all lanes' values one result for all.
template <typename T, typename Fold>
T FoldLanes(const char* name, unsigned mask, T value, Fold, Site site) {
  Exchange<T> mine{value, 0, value};
  Collective(
      name, mask, &mine,
      [](void* const(&arguments)[32], unsigned lanes) {
        T all = static_cast<Exchange<T>*>(arguments[std::countr_zero(lanes)])->value;
        for (unsigned rest = lanes & (lanes - 1); rest != 0; rest &= rest - 1) {
          all = Fold()(all, static_cast<Exchange<T>*>(arguments[std::countr_zero(rest)])->value);
        }
        for (unsigned rest = lanes; rest != 0; rest &= rest - 1) {
          static_cast<Exchange<T>*>(arguments[std::countr_zero(rest)])->result = all;
        }
      },
      site);
  return mine.result;
}

inline int Lane() {
  return static_cast<int>((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32);
}

inline unsigned Ballot(const char* name, unsigned mask, bool predicate, Site site) {
  return FoldLanes(name, mask, unsigned{predicate} << Lane(), std::bit_or<unsigned>(), site);
}

// The lane `source` of the calling lane's part of `width` lanes; itself where that is outside.
inline int LaneInPart(int source, int width, bool inside) {
  return inside ? Lane() / width * width + source : Lane();
}

}  // namespace llmd::emulator

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, LLMD_SITE) {
  return llmd::emulator::Shuffle("__shfl_sync", mask, value,
                                 llmd::emulator::LaneInPart(source & (width - 1), width, true), site);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, LLMD_SITE) {
  const int source = llmd::emulator::Lane() % width - static_cast<int>(delta);
  return llmd::emulator::Shuffle("__shfl_up_sync", mask, value,
                                 llmd::emulator::LaneInPart(source, width, source >= 0), site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, LLMD_SITE) {
  const int source = llmd::emulator::Lane() % width + static_cast<int>(delta);
  return llmd::emulator::Shuffle("__shfl_down_sync", mask, value,
                                 llmd::emulator::LaneInPart(source, width, source < width), site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, LLMD_SITE) {
  const int source = llmd::emulator::Lane() ^ bits;  // of parts before it may be read, of parts after it not
  const bool inside = source < (llmd::emulator::Lane() / width + 1) * width;
  return llmd::emulator::Shuffle("__shfl_xor_sync", mask, value, inside ? source : llmd::emulator::Lane(),
                                 site);
}

inline unsigned __ballot_sync(unsigned mask, bool predicate, LLMD_SITE) {
  return llmd::emulator::Ballot("__ballot_sync", mask, predicate, site);
}
inline int __any_sync(unsigned mask, bool predicate, LLMD_SITE) {
  return llmd::emulator::Ballot("__any_sync", mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, bool predicate, LLMD_SITE) {
  return llmd::emulator::Ballot("__all_sync", mask, !predicate, site) == 0;
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value, LLMD_SITE) {
  unsigned same = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    const T other = llmd::emulator::Shuffle("__match_any_sync", mask, value, lane, site);
    same |= unsigned{std::memcmp(&other, &value, sizeof(T)) == 0} << lane;
  }
  return same;
}
template <typename T>
T __reduce_add_sync(unsigned mask, T value, LLMD_SITE) {
  return llmd::emulator::FoldLanes("__reduce_add_sync", mask, value, std::plus<T>(), site);
}
template <typename T>
T __reduce_max_sync(unsigned mask, T value, LLMD_SITE) {
  using Fold = decltype([](T a, T b) { return a < b ? b : a; });
  return llmd::emulator::FoldLanes("__reduce_max_sync", mask, value, Fold(), site);
}
template <typename T>
T __reduce_min_sync(unsigned mask, T value, LLMD_SITE) {
  using Fold = decltype([](T a, T b) { return b < a ? b : a; });
  return llmd::emulator::FoldLanes("__reduce_min_sync", mask, value, Fold(), site);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, LLMD_SITE) {
  return llmd::emulator::FoldLanes("__reduce_or_sync", mask, value, std::bit_or<unsigned>(), site);
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value, LLMD_SITE) {
  return llmd::emulator::FoldLanes("__reduce_and_sync", mask, value, std::bit_and<unsigned>(), site);
}

inline void __syncwarp(unsigned mask = 0xffffffff, LLMD_SITE) {
  llmd::emulator::Collective(
      "__syncwarp", mask, nullptr, [](void* const(&)[32], unsigned) {}, site);
}
inline void __syncthreads(LLMD_SITE) { llmd::emulator::Barrier("__syncthreads", 0, 0, false, site); }
inline int __syncthreads_count(int predicate, LLMD_SITE) {
  return static_cast<int>(llmd::emulator::Barrier("__syncthreads_count", 0, 0, predicate != 0, site));
}
inline int __syncthreads_or(int predicate, LLMD_SITE) {
  return llmd::emulator::Barrier("__syncthreads_or", 0, 0, predicate != 0, site) != 0;
}
inline int __syncthreads_and(int predicate, LLMD_SITE) {
  return llmd::emulator::Barrier("__syncthreads_and", 0, 0, predicate == 0, site) == 0;
}

#endif  // LLMD_TESTS_CUDA_EMULATOR_WARP_FUNCTIONS_H_
