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

  // Between keys `low` and `high`, both included. `target(total)` is asked once what is to be reached, from
  // all there is: 1 to total, or 0 to give up.
  template <By kBy, typename Target>
  __device__ bool Run(uint32_t low, uint32_t high, Target&& target, Found* found) {
    uint64_t left = 0;
    for (bool first = true;; first = false) {
      const int shift = max(0, 32 - __clz(static_cast<int>(high - low)) - kBinBits);
      const int bins = static_cast<int>((high - low) >> shift) + 1;
      Histogram<kBy>(low, high, shift, bins);
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
      low += crossing.bin << shift;
      high = min(high, low + (1u << shift) - 1);
      if (shift == 0) {
        *found = {low, left, crossing.here};
        return true;
      }
    }
  }

 private:
  template <By kBy>
  __device__ void Histogram(uint32_t low, uint32_t high, int shift, int bins) {
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
#pragma unroll
      for (int j = 0; j < Part<T>::N; ++j) {
        if (keys[j] < low || keys[j] > high) continue;
        const int word = static_cast<int>((keys[j] - low) >> shift) * kCopies + copy;
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
