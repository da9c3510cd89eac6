// rope and rope_append against the reference, which turns in double.
#include <algorithm>

#include "src/attention/check.h"
#include "src/attention/numeric.h"
#include "tests/cuda/pool.h"
#include "tests/cuda/support.h"

namespace llmd::testing {
namespace {

struct RopeCase {
  llmd_dtype dtype = LLMD_BF16;
  int tokens = 9, q_heads = 8, kv_heads = 2, head_dim = 128, rotary_dim = 128;
  int interleaved = 0;
  bool llama3 = false;
  bool in_place = false;
  int shift = 0;  // elements by which tensors begin past an aligned address
  int64_t last_position = 131071;
};

llmd_rope RopeOf(const RopeCase& c) {
  llmd_rope rope = {};
  rope.theta = 500000;
  rope.rotary_dim = c.rotary_dim;
  rope.interleaved = c.interleaved;
  if (c.llama3) {
    rope.scale_factor = 8;
    rope.low_freq_factor = 1;
    rope.high_freq_factor = 4;
    rope.old_context = 8192;
  }
  return rope;
}

class RopeTest : public DeviceTest {
 protected:
  void FillPositions(const RopeCase& c, Buffer& positions) {
    for (int t = 0; t < c.tokens; ++t) {
      positions.host<int32_t>()[t] = static_cast<int32_t>(t % 3 == 0 ? t : random_() % (c.last_position + 1));
    }
    positions.host<int32_t>()[c.tokens - 1] = static_cast<int32_t>(c.last_position);
    positions.Upload();
  }

  void Run(const RopeCase& c) {
    SCOPED_TRACE(std::string(attention::NameOf(c.dtype)) + " tokens " + std::to_string(c.tokens) + " D " +
                 std::to_string(c.head_dim) + " rotary " + std::to_string(c.rotary_dim) + " interleaved " +
                 std::to_string(c.interleaved) + " in place " + std::to_string(c.in_place) + " shift " +
                 std::to_string(c.shift));
    const int64_t size = static_cast<int64_t>(attention::SizeOf(c.dtype)), d = c.head_dim;
    const int64_t row = (c.q_heads + c.kv_heads) * d;  // q and k of a token side by side
    Buffer in((c.tokens * row + c.shift) * size), out((c.tokens * row + c.shift) * size),
        positions(c.tokens * 4);
    FillNormal(in, c.dtype, random_);
    in.Upload();
    FillPositions(c, positions);
    Buffer& target = c.in_place ? in : out;
    RunBoth(&llmd_attention_backend::rope, [&](Side side) {
      llmd_rope_args args = {};
      args.rope = RopeOf(c);
      args.dtype = c.dtype;
      args.num_tokens = c.tokens;
      args.num_q_heads = c.q_heads;
      args.num_kv_heads = c.kv_heads;
      args.head_dim = c.head_dim;
      args.positions = positions.as<int32_t>(side);
      args.q = in.as<char>(side) + c.shift * size;
      args.q_out = target.as<char>(side) + c.shift * size;
      if (c.kv_heads > 0) {
        args.k = in.as<char>(side) + (c.shift + c.q_heads * d) * size;
        args.k_out = target.as<char>(side) + (c.shift + c.q_heads * d) * size;
      }
      args.q_strides = args.q_out_strides = args.k_strides = args.k_out_strides = {row, d};
      return args;
    });
    ExpectClose(target, c.dtype, d, ToleranceOf(c.dtype), "q and k");
  }

