// Sampling without a sort (sampling.h; spec 1.4): up to eight blocks a row, a cluster, that read the row once
// and keep it in shared memory.
//
// What the filters keep is always "the tokens whose key is greater than a threshold, and the first r of those
// equal to it", with the key the logit's bits in an order that integers have. Top-k and top-p each find their
// threshold by a radix search: a histogram of the keys between two bounds, the bin in which the k-th token
// (or the p-th share) lies, then a histogram of the keys of that bin. Where top-k or min-p leave few tokens
// to choose from, as they mostly do, one block gets those and compares each with all others. Weights are
// integers, exp((logit - greatest) / temperature) in units of 2^-40: sums of integers have no order, so a
// row's token depends neither on the timing of atomics, nor on its place in the batch, nor on the number of
// blocks.
#include <algorithm>
#include <cmath>

#include "cuda/common/device.cuh"
#include "cuda/common/launch.h"
#include "cuda/kernels.h"
#include "cuda/sampling/candidates.cuh"
#include "cuda/sampling/search.cuh"

namespace llmd::cuda {
namespace {

// Of what is kept: all tokens above `key`, and the first `equals` at it. Key 0: all there are.
struct Threshold {
  uint32_t key;
  uint32_t equals;
};

template <typename T>
class Sampler {
 public:
  __device__ Sampler(const llmd_sample_args& args, int log_blocks, SampleShared* shared,
                     typename Part<T>::Key* kept, bool keep)
      : args_(args),
        row_(blockIdx.x >> log_blocks),
        log_blocks_(log_blocks),
        blocks_(1 << log_blocks),
        rank_(blockIdx.x & (blocks_ - 1)),
        shared_(shared),
        part_(static_cast<const T*>(args.logits) + row_ * args.row_stride, args.vocab, rank_, log_blocks,
              kept, keep) {}

  __device__ void Run() {
    ClusterArrive();  // awaited before the first write to another block
    uint32_t floor;
    const uint64_t best = Greatest(args_.top_k == nullptr ? 0 : args_.top_k[row_], &floor);
    const Settings& settings = shared_->settings;
    const auto max_key = static_cast<uint32_t>(best >> 32);
    const bool writes = rank_ == 0 && threadIdx.x == 0;
    if (max_key == kKeyOfMinusInfinity<T> || max_key == kKeyOfInfinity<T>) {
      if (writes) {
        args_.tokens[row_] = -1;
        if (args_.logprobs != nullptr) args_.logprobs[row_] = NAN;
      }
      return;
    }
    const bool greedy = !(settings.temperature > 0);
    if (greedy && writes) args_.tokens[row_] = static_cast<int32_t>(~static_cast<uint32_t>(best));
    if (greedy && args_.logprobs == nullptr) return;
    const Weights<T> weights(max_key, greedy ? 1.0f : settings.temperature);
    Threshold threshold = {0, 0};
    if (!greedy) {
      const uint32_t low = Lowest(weights);
      if ((settings.top_k > 0 || settings.min_p > 0) && DrawOfFew(weights, max(low, floor))) return;
      threshold = Filter(weights, low, floor);
    }
    Draw(weights, threshold, greedy);
  }

 private:
  static constexpr int N = Part<T>::N;

  // The greatest key and the lowest id of equals, of those of all lanes.
  __device__ static uint64_t WarpGreatest(uint32_t key, uint32_t complement_of_id) {
    const uint32_t greatest = __reduce_max_sync(~0u, key);
    const uint32_t id = __reduce_max_sync(~0u, key == greatest ? complement_of_id : 0);
    return uint64_t{greatest} << 32 | id;
  }

