// rope, rope_append, rms_norm and silu_and_mul, on both CPU backends.
#include <gtest/gtest.h>

#include <cmath>

#include "src/attention/check.h"
#include "src/attention/frequencies.h"
#include "src/attention/numeric.h"
#include "tests/attention/attention_problem.h"

namespace llmd::attention {
namespace {

constexpr llmd_dtype kTypes[] = {LLMD_F32, LLMD_F16, LLMD_BF16};

class Layers : public testing::TestWithParam<const llmd_attention_backend*> {
 protected:
  const llmd_attention_backend& backend() const { return *GetParam(); }
};
INSTANTIATE_TEST_SUITE_P(, Layers, testing::Values(llmd_attention_reference(), llmd_attention_cpu()),
                         [](const auto& info) { return std::string(info.param->name); });

// Relative rounding of a type.
double Epsilon(llmd_dtype dtype) { return dtype == LLMD_F32 ? 1e-6 : dtype == LLMD_F16 ? 0x1p-11 : 0x1p-8; }

class Tensor {
 public:
  Tensor(llmd_dtype dtype, int64_t count, uint32_t seed) : dtype_(dtype), data_(count * SizeOf(dtype)) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < count; ++i) StoreElement(dtype, data_.data(), i, normal(random));
  }
  void* data() { return data_.data(); }
  double at(int64_t i) const { return LoadElement(dtype_, data_.data(), i); }
  void set(int64_t i, float x) { StoreElement(dtype_, data_.data(), i, x); }

 private:
  llmd_dtype dtype_;
  std::vector<char> data_;
};

TEST(Frequency, Llama3Scaling) {
  // Llama-3.2-3B: head dim 128, theta 500000, factor 32, low 1, high 4, 8192 positions.
  const llmd_rope rope = {500000, 128, 0, 32, 1, 4, 8192};
  const struct {
    int i;
    double frequency;
  } golden[] = {{0, 1},
                {1, 0.814617234},
                {16, 0.0376060309},
                {28, 0.00321144599},  // the last that is kept
                {29, 0.002118407},
                {30, 0.00129054793},
                {31, 7.62541203e-4},
                {32, 4.29556797e-4},
                {33, 2.22763501e-4},
                {34, 9.7082878e-5},
                {35, 2.38905309e-5},  // from here divided by 32
                {63, 7.67231497e-8}};
  for (const auto& one : golden) {
    EXPECT_NEAR(Frequency(rope, one.i) / one.frequency, 1, 1e-7) << one.i;  // the golden values are floats
  }
}

TEST_P(Layers, RopeTurnsPairs) {
  for (const llmd_dtype dtype : kTypes) {
    for (const int interleaved : {0, 1}) {
      for (const bool in_place : {false, true}) {
        constexpr int kTokens = 3, kHeads = 2, kKvHeads = 1, kDim = 24, kRotary = 16;
        Tensor q(dtype, kTokens * kHeads * kDim, 1), k(dtype, kTokens * kKvHeads * kDim, 2);
        const Tensor q_before = q, k_before = k;
        Tensor q_out(dtype, kTokens * kHeads * kDim, 3), k_out(dtype, kTokens * kKvHeads * kDim, 4);
        const int32_t positions[] = {0, 1, 131071};
        llmd_rope_args args = {};
        args.rope = {10000, kRotary, interleaved, 0, 0, 0, 0};
        args.dtype = dtype;
        args.num_tokens = kTokens;
        args.num_q_heads = kHeads;
        args.num_kv_heads = kKvHeads;
        args.head_dim = kDim;
        args.positions = positions;
        args.q = q.data();
        args.k = k.data();
        args.q_out = in_place ? q.data() : q_out.data();
        args.k_out = in_place ? k.data() : k_out.data();
        args.q_strides = args.q_out_strides = {kHeads * kDim, kDim};
        args.k_strides = args.k_out_strides = {kKvHeads * kDim, kDim};
        ASSERT_EQ(backend().rope(&args, nullptr), LLMD_OK) << backend().last_error();
        const auto expect = [&](const Tensor& before, const Tensor& after, int heads) {
          for (int t = 0; t < kTokens; ++t) {
            for (int h = 0; h < heads; ++h) {
              const int64_t row = (t * heads + h) * kDim;
              for (int i = 0; i < kRotary / 2; ++i) {
                const int a = interleaved != 0 ? 2 * i : i,
                          b = interleaved != 0 ? 2 * i + 1 : i + kRotary / 2;
                const double angle = positions[t] * std::pow(10000.0, -2.0 * i / kRotary);
                const double x = before.at(row + a), y = before.at(row + b);
                const double limit = Epsilon(dtype) * (std::abs(x) + std::abs(y));
                ASSERT_NEAR(after.at(row + a), x * std::cos(angle) - y * std::sin(angle), limit);
                ASSERT_NEAR(after.at(row + b), y * std::cos(angle) + x * std::sin(angle), limit);
              }
              for (int d = kRotary; d < kDim; ++d) ASSERT_EQ(after.at(row + d), before.at(row + d));
            }
          }
        };
        expect(q_before, in_place ? q : q_out, kHeads);
        expect(k_before, in_place ? k : k_out, kKvHeads);
      }
    }
  }
}

