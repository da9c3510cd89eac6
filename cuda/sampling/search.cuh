// Finds the key at which a running count or weight of tokens, the greatest key first, reaches a target, over
// all blocks that share a row.
#ifndef LLMD_CUDA_SAMPLING_SEARCH_CUH_
#define LLMD_CUDA_SAMPLING_SEARCH_CUH_

#include "cuda/common/math.cuh"
#include "cuda/sampling/shared.cuh"

namespace llmd::cuda {

enum class By { kCount, kWeight };

template <typename T>
struct Search {
  const Part<T>& part;
  const Weights<T>& weights;
  SampleShared* shared;
  int blocks, rank;

  // Where it ended: tokens above `key`, and `rest` (tokens or weight) of the `here` at it.
  struct Found {
    uint32_t key;
    uint64_t rest, here;
  };

  // Between keys `low` and `high`, both included, where `high` is the greatest there is. `target(total)` is
  // asked once what is to be reached, from all there is: 1 to total, or 0 to give up.
  //
  // The first bins are even parts of the logits, if there are more keys than bins: tokens spread over many of
  // those, but over few parts of the keys, which are finest about zero.
  template <By kBy, typename Target>
  __device__ bool Run(uint32_t low, uint32_t high, Target&& target, Found* found) {
    uint64_t left = 0;
    for (bool first = true;; first = false) {
      const bool even = first && high - low >= kBins;
      const float scale = (kBins - 1) / weights.Below(low);
      const int shift = even ? 0 : max(0, 32 - __clz(static_cast<int>(high - low)) - kBinBits);
      const int bins = even ? kBins : static_cast<int>((high - low) >> shift) + 1;
      const auto even_bin = [&](uint32_t key) {  // 0 for NaN, which fminf passes over
        return kBins - 1 - static_cast<int>(fminf(weights.Below(key) * scale, kBins - 1));
      };
      Histogram<kBy>(low, high, bins, [&](uint32_t key) {
        return even ? even_bin(key) : static_cast<int>((key - low) >> shift);
      });
      const uint64_t* sums = Fold<kBy>(bins);
      uint64_t here[kBinsAThread], sum = 0, total;
#pragma unroll
      for (int i = 0; i < kBinsAThread; ++i) {
        const int from_top = threadIdx.x * kBinsAThread + i;
        here[i] = from_top < bins ? sums[bins - 1 - from_top] : 0;
        sum += here[i];
      }
      uint64_t above = BlockExclusiveSum(sum, shared->reduce, &total);
      if (first) {
        left = target(total);
        if (left == 0) return false;
      }
#pragma unroll
      for (int i = 0; i < kBinsAThread; ++i) {
        if (above < left && left <= above + here[i]) {
          shared->crossing = {static_cast<uint32_t>(bins - 1 - (threadIdx.x * kBinsAThread + i)), above,
                              here[i]};
        }
        above += here[i];
      }
      __syncthreads();
      const Crossing crossing = shared->crossing;
      left -= crossing.above;
      if (even) {
        const int bin = static_cast<int>(crossing.bin), warp = threadIdx.x / 32;
        if (warp < 2) {  // the least key of the bin, and of those after it
          const bool last = warp == 1 && even_bin(high) == bin;
          const uint32_t key = last ? high + 1 : Weights<T>::LeastKey(low - 1, high, [&](uint32_t k) {
            return even_bin(k) >= bin + warp;
          });
          if (threadIdx.x % 32 == 0) shared->bounds[warp] = key;
        }
        __syncthreads();
        low = shared->bounds[0];
        high = shared->bounds[1] - 1;
        continue;
      }
      low += crossing.bin << shift;
      high = min(high, low + (1u << shift) - 1);
      if (shift == 0) {
        *found = {low, left, crossing.here};
        return true;
      }
    }
  }

 private:
  template <By kBy, typename Bin>
  __device__ void Histogram(uint32_t low, uint32_t high, int bins, Bin&& bin_of) {
    uint32_t* low_words = shared->words;
    uint32_t* high_words = low_words + kBins * kCopies;
    __syncthreads();
    for (int i = threadIdx.x; i < bins * kCopies; i += kSampleThreads) {
      low_words[i] = 0;
      if (kBy == By::kWeight) high_words[i] = 0;
    }
    __syncthreads();
    const int copy = threadIdx.x % kCopies;
    part.ForEach([&](int, const uint32_t(&keys)[Part<T>::N]) {
      bool any = false;
#pragma unroll
      for (int j = 0; j < Part<T>::N; ++j) any = any || keys[j] - low <= high - low;
      if (!any) return;
#pragma unroll
      for (int j = 0; j < Part<T>::N; ++j) {
        if (keys[j] - low > high - low) continue;
        const int word = bin_of(keys[j]) * kCopies + copy;
        if constexpr (kBy == By::kCount) {
          atomicAdd(&low_words[word], 1u);
        } else {  // 64 bits in two words: the one whose addition overflows carries
          const uint64_t weight = weights.Of(keys[j]);
          const auto low_part = static_cast<uint32_t>(weight);
          const uint32_t before = atomicAdd(&low_words[word], low_part);
          const uint32_t carry = static_cast<uint32_t>(weight >> 32) + (before + low_part < before);
          if (carry != 0) atomicAdd(&high_words[word], carry);
        }
      }
    });
    __syncthreads();
  }

  // Sums of each bin over copies and blocks.
  template <By kBy>
  __device__ const uint64_t* Fold(int bins) {
    auto* sums = reinterpret_cast<uint64_t*>(shared->words);
    for (int bin = threadIdx.x; bin < bins; bin += kSampleThreads) {
      static_assert(kCopies * sizeof(uint32_t) == sizeof(uint64_t));
      const uint32_t* words = shared->words + bin * kCopies;
      uint64_t sum = uint64_t{words[0]} + words[1];
      if (kBy == By::kWeight) {
        words += kBins * kCopies;
        sum += (uint64_t{words[0]} + words[1]) << 32;
      }
      sums[bin] = sum;
    }
    if (blocks == 1) {
      __syncthreads();
      return sums;
    }
    // Each block adds up some bins of all, and tells all.
    uint64_t* all = sums + kBins;
    ClusterSync();
    for (int bin = rank + blocks * static_cast<int>(threadIdx.x); bin < bins;
         bin += blocks * kSampleThreads) {
      uint64_t of_block[kMaxBlocks], sum = 0;  // on their way together
#pragma unroll
      for (int b = 0; b < kMaxBlocks; ++b) of_block[b] = b < blocks ? *OfBlock(sums + bin, b) : 0;
#pragma unroll
      for (int b = 0; b < kMaxBlocks; ++b) sum += of_block[b];
#pragma unroll
      for (int b = 0; b < kMaxBlocks; ++b) {
        if (b < blocks) *OfBlock(all + bin, b) = sum;
      }
    }
    ClusterSync();
    return all;
  }
};

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_SAMPLING_SEARCH_CUH_