  // The greatest key << 32 and, of equals, the complement of the lowest id. `floor`: a key that at least
  // `top_k` tokens reach, from the greatest key of each thread's tokens alone; 0 if they are too few.
  __device__ uint64_t Greatest(int top_k, uint32_t* floor) {
    Settings settings;  // on their way while the row is read
    if (threadIdx.x == 0) settings = SettingsOfRow();
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
    // If `enough` warps have `each` tokens that reach a key, all have top_k. A third more a warp than the
    // share of each lets the warps that have the least of the great ones stand aside.
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int runs = blocks_ * kSampleWarps;
    const bool has_floor = top_k > 0 && top_k <= 24 * runs;
    const int each = has_floor ? CeilDivide(4 * top_k, 3 * runs) : 1;
    const uint64_t best = WarpGreatest(key, ~static_cast<uint32_t>(id));
    auto warp_floor = static_cast<uint32_t>(best >> 32);
    if (each > 1) {
      int rank = 0;
#pragma unroll 8
      for (int other = 0; other < 32; ++other) {
        const uint32_t others = __shfl_sync(~0u, key, other);
        rank += others > key || (others == key && other < lane);
      }
      const unsigned found = __ballot_sync(~0u, rank == each - 1);
      warp_floor = __shfl_sync(~0u, key, __ffs(static_cast<int>(found)) - 1);
    }
    ClusterWait();
    if (lane < blocks_) {
      const int run = rank_ * kSampleWarps + warp;
      *OfBlock(&shared_->best[run], lane) = best;
      *OfBlock(&shared_->floor[run], lane) = warp_floor;
    }
    if (threadIdx.x == 0) {
      shared_->found = 0;
      shared_->settings = settings;
    }
    // Nobody asks for the random number before the next barrier.
    RowSync(blocks_, [&] {
      if (threadIdx.x == 0) shared_->random = Random(settings);
    });
    uint64_t greatest = 0;
    uint32_t floors[kRunsALane];
#pragma unroll
    for (int i = 0; i < kRunsALane; ++i) {
      const int run = i * 32 + lane;
      floors[i] = run < runs ? shared_->floor[run] : 0;
      if (run < runs) greatest = max(greatest, shared_->best[run]);
    }
    *floor = has_floor ? Floor(floors, CeilDivide(top_k, each)) : 0;
    return WarpGreatest(static_cast<uint32_t>(greatest >> 32), static_cast<uint32_t>(greatest));
  }

  // The greatest of the warps' floors that `enough` of them reach; a lane has some of them. A warp tries as
  // many as there are blocks.
  __device__ uint32_t Floor(const uint32_t (&floors)[kRunsALane], int enough) const {
#pragma unroll 4
    for (int i = 0; i < blocks_; ++i) {
      const uint32_t mine = shared_->floor[i * kSampleWarps + threadIdx.x / 32];
      uint32_t counts = 0;  // that reach it, and those above it
#pragma unroll
      for (const uint32_t other : floors) counts += (other >= mine) + (uint32_t{other > mine} << 16);
      counts = __reduce_add_sync(~0u, counts);
      if (static_cast<int>(counts >> 16) < enough && enough <= static_cast<int>(counts & 0xffff))
        shared_->row_floor = mine;  // written again by the warps of equal ones
    }
    __syncthreads();
    return shared_->row_floor;
  }

  // The least key that temperature and min-p leave.
  __device__ uint32_t Lowest(const Weights<T>& weights) const {
    const uint32_t low = weights.FloorKey(shared_->settings.temperature);
    if (!(shared_->settings.min_p > 0)) return low;
    const double unit = static_cast<double>(uint64_t{1} << kUnitBits);
    return max(low,
               weights.KeyOfWeight(static_cast<uint64_t>(ceil(min(shared_->settings.min_p, 1.0f) * unit))));
  }

  // If no more tokens than one block can sort out are of key `least` and up.
  __device__ bool DrawOfFew(const Weights<T>& weights, uint32_t least) const {
    const bool all = args_.logprobs != nullptr;
    Candidates<T> candidates(part_, weights, shared_, log_blocks_, rank_);
    if (!candidates.Gather(least, all)) return false;
    if (rank_ > 0) return true;
    candidates.Draw(all, [&](uint32_t key, int id, uint64_t of_row) { Write(weights, key, id, of_row); });
    return true;
  }

