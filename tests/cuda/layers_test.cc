// rms_norm and silu_and_mul against the reference.
#include <algorithm>

#include "src/attention/check.h"
#include "src/attention/numeric.h"
#include "tests/cuda/support.h"

namespace llmd::testing {
namespace {

struct NormCase {
  llmd_dtype dtype = LLMD_BF16;
  int64_t rows = 3;
  int size = 4096;
  bool residual = false;
  bool in_place = false;
  int gap = 0;    // elements between rows of x and y
  int shift = 0;  // elements by which x and y begin past an aligned address
};

class LayersTest : public DeviceTest {
 protected:
  void Norm(const NormCase& c) {
    SCOPED_TRACE(std::string(attention::NameOf(c.dtype)) + " rows " + std::to_string(c.rows) + " size " +
                 std::to_string(c.size) + (c.residual ? " residual" : "") + (c.in_place ? " in place" : "") +
                 " gap " + std::to_string(c.gap) + " shift " + std::to_string(c.shift));
    const int64_t size = static_cast<int64_t>(attention::SizeOf(c.dtype)), stride = c.size + c.gap;
    Buffer x((c.rows * stride + c.shift) * size), y((c.rows * stride + c.shift) * size);
    Buffer residual(c.rows * c.size * size), weight(c.size * size);
    FillNormal(x, c.dtype, random_, 2);
    FillNormal(residual, c.dtype, random_, 4);
    FillNormal(weight, c.dtype, random_);
    for (Buffer* buffer : {&x, &residual, &weight}) buffer->Upload();
    Buffer& out = c.in_place ? x : y;
    RunBoth(&llmd_attention_backend::rms_norm, [&](Side side) {
      llmd_rms_norm_args args = {};
      args.dtype = c.dtype;
      args.num_rows = c.rows;
      args.size = c.size;
      args.x = x.as<char>(side) + c.shift * size;
      args.x_stride = args.y_stride = stride;
      args.residual = c.residual ? residual.at(side) : nullptr;
      args.weight = weight.at(side);
      args.epsilon = 1e-5f;
      args.y = out.as<char>(side) + c.shift * size;
      return args;
    });
    ExpectClose(out, c.dtype, stride, ToleranceOf(c.dtype), "y");
    ExpectSame(residual, "the residual");
  }

  void Silu(llmd_dtype dtype, int64_t rows, int size, int shift) {
    SCOPED_TRACE(std::string(attention::NameOf(dtype)) + " rows " + std::to_string(rows) + " size " +
                 std::to_string(size) + " shift " + std::to_string(shift));
    const int64_t bytes = static_cast<int64_t>(attention::SizeOf(dtype));
    Buffer x((rows * 2 * size + shift) * bytes), y((rows * size + shift) * bytes);
    FillNormal(x, dtype, random_, 4);
    attention::StoreElement(dtype, x.at(Side::kHost), shift, -200.0f);
    x.Upload();
    RunBoth(&llmd_attention_backend::silu_and_mul, [&](Side side) {
      llmd_silu_and_mul_args args = {};
      args.dtype = dtype;
      args.num_rows = rows;
      args.size = size;
      args.x = x.as<char>(side) + shift * bytes;
      args.y = y.as<char>(side) + shift * bytes;
      return args;
    });
    ExpectClose(y, dtype, size, ToleranceOf(dtype), "y");
  }
};

TEST_F(LayersTest, SmallNorm) { Norm({.residual = true}); }

TEST_F(LayersTest, SmallHeadNorm) { Norm({.rows = 37, .size = 128, .in_place = true}); }

TEST_F(LayersTest, SmallOddNorm) { Norm({.size = 131, .residual = true, .shift = 1}); }

TEST_F(LayersTest, NormSizes) {
  for (llmd_dtype dtype : {LLMD_F32, LLMD_F16, LLMD_BF16}) {
    for (int size :
         {1, 7, 8, 24, 64, 100, 128, 256, 264, 1000, 2048, 4096, 5120, 8192, 16384, 18432, 40000}) {
      for (bool residual : {false, true}) {
        Norm({.dtype = dtype, .rows = 5, .size = size, .residual = residual, .in_place = size % 3 == 0});
      }
    }
  }
}

TEST_F(LayersTest, NormManyRows) {
  Norm({.rows = 40001, .size = 128, .gap = 128});
  Norm({.rows = 40001, .size = 64, .residual = true});
  Norm({.rows = 700, .size = 4096, .residual = true, .gap = 8});
  Norm({.rows = 700, .size = 8192, .in_place = true});
  Norm({.dtype = LLMD_F32, .rows = 300, .size = 8192, .residual = true});
  Norm({.rows = 300, .size = 1001, .residual = true, .gap = 2});
}

TEST_F(LayersTest, SmallSilu) { Silu(LLMD_BF16, 3, 64, 0); }

TEST_F(LayersTest, SmallOddSilu) { Silu(LLMD_F16, 3, 37, 1); }

TEST_F(LayersTest, SiluSizes) {
  for (llmd_dtype dtype : {LLMD_F32, LLMD_F16, LLMD_BF16}) {
    for (int size : {1, 8, 100, 1000, 1001, 14336}) {
      for (int shift : {0, 1}) {
        Silu(dtype, 1, size, shift);
        Silu(dtype, 77, size, shift);
      }
    }
  }
}

TEST_F(LayersTest, SameBitsEachTime) {
  const int rows = 200, size = 4096;
  Buffer x(rows * size * 2), weight(size * 2), y(rows * size * 2);
  FillNormal(x, LLMD_BF16, random_);
  FillNormal(weight, LLMD_BF16, random_);
  x.Upload();
  weight.Upload();
  std::vector<unsigned char> first;
  for (int i = 0; i < Repetitions(20); ++i) {
    y.Upload();
    RunDevice(&llmd_attention_backend::rms_norm, [&](Side side) {
      llmd_rms_norm_args args = {};
      args.dtype = LLMD_BF16;
      args.num_rows = rows;
      args.size = size;
      args.x = x.at(side);
      args.x_stride = args.y_stride = size;
      args.weight = weight.at(side);
      args.epsilon = 1e-6f;
      args.y = y.at(side);
      return args;
    });
    if (first.empty()) first = y.Download();
    EXPECT_EQ(y.Download(), first);
  }
}

}  // namespace
}  // namespace llmd::testing
