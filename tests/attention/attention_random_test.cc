// The cpu backend against the reference: the grid of group sizes, head dims, page sizes and layouts, edge
// lengths, and random cases.
#include <gtest/gtest.h>

#include "tests/attention/attention_problem.h"

namespace llmd::attention {
namespace {

void ExpectAgreement(const Case& c, uint32_t seed) {
  const Problem problem(c, seed);
  const std::string difference =
      Compare(problem, problem.Run(*llmd_attention_cpu()), problem.Run(*llmd_attention_reference()));
  EXPECT_EQ(difference, "") << Describe(c) << " seed " << seed;
}

TEST(CpuAttention, EveryGroupSize) {
  for (int32_t group = 1; group <= 16; ++group) {
    for (const int32_t dim : {64, 128}) {
      for (const float peak : {1.0f, 30.0f}) {
        Case c;
        c.group = group;
        c.head_dim = dim;
        c.peak = peak;
        c.o_dtype = LLMD_F32;
        c.requests = {{70}, {1}, {33}};
        ExpectAgreement(c, group);
      }
    }
  }
}

TEST(CpuAttention, EveryHeadDim) {
  for (const int32_t dim : {1, 7, 8, 9, 20, 40, 63, 65, 72, 80, 96, 104, 112, 192, 256, 1000}) {
    Case c;
    c.head_dim = dim;
    c.group = 3;
    c.o_dtype = LLMD_F32;
    c.requests = {{45}, {17}};
    ExpectAgreement(c, dim);
  }
}

TEST(CpuAttention, EveryLayoutPageSizeAndList) {
  for (const Layout layout :
       {Layout::kNhd, Layout::kHnd, Layout::kNhdPacked, Layout::kHndPacked, Layout::kRows}) {
    for (const int32_t page_size : {1, 2, 3, 5, 8, 16, 24, 32, 48, 64, 100, 128}) {
      for (const bool csr : {false, true}) {
        Case c;
        c.layout = layout;
        c.page_size = page_size;
        c.csr = csr;
        c.kv_heads = 3;
        c.group = 2;
        c.o_dtype = LLMD_F32;
        c.requests = {{131}, {0}, {64}};
        ExpectAgreement(c, page_size);
      }
    }
  }
}

TEST(CpuAttention, EveryType) {
  for (const llmd_dtype kv : {LLMD_BF16, LLMD_F16, LLMD_E4M3}) {
    for (const llmd_dtype q : {LLMD_BF16, LLMD_F16}) {
      if (kv != LLMD_E4M3 && q != kv) continue;
      for (const llmd_dtype o : {LLMD_BF16, LLMD_F16, LLMD_F32}) {
        for (const bool head_scales : {false, true}) {
          Case c;
          c.kv_dtype = kv;
          c.q_dtype = q;
          c.o_dtype = o;
          c.head_scales = head_scales;
          c.requests = {{100}, {37}};
          ExpectAgreement(c, 5);
        }
      }
    }
  }
}

TEST(CpuAttention, EdgeLengths) {
  for (const int32_t page_size : {1, 16, 64}) {
    for (const int32_t split : {0, 64}) {
      Case c;
      c.page_size = page_size;
      c.fixed_split = split;
      c.o_dtype = LLMD_F32;
      for (const int32_t base : {0, page_size, 32, 64, 512, 1024}) {
        for (const int32_t length : {base - 1, base, base + 1}) {
          if (length >= 0) c.requests.push_back({length});
        }
      }
      for (const int32_t window : {0, 1, 16, 17, 32, 33, 513}) {
        c.window = window;
        ExpectAgreement(c, window);
      }
    }
  }
}

TEST(CpuAttention, PrefillInChunksAndMixed) {
  for (const llmd_attention_mode mode : {LLMD_PREFILL, LLMD_MIXED}) {
    for (const int32_t group : {1, 3, 7, 16}) {
      for (const int32_t window : {0, 1, 20}) {
        Case c;
        c.mode = mode;
        c.group = group;
        c.window = window;
        c.o_dtype = LLMD_F32;
        c.sinks = window == 20;
        c.padding_rows = 3;
        c.flags = group == 3 ? LLMD_ZERO_PADDING : 0;
        // One-shot, chunk with a prefix, one token, none, more rows than keys, long prefix.
        c.requests = {{40, 40}, {90, 21}, {50, 1}, {30, 0}, {5, 8}, {300, 40}, {0, 0}, {0, 2}};
        ExpectAgreement(c, group);
      }
    }
  }
}

TEST(CpuAttention, RandomCases) {
  std::mt19937 random(20240607);
  const auto pick = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  for (int i = 0; i < 100; ++i) {
    Case c;
    c.mode = static_cast<llmd_attention_mode>(pick(0, 2));
    c.kv_dtype = static_cast<llmd_dtype>(pick(1, 3));
    c.q_dtype = c.kv_dtype != LLMD_E4M3 ? c.kv_dtype : static_cast<llmd_dtype>(pick(1, 2));
    c.o_dtype = static_cast<llmd_dtype>(pick(0, 2));
    c.group = pick(1, 16);
    c.kv_heads = pick(1, 4);
    c.head_dim = pick(0, 2) == 0 ? pick(1, 160) : 64 * pick(1, 2);
    c.page_size = pick(0, 1) == 0 ? 16 * pick(1, 4) : pick(1, 40);
    c.layout = static_cast<Layout>(pick(0, 4));
    c.csr = pick(0, 1) == 1;
    c.window = pick(0, 2) == 0 ? pick(1, 200) : 0;
    c.sinks = pick(0, 2) == 0;
    c.lse = pick(0, 3) != 0;
    c.fixed_split = pick(0, 2) == 0 ? 64 * pick(1, 4) : 0;
    c.peak = pick(0, 3) == 0 ? 40 : 1;
    c.head_scales = pick(0, 1) == 1;
    c.flags = static_cast<uint32_t>(pick(0, 7));
    c.padding_rows = pick(0, 3);
    const int batch = pick(0, 5);
    for (int b = 0; b < batch; ++b) {
      const int32_t length = pick(0, 4) == 0 ? pick(0, 700) : pick(0, 80);
      c.requests.push_back({length, pick(0, 4) == 0 ? pick(0, 40) : pick(0, std::min(length, 3))});
    }
    ExpectAgreement(c, i);
  }
}

}  // namespace
}  // namespace llmd::attention