TEST_P(Layers, RopeWithoutK) {
  Tensor q(LLMD_F32, 8, 1);
  const int32_t position = 0;
  llmd_rope_args args = {};
  args.rope = {10000, 8, 0, 0, 0, 0, 0};
  args.num_tokens = args.num_q_heads = 1;
  args.head_dim = 8;
  args.positions = &position;
  args.q = args.q_out = q.data();
  args.q_strides = args.q_out_strides = {8, 8};
  EXPECT_EQ(backend().rope(&args, nullptr), LLMD_OK) << backend().last_error();
}

TEST_P(Layers, RopeAppendIsRopeThenAppend) {
  constexpr int kTokens = 4, kHeads = 3, kKvHeads = 2, kDim = 32;
  const int32_t positions[] = {5, 6, 7, 0};
  const int64_t slots[] = {9, 2, -1, 4};
  for (const llmd_dtype to : {LLMD_BF16, LLMD_E4M3}) {
    Tensor q(LLMD_F32, kTokens * kHeads * kDim, 1), k(LLMD_F32, kTokens * kKvHeads * kDim, 2),
        v(LLMD_F32, kTokens * kKvHeads * kDim, 3);
    Tensor q_out = q, k_out = k, fused_q = q;
    const float scale = 0.1f;
    Cache separate(Layout::kNhd, to, 3, 4, kKvHeads, kDim), fused = separate;
    separate = Cache(Layout::kNhd, to, 3, 4, kKvHeads, kDim);
    fused = Cache(Layout::kNhd, to, 3, 4, kKvHeads, kDim);
    const auto prepare = [&](Cache& cache) {
      cache.mutable_view().k_scale = cache.mutable_view().v_scale = &scale;
      llmd_append_kv_args append = {};
      append.cache = cache.view();
      append.v = v.data();
      append.k_strides = append.v_strides = {kKvHeads * kDim, kDim};
      append.num_tokens = kTokens;
      append.slots = slots;
      append.positions = positions;
      return append;
    };
    llmd_rope_args rope = {};
    rope.rope = {500000, kDim, 0, 8, 1, 4, 8192};
    rope.num_tokens = kTokens;
    rope.num_q_heads = kHeads;
    rope.num_kv_heads = kKvHeads;
    rope.head_dim = kDim;
    rope.positions = positions;
    rope.q = q.data();
    rope.k = k.data();
    rope.q_out = q_out.data();
    rope.k_out = k_out.data();
    rope.q_strides = rope.q_out_strides = {kHeads * kDim, kDim};
    rope.k_strides = rope.k_out_strides = {kKvHeads * kDim, kDim};
    ASSERT_EQ(backend().rope(&rope, nullptr), LLMD_OK) << backend().last_error();
    llmd_append_kv_args append = prepare(separate);
    append.k = k_out.data();
    ASSERT_EQ(backend().append_kv(&append, nullptr), LLMD_OK) << backend().last_error();

    llmd_rope_append_args both = {};
    both.rope = rope.rope;
    both.append = prepare(fused);
    both.append.k = k.data();
    both.num_q_heads = kHeads;
    both.q = q.data();
    both.q_strides = both.q_out_strides = rope.q_strides;
    both.q_out = fused_q.data();
    ASSERT_EQ(backend().rope_append(&both, nullptr), LLMD_OK) << backend().last_error();
    for (int i = 0; i < kTokens * kHeads * kDim; ++i) ASSERT_EQ(fused_q.at(i), q_out.at(i));
    // Bytes from the aligned base on; both pools were NaN where nothing was stored.
    const size_t bytes = 2 * 3 * 4 * kKvHeads * kDim * SizeOf(to);
    const std::string a(static_cast<const char*>(append.cache.k), bytes);
    const std::string b(static_cast<const char*>(both.append.cache.k), bytes);
    EXPECT_TRUE(a == b);
  }
}

