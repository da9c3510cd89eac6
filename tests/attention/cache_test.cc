// append_kv, copy_blocks, gather_blocks, scatter_blocks and merge_states, on both CPU backends.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "src/attention/check.h"
#include "src/attention/numeric.h"
#include "tests/attention/attention_problem.h"

namespace llmd::attention {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

class CacheFunctions : public testing::TestWithParam<const llmd_attention_backend*> {
 protected:
  const llmd_attention_backend& backend() const { return *GetParam(); }
};
INSTANTIATE_TEST_SUITE_P(, CacheFunctions, testing::Values(llmd_attention_reference(), llmd_attention_cpu()),
                         [](const auto& info) { return std::string(info.param->name); });

float At(const llmd_kv_cache& cache, bool k, int64_t slot, int32_t head, int32_t d) {
  const llmd_kv_strides& s = k ? cache.k_strides : cache.v_strides;
  const int64_t at = slot / cache.page_size * s.page + slot % cache.page_size * s.token + head * s.head + d;
  return LoadElement(cache.dtype, k ? cache.k : cache.v, at);
}

// A fused QKV tensor of one query head and `heads` KV heads.
struct Fused {
  Fused(llmd_dtype dtype, int32_t tokens, int32_t heads, int32_t dim)
      : dtype(dtype), row((1 + 2 * heads) * dim) {
    data.resize(tokens * row * SizeOf(dtype));
    std::mt19937 random(17);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < tokens * row; ++i) StoreElement(dtype, data.data(), i, normal(random) * 3);
    k_at = dim;
    v_at = dim + heads * dim;
    head = dim;
  }
  float Load(bool k, int64_t t, int64_t h, int64_t d) const {
    return LoadElement(dtype, data.data(), t * row + (k ? k_at : v_at) + h * head + d);
  }
  void Into(llmd_append_kv_args& args) const {
    args.k = data.data() + k_at * SizeOf(dtype);
    args.v = data.data() + v_at * SizeOf(dtype);
    args.k_strides = args.v_strides = {row, head};
    args.dtype = dtype;
  }

  llmd_dtype dtype;
  int64_t row, k_at, v_at, head;
  std::vector<char> data;
};

TEST_P(CacheFunctions, AppendsBySlotAndByPosition) {
  for (const llmd_dtype from : {LLMD_F32, LLMD_F16, LLMD_BF16}) {
    for (const llmd_dtype to : {LLMD_F16, LLMD_BF16, LLMD_E4M3}) {
      for (const Layout layout : {Layout::kNhd, Layout::kHndPacked, Layout::kRows}) {
        for (const int way : {0, 1, 2}) {  // slots, block table, CSR
          constexpr int32_t kTokens = 5, kHeads = 3, kDim = 20, kPage = 4;
          Cache cache(layout, to, 6, kPage, kHeads, kDim);
          const float k_scales[] = {0.5f, 0.01f, 2.0f}, v_scales[] = {0.25f, 0.03f, 1.0f};
          cache.mutable_view().k_scale = k_scales;
          cache.mutable_view().v_scale = v_scales;
          cache.mutable_view().scale_stride = 1;
          const Fused qkv(from, kTokens, kHeads, kDim);
          llmd_append_kv_args args = {};
          args.cache = cache.view();
          qkv.Into(args);
          args.num_tokens = kTokens;
          // Token 2 is padding; the others lie at slots 23, 5, 8 and 0.
          const int64_t slots[] = {23, 5, -1, 8, 0};
          const int32_t batch_index[] = {0, 1, -1, 1, 0}, positions[] = {7, 1, 99, 4, 8};
          const int32_t table[] = {-1, 5, 0, 1, 2, -1}, indptr[] = {0, 3, 5}, flat[] = {-1, 5, 0, 1, 2};
          if (way == 0) {
            args.slots = slots;
          } else {
            args.batch_index = batch_index;
            args.positions = positions;
            args.pages = {way == 1 ? table : flat,     3,      way == 1 ? 3 : 5, nullptr,
                          way == 2 ? indptr : nullptr, nullptr};
          }
          int64_t error[3] = {};
          args.error = error;
          ASSERT_EQ(backend().append_kv(&args, nullptr), LLMD_OK) << backend().last_error();
          EXPECT_EQ(error[0], 0);
          for (int64_t slot = 0; slot < 24; ++slot) {
            const auto* token = std::find(slots, slots + kTokens, slot);
            for (int32_t h = 0; h < kHeads; ++h) {
              for (int32_t d = 0; d < kDim; ++d) {
                for (const bool k : {false, true}) {
                  const float got = At(args.cache, k, slot, h, d);
                  if (token == slots + kTokens) {
                    ASSERT_TRUE(std::isnan(got)) << slot;
                    continue;
                  }
                  float want = qkv.Load(k, token - slots, h, d);
                  if (to == LLMD_E4M3) want /= (k ? k_scales : v_scales)[h];
                  char stored[4];
                  StoreElement(to, stored, 0, want);
                  ASSERT_EQ(got, LoadElement(to, stored, 0)) << slot << " " << h << " " << d;
                }
              }
            }
          }
        }
      }
    }
  }
}

