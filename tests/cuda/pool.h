// A paged cache in one of the layouts of types.h, on both sides, all poison.
#ifndef LLMD_TESTS_CUDA_POOL_H_
#define LLMD_TESTS_CUDA_POOL_H_

#include <memory>

#include "src/attention/check.h"
#include "tests/cuda/support.h"

namespace llmd::testing {

enum class Layout { kNhd, kHnd, kNhdPacked, kHndPacked, kRows };

struct PoolShape {
  Layout layout = Layout::kNhd;
  llmd_dtype dtype = LLMD_BF16;
  int64_t pages = 10;
  int page_size = 16;
  int heads = 2;
  int head_dim = 64;
  int scales = 0;  // of e4m3: 0 none, 1 one each for K and V, 2 one a head
  float least_scale = 0.01f, most_scale = 0.1f;
};

class Pool {
 public:
  Pool(const PoolShape& shape, std::mt19937_64& random) : shape_(shape) {
    memory_ = std::make_unique<Buffer>(2 * shape.pages * PageElements() * attention::SizeOf(shape.dtype));
    scales_ = std::make_unique<Buffer>(2 * shape.heads * sizeof(float));
    std::uniform_real_distribution<float> scale(shape.least_scale, shape.most_scale);
    for (int i = 0; i < 2 * shape.heads; ++i) scales_->host<float>()[i] = scale(random);
    scales_->Upload();
  }

  int64_t slots() const { return shape_.pages * shape_.page_size; }
  Buffer& memory() { return *memory_; }

  llmd_kv_cache View(Side side) {
    const int64_t p = shape_.page_size, h = shape_.heads, d = shape_.head_dim;
    const bool packed = shape_.layout == Layout::kNhdPacked || shape_.layout == Layout::kHndPacked;
    llmd_kv_cache cache = {};
    int64_t v = shape_.pages * PageElements();
    switch (shape_.layout) {
      case Layout::kNhd:
      case Layout::kNhdPacked:
        cache.k_strides = {p * h * d, h * d, d};
        break;
      case Layout::kHnd:
      case Layout::kHndPacked:
        cache.k_strides = {p * h * d, d, p * d};
        break;
      case Layout::kRows:
        cache.k_strides = {2 * p * h * d, 2 * d, 2 * p * d};
        v = d;
        break;
    }
    if (packed) {
      cache.k_strides.page *= 2;
      v = p * h * d;
    }
    cache.v_strides = cache.k_strides;
    cache.k = memory_->at(side);
    cache.v = memory_->as<char>(side) + v * static_cast<int64_t>(attention::SizeOf(shape_.dtype));
    cache.num_pages = shape_.pages;
    cache.page_size = shape_.page_size;
    cache.num_kv_heads = shape_.heads;
    cache.head_dim = shape_.head_dim;
    cache.dtype = shape_.dtype;
    if (shape_.scales != 0) {
      cache.k_scale = scales_->as<float>(side);
      cache.v_scale = scales_->as<float>(side) + shape_.heads;
      cache.scale_stride = shape_.scales - 1;
    }
    return cache;
  }

 private:
  int64_t PageElements() const { return int64_t{shape_.page_size} * shape_.heads * shape_.head_dim; }

  PoolShape shape_;
  std::unique_ptr<Buffer> memory_;
  std::unique_ptr<Buffer> scales_;
};

}  // namespace llmd::testing

#endif  // LLMD_TESTS_CUDA_POOL_H_
