// The kernels of cpu_kernels.h in vectors of 8 or 16 floats. Included by one file for each instruction set:
// all is in an unnamed namespace, and no function of another header may be called that the linker could take
// from here for a processor without the set.
#ifndef LLMD_ATTENTION_CPU_KERNELS_IMPL_H_
#define LLMD_ATTENTION_CPU_KERNELS_IMPL_H_

#include <cstdint>
#include <cstring>

#include "src/attention/cpu_kernels.h"

#define LLMD_INLINE inline __attribute__((always_inline))

namespace llmd::attention::cpu {
namespace {

// The widest vectors of the instruction set, for whole rows; V8 for what is done once a key.
#ifdef __AVX512BW__
constexpr int kWide = 16;
#else
constexpr int kWide = 8;
#endif
static_assert(kPadding % kWide == 0);

typedef float V8 __attribute__((vector_size(32)));
typedef int32_t I8 __attribute__((vector_size(32)));
typedef float V __attribute__((vector_size(4 * kWide)));
typedef int32_t I __attribute__((vector_size(4 * kWide)));
typedef uint32_t U32 __attribute__((vector_size(4 * kWide)));
typedef uint16_t U16 __attribute__((vector_size(2 * kWide)));
typedef uint8_t U8 __attribute__((vector_size(kWide)));

constexpr float kInfinity = __builtin_inff();

LLMD_INLINE V8 Splat8(float x) { return V8{x, x, x, x, x, x, x, x}; }
#ifdef __AVX512BW__
LLMD_INLINE V Splat(float x) { return V{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
#else
LLMD_INLINE V Splat(float x) { return Splat8(x); }
#endif
LLMD_INLINE I8 Bits8(V8 x) { return reinterpret_cast<I8>(x); }
LLMD_INLINE V8 Floats8(I8 x) { return reinterpret_cast<V8>(x); }
LLMD_INLINE V8 Select8(I8 mask, V8 a, V8 b) { return Floats8((mask & Bits8(a)) | (~mask & Bits8(b))); }
LLMD_INLINE V8 Max(V8 a, V8 b) { return Select8(a > b, a, b); }

LLMD_INLINE I Bits(V x) { return reinterpret_cast<I>(x); }
LLMD_INLINE V Floats(I x) { return reinterpret_cast<V>(x); }
LLMD_INLINE I Select(I mask, I a, I b) { return (mask & a) | (~mask & b); }
// a + b without the undefined behaviour of signed overflow, which NaNs would meet.
LLMD_INLINE I Plus(I a, I b) {
  return reinterpret_cast<I>(reinterpret_cast<U32>(a) + reinterpret_cast<U32>(b));
}

template <typename Vector = V>
LLMD_INLINE Vector Load(const float* p) {
  Vector x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
template <typename Vector>
LLMD_INLINE void Store(float* p, Vector x) {
  std::memcpy(p, &x, sizeof x);
}

// kWide stored elements as floats. Subnormal numbers of the formats are normal floats: they are made by a
// subtraction, for a product of subnormal floats would be slow.
template <llmd_dtype kType>
struct Format;

template <>
struct Format<LLMD_F32> {
  static constexpr int kSize = 4;
  static LLMD_INLINE V Read(const char* p) {
    V x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  static LLMD_INLINE void Write(char* p, V x) { std::memcpy(p, &x, sizeof x); }
};

LLMD_INLINE I Read16(const char* p) {
  U16 x;
  std::memcpy(&x, p, sizeof x);
  return __builtin_convertvector(x, I);
}
LLMD_INLINE void Write16(char* p, I bits) {
  const U16 x = __builtin_convertvector(bits, U16);
  std::memcpy(p, &x, sizeof x);
}

template <>
struct Format<LLMD_BF16> {
  static constexpr int kSize = 2;
  static LLMD_INLINE V Read(const char* p) { return Floats(Read16(p) << 16); }
  static LLMD_INLINE void Write(char* p, V x) {
    const I bits = Bits(x);
    const I high = (bits >> 16) & 0xffff;
    const I nan = (bits & 0x7fffffff) > 0x7f800000;
    const I rounded = (Plus(bits, 0x7fff + (high & 1)) >> 16) & 0xffff;
    Write16(p, Select(nan, high | 0x40, rounded));
  }
};

template <>
struct Format<LLMD_F16> {
  static constexpr int kSize = 2;
  static LLMD_INLINE V Read(const char* p) {
    const I bits = Read16(p);
    const I size = (bits & 0x7fff) << 13;
    const I sign = (bits & 0x8000) << 16;
    const V tiny = Floats(Plus(size, I{} + (113 << 23))) - 0x1p-14f;
    const I number = Select(size < (1 << 23), Bits(tiny), size + (112 << 23));
    return Floats(sign | Select(size >= (31 << 23), size | 0x7f800000, number));
  }
  static LLMD_INLINE void Write(char* p, V x) {
    const I bits = Bits(x);
    const I sign = (bits >> 16) & 0x8000;
    const I size = bits & 0x7fffffff;
    const I normal = Plus(size, ((size >> 13) & 1) + (0xfff - (112 << 23))) >> 13;
    const I tiny = Plus(Bits(Floats(size) + 0.5f), I{} - 0x3f000000);
    I stored = Select(size >= 0x38800000, normal, tiny);
    stored = Select(size >= 0x477ff000, I{} + 0x7c00, stored);
    stored = Select(size > 0x7f800000, 0x7e00 | ((size >> 13) & 0x3ff), stored);
    Write16(p, sign | stored);
  }
};

template <>
struct Format<LLMD_E4M3> {
  static constexpr int kSize = 1;
  static LLMD_INLINE V Read(const char* p) {
    U8 x;
    std::memcpy(&x, p, sizeof x);
    // In two steps: GCC 12 makes one element at a time of one.
    const I bits = __builtin_convertvector(__builtin_convertvector(x, U16), I);
    const I size = (bits & 0x7f) << 20;
    const I sign = (bits & 0x80) << 24;
    const V tiny = Floats(size + (121 << 23)) - 0x1p-6f;
    const I number = Select(size < (1 << 23), Bits(tiny), size + (120 << 23));
    return Floats(sign | Select(size == (0x7f << 20), I{} + 0x7fc00000, number));
  }
  static LLMD_INLINE void Write(char* p, V x) {
    const I bits = Bits(x);
    const I sign = (bits >> 24) & 0x80;
    const I size = bits & 0x7fffffff;
    const I normal = Plus(size, ((size >> 20) & 1) + (0x7ffff - (120 << 23))) >> 20;
    const I tiny = Plus(Bits(Floats(size) + 0x1p14f), I{} - 0x46800000);
    I stored = sign | Select(size >= 0x43e00000, I{} + 0x7e, Select(size >= 0x3c800000, normal, tiny));
    stored = Select(size > 0x7f800000, I{} + 0x7f, stored);
    const U8 bytes = __builtin_convertvector(stored, U8);
    std::memcpy(p, &bytes, sizeof bytes);
  }
};

template <llmd_dtype kType>
LLMD_INLINE void ReadRow(const char* from, int64_t count, float* to) {
  using F = Format<kType>;
  int64_t i = 0;
  for (; i + kWide <= count; i += kWide) Store(to + i, F::Read(from + i * F::kSize));
  if (i == count) return;
  char last[kWide * F::kSize] = {};
  std::memcpy(last, from + i * F::kSize, (count - i) * F::kSize);
  const V x = F::Read(last);
  std::memcpy(to + i, &x, (count - i) * sizeof(float));
}

template <llmd_dtype kType>
LLMD_INLINE void WriteRow(const float* from, int64_t count, char* to) {
  using F = Format<kType>;
  int64_t i = 0;
  for (; i + kWide <= count; i += kWide) F::Write(to + i * F::kSize, Load(from + i));
  if (i == count) return;
  V x = {};
  std::memcpy(&x, from + i, (count - i) * sizeof(float));
  char last[kWide * F::kSize];
  F::Write(last, x);
  std::memcpy(to + i * F::kSize, last, (count - i) * F::kSize);
}

// 2^x for x <= 0 and NaN, to about 1e-7 relative; 0 below 2^-126.
LLMD_INLINE V8 Exp2(V8 x) {
  const V8 magic = Splat8(0x1.8p23f);
  const V8 at_least = Select8(x < Splat8(-126.0f), Splat8(-126.0f), x);
  const V8 shifted = at_least + magic;  // its low bits are the nearest integer
  const V8 f = at_least - (shifted - magic);
  V8 y = Splat8(1.5252734e-5f);
  y = y * f + 1.5403530e-4f;
  y = y * f + 1.3333558e-3f;
  y = y * f + 9.6181291e-3f;
  y = y * f + 5.5504109e-2f;
  y = y * f + 0.24022651f;
  y = y * f + 0.69314718f;
  y = y * f + 1.0f;
  const V8 power = Floats8((Bits8(shifted) + (127 - 0x4b400000)) << 23);
  return Select8(x < Splat8(-126.0f), V8{}, y * power);
}
LLMD_INLINE float Exp2(float x) { return Exp2(Splat8(x))[0]; }

LLMD_INLINE V8 Halved(V8 x) { return x; }
#ifdef __AVX512BW__
LLMD_INLINE V8 Halved(V x) {
  return __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
         __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
}
#endif

LLMD_INLINE float Sum(V8 x) { return ((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7])); }

// Element i of the result is the sum of a[i].
LLMD_INLINE V8 Sums(const V (&wide)[8]) {
  V8 a[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) a[i] = Halved(wide[i]);
  V8 b[4], c[2];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    b[i] = __builtin_shufflevector(a[2 * i], a[2 * i + 1], 0, 8, 2, 10, 4, 12, 6, 14) +
           __builtin_shufflevector(a[2 * i], a[2 * i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    c[i] = __builtin_shufflevector(b[2 * i], b[2 * i + 1], 0, 1, 8, 9, 4, 5, 12, 13) +
           __builtin_shufflevector(b[2 * i], b[2 * i + 1], 2, 3, 10, 11, 6, 7, 14, 15);
  }
  return __builtin_shufflevector(c[0], c[1], 0, 1, 2, 3, 8, 9, 10, 11) +
         __builtin_shufflevector(c[0], c[1], 4, 5, 6, 7, 12, 13, 14, 15);
}

// Scores of 8 keys for one query.
LLMD_INLINE V8 Dots(const float* q, const float* k, int padded) {
  V sums[8] = {};
  for (int d = 0; d < padded; d += kWide) {
    const V x = Load(q + d);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) sums[i] += x * Load(k + i * padded + d);
  }
  return Sums(sums);
}

// o[kVectors * kWide] = o * factor + sum over keys [begin, end) of p[j] * v[j].
template <int kVectors>
LLMD_INLINE void Accumulate(float* o, float factor, const float* p, const float* v, int padded, int begin,
                            int end) {
  V sums[kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) sums[i] = Load(o + i * kWide) * factor;
  for (int j = begin; j < end; ++j) {
    const V weight = Splat(p[j]);
    const float* row = v + j * padded;
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) sums[i] += weight * Load(row + i * kWide);
  }
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) Store(o + i * kWide, sums[i]);
}

struct Block {
  int count;         // keys
  uint32_t bad = 0;  // keys on pages that are none
};

// One key after the other.
class Walk {
 public:
  LLMD_INLINE Walk(const Part& part, int64_t key)
      : part_(part), index_(key / part.cache->page_size), offset_(key % part.cache->page_size) {}

  LLMD_INLINE int32_t page() const { return part_.pages[index_]; }
  LLMD_INLINE void Next() {
    if (++offset_ == part_.cache->page_size) {
      offset_ = 0;
      ++index_;
    }
  }
  template <int kSize>
  LLMD_INLINE const char* Address(const void* base, const llmd_kv_strides& s) const {
    return static_cast<const char*>(base) +
           (page() * s.page + offset_ * s.token + part_.kv_head * s.head) * kSize;
  }
  template <int kSize>
  LLMD_INLINE void Prefetch() const {
    const llmd_kv_cache& cache = *part_.cache;
    if (part_.validate && (page() < 0 || page() >= cache.num_pages)) return;
    const char* k = Address<kSize>(cache.k, cache.k_strides);
    const char* v = Address<kSize>(cache.v, cache.v_strides);
    for (int i = 0; i < cache.head_dim * kSize; i += 64) {
      __builtin_prefetch(k + i, 0, 2);
      __builtin_prefetch(v + i, 0, 2);
    }
  }

 private:
  const Part& part_;
  int64_t index_, offset_;
};

// Keys [first, first + count) as floats.
template <llmd_dtype kType>
LLMD_INLINE Block LoadBlock(const Part& part, int64_t first, int count, int padded) {
  const llmd_kv_cache& cache = *part.cache;
  const int dim = cache.head_dim;
  Block block{count};
  Walk at(part, first);
  Walk ahead(part, first + kBlockKeys);  // the next block, to be near when it is needed
  for (int j = 0; j < count; ++j, at.Next(), ahead.Next()) {
    if (first + kBlockKeys + j < part.last) ahead.template Prefetch<Format<kType>::kSize>();
    const int32_t page = at.page();
    float* k = part.k + j * padded;
    float* v = part.v + j * padded;
    if (part.validate && (page < 0 || page >= cache.num_pages)) {
      block.bad |= uint32_t{1} << j;
      std::memset(k, 0, padded * sizeof(float));
      std::memset(v, 0, padded * sizeof(float));
    } else {
      ReadRow<kType>(at.template Address<Format<kType>::kSize>(cache.k, cache.k_strides), dim, k);
      ReadRow<kType>(at.template Address<Format<kType>::kSize>(cache.v, cache.v_strides), dim, v);
    }
  }
  return block;
}

template <llmd_dtype kType>
void PartOf(const Part& part) {
  const int padded = Padded(part.cache->head_dim);
  for (int r = 0; r < part.rows; ++r) {
    part.m[r] = -kInfinity;
    part.l[r] = 0;
  }
  std::memset(part.o, 0, static_cast<size_t>(part.rows) * padded * sizeof(float));
  const int64_t start = part.first / kBlockKeys * kBlockKeys;
  for (int64_t first = start; first < part.last; first += kBlockKeys) {
    // Keys that some row sees; those before part.first may be on pages that are gone.
    const int skip = first < part.first ? static_cast<int>(part.first - first) : 0;
    const int count = static_cast<int>(part.last - first < kBlockKeys ? part.last - first : kBlockKeys);
    Part shifted = part;
    shifted.k += skip * padded;
    shifted.v += skip * padded;
    if (skip > 0) std::memset(part.k, 0, static_cast<size_t>(skip) * padded * sizeof(float));
    const Block block = LoadBlock<kType>(shifted, first + skip, count - skip, padded);
    const int used = skip + block.count;
    const uint32_t bad = block.bad << skip;
    // Rows past the end are zero, so that no old scratch, which may be NaN, gets into a sum.
    if (used % 8 != 0) std::memset(part.k + used * padded, 0, (8 - used % 8) * padded * sizeof(float));

    for (int r = 0; r < part.rows; ++r) {
      const int64_t row_begin = part.begin[r] > first ? part.begin[r] - first : 0;
      const int64_t row_end = part.end[r] - first < used ? part.end[r] - first : used;
      if (row_begin >= row_end) continue;
      const int begin = static_cast<int>(row_begin);
      const int end = static_cast<int>(row_end);
      float* scores = part.scores;
      V8 greatest = Splat8(-kInfinity);
      for (int j = 0; j < kBlockKeys; j += 8) {
        V8 t = Splat8(-kInfinity);
        if (j < end && j + 8 > begin) {
          const I8 lane = I8{0, 1, 2, 3, 4, 5, 6, 7} + j;
          t = Select8((lane >= begin) & (lane < end), Dots(part.q + r * padded, part.k + j * padded, padded),
                      t);
          if (bad != 0)
            t = Select8(((I8{} + static_cast<int32_t>(bad)) >> lane & 1) != 0, Splat8(-kInfinity), t);
        }
        greatest = Max(t, greatest);
        Store(scores + j, t);
      }
      float m = part.m[r];
      for (int i = 0; i < 8; ++i) m = greatest[i] > m ? greatest[i] : m;
      const float top = m == -kInfinity ? 0.0f : m;
      const float factor = part.m[r] == m ? 1.0f : Exp2(part.m[r] - top);
      V8 sum = {};
      for (int j = 0; j < kBlockKeys; j += 8) {
        const V8 p = Exp2(Load<V8>(scores + j) - top);
        Store(scores + j, p);
        sum += p;
      }
      part.m[r] = m;
      part.l[r] = part.l[r] * factor + Sum(sum);
      float* o = part.o + r * padded;
      int d = 0;
      for (; d + 8 * kWide <= padded; d += 8 * kWide) {
        Accumulate<8>(o + d, factor, scores, part.v + d, padded, begin, end);
      }
      for (; d + 4 * kWide <= padded; d += 4 * kWide) {
        Accumulate<4>(o + d, factor, scores, part.v + d, padded, begin, end);
      }
      for (; d < padded; d += kWide) Accumulate<1>(o + d, factor, scores, part.v + d, padded, begin, end);
    }
  }
}

void PartOfCache(const Part& part) {
  switch (part.cache->dtype) {
    case LLMD_F32:
      return PartOf<LLMD_F32>(part);
    case LLMD_F16:
      return PartOf<LLMD_F16>(part);
    case LLMD_BF16:
      return PartOf<LLMD_BF16>(part);
    case LLMD_E4M3:
      return PartOf<LLMD_E4M3>(part);
  }
}

void Join(int padded, float* o, float* m, float* l, const float* part_o, float part_m, float part_l) {
  const float top = part_m > *m ? part_m : *m;
  const float guard = top == -kInfinity ? 0.0f : top;
  const float a = *m == top ? 1.0f : Exp2(*m - guard);
  const float b = part_m == top ? 1.0f : Exp2(part_m - guard);
  *m = top;
  *l = *l * a + part_l * b;
  for (int d = 0; d < padded; d += kWide) Store(o + d, Load(o + d) * a + Load(part_o + d) * b);
}

void ToFloats(llmd_dtype dtype, const void* from, int64_t count, float* to) {
  const auto* p = static_cast<const char*>(from);
  switch (dtype) {
    case LLMD_F32:
      return ReadRow<LLMD_F32>(p, count, to);
    case LLMD_F16:
      return ReadRow<LLMD_F16>(p, count, to);
    case LLMD_BF16:
      return ReadRow<LLMD_BF16>(p, count, to);
    case LLMD_E4M3:
      return ReadRow<LLMD_E4M3>(p, count, to);
  }
}

void FromFloats(llmd_dtype dtype, const float* from, int64_t count, void* to) {
  auto* p = static_cast<char*>(to);
  switch (dtype) {
    case LLMD_F32:
      return WriteRow<LLMD_F32>(from, count, p);
    case LLMD_F16:
      return WriteRow<LLMD_F16>(from, count, p);
    case LLMD_BF16:
      return WriteRow<LLMD_BF16>(from, count, p);
    case LLMD_E4M3:
      return WriteRow<LLMD_E4M3>(from, count, p);
  }
}

// silu(a) = a / (1 + exp(-a)), from exp of a negative number so that nothing overflows.
LLMD_INLINE V8 Silu(V8 a) {
  const V8 size = Floats8(Bits8(a) & 0x7fffffff);
  const V8 e = Exp2(size * -1.44269504f);
  const V8 top = Select8(a > V8{}, Splat8(1.0f), e);
  return a * top / (1.0f + e);
}

void SiluAndMul(const float* a, const float* b, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) Store(to + i, Silu(Load<V8>(a + i)) * Load<V8>(b + i));
  for (; i < count; ++i) to[i] = Silu(Splat8(a[i]))[0] * b[i];
}

float SumOfSquares(const float* x, int64_t count) {
  V sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kWide <= count; i += 4 * kWide) {
    for (int j = 0; j < 4; ++j) {
      const V y = Load(x + i + j * kWide);
      sums[j] += y * y;
    }
  }
  float sum = Sum(Halved((sums[0] + sums[1]) + (sums[2] + sums[3])));
  for (; i < count; ++i) sum += x[i] * x[i];
  return sum;
}

void Scale(const float* x, const float* weight, float factor, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + kWide <= count; i += kWide) Store(to + i, Load(x + i) * factor * Load(weight + i));
  for (; i < count; ++i) to[i] = x[i] * factor * weight[i];
}

constexpr KernelTable TableNamed(const char* name) {
  return {name, PartOfCache, Join, ToFloats, FromFloats, SiluAndMul, SumOfSquares, Scale};
}

}  // namespace
}  // namespace llmd::attention::cpu

#endif  // LLMD_ATTENTION_CPU_KERNELS_IMPL_H_