TEST_P(CacheFunctions, AppendReportsTheFirstBadPlaceAndSkipsIt) {
  constexpr int32_t kDim = 16;
  const Fused qkv(LLMD_BF16, 4, 1, kDim);
  const struct {
    bool slots;
    std::vector<int64_t> where;  // slots, or positions of request 0
    std::vector<int64_t> error;
  } cases[] = {
      {true, {3, 8, 1, 100}, {LLMD_BAD_SLOT, 1, 8}},
      {true, {3, 1, 0, int64_t{1} << 40}, {LLMD_BAD_SLOT, 3, int64_t{1} << 40}},
      {false, {1, 2, -5, 6}, {LLMD_BAD_LENGTH, 2, -5}},
      {false, {1, 2, 0, 6}, {LLMD_BAD_LENGTH, 3, 6}},  // past the list
      {false, {1, 5, 0, 2}, {LLMD_BAD_PAGE, 1, 77}},
  };
  for (const auto& one : cases) {
    Cache cache(Layout::kNhd, LLMD_BF16, 4, 2, 1, kDim);
    llmd_append_kv_args args = {};
    args.cache = cache.view();
    qkv.Into(args);
    args.num_tokens = 4;
    const std::vector<int32_t> positions(one.where.begin(), one.where.end());
    const int32_t batch_index[4] = {}, table[] = {1, 0, 77};
    if (one.slots) {
      args.slots = one.where.data();
    } else {
      args.batch_index = batch_index;
      args.positions = positions.data();
      args.pages = {table, 3, 3, nullptr, nullptr, nullptr};
    }
    std::vector<int64_t> error(3);
    args.error = error.data();
    ASSERT_EQ(backend().append_kv(&args, nullptr), LLMD_OK);
    EXPECT_EQ(error, one.error);
    EXPECT_FALSE(std::isnan(At(args.cache, true, 3, 0, 0)));  // the good ones are stored
    ASSERT_EQ(backend().append_kv(&args, nullptr), LLMD_OK);
    EXPECT_EQ(error, one.error);  // kept until the caller clears it
  }
}

TEST_P(CacheFunctions, Fp8Saturates) {
  Cache cache(Layout::kNhd, LLMD_E4M3, 1, 1, 1, 16);
  const float scale = 0.5f;
  cache.mutable_view().k_scale = &scale;
  std::vector<float> x(16, 1e6f);
  x[1] = -kInfinity;
  x[2] = 0.5f * 448;
  x[3] = std::nanf("");
  llmd_append_kv_args args = {};
  args.cache = cache.view();
  args.k = args.v = x.data();
  args.k_strides = args.v_strides = {16, 16};
  args.num_tokens = 1;
  const int64_t slot = 0;
  args.slots = &slot;
  ASSERT_EQ(backend().append_kv(&args, nullptr), LLMD_OK);
  EXPECT_EQ(At(args.cache, true, 0, 0, 0), 448);
  EXPECT_EQ(At(args.cache, true, 0, 0, 1), -448);
  EXPECT_EQ(At(args.cache, true, 0, 0, 2), 448);
  EXPECT_TRUE(std::isnan(At(args.cache, true, 0, 0, 3)));
  EXPECT_EQ(At(args.cache, false, 0, 0, 2), 224);  // without a scale
}

struct Pools {
  Pools(int layers, int64_t pages, int64_t stride) {
    std::mt19937 random(5);
    for (int i = 0; i < 2 * layers; ++i) {
      data.emplace_back(pages * stride / 8);
      for (uint64_t& x : data.back()) x = uint64_t{random()} << 32 | random();
      bases.push_back(data.back().data());
    }
  }
  std::vector<std::vector<uint64_t>> data;
  std::vector<void*> bases;
};

