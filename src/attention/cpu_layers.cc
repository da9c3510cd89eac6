#include <algorithm>
#include <cmath>
#include <cstring>

#include "src/attention/check.h"
#include "src/attention/cpu.h"
#include "src/attention/cpu_kernels.h"
#include "src/attention/cpu_pool.h"
#include "src/attention/cpu_store.h"
#include "src/attention/frequencies.h"

namespace llmd::attention::cpu {
namespace {

constexpr int64_t kGrain = 16 << 10;  // elements that are worth a thread
constexpr int kPairs = kMostHeadDim / 2;

// Sines and cosines of one token after the other.
class Rotation {
 public:
  explicit Rotation(const llmd_rope& rope) : rope_(rope), half_(rope.rotary_dim / 2) {
    for (int i = 0; i < half_; ++i) frequencies_[i] = Frequency(rope, i);
  }

  void SetPosition(int32_t position) {
    for (int i = 0; i < half_; ++i) {
      const double angle = position * frequencies_[i];
      cos_[i] = static_cast<float>(std::cos(angle));
      sin_[i] = static_cast<float>(std::sin(angle));
    }
  }

  void Apply(float* x) const {
    if (rope_.interleaved != 0) {
      for (int i = 0; i < half_; ++i) Turn(x[2 * i], x[2 * i + 1], i);
    } else {
      for (int i = 0; i < half_; ++i) Turn(x[i], x[i + half_], i);
    }
  }

 private:
  void Turn(float& a, float& b, int i) const {
    const float turned = a * cos_[i] - b * sin_[i];
    b = b * cos_[i] + a * sin_[i];
    a = turned;
  }

