// Sampling without a sort (sampling.h; spec 1.4): up to eight blocks a row, a cluster, that read the row once
// and keep it in shared memory.
//
// What the filters keep is always "the tokens whose key is greater than a threshold, and the first r of those
// equal to it", with the key the logit's bits in an order that integers have. Top-k and top-p each find their
// threshold by a radix search: a histogram of the keys between two bounds, the bin in which the k-th token
// (or the p-th share) lies, then a histogram of the keys of that bin. Weights are integers, exp((logit -
// greatest) / temperature) in units of 2^-40: sums of integers have no order, so a row's token depends
// neither on the timing of atomics, nor on its place in the batch, nor on the number of blocks.
#include <algorithm>
#include <cmath>

#include "cuda/common/device.cuh"
#include "cuda/common/launch.h"
#include "cuda/kernels.h"
#include "cuda/sampling/search.cuh"

namespace llmd::cuda {
namespace {

// Of what is kept: all tokens above `key`, and the first `equals` at it.
struct Threshold {
  uint32_t key;
  uint64_t equals;
};

template <typename T>
class Sampler {
 public:
  __device__ Sampler(const llmd_sample_args& args, int log_blocks, SampleShared* shared,
                     typename Part<T>::Key* kept, bool keep)
      : args_(args),
        row_(blockIdx.x >> log_blocks),
        blocks_(1 << log_blocks),
        rank_(blockIdx.x & (blocks_ - 1)),
        shared_(shared),
        part_(static_cast<const T*>(args.logits) + row_ * args.row_stride, args.vocab, rank_, log_blocks,
              kept, keep) {}

  __device__ void Run() {
    ClusterArrive();  // awaited before the first write to another block
    const int top_k = args_.top_k == nullptr ? 0 : args_.top_k[row_];
    uint32_t floor;
    const uint64_t best = Greatest(top_k, &floor);
    const auto max_key = static_cast<uint32_t>(best >> 32);
    const bool writes = rank_ == 0 && threadIdx.x == 0;
    if (max_key == kKeyOfMinusInfinity<T> || max_key == kKeyOfInfinity<T>) {
      if (writes) {
        args_.tokens[row_] = -1;
        if (args_.logprobs != nullptr) args_.logprobs[row_] = NAN;
      }
      return;
    }
    const float temperature = Temperature();
    const bool greedy = !(temperature > 0);
    if (greedy && writes) args_.tokens[row_] = static_cast<int32_t>(~static_cast<uint32_t>(best));
    if (greedy && args_.logprobs == nullptr) return;
    const Weights<T> weights(max_key, greedy ? 1.0f : temperature);
    Threshold threshold = {max_key, 0};
    if (!greedy) threshold = Filter(weights, top_k, floor);
    Draw(weights, threshold, greedy);
  }

 private:
  static constexpr int N = Part<T>::N;

  // The greatest key << 32 and, of equals, the complement of the lowest id. `floor`: a key that at least
  // `top_k` tokens reach, from the greatest key of each thread's tokens alone; 0 if they are too few.
  __device__ uint64_t Greatest(int top_k, uint32_t* floor) {
    uint32_t key = 0;
    int id = 0;
    part_.template ForEach<true>([&](int first, const uint32_t(&keys)[N]) {
#pragma unroll
      for (int j = 0; j < N; ++j) {
        if (keys[j] > key) {
          key = keys[j];
          id = first + j;
        }
      }
    });
    // If each warp has `each` that reach the least of the warps' each-th, all have top_k.
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int each = CeilDivide(top_k, blocks_ * kSampleWarps);
    uint32_t warp_floor = 0;
    if (top_k > 0 && each <= 32) {
      int rank = 0;
#pragma unroll 8
      for (int other = 0; other < 32; ++other) {
        const uint32_t others = __shfl_sync(~0u, key, other);
        rank += others > key || (others == key && other < lane);
      }
      const unsigned found = __ballot_sync(~0u, rank == each - 1);
      warp_floor = __shfl_sync(~0u, key, __ffs(static_cast<int>(found)) - 1);
    }
    uint64_t best = uint64_t{key} << 32 | ~static_cast<uint32_t>(id);
    best = WarpReduce(best, Max());
    if (lane == 0) {
      shared_->warp_best[warp] = best;
      shared_->warp_floor[warp] = warp_floor;
    }
    __syncthreads();
    ClusterWait();
    if (warp == 0) {
      best = WarpReduce(shared_->warp_best[lane % kSampleWarps], Max());
      warp_floor = ~WarpReduce(~shared_->warp_floor[lane % kSampleWarps], Max());
      if (lane < blocks_) {
        *OfBlock(&shared_->best[rank_], lane) = best;
        *OfBlock(&shared_->floor[rank_], lane) = warp_floor;
      }
    }
    Sync();
    best = shared_->best[0];
    *floor = shared_->floor[0];
    for (int b = 1; b < blocks_; ++b) {
      best = max(best, shared_->best[b]);
      *floor = min(*floor, shared_->floor[b]);
    }
    return best;
  }