TEST_P(CacheFunctions, CopiesBlocksInAllLayers) {
  constexpr int64_t kStride = 96, kBlock = 80;
  Pools pools(3, 10, kStride);
  auto want = pools.data;
  const int64_t pairs[] = {0, 9, 3, 4, 0, 1, 7, 2};
  for (auto& pool : want) {
    char* p = reinterpret_cast<char*>(pool.data());
    for (int i = 0; i < 4; ++i)
      std::memcpy(p + pairs[2 * i + 1] * kStride, p + pairs[2 * i] * kStride, kBlock);
  }
  const llmd_copy_blocks_args args = {pools.bases.data(), 6, kStride, kBlock, pairs, 4};
  ASSERT_EQ(backend().copy_blocks(&args, nullptr), LLMD_OK) << backend().last_error();
  EXPECT_EQ(pools.data, want);
  const llmd_copy_blocks_args none = {};
  EXPECT_EQ(backend().copy_blocks(&none, nullptr), LLMD_OK);
}

TEST_P(CacheFunctions, GathersAndScattersBlocks) {
  constexpr int64_t kStride = 96, kBlock = 80;
  const Pools pools(2, 12, kStride);
  Pools target(2, 12, kStride);
  const auto before = target.data;
  const int64_t blocks[] = {11, 0, 5, 3}, to[] = {2, 10, 4, 7};
  std::vector<uint64_t> staging(4 * 4 * kBlock / 8 + 2, 0x55);
  llmd_gather_blocks_args args = {pools.bases.data(), 4, kStride, kBlock, blocks, 4, staging.data()};
  ASSERT_EQ(backend().gather_blocks(&args, nullptr), LLMD_OK) << backend().last_error();
  const auto* p = reinterpret_cast<const char*>(staging.data());
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      const auto* pool = static_cast<const char*>(pools.bases[j]);
      EXPECT_EQ(std::memcmp(p + (i * 4 + j) * kBlock, pool + blocks[i] * kStride, kBlock), 0);
    }
  }
  EXPECT_EQ(staging[staging.size() - 2], 0x55);
  args.bases = target.bases.data();
  args.blocks = to;
  ASSERT_EQ(backend().scatter_blocks(&args, nullptr), LLMD_OK);
  for (int j = 0; j < 4; ++j) {
    for (int64_t block = 0; block < 12; ++block) {
      const auto* found = std::find(to, to + 4, block);
      const auto* now = reinterpret_cast<const char*>(target.data[j].data()) + block * kStride;
      const auto* old = reinterpret_cast<const char*>(before[j].data()) + block * kStride;
      const auto* want = old;
      if (found != to + 4) want = static_cast<const char*>(pools.bases[j]) + blocks[found - to] * kStride;
      EXPECT_EQ(std::memcmp(now, want, kBlock), 0);
      EXPECT_EQ(std::memcmp(now + kBlock, old + kBlock, kStride - kBlock), 0);
    }
  }
}

// A request's cache goes to other pages by copy and by gather and scatter: attention sees the same.
TEST_P(CacheFunctions, MovedBlocksGiveTheSameAttention) {
  Case c;
  c.kv_heads = 2;
  c.layout = Layout::kNhdPacked;
  c.requests = {{45}};
  Problem problem(c, 3);
  const Result before = problem.Run(backend());
  const llmd_kv_cache cache = problem.args().cache;
  const int64_t page_bytes = cache.k_strides.page * 2;
  std::vector<int64_t> pages(problem.pages(0), problem.pages(0) + 3), free_pages;
  for (int64_t page = 0; page < cache.num_pages; ++page) {
    if (std::find(pages.begin(), pages.end(), page) == pages.end()) free_pages.push_back(page);
  }
  void* base = cache.k;
  // One page by copy (there are few free ones), all by staging, in another order.
  const int64_t pair[] = {pages[1], free_pages[0]};
  const llmd_copy_blocks_args copy = {&base, 1, page_bytes, page_bytes, pair, 1};
  ASSERT_EQ(backend().copy_blocks(&copy, nullptr), LLMD_OK) << backend().last_error();
  pages[1] = free_pages[0];
  std::vector<uint64_t> staging(3 * page_bytes / 8 + 1);
  llmd_gather_blocks_args move = {&base, 1, page_bytes, page_bytes, pages.data(), 3, staging.data()};
  ASSERT_EQ(backend().gather_blocks(&move, nullptr), LLMD_OK) << backend().last_error();
  const std::vector<int64_t> moved = {pages[2], pages[0], pages[1]};
  move.blocks = moved.data();
  ASSERT_EQ(backend().scatter_blocks(&move, nullptr), LLMD_OK);
  std::copy(moved.begin(), moved.end(), problem.pages(0));
  const Result after = problem.Run(backend());
  EXPECT_TRUE(after.o == before.o && after.lse == before.lse);
}