  const llmd_rope& rope_;
  const int half_;
  double frequencies_[kPairs];
  float cos_[kPairs], sin_[kPairs];
};

// Heads of one token, read to floats, rotated, and given to `store(head, x)`.
template <typename F>
void RotateHeads(const Rotation& rotation, llmd_dtype dtype, const void* in, llmd_token_strides strides,
                 int64_t token, int32_t heads, int32_t dim, F&& store) {
  const KernelTable& kernels = Kernels();
  float x[kMostHeadDim];
  for (int32_t h = 0; h < heads; ++h) {
    const int64_t at = (token * strides.token + h * strides.head) * static_cast<int64_t>(SizeOf(dtype));
    kernels.to_floats(dtype, static_cast<const char*>(in) + at, dim, x);
    rotation.Apply(x);
    store(h, x);
  }
}

void RotateTensor(const Rotation& rotation, llmd_dtype dtype, const void* in, llmd_token_strides strides,
                  void* out, llmd_token_strides out_strides, int64_t token, int32_t heads, int32_t dim) {
  RotateHeads(rotation, dtype, in, strides, token, heads, dim, [&](int32_t h, const float* x) {
    const int64_t at =
        (token * out_strides.token + h * out_strides.head) * static_cast<int64_t>(SizeOf(dtype));
    Kernels().from_floats(dtype, x, dim, static_cast<char*>(out) + at);
  });
}

}  // namespace

void Rope(const llmd_rope_args& args) {
  const int32_t kv_heads = args.k != nullptr ? args.num_kv_heads : 0;
  const int64_t elements = int64_t{args.num_q_heads + kv_heads} * args.head_dim;
  ParallelRanges(args.num_tokens, std::max<int64_t>(1, kGrain / elements), [&](int64_t begin, int64_t end) {
    Rotation rotation(args.rope);
    for (int64_t t = begin; t < end; ++t) {
      rotation.SetPosition(args.positions[t]);
      RotateTensor(rotation, args.dtype, args.q, args.q_strides, args.q_out, args.q_out_strides, t,
                   args.num_q_heads, args.head_dim);
      RotateTensor(rotation, args.dtype, args.k, args.k_strides, args.k_out, args.k_out_strides, t, kv_heads,
                   args.head_dim);
    }
  });
}

void RopeAppend(const llmd_rope_append_args& args) {
  const llmd_append_kv_args& append = args.append;
  const llmd_kv_cache& cache = append.cache;
  const KernelTable& kernels = Kernels();
  const int64_t elements = int64_t{args.num_q_heads + 2 * cache.num_kv_heads} * cache.head_dim;
  ReportBadPlace(append);
  ParallelRanges(append.num_tokens, std::max<int64_t>(1, kGrain / elements), [&](int64_t begin, int64_t end) {
    Rotation rotation(args.rope);
    for (int64_t t = begin; t < end; ++t) {
      rotation.SetPosition(append.positions[t]);
      RotateTensor(rotation, append.dtype, args.q, args.q_strides, args.q_out, args.q_out_strides, t,
                   args.num_q_heads, cache.head_dim);
      const Place place = PlaceOf(append, static_cast<int32_t>(t));
      if (place.skip) continue;
      RotateHeads(
          rotation, append.dtype, append.k, append.k_strides, t, cache.num_kv_heads, cache.head_dim,
          [&](int32_t h, float* x) { KSide(cache).Store(kernels, cache, place, h, 0, x, cache.head_dim); });
      float x[kMostHeadDim];
      for (int32_t h = 0; h < cache.num_kv_heads; ++h) {
        const int64_t at = (t * append.v_strides.token + h * append.v_strides.head) *
                           static_cast<int64_t>(SizeOf(append.dtype));
        kernels.to_floats(append.dtype, static_cast<const char*>(append.v) + at, cache.head_dim, x);
        VSide(cache).Store(kernels, cache, place, h, 0, x, cache.head_dim);
      }
    }
  });
}

void RmsNorm(const llmd_rms_norm_args& args) {
  const KernelTable& kernels = Kernels();
  const auto size = static_cast<int64_t>(SizeOf(args.dtype));
  ParallelRanges(args.num_rows, std::max<int64_t>(1, kGrain / args.size), [&](int64_t begin, int64_t end) {
    float x[kPiece], y[kPiece];
    for (int64_t r = begin; r < end; ++r) {
      const char* in = static_cast<const char*>(args.x) + r * args.x_stride * size;
      char* residual = nullptr;
      if (args.residual != nullptr) residual = static_cast<char*>(args.residual) + r * args.size * size;
      char* out = static_cast<char*>(args.y) + r * args.y_stride * size;
      float sum = 0;
      for (int32_t i = 0; i < args.size; i += kPiece) {
        const int count = std::min(kPiece, args.size - i);
        kernels.to_floats(args.dtype, in + i * size, count, x);
        if (residual != nullptr) {
          kernels.to_floats(args.dtype, residual + i * size, count, y);
          for (int j = 0; j < count; ++j) x[j] += y[j];
          kernels.from_floats(args.dtype, x, count, residual + i * size);
          kernels.to_floats(args.dtype, residual + i * size, count, x);
        }
        sum += kernels.sum_of_squares(x, count);
      }
      const float factor = 1 / std::sqrt(sum / static_cast<float>(args.size) + args.epsilon);
      const char* from = residual != nullptr ? residual : in;
      for (int32_t i = 0; i < args.size; i += kPiece) {
        const int count = std::min(kPiece, args.size - i);
        kernels.to_floats(args.dtype, from + i * size, count, x);
        kernels.to_floats(args.dtype, static_cast<const char*>(args.weight) + i * size, count, y);
        kernels.scale(x, y, factor, count, x);
        kernels.from_floats(args.dtype, x, count, out + i * size);
      }
    }
  });
}

void SiluAndMul(const llmd_silu_and_mul_args& args) {
  const KernelTable& kernels = Kernels();
  const auto size = static_cast<int64_t>(SizeOf(args.dtype));
  ParallelRanges(args.num_rows, std::max<int64_t>(1, kGrain / args.size), [&](int64_t begin, int64_t end) {
    float a[kPiece], b[kPiece];
    for (int64_t r = begin; r < end; ++r) {
      const char* in = static_cast<const char*>(args.x) + r * 2 * args.size * size;
      char* out = static_cast<char*>(args.y) + r * args.size * size;
      for (int64_t i = 0; i < args.size; i += kPiece) {
        const int count = static_cast<int>(std::min<int64_t>(kPiece, args.size - i));
        kernels.to_floats(args.dtype, in + i * size, count, a);
        kernels.to_floats(args.dtype, in + (args.size + i) * size, count, b);
        kernels.silu_and_mul(a, b, count, a);
        kernels.from_floats(args.dtype, a, count, out + i * size);
      }
    }
  });
}

}  // namespace llmd::attention::cpu