  __device__ Threshold Filter(const Weights<T>& weights, int top_k, uint32_t floor) {
    const double unit = static_cast<double>(uint64_t{1} << kUnitBits);
    const float min_p = args_.min_p == nullptr ? 0.0f : args_.min_p[row_];
    const float top_p = args_.top_p == nullptr ? 1.0f : args_.top_p[row_];
    uint32_t low = weights.FloorKey(Temperature());  // nothing below can be kept
    if (min_p > 0) {
      low = max(low, weights.KeyOfWeight(static_cast<uint64_t>(ceil(min(min_p, 1.0f) * unit))));
    }
    Threshold threshold = {low - 1, 0};
    Search<T> search = {part_, weights, shared_, blocks_, rank_};
    typename Search<T>::Found found;
    uint64_t cut = 0;  // weight at the least key that top-k has taken away
    if (top_k > 0 && top_k < args_.vocab) {
      const auto target = [&](uint64_t total) { return top_k <= total ? top_k : uint64_t{0}; };
      if (search.template Run<By::kCount>(max(low, floor), weights.max_key, target, &found)) {
        low = found.key;
        threshold = {found.key, found.rest};
        cut = (found.here - found.rest) * weights.Of(found.key);
      }
    }
    if (top_p < 1) {
      const auto target = [&](uint64_t total) -> uint64_t {
        const uint64_t weight = total - cut;
        const double share = ceil(max(top_p, 0.0f) * static_cast<double>(weight));
        return min(max(static_cast<uint64_t>(share), uint64_t{1}), weight);
      };
      search.template Run<By::kWeight>(low, weights.max_key, target, &found);
      const uint64_t each = weights.Of(found.key);
      threshold = {found.key, (found.rest + each - 1) / each};
    }
    return threshold;
  }

  // Draws the token: the first, in the order of ids, at which the running weight of what is kept passes the
  // draw. Greedy: only its probability.
  __device__ void Draw(const Weights<T>& weights, const Threshold& threshold, bool greedy) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int runs = blocks_ * kSampleWarps, run = rank_ * kSampleWarps + warp;
    uint64_t kept = 0, all = 0;
    uint32_t equals = 0;
    part_.ForEach([&](int, const uint32_t(&keys)[N]) {
#pragma unroll
      for (int j = 0; j < N; ++j) {
        equals += keys[j] == threshold.key;
        if (keys[j] <= threshold.key && args_.logprobs == nullptr) continue;
        const uint64_t weight = weights.Of(keys[j]);
        all += weight;
        if (keys[j] > threshold.key) kept += weight;
      }
    });
    kept = WarpReduce(kept, Add());
    all = WarpReduce(all, Add());
    equals = WarpReduce(equals, Add());
    if (lane < blocks_) {
      *OfBlock(&shared_->weight[run], lane) = kept;
      *OfBlock(&shared_->all[run], lane) = all;
      *OfBlock(&shared_->equals[run], lane) = equals;
    }
    Sync();