// --- merge_states ---

struct Partials {
  Partials(int32_t parts, int32_t heads, int32_t dim, uint32_t seed) : heads(heads), dim(dim) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (int i = 0; i < parts * heads * dim; ++i) o.push_back(normal(random));
    for (int i = 0; i < parts * heads; ++i) lse.push_back(normal(random) * 4);
  }
  int32_t heads, dim;
  std::vector<float> o, lse;
};

struct Merged {
  std::vector<float> o, lse;
};

Merged Merge(const llmd_attention_backend& backend, const Partials& partials, int32_t tokens,
             int32_t num_parts, const std::vector<int32_t>& part_start = {}) {
  Merged merged{std::vector<float>(tokens * partials.heads * partials.dim, NAN),
                std::vector<float>(tokens * partials.heads, NAN)};
  llmd_merge_states_args args = {};
  args.partial_o = partials.o.data();
  args.partial_lse = partials.lse.data();
  args.num_tokens = tokens;
  args.num_heads = partials.heads;
  args.head_dim = partials.dim;
  args.num_parts = num_parts;
  args.part_start = part_start.empty() ? nullptr : part_start.data();
  args.o = merged.o.data();
  args.o_strides = {partials.heads * partials.dim, partials.dim};
  args.lse = merged.lse.data();
  args.lse_strides = {partials.heads, 1};
  EXPECT_EQ(backend.merge_states(&args, nullptr), LLMD_OK) << backend.last_error();
  return merged;
}

TEST_P(CacheFunctions, MergeIsTheWeightedMean) {
  Partials two(2, 1, 3, 1);
  two.lse = {std::log(3.0f), 0.0f};
  const Merged merged = Merge(backend(), two, 1, 2);
  for (int d = 0; d < 3; ++d) EXPECT_NEAR(merged.o[d], 0.75f * two.o[d] + 0.25f * two.o[3 + d], 1e-6);
  EXPECT_NEAR(merged.lse[0], std::log(4.0), 1e-6);
}

TEST_P(CacheFunctions, MergeOfNothingIsEmpty) {
  Partials parts(2, 2, 4, 1);
  parts.lse = {-kInfinity, kInfinity, -kInfinity, -kInfinity};  // +inf is how some kernels say "empty"
  for (float& x : parts.o) x = NAN;
  for (const int32_t count : {2, 0}) {
    const Merged merged = Merge(backend(), parts, 1, count);
    for (const float x : merged.o) EXPECT_EQ(x, 0);
    for (const float x : merged.lse) EXPECT_EQ(x, -kInfinity);
  }
}

TEST_P(CacheFunctions, EmptyPartsAndFarPartsChangeNothing) {
  Partials parts(3, 1, 200, 2);
  parts.lse = {-kInfinity, 1.5f, kInfinity};
  std::fill_n(parts.o.begin(), 200, NAN);
  Merged merged = Merge(backend(), parts, 1, 3);
  EXPECT_EQ(std::memcmp(merged.o.data(), parts.o.data() + 200, 800), 0);  // one part: itself
  EXPECT_EQ(merged.lse[0], 1.5f);
  parts = Partials(2, 1, 8, 3);
  for (const float far : {1e4f, -1e4f}) {
    parts.lse = {far, 0};
    merged = Merge(backend(), parts, 1, 2);
    EXPECT_EQ(std::memcmp(merged.o.data(), parts.o.data() + (far > 0 ? 0 : 8), 32), 0);
    EXPECT_EQ(merged.lse[0], std::max(far, 0.0f));
  }
}

TEST_P(CacheFunctions, MergeIsAssociativeAndCommutative) {
  constexpr int32_t kHeads = 2, kDim = 5, kRow = kHeads * kDim;
  const Partials parts(6, kHeads, kDim, 4);
  const Merged all = Merge(backend(), parts, 1, 6);
  const auto pick = [&](std::vector<int> order) {
    Partials picked(0, kHeads, kDim, 0);
    for (const int i : order) {
      picked.o.insert(picked.o.end(), parts.o.begin() + i * kRow, parts.o.begin() + (i + 1) * kRow);
      picked.lse.insert(picked.lse.end(), parts.lse.begin() + i * kHeads,
                        parts.lse.begin() + (i + 1) * kHeads);
    }
    return Merge(backend(), picked, 1, static_cast<int32_t>(order.size()));
  };
  const auto expect_same = [&](const Merged& got) {
    for (size_t i = 0; i < all.o.size(); ++i) EXPECT_NEAR(got.o[i], all.o[i], 1e-5);
    for (size_t i = 0; i < all.lse.size(); ++i) EXPECT_NEAR(got.lse[i], all.lse[i], 1e-5);
  };
  expect_same(pick({5, 3, 0, 1, 4, 2}));
  const Merged left = pick({0, 4}), right = pick({1, 2, 3, 5});
  Partials halves(0, kHeads, kDim, 0);
  for (const Merged* half : {&left, &right}) {
    halves.o.insert(halves.o.end(), half->o.begin(), half->o.end());
    halves.lse.insert(halves.lse.end(), half->lse.begin(), half->lse.end());
  }
  expect_same(Merge(backend(), halves, 1, 2));
}

