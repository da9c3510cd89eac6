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
      if (chunk == 0)
        shared.row_scale[row] = shared.item.AbsoluteScale(__uint_as_float((127 + exponent) << 23));
    }
  }
};

// The keys and values of an item, 64 a step. Page ids are asked for four or five steps before the product,
// rows noted two or three steps and copies begun one step before it.
template <typename Traits>
class KeyLoader {
 public:
  // `base`: the address of `shared`.
  __device__ KeyLoader(const DecodeParams& p, typename Traits::Shared& shared, std::uint32_t base)
      : p_(p), shared_(shared), base_(base) {}

  // Asks for the page ids of the first two steps.
  __device__ void Begin(int step) {
    const PrefillItem::Keys keys = ItemKeys();
    Ask(keys, KeyOf(keys, step, threadIdx.x));
  }

  // Notes the rows of two steps, a thread for each key, and asks for the page ids of the next two.
  __device__ void Note(int step) {
    const std::uint32_t thread = Opaque(threadIdx.x);
    const PrefillItem::Keys keys = ItemKeys();
    const int key = KeyOf(keys, step, thread), slot = (step + thread / kPrefillKeys) % kNoted;
    bool live = IsLive(keys, key);
    const char* k = p_.k;
    const char* v = p_.v;
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
        k = shared_.item.k + (id * p_.k_strides.page + offset * p_.k_strides.token);
        v = shared_.item.v + (id * p_.v_strides.page + offset * p_.v_strides.token);
      }
    }
    const std::uint32_t bits = __ballot_sync(~0u, live);
    if (thread % 32 == 0) shared_.live[slot][thread / 32 % 2] = bits;
    const std::uint32_t rows = base_ + Traits::Rows(slot) + thread % kPrefillKeys * 16;
    StoreShared8(rows, reinterpret_cast<std::uint64_t>(k));
    StoreShared8(rows + 8, reinterpret_cast<std::uint64_t>(v));
    Ask(keys, key + 2 * kPrefillKeys);
  }

  // Begins the copies of a step, in kPasses parts; each first reads what the one after it needs.
  struct Copy {
    std::uint32_t k, v, from;
    std::uint64_t live;
    std::uint32_t row[2][4];
  };
  static constexpr int kPasses = kPrefillKeys * Traits::kCacheRowBytes / 16 / kPrefillThreads;

  // With `wanted` false, zeros.
  __device__ Copy BeginCopy(int step, bool wanted) const {
    const std::uint32_t thread = Opaque(threadIdx.x);
    const int chunk = thread % kChunks, first = thread / kChunks;
    Copy copy;
    copy.k = base_ + Traits::CachedK(step) + Target(first, chunk);
    copy.v = base_ + Traits::CachedV(step) + Target(first, chunk);
    copy.from = base_ + Traits::Rows(step) + first * 16;
    copy.live = wanted ? Traits::Live(base_, step) >> first : 0;
    LoadShared16(copy.row[0], copy.from);
    return copy;
  }
  __device__ static void Continue(Copy& copy, int pass) {
    const int chunk = threadIdx.x % kChunks;
    if (pass + 1 < kPasses)
      LoadShared16(copy.row[(pass + 1) % 2], copy.from + (pass + 1) * kRowsPerPass * 16);
    const std::uint32_t(&row)[4] = copy.row[pass % 2];
    const bool use = copy.live >> (pass * kRowsPerPass) & 1;
    const int target = pass * kRowsPerPass * Traits::kCacheRowBytes;
    CopyAsync16(copy.k + target, Pointer(row[0], row[1]) + chunk * 16, use);
    CopyAsync16(copy.v + target, Pointer(row[2], row[3]) + chunk * 16, use);
  }
  __device__ static void Finish(Copy& copy) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) Continue(copy, pass);
  }

  // fp8 to halves, once for all warps. A barrier must lie before and after.
  __device__ void Convert(int step) {
    const std::uint32_t thread = Opaque(threadIdx.x);
    const std::uint32_t source[2] = {base_ + Traits::CachedK(step), base_ + Traits::CachedV(step)};
    const std::uint32_t target[2] = {base_ + Traits::K(step), base_ + Traits::V(step)};
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const std::uint32_t from = source[part], to = target[part];
#pragma unroll
      for (int i = 0; i < kPasses; ++i) {
        const int row = thread / kChunks + i * kRowsPerPass, chunk = thread % kChunks;
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

  __device__ static int Target(int row, int chunk) {
    return Traits::kFp8 ? row * Traits::kCacheRowBytes + chunk * 16 : Traits::Offset(row, chunk);
  }

  __device__ PrefillItem::Keys ItemKeys() const {
    std::uint32_t words[4];
    LoadShared16(words, base_ + Traits::kItemKeys);
    return {static_cast<int>(words[0]), static_cast<int>(words[1]), static_cast<int>(words[2]), 0};
  }
  __device__ static int KeyOf(const PrefillItem::Keys& keys, int step, std::uint32_t thread) {
    return keys.begin + step * kPrefillKeys + static_cast<int>(thread);
  }
  __device__ static bool IsLive(const PrefillItem::Keys& keys, int key) {
    return static_cast<unsigned>(key - keys.first) < static_cast<unsigned>(keys.count);
  }
  __device__ void Ask(const PrefillItem::Keys& keys, int key) {
    if (IsLive(keys, key)) id_ = __ldg(shared_.item.pages + p_.page_size.Divide(key));
  }
  __device__ static const char* Pointer(std::uint32_t low, std::uint32_t high) {
    return reinterpret_cast<const char*>(low | static_cast<std::uint64_t>(high) << 32);
  }

  const DecodeParams& p_;
  typename Traits::Shared& shared_;
  const std::uint32_t base_;
  int id_ = 0;
};

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_PREFILL_LOAD_CUH_