    // Every warp finds out which run has the token. A lane looks at some runs, one after the other.
    const int each_lane = CeilDivide(runs, 32);
    const int first_run = min(lane * each_lane, runs), end_run = min(first_run + each_lane, runs);
    const uint64_t each = threshold.equals == 0 ? 0 : weights.Of(threshold.key);
    uint64_t equals_here = 0;
    all = 0;
    for (int r = first_run; r < end_run; ++r) {
      equals_here += shared_->equals[r];
      all += shared_->all[r];
    }
    all = WarpReduce(all, Add());
    if (greedy) {
      if (run == 0 && lane == 0) args_.logprobs[row_] = static_cast<float>(-LogOf(all));
      return;
    }
    uint64_t unused;
    uint64_t before = WarpExclusiveSum(equals_here, &unused);
    const auto weight_of_run = [&](int r, uint64_t* rank) {
      const uint64_t taken =
          *rank >= threshold.equals ? 0 : min(uint64_t{shared_->equals[r]}, threshold.equals - *rank);
      *rank += shared_->equals[r];
      return shared_->weight[r] + taken * each;
    };
    uint64_t weight = 0, rank = before;
    for (int r = first_run; r < end_run; ++r) weight += weight_of_run(r, &rank);
    uint64_t total;
    uint64_t running = WarpExclusiveSum(weight, &total);
    const uint64_t draw = __umul64hi(total, Random());  // below total
    int chosen = -1;
    rank = before;
    for (int r = first_run; r < end_run; ++r) {
      const uint64_t rank_before = rank;
      const uint64_t here = weight_of_run(r, &rank);
      if (draw < running + here) {
        if (draw >= running) {
          chosen = r;
          before = rank_before;
        }
        break;
      }
      running += here;
    }
    const int holder = __ffs(static_cast<int>(__ballot_sync(~0u, chosen >= 0))) - 1;
    chosen = __shfl_sync(~0u, chosen, holder);
    running = __shfl_sync(~0u, running, holder);
    before = __shfl_sync(~0u, before, holder);
    if (chosen == run) Pick(weights, threshold, draw, running, before, all);
  }

  // The token in the warp's run, before which are `running` of weight and `before` tokens at the threshold.
  __device__ void Pick(const Weights<T>& weights, const Threshold& threshold, uint64_t draw, uint64_t running,
                       uint64_t before, uint64_t all) const {
    const uint64_t each = threshold.equals == 0 ? 0 : weights.Of(threshold.key);
    for (int at = part_.begin_; at < part_.end_; at += Part<T>::kStep) {
      uint32_t keys[N];
      part_.Read(at, keys);
      uint64_t here = 0;
#pragma unroll
      for (int j = 0; j < N; ++j) here += keys[j] == threshold.key;
      uint64_t step_equals;
      uint64_t rank = before + WarpExclusiveSum(here, &step_equals);
      const auto weight_of = [&](uint32_t key, uint64_t* next_rank) -> uint64_t {
        if (key == threshold.key) return (*next_rank)++ < threshold.equals ? each : 0;
        return key > threshold.key ? weights.Of(key) : 0;
      };
      uint64_t sum = 0, next = rank;
#pragma unroll
      for (int j = 0; j < N; ++j) sum += weight_of(keys[j], &next);
      uint64_t step_weight;
      uint64_t passed = running + WarpExclusiveSum(sum, &step_weight);
      if (draw < running + step_weight) {
#pragma unroll
        for (int j = 0; j < N; ++j) {
          const uint64_t weight = weight_of(keys[j], &rank);
          if (passed <= draw && draw < passed + weight) {
            args_.tokens[row_] = at + static_cast<int>(threadIdx.x % 32) * N + j;
            if (args_.logprobs != nullptr) {
              args_.logprobs[row_] =
                  static_cast<float>((LogitOf<T>(keys[j]) - weights.max_logit) / Temperature() - LogOf(all));
            }
          }
          passed += weight;
        }
        return;
      }
      running += step_weight;
      before += step_equals;
    }
  }

