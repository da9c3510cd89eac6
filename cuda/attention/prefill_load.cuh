// Queries, keys and values of a prefill item, to shared memory.
#ifndef LLMD_CUDA_ATTENTION_PREFILL_LOAD_CUH_
#define LLMD_CUDA_ATTENTION_PREFILL_LOAD_CUH_

#include "cuda/attention/prefill_traits.cuh"

namespace llmd::cuda {

// The rows of q, as they are. ScaleQuery() follows when the copies of this thread have arrived.
template <typename Traits>
struct QueryLoader {
  static constexpr int kChunks = Traits::kRowBytes / 16;
  static constexpr int kRowsPerPass = kPrefillThreads / kChunks;

  __device__ static void Load(const PrefillParams& params, typename Traits::Shared& shared) {
    const DecodeParams& p = params.common;
    const PrefillItem& item = shared.item;
    const std::uint32_t base = SharedAddress(shared.q);
    const int chunk = threadIdx.x % kChunks;
#pragma unroll 4
    for (int row = threadIdx.x / kChunks; row < kPrefillRows; row += kRowsPerPass) {
      const bool live = row < item.rows;
      const char* source = p.q + 2 * ((item.first_token + item.Token(params, row)) * p.q_strides.token +
                                      item.Head(params, row) * p.q_strides.head);
      CopyAsync16(base + Traits::Offset(row, chunk), live ? source + chunk * 16 : p.q, live);
    }
  }

  // For fp8: bf16 to halves, each row divided by the power of two that brings its greatest value to [1, 2).
  // A thread converts what it has copied.
  __device__ static void Scale(const DecodeParams& p, typename Traits::Shared& shared) {
    const bool bfloat = p.q_dtype == LLMD_BF16;
    const int chunk = threadIdx.x % kChunks;
#pragma unroll 1
    for (int row = threadIdx.x / kChunks; row < kPrefillRows; row += kRowsPerPass) {
      int exponent = 0;
      if (bfloat) {
        uint4* at = reinterpret_cast<uint4*>(shared.q + Traits::Offset(row, chunk));
        const uint4 four = *at;
        const std::uint32_t pairs[4] = {four.x, four.y, four.z, four.w};
        std::uint32_t greatest = 0;
#pragma unroll
        for (std::uint32_t pair : pairs)
          greatest = ::max(greatest, ::max(pair & 0x7FFF, pair >> 16 & 0x7FFF));
#pragma unroll
        for (int step = 1; step < kChunks; step *= 2)
          greatest = ::max(greatest, __shfl_xor_sync(~0u, greatest, step));
        exponent = ::min(::max(static_cast<int>(greatest >> 7), 1), 253) - 127;
        const float shrink = __uint_as_float((127 - exponent) << 23);
        std::uint32_t halves[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          halves[i] = Pack<__half>(__uint_as_float(pairs[i] << 16) * shrink,
                                   __uint_as_float(pairs[i] & 0xFFFF0000u) * shrink);
        }
        *at = {halves[0], halves[1], halves[2], halves[3]};
      }
      if (chunk == 0) shared.q_scale[row] = __uint_as_float((127 + exponent) << 23);
    }
  }
};

// The keys and values of an item, 64 a step. Page ids are asked for three steps before the product, places
// noted two steps and copies begun one step before it.
template <typename Traits>
class KeyLoader {
 public:
  __device__ KeyLoader(const DecodeParams& p, typename Traits::Shared& shared) : p_(p), shared_(shared) {}

  // Half of the threads have a key of a step each, the other half a value.
  __device__ void Ask(int step) {
    const int key = Key(step);
    if (Live(key)) id_ = __ldg(shared_.item.pages + p_.page_size.Divide(key));
  }

  __device__ void Place(int step) {
    const int slot = step % kPlaces, key = Key(step);
    const bool values = threadIdx.x >= kPrefillKeys;
    bool live = Live(key);
    std::int64_t place = 0;
    if (live) {
      const int index = p_.page_size.Divide(key), offset = key - index * p_.page_size.divisor();
      // Not to be widened before it is used here: that would be waiting for it.
      const auto id = static_cast<std::uint32_t>(id_);
      if (id_ < 0 || (p_.validate && id >= p_.num_pages)) {
        if (p_.validate) {
          ReportDataError(p_.workspace.header, LLMD_BAD_PAGE, shared_.item.request, index, id_);
        }
        live = false;
      } else {
        place = id * (values ? p_.v_strides.page : p_.k_strides.page) +
                offset * (values ? p_.v_strides.token : p_.k_strides.token);
      }
    }
    const std::uint32_t bits = __ballot_sync(~0u, live);
    if (threadIdx.x % 32 == 0 && !values) shared_.live[slot][threadIdx.x / 32] = bits;
    (values ? shared_.place[slot][threadIdx.x - kPrefillKeys].v : shared_.place[slot][threadIdx.x].k) = place;
  }