  __device__ Threshold Filter(const Weights<T>& weights, uint32_t low, uint32_t floor) {
    const int top_k = shared_->settings.top_k;
    Threshold threshold = {shared_->settings.min_p > 0 ? low - 1 : 0, 0};
    Search<T> search = {part_, weights, shared_, blocks_, rank_};
    typename Search<T>::Found found;
    uint64_t cut = 0;  // weight at the least key that top-k has taken away
    if (top_k > 0 && top_k < args_.vocab) {
      const auto target = [&](uint64_t total) { return top_k <= total ? top_k : uint64_t{0}; };
      if (search.template Run<By::kCount>(max(low, floor), weights.max_key, target, &found)) {
        low = found.key;
        threshold = {found.key, static_cast<uint32_t>(found.rest)};
        cut = (found.here - found.rest) * weights.Of(found.key);
      }
    }
    if (shared_->settings.top_p < 1) {
      const auto target = [&](uint64_t total) { return TargetOf(shared_->settings.top_p, total - cut); };
      search.template Run<By::kWeight>(low, weights.max_key, target, &found);
      const uint64_t each = weights.Of(found.key);
      threshold = {found.key, static_cast<uint32_t>((found.rest + each - 1) / each)};
    }
    return threshold;
  }

  // Draws the token: the first, in the order of ids, at which the running weight of what is kept passes the
  // draw. Greedy: only its probability.
  __device__ void Draw(const Weights<T>& weights, const Threshold& threshold, bool greedy) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const bool logprobs = args_.logprobs != nullptr;
    uint64_t kept = 0, all = 0;
    uint32_t equals = 0;
    if (threshold.key == 0) {
      part_.ForEach([&](int, const uint32_t(&keys)[N]) {
#pragma unroll
        for (int j = 0; j < N; ++j) all += weights.Of(keys[j]);
      });
      kept = all = WarpSum(all);
    } else {
      part_.ForEach([&](int, const uint32_t(&keys)[N]) {
#pragma unroll
        for (int j = 0; j < N; ++j) {
          equals += keys[j] == threshold.key;
          if (keys[j] <= threshold.key && !logprobs) continue;
          const uint64_t weight = weights.Of(keys[j]);
          all += weight;
          if (keys[j] > threshold.key) kept += weight;
        }
      });
      kept = WarpSum(kept);
      if (logprobs) all = WarpSum(all);
      equals = __reduce_add_sync(~0u, equals);
    }
    if (lane < blocks_) {
      const int run = rank_ * kSampleWarps + warp;
      *OfBlock(&shared_->weight[run], lane) = kept;
      *OfBlock(&shared_->all[run], lane) = all;
      *OfBlock(&shared_->equals[run], lane) = equals;
    }
    RowSync(blocks_);
    if (warp > 0) return;

    // A warp of each block finds out which run has the token. A lane looks at neighbouring runs.
    const int runs = blocks_ * kSampleWarps, each_lane = CeilDivide(runs, 32);
    const auto for_each_run = [&](auto&& f) {
#pragma unroll
      for (int i = 0; i < kRunsALane; ++i) {
        const int run = lane * each_lane + i;
        if (i < each_lane && run < runs) f(run);
      }
    };
    if (logprobs) {
      all = 0;
      for_each_run([&](int run) { all += shared_->all[run]; });
      all = WarpSum(all);
    }
    if (greedy) {
      if (rank_ == 0 && lane == 0) args_.logprobs[row_] = static_cast<float>(-LogOf(all));
      return;
    }
    const uint64_t each = threshold.equals == 0 ? 0 : weights.Of(threshold.key);
    uint32_t before = 0;  // tokens at the threshold
    if (threshold.equals > 0) {
      uint32_t here = 0, unused;
      for_each_run([&](int run) { here += shared_->equals[run]; });
      before = WarpExclusiveSum(here, &unused);
    }
    uint64_t sum = 0;
    uint32_t rank = before;
    for_each_run([&](int run) {
      sum += shared_->weight[run] + Taken(threshold, rank, shared_->equals[run]) * each;
      rank += shared_->equals[run];
    });
    uint64_t total;
    uint64_t running = WarpExclusiveSum(sum, &total);
    const uint64_t draw = __umul64hi(total, shared_->random);  // below total
    const int holder = __ffs(static_cast<int>(__ballot_sync(~0u, draw < running + sum))) - 1;
    int chosen = -1;
    for_each_run([&](int run) {
      const uint64_t here = shared_->weight[run] + Taken(threshold, before, shared_->equals[run]) * each;
      if (chosen < 0 && draw < running + here) chosen = run;
      if (chosen >= 0) return;
      running += here;
      before += shared_->equals[run];
    });
    chosen = __shfl_sync(~0u, chosen, holder);
    running = __shfl_sync(~0u, running, holder);
    before = __shfl_sync(~0u, before, holder);
    if (chosen / kSampleWarps == rank_) Pick(weights, threshold, chosen, draw, running, before, all);
  }

