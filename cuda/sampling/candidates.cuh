// Filters and draws where few tokens come into question: the first block of a row's cluster gets them all.
#ifndef LLMD_CUDA_SAMPLING_CANDIDATES_CUH_
#define LLMD_CUDA_SAMPLING_CANDIDATES_CUH_

#include "cuda/common/math.cuh"
#include "cuda/sampling/shared.cuh"

namespace llmd::cuda {

// The weight that top-p wants to be reached, of what is there.
__device__ inline uint64_t TargetOf(float top_p, uint64_t weight) {
  const double share = ceil(max(top_p, 0.0f) * static_cast<double>(weight));
  return min(max(static_cast<uint64_t>(share), uint64_t{1}), weight);
}

// Candidates come in the order in which atomics let them in. What is chosen does not depend on it: each one's
// place among the others is counted, and sums are of integers.
template <typename T>
class Candidates {
 public:
  __device__ Candidates(const Part<T>& part, const Weights<T>& weights, SampleShared* shared, int log_blocks,
                        int rank)
      : part_(part),
        weights_(weights),
        shared_(shared),
        blocks_(1 << log_blocks),
        rank_(rank),
        slots_(kSlots >> log_blocks) {}

  // Whether those of keys `least` and up are few; the same answer in all blocks. If so, the first block has
  // them, and the others are not needed any more. `all`: the weight of the whole row is wanted too.
  __device__ bool Gather(uint32_t least, bool all) {
    all ? Send<true>(least) : Send<false>(least);
    __syncthreads();
    const int thread = threadIdx.x;
    if (thread < blocks_) *OfBlock(&shared_->founds[rank_], thread) = shared_->found;
    RowSync(blocks_);
    bool fits = true;
    count_ = 0;
    for (int b = 0; b < blocks_; ++b) {
      const int found = shared_->founds[b];
      fits = fits && found <= slots_;
      count_ += found;
    }
    return fits && count_ <= kMaxCandidates;
  }

  // In the first block: of the candidates what top-k and then top-p leave, and one of those.
  // One thread calls chosen(key, id, weight of the row).
  template <typename F>
  __device__ void Draw(bool all, F&& chosen) {
    const int top_k = shared_->settings.top_k;
    const float top_p = shared_->settings.top_p;
    Gathered& gathered = shared_->gathered;
    const int thread = threadIdx.x;
    Compact();
    if (all && thread < 32) {
      uint64_t sum = 0;
      for (int run = thread; run < blocks_ * kSampleWarps; run += 32) sum += shared_->all[run];
      sum = WarpSum(sum);
      if (thread == 0) shared_->all_of_row = sum;
    }
    __syncthreads();

    const int log_team = min(5, 31 - __clz(max(1, kSampleThreads / count_)));  // threads a candidate
    const int teams = kSampleThreads >> log_team;
    const int mate = thread & ((1 << log_team) - 1);
    // Calls f(candidate, whether the thread is the first of its team) for each of the thread's.
    const auto for_each = [&](auto&& f) {
      for (int first = 0; first < count_; first += teams) {
        const int i = first + (thread >> log_team);
        f(min(i, count_ - 1), i < count_ && mate == 0);
      }
    };
    const int keep = top_k > 0 ? min(top_k, count_) : count_;
    uint64_t* above = gathered.slots;  // weight of the more probable, if top-k leaves the token
    for_each([&](int i, bool leads) {
      const uint64_t token = gathered.tokens[i];
      int place = 0;
      uint64_t sum = 0;
#pragma unroll 4
      for (int j = mate; j < count_; j += 1 << log_team) {
        if (gathered.tokens[j] > token) {
          ++place;
          sum += gathered.weights[j];
        }
      }
      place = WarpReduce(place, Add(), 1 << log_team);
      sum = WarpReduce(sum, Add(), 1 << log_team);
      if (!leads) return;
      above[i] = place < keep ? sum : ~uint64_t{0};
      if (place == keep - 1) shared_->kept = sum + gathered.weights[i];
    });
    __syncthreads();

    const uint64_t kept = shared_->kept;
    const uint64_t target = top_p < 1 ? TargetOf(top_p, kept) : kept;
    for_each([&](int i, bool leads) {
      if (!leads) return;
      if (above[i] >= target) {
        gathered.weights[i] = 0;
      } else if (above[i] + gathered.weights[i] >= target) {
        shared_->drawable = above[i] + gathered.weights[i];
      }
    });
    __syncthreads();

    const uint64_t draw = __umul64hi(shared_->drawable, shared_->random);
    for_each([&](int i, bool leads) {
      const uint64_t token = gathered.tokens[i];
      const auto id = static_cast<uint32_t>(token);  // complemented, as those of others
      uint64_t passed = 0;
#pragma unroll 4
      for (int j = mate; j < count_; j += 1 << log_team) {
        if (static_cast<uint32_t>(gathered.tokens[j]) > id) passed += gathered.weights[j];
      }
      passed = WarpReduce(passed, Add(), 1 << log_team);
      if (leads && passed <= draw && draw < passed + gathered.weights[i])
        chosen(static_cast<uint32_t>(token >> 32), static_cast<int>(~id), shared_->all_of_row);
    });
  }

 private:
  static constexpr int N = Part<T>::N;

  template <bool kAll>
  __device__ void Send(uint32_t least) {
    uint64_t* slots = OfBlock(shared_->gathered.slots, 0) + rank_ * slots_;
    uint64_t all = 0;
    bool room = true;
    part_.ForEach([&](int first, const uint32_t(&keys)[N]) {
      uint32_t greatest = keys[0];
#pragma unroll
      for (int j = 0; j < N; ++j) {
        greatest = max(greatest, keys[j]);
        if (kAll) all += weights_.Of(keys[j]);
      }
      if (greatest < least || !room) return;
      int mine = 0;
#pragma unroll
      for (int j = 0; j < N; ++j) mine += keys[j] >= least;
      int slot = atomicAdd(&shared_->found, mine);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        if (keys[j] < least) continue;
        if (slot < slots_) slots[slot] = uint64_t{keys[j]} << 32 | ~static_cast<uint32_t>(first + j);
        ++slot;
      }
      room = slot <= slots_;
    });
    if (!kAll) return;
    all = WarpSum(all);
    if (threadIdx.x % 32 == 0) *OfBlock(&shared_->all[rank_ * kSampleWarps + threadIdx.x / 32], 0) = all;
  }

  // Blocks' candidates one after the other, with their weights.
  __device__ void Compact() {
    Gathered& gathered = shared_->gathered;
    const int threads = kSampleThreads / blocks_;
    const int block = static_cast<int>(threadIdx.x) / threads;
    int before = 0;
    for (int b = 0; b < block; ++b) before += shared_->founds[b];
    const int found = shared_->founds[block];
    for (int i = static_cast<int>(threadIdx.x) % threads; i < found; i += threads) {
      const uint64_t token = gathered.slots[block * slots_ + i];
      gathered.tokens[before + i] = token;
      gathered.weights[before + i] = weights_.Of(static_cast<uint32_t>(token >> 32));
    }
  }

  const Part<T>& part_;
  const Weights<T>& weights_;
  SampleShared* shared_;
  const int blocks_, rank_;
  const int slots_;  // of each block
  int count_ = 0;    // of all blocks
};

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_SAMPLING_CANDIDATES_CUH_
