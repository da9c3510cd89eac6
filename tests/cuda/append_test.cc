// append_kv against the reference: the whole pool must come out with the same bytes, written and untouched
// ones.
#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>

#include "src/attention/numeric.h"
#include "tests/cuda/pool.h"
#include "tests/cuda/support.h"

namespace llmd::testing {
namespace {

enum class Placing { kSlots, kTable, kCsr };

struct AppendCase {
  PoolShape pool;
  llmd_dtype dtype = LLMD_BF16;
  int tokens = 20;
  Placing placing = Placing::kSlots;
  int shift = 0;  // elements by which k and v begin past an aligned address
};

class AppendTest : public DeviceTest {
 protected:
  // New tokens of a fused [T, (Hq + 2 Hkv) * D] tensor, placed at random.
  void Run(const AppendCase& c) {
    SCOPED_TRACE(std::string(attention::NameOf(c.dtype)) + " to " + attention::NameOf(c.pool.dtype) +
                 " layout " + std::to_string(static_cast<int>(c.pool.layout)) + " placing " +
                 std::to_string(static_cast<int>(c.placing)) + " tokens " + std::to_string(c.tokens) + " D " +
                 std::to_string(c.pool.head_dim) + " shift " + std::to_string(c.shift));
    Pool pool(c.pool, random_);
    ASSERT_LE(c.tokens, pool.slots());
    const int64_t d = c.pool.head_dim, row = 4 * c.pool.heads * d;
    const int64_t size = static_cast<int64_t>(attention::SizeOf(c.dtype));
    Buffer qkv((c.tokens * row + c.shift) * size);
    FillNormal(qkv, c.dtype, random_, 3);
    constexpr float kSpecial[] = {1e9f, -1e9f, -0.0f, 0.0f, INFINITY, -INFINITY, 1e-30f, -1e-30f};
    for (int64_t i = 0; i < std::min<int64_t>(d, std::size(kSpecial)); ++i)
      attention::StoreElement(c.dtype, qkv.at(Side::kHost), c.shift + 2 * c.pool.heads * d + i, kSpecial[i]);
    qkv.Upload();

    const std::vector<int64_t> order = Permutation(pool.slots(), random_);
    Buffer slots(c.tokens * sizeof(int64_t)), batch(c.tokens * sizeof(int32_t)),
        positions(c.tokens * sizeof(int32_t));
    // Request b has every page p with p % 3 == b, in a random order, as a row of the table or a run of the
    // list.
    const int64_t pages = c.pool.pages, requests = 3, stride = pages + 5;
    Buffer table(requests * stride * sizeof(int32_t)), indptr((requests + 1) * sizeof(int32_t));
    Buffer last(requests * sizeof(int32_t));
    std::vector<std::array<int32_t, 2>> place(pages);  // request and index of a page
    int32_t used = 0;
    for (int64_t b = 0; b < requests; ++b) {
      indptr.host<int32_t>()[b] = used;
      int32_t index = 0;
      for (const int64_t page : Permutation(pages, random_)) {
        if (page % requests != b) continue;
        place[page] = {static_cast<int32_t>(b), index};
        const int64_t at = c.placing == Placing::kCsr ? used : b * stride + index;
        table.host<int32_t>()[at] = static_cast<int32_t>(page);
        ++index;
        ++used;
      }
    }
    indptr.host<int32_t>()[requests] = used;
    for (int t = 0; t < c.tokens; ++t) {
      const int64_t page = order[t] / c.pool.page_size, offset = order[t] % c.pool.page_size;
      const bool padding = t % 7 == 5;
      slots.host<int64_t>()[t] = padding ? -1 : order[t];
      batch.host<int32_t>()[t] = padding ? -1 : place[page][0];
      positions.host<int32_t>()[t] =
          padding ? 1 << 30 : static_cast<int32_t>(place[page][1] * c.pool.page_size + offset);
    }
    for (Buffer* buffer : {&slots, &batch, &positions, &table, &indptr, &last}) buffer->Upload();

    RunBoth(&llmd_attention_backend::append_kv, [&](Side side) {
      llmd_append_kv_args args = {};
      args.cache = pool.View(side);
      args.k = qkv.as<char>(side) + (c.shift + 2 * c.pool.heads * d) * size;
      args.v = qkv.as<char>(side) + (c.shift + 3 * c.pool.heads * d) * size;
      args.k_strides = args.v_strides = {row, d};
      args.dtype = c.dtype;
      args.num_tokens = c.tokens;
      if (c.placing == Placing::kSlots) {
        args.slots = slots.as<int64_t>(side);
        return args;
      }
      args.batch_index = batch.as<int32_t>(side);
      args.positions = positions.as<int32_t>(side);
      args.pages.pages = table.as<int32_t>(side);
      args.pages.max_pages = static_cast<int32_t>(c.placing == Placing::kCsr ? used : pages);
      args.pages.row_stride = stride;
      if (c.placing == Placing::kCsr) {
        args.pages.indptr = indptr.as<int32_t>(side);
        args.pages.last_page_len = last.as<int32_t>(side);
      }
      return args;
    });
    ExpectSame(pool.memory(), "the pool");
  }
};

TEST_F(AppendTest, Small) { Run({}); }

TEST_F(AppendTest, SmallFp8) { Run({.pool = {.dtype = LLMD_E4M3, .scales = 2}, .placing = Placing::kTable}); }

TEST_F(AppendTest, SmallScalar) {
  Run({.pool = {.head_dim = 24}, .dtype = LLMD_F32, .tokens = 5, .shift = 1});
}

TEST_F(AppendTest, EveryTypeLayoutAndPlacing) {
  for (llmd_dtype dtype : {LLMD_F32, LLMD_F16, LLMD_BF16}) {
    for (llmd_dtype cache : {LLMD_F16, LLMD_BF16, LLMD_E4M3}) {
      for (Layout layout :
           {Layout::kNhd, Layout::kHnd, Layout::kNhdPacked, Layout::kHndPacked, Layout::kRows}) {
        for (Placing placing : {Placing::kSlots, Placing::kTable, Placing::kCsr}) {
          Run({.pool = {.layout = layout, .dtype = cache, .heads = 3, .scales = cache == LLMD_E4M3 ? 2 : 0},
               .dtype = dtype,
               .tokens = 70,
               .placing = placing});
        }
      }
    }
  }
}

TEST_F(AppendTest, Shapes) {
  for (int head_dim : {8, 16, 64, 80, 96, 128, 256}) {
    for (int heads : {1, 5, 8}) {
      for (int page_size : {1, 7, 16, 64}) {
        for (int shift : {0, 1}) {
          Run({.pool = {.dtype = head_dim % 16 == 0 ? LLMD_E4M3 : LLMD_BF16,
                        .page_size = page_size,
                        .heads = heads,
                        .head_dim = head_dim,
                        .scales = head_dim % 32 == 0 ? 1 : 0},
               .tokens = std::min(33, 10 * page_size),
               .shift = shift});
        }
      }
    }
  }
}

TEST_F(AppendTest, ManyTokens) {  // several pieces a thread
  Run({.pool = {.pages = 300, .heads = 8, .head_dim = 128}, .tokens = 4700});
  Run({.pool = {.dtype = LLMD_E4M3, .pages = 300, .heads = 8, .head_dim = 128, .scales = 2}, .tokens = 4700});
}

TEST_F(AppendTest, SmallErrors) {
  PoolShape shape;
  Pool pool(shape, random_);
  const int tokens = 6;
  const int64_t row = shape.heads * shape.head_dim;
  Buffer k(tokens * row * 2), slots(tokens * 8), error(3 * 8), batch(tokens * 4), positions(tokens * 4),
      table(4 * 4);
  FillNormal(k, LLMD_BF16, random_);
  k.Upload();
  struct Bad {
    bool by_slot;
    int64_t slot;
    int32_t position, page;
    int64_t kind, value;
  };
  const int64_t end = pool.slots();
  for (const Bad& bad : {Bad{true, end, 0, 0, LLMD_BAD_SLOT, end},
                         Bad{true, int64_t{1} << 40, 0, 0, LLMD_BAD_SLOT, int64_t{1} << 40},
                         Bad{false, 0, 64, 0, LLMD_BAD_LENGTH, 64}, Bad{false, 0, -5, 0, LLMD_BAD_LENGTH, -5},
                         Bad{false, 0, 3, 10, LLMD_BAD_PAGE, 10}, Bad{false, 0, 3, -2, LLMD_BAD_PAGE, -2}}) {
    for (int t = 0; t < tokens; ++t) {
      slots.host<int64_t>()[t] = 20 + t;
      batch.host<int32_t>()[t] = 0;
      positions.host<int32_t>()[t] = 20 + t;
    }
    const int32_t pages[4] = {bad.by_slot ? 0 : bad.page, 3, 4, 5};
    std::copy(pages, pages + 4, table.host<int32_t>());
    slots.host<int64_t>()[2] = bad.slot;
    positions.host<int32_t>()[2] = bad.position;
    std::fill_n(error.host<int64_t>(), 3, 0);
    for (Buffer* buffer : {&slots, &batch, &positions, &table, &error}) buffer->Upload();
    RunBoth(&llmd_attention_backend::append_kv, [&](Side side) {
      llmd_append_kv_args args = {};
      args.cache = pool.View(side);
      args.k = args.v = k.at(side);
      args.k_strides = args.v_strides = {row, shape.head_dim};
      args.dtype = LLMD_BF16;
      args.num_tokens = tokens;
      args.error = error.as<int64_t>(side);
      if (bad.by_slot) {
        args.slots = slots.as<int64_t>(side);
        return args;
      }
      args.batch_index = batch.as<int32_t>(side);
      args.positions = positions.as<int32_t>(side);
      args.pages.pages = table.as<int32_t>(side);
      args.pages.max_pages = 4;
      args.pages.row_stride = 4;
      return args;
    });
    EXPECT_EQ(error.host<int64_t>()[0], bad.kind);
    EXPECT_EQ(error.host<int64_t>()[1], 2);
    EXPECT_EQ(error.host<int64_t>()[2], bad.value);
    ExpectSame(error, "the error word");
    ExpectSame(pool.memory(), "the pool");
  }
}

TEST_F(AppendTest, LastPagePastTwoToThe32Bytes) {
  // Two pages of which the second begins 2^31 elements in: the same page of a small pool says what is right.
  PoolShape shape = {.layout = Layout::kNhdPacked, .pages = 2, .heads = 8, .head_dim = 128};
  Pool small(shape, random_);
  llmd_kv_cache far = small.View(Side::kDevice);
  const int64_t page_bytes = 2 * far.k_strides.page;
  far.k_strides.page = far.v_strides.page = (int64_t{1} << 31) + 64;
  const size_t bytes = 2 * far.k_strides.page + page_bytes;
  char* memory = nullptr;
  if (cudaMalloc(reinterpret_cast<void**>(&memory), bytes) != cudaSuccess) {
    (void)cudaGetLastError();
    GTEST_SKIP() << "needs " << bytes << " bytes of device memory";
  }
  const int64_t v = static_cast<char*>(far.v) - static_cast<char*>(far.k);
  far.k = memory;
  far.v = memory + v;
  char* last_page = memory + 2 * far.k_strides.page;
  LLMD_MUST(cudaMemset(last_page, 0xff, page_bytes));
  LLMD_MUST(cudaDeviceSynchronize());
  const int tokens = 9;
  const int64_t row = shape.heads * shape.head_dim;
  Buffer k(tokens * row * 2), slots(tokens * 8);
  FillNormal(k, LLMD_BF16, random_);
  k.Upload();
  for (int t = 0; t < tokens; ++t) slots.host<int64_t>()[t] = 16 + t;
  slots.Upload();
  RunBoth(&llmd_attention_backend::append_kv, [&](Side side) {
    llmd_append_kv_args args = {};
    args.cache = side == Side::kHost ? small.View(side) : far;
    args.k = args.v = k.at(side);
    args.k_strides = args.v_strides = {row, shape.head_dim};
    args.dtype = LLMD_BF16;
    args.num_tokens = tokens;
    args.slots = slots.as<int64_t>(side);
    return args;
  });
  std::vector<char> out(page_bytes);
  LLMD_MUST(cudaMemcpy(out.data(), last_page, page_bytes, cudaMemcpyDeviceToHost));
  EXPECT_TRUE(std::equal(out.begin(), out.end(), small.memory().host<char>() + page_bytes));
  LLMD_MUST(cudaFree(memory));
}

TEST_F(AppendTest, GraphFollowsNewSlots) {
  PoolShape shape = {.pages = 8};
  Pool pool(shape, random_);
  const int tokens = 12;
  const int64_t row = shape.heads * shape.head_dim;
  Buffer k(tokens * row * 2), slots(tokens * 8);
  const auto make = [&](Side side) {
    llmd_append_kv_args args = {};
    args.cache = pool.View(side);
    args.k = args.v = k.at(side);
    args.k_strides = args.v_strides = {row, shape.head_dim};
    args.dtype = LLMD_BF16;
    args.num_tokens = tokens;
    args.slots = slots.as<int64_t>(side);
    return args;
  };
  Capture([&] {
    const llmd_append_kv_args args = make(Side::kDevice);
    ASSERT_EQ(cuda_->append_kv(&args, stream_), LLMD_OK) << cuda_->last_error();
  });
  for (int step = 0; step < 5; ++step) {
    FillNormal(k, LLMD_BF16, random_);
    const std::vector<int64_t> order = Permutation(pool.slots(), random_);
    for (int t = 0; t < tokens; ++t) slots.host<int64_t>()[t] = t < 12 - step ? order[t] : -1;
    k.Upload();
    slots.Upload();
    Replay();
    const llmd_append_kv_args args = make(Side::kHost);
    ASSERT_EQ(reference_->append_kv(&args, nullptr), LLMD_OK);
    ExpectSame(pool.memory(), "step " + std::to_string(step));
  }
}

TEST_F(AppendTest, RefusesWithWords) {
  llmd_append_kv_args args = {};
  EXPECT_EQ(cuda_->append_kv(&args, stream_), LLMD_INVALID_ARGUMENT);
  EXPECT_NE(std::string(cuda_->last_error()).find("append_kv: "), std::string::npos);
}

}  // namespace
}  // namespace llmd::testing