TEST_P(CacheFunctions, RaggedPartsAndTypes) {
  const Partials parts(7, 3, 130, 5);
  const std::vector<int32_t> start = {0, 2, 2, 7};
  const Merged ragged = Merge(backend(), parts, 3, 0, start);
  for (int t = 0; t < 3; ++t) {
    Partials own(0, 3, 130, 0);
    own.o.assign(parts.o.begin() + start[t] * 390, parts.o.begin() + start[t + 1] * 390);
    own.lse.assign(parts.lse.begin() + start[t] * 3, parts.lse.begin() + start[t + 1] * 3);
    const Merged one = Merge(*llmd_attention_reference(), own, 1, start[t + 1] - start[t]);
    for (int i = 0; i < 390; ++i) ASSERT_NEAR(ragged.o[t * 390 + i], one.o[i], 1e-5);
    for (int h = 0; h < 3; ++h) {
      const float got = ragged.lse[t * 3 + h];
      ASSERT_TRUE(got == one.lse[h] || std::abs(got - one.lse[h]) < 1e-5) << got;
    }
  }
  // Strided bf16 output of f16 partials, parts of a token num_tokens rows apart.
  std::vector<F16> half(2 * 2 * 8);
  for (size_t i = 0; i < half.size(); ++i) half[i] = FromFloat<F16>(static_cast<float>(i));
  const std::vector<float> lse(4, 0.0f);
  std::vector<BF16> o(2 * 10, BF16{0x7fff});
  llmd_merge_states_args args = {};
  args.partial_o = half.data();
  args.partial_lse = lse.data();
  args.partial_dtype = LLMD_F16;
  args.num_tokens = 2;
  args.num_heads = 1;
  args.head_dim = 8;
  args.num_parts = 2;
  args.o = o.data();
  args.o_strides = {10, 8};
  args.o_dtype = LLMD_BF16;
  ASSERT_EQ(backend().merge_states(&args, nullptr), LLMD_OK);
  for (int t = 0; t < 2; ++t) {
    for (int d = 0; d < 8; ++d) EXPECT_EQ(ToFloat(o[t * 10 + d]), t * 8 + d + 8);
    EXPECT_EQ(o[t * 10 + 8].bits, 0x7fff);
  }
}

// Attention over two disjoint lists of pages, merged, is attention over all.
TEST_P(CacheFunctions, MergedAttentionIsAttention) {
  Case c;
  c.o_dtype = LLMD_F32;
  c.page_size = 8;
  c.requests = {{64}};
  Problem problem(c, 8);
  const Result whole = problem.Run(backend());
  const int64_t row = problem.num_heads() * c.head_dim;
  for (const int32_t cut : {0, 1, 5, 8}) {  // pages of the first part
    Partials parts(2, problem.num_heads(), c.head_dim, 0);
    for (int side = 0; side < 2; ++side) {
      llmd_attention_args args = problem.args();
      const int32_t length = (side == 0 ? cut : 8 - cut) * 8;
      args.pages.pages += side * cut;
      args.pages.seq_lens = &length;
      std::vector<char> workspace = NewWorkspace(backend(), args.shape);
      args.workspace = workspace.data();
      args.workspace_bytes = workspace.size();
      args.o = parts.o.data() + side * row;
      args.o_strides = {row, c.head_dim};
      args.lse = parts.lse.data() + side * problem.num_heads();
      args.lse_strides = {problem.num_heads(), 1};
      ASSERT_EQ(backend().attention(&args, nullptr), LLMD_OK) << backend().last_error();
    }
    const Merged merged = Merge(backend(), parts, 1, 2);
    for (int64_t i = 0; i < row; ++i) EXPECT_NEAR(merged.o[i], whole.o[i], 1e-5);
    for (int32_t h = 0; h < problem.num_heads(); ++h) EXPECT_NEAR(merged.lse[h], whole.lse[h], 1e-5);
  }
}

}  // namespace
}  // namespace llmd::attention