  __device__ void Load(int step) {
    const int slot = step % kPlaces, stage = step & 1;
    const int chunk = threadIdx.x % kChunks, first = threadIdx.x / kChunks, head = shared_.item.kv_head;
    const std::uint32_t k = SharedAddress(shared_.k[stage]), v = SharedAddress(shared_.v[stage]);
    const char* k_head = p_.k + head * p_.k_strides.head + chunk * 16;
    const char* v_head = p_.v + head * p_.v_strides.head + chunk * 16;
    const std::uint64_t live = LiveKeys(shared_, step);
    if (live == ~0ull) {
      KeyPlace place[kPasses];  // read together, for their latency
#pragma unroll
      for (int i = 0; i < kPasses; ++i) place[i] = shared_.place[slot][first + i * kRowsPerPass];
#pragma unroll
      for (int i = 0; i < kPasses; ++i)
        CopyAsync16(k + Target(first + i * kRowsPerPass, chunk), k_head + place[i].k);
#pragma unroll
      for (int i = 0; i < kPasses; ++i)
        CopyAsync16(v + Target(first + i * kRowsPerPass, chunk), v_head + place[i].v);
    } else {  // keys that are not live become zeros: 0 * garbage could be NaN
#pragma unroll 1
      for (int i = 0; i < kPasses; ++i) {
        const int row = first + i * kRowsPerPass;
        const bool use = live >> row & 1;
        const KeyPlace place = shared_.place[slot][row];
        CopyAsync16(k + Target(row, chunk), k_head + place.k, use);
        CopyAsync16(v + Target(row, chunk), v_head + place.v, use);
      }
    }
  }

  __device__ static std::uint64_t LiveKeys(const typename Traits::Shared& shared, int step) {
    const std::uint32_t(&live)[2] = shared.live[step % kPlaces];
    return live[0] | static_cast<std::uint64_t>(live[1]) << 32;
  }

  // fp8 to halves, once for all warps. A barrier must lie before and after.
  __device__ void Convert(int step) {
    const char* source[2] = {shared_.k[step & 1], shared_.v[step & 1]};
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const std::uint32_t from = SharedAddress(source[part]);
      const std::uint32_t to = SharedAddress(shared_.halves + part * Traits::kTileBytes);
#pragma unroll
      for (int i = 0; i < kPasses; ++i) {
        const int row = threadIdx.x / kChunks + i * kRowsPerPass, chunk = threadIdx.x % kChunks;
        std::uint32_t four[4], halves[2][4];
        LoadShared16(four, from + Target(row, chunk));
#pragma unroll
        for (int word = 0; word < 4; ++word) {
          halves[word / 2][word % 2 * 2] = HalfPairOfE4m3(four[word] & 0xFFFF);
          halves[word / 2][word % 2 * 2 + 1] = HalfPairOfE4m3(four[word] >> 16);
        }
        // Eight lanes that store together must not meet in a bank: where they are of one row, half of them
        // store their second half first.
        const bool swap = kChunks >= 8 && (chunk & 4) != 0;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          std::uint32_t value[4];
#pragma unroll
          for (int word = 0; word < 4; ++word)
            value[word] = swap ? halves[1 - half][word] : halves[half][word];
          StoreShared16(to + Traits::Offset(row, 2 * chunk + (swap ? 1 - half : half)), value);
        }
      }
    }
  }

 private:
  static constexpr int kChunks = Traits::kCacheRowBytes / 16;
  static constexpr int kRowsPerPass = kPrefillThreads / kChunks;
  static constexpr int kPasses = kPrefillKeys / kRowsPerPass;

  __device__ static int Target(int row, int chunk) {
    return Traits::kFp8 ? row * Traits::kCacheRowBytes + chunk * 16 : Traits::Offset(row, chunk);
  }

  __device__ int Key(int step) const {
    return shared_.item.begin + step * kPrefillKeys + threadIdx.x % kPrefillKeys;
  }
  __device__ bool Live(int key) const {
    return static_cast<unsigned>(key - shared_.item.first_key) < static_cast<unsigned>(shared_.item.keys);
  }

  const DecodeParams& p_;
  typename Traits::Shared& shared_;
  int id_ = 0;
};

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_PREFILL_LOAD_CUH_