TEST_P(Layers, RmsNormOfKnownRows) {
  const float x[] = {3, 4, 0, 0, 1, 1, 1, 1};
  const float weight[] = {1, 2, 3, 4};
  float y[8];
  llmd_rms_norm_args args = {LLMD_F32, 2, 4, x, 4, nullptr, weight, 0, y, 4};
  ASSERT_EQ(backend().rms_norm(&args, nullptr), LLMD_OK) << backend().last_error();
  for (int i = 0; i < 4; ++i) {
    EXPECT_NEAR(y[i], x[i] * weight[i] / 2.5, 1e-6);
    EXPECT_NEAR(y[4 + i], weight[i], 1e-6);
  }
}

TEST_P(Layers, RmsNormOfRandomRows) {
  for (const llmd_dtype dtype : kTypes) {
    for (const int32_t size : {1, 7, 128, 129, 3072}) {
      for (const bool with_residual : {false, true}) {
        for (const bool in_place : {false, true}) {
          constexpr int kRows = 3;
          const int64_t stride = size + 5;
          Tensor x(dtype, kRows * stride, 1), weight(dtype, size, 2), residual(dtype, kRows * size, 3),
              y(dtype, kRows * stride, 4);
          const Tensor x_before = x, residual_before = residual;
          llmd_rms_norm_args args = {dtype,         kRows,  size,
                                     x.data(),      stride, with_residual ? residual.data() : nullptr,
                                     weight.data(), 1e-5f,  in_place ? x.data() : y.data(),
                                     stride};
          ASSERT_EQ(backend().rms_norm(&args, nullptr), LLMD_OK) << backend().last_error();
          const Tensor& out = in_place ? x : y;
          for (int r = 0; r < kRows; ++r) {
            double sum = 0;
            std::vector<double> row(size);
            for (int i = 0; i < size; ++i) {
              row[i] = x_before.at(r * stride + i);
              if (with_residual) {
                char stored[4];
                StoreElement(dtype, stored, 0, static_cast<float>(row[i] + residual_before.at(r * size + i)));
                row[i] = LoadElement(dtype, stored, 0);
                ASSERT_EQ(residual.at(r * size + i), row[i]);
              }
              sum += row[i] * row[i];
            }
            for (int i = 0; i < size; ++i) {
              const double want = row[i] * weight.at(i) / std::sqrt(sum / size + 1e-5f);
              ASSERT_NEAR(out.at(r * stride + i), want, 2 * Epsilon(dtype) * std::abs(want) + 1e-7);
            }
          }
        }
      }
    }
  }
}

TEST_P(Layers, SiluAndMul) {
  for (const llmd_dtype dtype : kTypes) {
    for (const int32_t size : {1, 8, 130, 500}) {
      Tensor x(dtype, 3 * 2 * size, 1), y(dtype, 3 * size, 2);
      for (int i = 0; i < size; i += 3) x.set(i, 8.0f * (i % 5 - 2));
      const float extremes[] = {-1e4f, 1e4f, -100, 100, 0};
      for (int i = 0; i < std::min(size, 5); ++i) x.set(2 * size + i, extremes[i]);
      const llmd_silu_and_mul_args args = {dtype, 3, size, x.data(), y.data()};
      ASSERT_EQ(backend().silu_and_mul(&args, nullptr), LLMD_OK) << backend().last_error();
      for (int r = 0; r < 3; ++r) {
        for (int i = 0; i < size; ++i) {
          const double a = x.at(r * 2 * size + i), b = x.at(r * 2 * size + size + i);
          const double want = a / (1 + std::exp(-a)) * b;
          ASSERT_NEAR(y.at(r * size + i), want, Epsilon(dtype) * std::abs(want) + 1e-7) << a;
        }
      }
    }
  }
}

}  // namespace
}  // namespace llmd::attention