  void RunAppend(const RopeCase& c, const PoolShape& shape, bool by_slots) {
    SCOPED_TRACE(std::string(attention::NameOf(c.dtype)) + " to " + attention::NameOf(shape.dtype) +
                 " interleaved " + std::to_string(c.interleaved) + " rotary " + std::to_string(c.rotary_dim) +
                 " shift " + std::to_string(c.shift) + (by_slots ? " by slots" : " by positions"));
    Pool pool(shape, random_);
    const int64_t size = static_cast<int64_t>(attention::SizeOf(c.dtype)), d = shape.head_dim;
    const int64_t row = (c.q_heads + 2 * shape.heads) * d;
    Buffer in((c.tokens * row + c.shift) * size), q_out(c.tokens * c.q_heads * d * size),
        positions(c.tokens * 4);
    FillNormal(in, c.dtype, random_);
    in.Upload();
    Buffer slots(c.tokens * 8), batch(c.tokens * 4), table(2 * shape.pages * 4);
    const std::vector<int64_t> order = Permutation(pool.slots(), random_);
    const std::vector<int64_t> pages = Permutation(shape.pages, random_);
    for (int64_t i = 0; i < shape.pages; ++i)
      table.host<int32_t>()[shape.pages + i] = static_cast<int32_t>(pages[i]);
    for (int t = 0; t < c.tokens; ++t) {
      slots.host<int64_t>()[t] = t % 5 == 4 ? -7 : order[t];
      batch.host<int32_t>()[t] = t % 5 == 4 ? -1 : 1;
      positions.host<int32_t>()[t] = static_cast<int32_t>(by_slots ? random_() % 100000 : order[t]);
    }
    for (Buffer* buffer : {&positions, &slots, &batch, &table}) buffer->Upload();
    RunBoth(&llmd_attention_backend::rope_append, [&](Side side) {
      llmd_rope_append_args args = {};
      args.rope = RopeOf(c);
      args.num_q_heads = c.q_heads;
      const char* base = in.as<char>(side) + c.shift * size;
      args.q = base;
      args.q_strides = {row, d};
      args.q_out = q_out.at(side);
      args.q_out_strides = {c.q_heads * d, d};
      llmd_append_kv_args& append = args.append;
      append.cache = pool.View(side);
      append.k = base + c.q_heads * d * size;
      append.v = base + (c.q_heads + shape.heads) * d * size;
      append.k_strides = append.v_strides = {row, d};
      append.dtype = c.dtype;
      append.num_tokens = c.tokens;
      append.positions = positions.as<int32_t>(side);
      if (by_slots) {
        append.slots = slots.as<int64_t>(side);
        return args;
      }
      append.batch_index = batch.as<int32_t>(side);
      append.pages.pages = table.as<int32_t>(side);
      append.pages.max_pages = static_cast<int32_t>(shape.pages);
      append.pages.row_stride = shape.pages;
      return args;
    });
    ExpectClose(q_out, c.dtype, d, ToleranceOf(c.dtype), "q");
    ExpectClose(pool.memory(), shape.dtype, d, ToleranceOf(shape.dtype), "the pool");
  }
};

TEST_F(RopeTest, Small) { Run({}); }

TEST_F(RopeTest, SmallScalar) {
  Run({.tokens = 3, .q_heads = 2, .head_dim = 20, .rotary_dim = 10, .shift = 1});
}

TEST_F(RopeTest, SmallAppend) { RunAppend({}, {.head_dim = 128}, true); }

TEST_F(RopeTest, SmallAppendFp8) { RunAppend({}, {.dtype = LLMD_E4M3, .head_dim = 128, .scales = 2}, false); }

TEST_F(RopeTest, EveryForm) {
  for (llmd_dtype dtype : {LLMD_F32, LLMD_F16, LLMD_BF16}) {
    for (int interleaved : {0, 1}) {
      for (bool llama3 : {false, true}) {
        for (bool in_place : {false, true}) {
          for (int shift : {0, 1}) {
            Run({.dtype = dtype,
                 .interleaved = interleaved,
                 .llama3 = llama3,
                 .in_place = in_place,
                 .shift = shift});
          }
        }
      }
    }
  }
}

TEST_F(RopeTest, Shapes) {
  for (const auto& [head_dim, rotary_dim] : {std::pair{64, 64},
                                             {64, 32},
                                             {80, 80},
                                             {96, 48},
                                             {128, 64},
                                             {256, 256},
                                             {512, 512},
                                             {128, 6},
                                             {7, 4}}) {
    for (int interleaved : {0, 1}) {
      for (int kv_heads : {0, 1, 3}) {
        for (int tokens : {1, 2, 40}) {
          Run({.tokens = tokens,
               .q_heads = 3,
               .kv_heads = kv_heads,
               .head_dim = head_dim,
               .rotary_dim = rotary_dim,
               .interleaved = interleaved});
        }
      }
    }
  }
}

TEST_F(RopeTest, ManyTokens) {  // several a block
  Run({.tokens = 5003, .q_heads = 4, .in_place = true});
  Run({.tokens = 5003, .q_heads = 4, .last_position = 2147483647});
}

TEST_F(RopeTest, AppendEveryTypeAndLayout) {
  for (llmd_dtype dtype : {LLMD_F32, LLMD_F16, LLMD_BF16}) {
    for (llmd_dtype cache : {LLMD_F16, LLMD_BF16, LLMD_E4M3}) {
      for (Layout layout :
           {Layout::kNhd, Layout::kHnd, Layout::kNhdPacked, Layout::kHndPacked, Layout::kRows}) {
        for (int interleaved : {0, 1}) {
          for (int shift : {0, 1}) {
            RunAppend(
                {.dtype = dtype,
                 .tokens = 30,
                 .rotary_dim = 64,
                 .interleaved = interleaved,
                 .llama3 = true,
                 .shift = shift},
                {.layout = layout, .dtype = cache, .heads = 3, .head_dim = 96, .scales = cache == LLMD_E4M3},
                interleaved != 0);
          }
        }
      }
    }
  }
}

TEST_F(RopeTest, AppendManyTokens) {
  RunAppend({.tokens = 4000}, {.pages = 260, .heads = 2, .head_dim = 128}, true);
}

TEST_F(RopeTest, RefusesTooManyPairs) {
  Buffer q(1024 * 4), positions(4);
  llmd_rope_args args = {};
  args.rope.theta = 10000;
  args.rope.rotary_dim = 1024;
  args.dtype = LLMD_F32;
  args.num_tokens = args.num_q_heads = 1;
  args.head_dim = 1024;
  args.positions = positions.as<int32_t>(Side::kDevice);
  args.q = args.q_out = q.at(Side::kDevice);
  args.q_strides = args.q_out_strides = {1024, 1024};
  EXPECT_EQ(cuda_->rope(&args, stream_), LLMD_UNSUPPORTED);
  EXPECT_EQ(std::string(cuda_->last_error()), "rope: rope.rotary_dim is 1024, the limit is 512");
}

}  // namespace
}  // namespace llmd::testing