  // Of `here` tokens at the threshold that come after `before` others, those that are kept.
  __device__ static uint32_t Taken(const Threshold& threshold, uint32_t before, uint32_t here) {
    return min(here, threshold.equals - min(before, threshold.equals));
  }

  // The token in a run of the block, before which are `running` of weight and `before` tokens at the
  // threshold. First its step, from the weights of several at once.
  __device__ void Pick(const Weights<T>& weights, const Threshold& threshold, int run, uint64_t draw,
                       uint64_t running, uint32_t before, uint64_t all) const {
    constexpr int kStep = Part<T>::kStep, kSteps = 32 / N;
    const uint64_t each = threshold.equals == 0 ? 0 : weights.Of(threshold.key);
    const int end = part_.BeginOf(run + 1);
    for (int first = part_.BeginOf(run); first < end; first += kSteps * kStep) {
      uint64_t sums[kSteps];
      uint32_t equals[kSteps];
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        sums[i] = 0;
        equals[i] = 0;
        if (first + i * kStep >= end) continue;
        uint32_t keys[N];
        part_.Read(first + i * kStep, keys);
#pragma unroll
        for (int j = 0; j < N; ++j) {
          equals[i] += keys[j] == threshold.key;
          if (keys[j] > threshold.key) sums[i] += weights.Of(keys[j]);
        }
      }
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        sums[i] = WarpSum(sums[i]);
        equals[i] = __reduce_add_sync(~0u, equals[i]);
      }
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const uint64_t here = sums[i] + Taken(threshold, before, equals[i]) * each;
        if (draw < running + here) {
          PickOfStep(weights, threshold, first + i * kStep, draw, running, before, all);
          return;
        }
        running += here;
        before += equals[i];
      }
    }
  }

  __device__ void PickOfStep(const Weights<T>& weights, const Threshold& threshold, int at, uint64_t draw,
                             uint64_t running, uint32_t before, uint64_t all) const {
    uint32_t keys[N];
    part_.Read(at, keys);
    if (threshold.equals > 0) {
      uint32_t here = 0, unused;
#pragma unroll
      for (int j = 0; j < N; ++j) here += keys[j] == threshold.key;
      before += WarpExclusiveSum(here, &unused);
    }
    uint64_t of[N], sum = 0, unused;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const bool equal = keys[j] == threshold.key;
      of[j] = (equal ? before < threshold.equals : keys[j] > threshold.key) ? weights.Of(keys[j]) : 0;
      before += equal;
      sum += of[j];
    }
    uint64_t passed = running + WarpExclusiveSum(sum, &unused);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (passed <= draw && draw < passed + of[j])
        Write(weights, keys[j], at + static_cast<int>(threadIdx.x % 32) * N + j, all);
      passed += of[j];
    }
  }

  __device__ void Write(const Weights<T>& weights, uint32_t key, int id, uint64_t all) const {
    args_.tokens[row_] = id;
    if (args_.logprobs == nullptr) return;
    args_.logprobs[row_] = static_cast<float>(
        (LogitOf<T>(key) - weights.max_logit) / shared_->settings.temperature - LogOf(all));
  }

  __device__ static double LogOf(uint64_t weight) {
    return log(static_cast<double>(weight) / (uint64_t{1} << kUnitBits));
  }

  __device__ Settings SettingsOfRow() const {
    return {.temperature = args_.temperature == nullptr ? 1.0f : args_.temperature[row_],
            .min_p = args_.min_p == nullptr ? 0.0f : args_.min_p[row_],
            .top_p = args_.top_p == nullptr ? 1.0f : args_.top_p[row_],
            .top_k = args_.top_k == nullptr ? 0 : args_.top_k[row_],
            .request = args_.request_ids == nullptr ? row_ : args_.request_ids[row_],
            .step = args_.steps == nullptr ? 0 : args_.steps[row_]};
  }

  // 24 bits, at the top of a word of 64.
  __device__ uint64_t Random(const Settings& settings) const {
    const Philox random = Philox4x32(args_.seed, settings.request, settings.step);
    return static_cast<uint64_t>(random.out[0] >> 8) << 40;
  }

  const llmd_sample_args& args_;
  const int row_, log_blocks_, blocks_, rank_;
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