  __device__ float Temperature() const {
    return args_.temperature == nullptr ? 1.0f : args_.temperature[row_];
  }

  __device__ static double LogOf(uint64_t weight) {
    return log(static_cast<double>(weight) / (uint64_t{1} << kUnitBits));
  }

  // 24 bits, at the top of a word of 64.
  __device__ uint64_t Random() const {
    const uint64_t request = args_.request_ids == nullptr ? row_ : args_.request_ids[row_];
    const uint64_t step = args_.steps == nullptr ? 0 : args_.steps[row_];
    return static_cast<uint64_t>(Philox4x32(args_.seed, request, step).out[0] >> 8) << 40;
  }

  __device__ void Sync() const {
    if (blocks_ > 1)
      ClusterSync();
    else
      __syncthreads();
  }

  const llmd_sample_args& args_;
  const int row_, blocks_, rank_;
  SampleShared* shared_;
  const Part<T> part_;
};

template <typename T>
__global__ void __launch_bounds__(kSampleThreads, 2)
    SampleKernel(const __grid_constant__ llmd_sample_args args, int log_blocks, bool keep) {
  LLMD_DYNAMIC_SHARED(16, char, memory);
  auto* shared = reinterpret_cast<SampleShared*>(memory);
  auto* kept = reinterpret_cast<typename Part<T>::Key*>(memory + sizeof(SampleShared));
  Sampler<T>(args, log_blocks, shared, kept, keep).Run();
}

// Blocks a row: as many as let it stay in shared memory with two blocks a multiprocessor, and more while the
// device has room for them.
template <typename T>
llmd_code Run(const llmd_sample_args& args, llmd_stream stream) {
  const Device* device = CurrentDevice();
  if (device == nullptr) return LLMD_DEVICE_ERROR;
  const int code = CodeArchitecture(SampleKernel<T>);
  if (code == 0) return LLMD_DEVICE_ERROR;
  const int most = code >= 90 ? kLogMaxBlocks : 0;  // of the code, which knows no cluster if it is older
  const int steps = CeilDivide(args.vocab, Part<T>::kStep);
  const auto bytes = [&](int log) {
    return static_cast<int64_t>(sizeof(SampleShared)) + int64_t{CeilDivide(steps, 1 << log)} * 32 * 16;
  };
  const int half = device->max_shared_bytes / 2 - 1024;
  int log_blocks = 0;
  while (log_blocks < most && bytes(log_blocks) > half) ++log_blocks;
  while (log_blocks < most && (int64_t{args.batch} << log_blocks) <= device->sms &&
         steps >= 4 * kSampleWarps << log_blocks) {
    ++log_blocks;
  }
  const bool keep = bytes(log_blocks) <= device->max_shared_bytes;
  const size_t shared = keep ? bytes(log_blocks) : sizeof(SampleShared);
  if (const llmd_code allowed = AllowShared("sample", SampleKernel<T>, shared); allowed != LLMD_OK)
    return allowed;
  const Launch launch = {.kernel = "sample",
                         .grid = dim3(static_cast<unsigned>(args.batch) << log_blocks),
                         .block = dim3(kSampleThreads),
                         .shared_bytes = shared,
                         .stream = stream,
                         .cluster = 1u << log_blocks};
  return LaunchKernel(launch, SampleKernel<T>, args, log_blocks, keep);
}

}  // namespace

llmd_code Sample(const llmd_sample_args& args, llmd_stream stream) {
  if (args.batch == 0) return LLMD_OK;
  if (args.batch > INT32_MAX / kMaxBlocks)
    return attention::Fail(LLMD_UNSUPPORTED, "sample: batch is 2^28 or more");
  if (args.vocab >> (64 - kUnitBits) != 0)  // sums of weights have 64 bits
    return attention::Fail(LLMD_UNSUPPORTED, "sample: vocab is 2^24 or more");
  return DispatchDtype(args.dtype, [&](auto element) { return Run<decltype(element)>(args, stream); });
}

}  // namespace llmd::cuda
