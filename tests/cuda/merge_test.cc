// merge_states against the reference, with empty parts whose values are no numbers.
#include <algorithm>
#include <cmath>
#include <limits>

#include "src/attention/check.h"
#include "src/attention/numeric.h"
#include "tests/cuda/support.h"

namespace llmd::testing {
namespace {

struct MergeCase {
  llmd_dtype in = LLMD_F32;
  llmd_dtype out = LLMD_BF16;
  int tokens = 7, heads = 3, head_dim = 128, parts = 4;
  bool ragged = false;  // by part_start
  double spread = 3;    // of the log-sums
  int shift = 0;        // elements by which o begins past an aligned address
};

class MergeTest : public DeviceTest {
 protected:
  void Run(const MergeCase& c) {
    SCOPED_TRACE("parts " + std::to_string(c.parts) + " D " + std::to_string(c.head_dim) + " in " +
                 std::to_string(c.in) + " out " + std::to_string(c.out) + (c.ragged ? " ragged" : ""));
    Buffer start((c.tokens + 1) * 4);
    int parts = c.parts * c.tokens;
    if (c.ragged) {
      parts = 0;
      for (int t = 0; t <= c.tokens; ++t) {
        start.host<int32_t>()[t] = parts;
        if (t < c.tokens) parts += static_cast<int>(random_() % (c.parts + 1));
      }
    }
    start.Upload();
    const int64_t rows = int64_t{parts} * c.heads;
    const auto size = [](llmd_dtype dtype) { return attention::SizeOf(dtype); };
    Buffer partial(std::max<int64_t>(1, rows * c.head_dim) * size(c.in)),
        partial_lse(std::max<int64_t>(1, rows) * 4);
    FillNormal(partial, c.in, random_);
    FillNormal(partial_lse, LLMD_F32, random_, static_cast<float>(c.spread));
    for (int64_t r = 0; r < rows; ++r) {  // empty parts
      if (random_() % 4 != 0) continue;
      const float infinity = std::numeric_limits<float>::infinity();
      partial_lse.host<float>()[r] = random_() % 2 != 0 ? infinity : -infinity;
      for (int d = 0; d < c.head_dim; ++d) {
        attention::StoreElement(c.in, partial.at(Side::kHost), r * c.head_dim + d, NAN);
      }
    }
    partial.Upload();
    partial_lse.Upload();
    // Rows of o have a gap, and log-sums stand head by head.
    const int64_t head_stride = c.head_dim + 8, token_stride = c.heads * head_stride;
    Buffer o((c.tokens * token_stride + c.shift) * size(c.out)), lse(c.tokens * c.heads * 4);
    RunBoth(&llmd_attention_backend::merge_states, [&](Side side) {
      llmd_merge_states_args args = {};
      args.partial_o = partial.at(side);
      args.partial_lse = partial_lse.as<float>(side);
      args.partial_dtype = c.in;
      args.num_tokens = c.tokens;
      args.num_heads = c.heads;
      args.head_dim = c.head_dim;
      args.num_parts = c.ragged ? 0 : c.parts;
      args.part_start = c.ragged ? start.as<int32_t>(side) : nullptr;
      args.o = o.as<char>(side) + c.shift * size(c.out);
      args.o_strides = {token_stride, head_stride};
      args.o_dtype = c.out;
      args.lse = lse.as<float>(side);
      args.lse_strides = {1, c.tokens};
      return args;
    });
    ExpectClose(o, c.out, head_stride, ToleranceOf(c.out), "o");
    ExpectClose(lse, LLMD_F32, c.tokens * c.heads, {1e-5, 1e-5}, "lse");
  }
};

TEST_F(MergeTest, Small) { Run({}); }

TEST_F(MergeTest, SmallRagged) { Run({.ragged = true}); }

TEST_F(MergeTest, EveryType) {
  for (llmd_dtype in : {LLMD_F32, LLMD_F16, LLMD_BF16}) {
    for (llmd_dtype out : {LLMD_F32, LLMD_F16, LLMD_BF16}) {
      for (bool ragged : {false, true}) {
        for (int shift : {0, 1}) Run({.in = in, .out = out, .ragged = ragged, .shift = shift});
      }
    }
  }
}

TEST_F(MergeTest, Shapes) {
  for (int head_dim : {1, 5, 64, 80, 128, 256}) {
    for (int parts : {0, 1, 2, 33, 200}) {
      for (bool ragged : {false, true}) {
        Run({.out = LLMD_F32, .head_dim = head_dim, .parts = parts, .ragged = ragged, .spread = 1e4});
      }
    }
  }
}

TEST_F(MergeTest, SameBitsEachTime) {
  const int tokens = 65, heads = 4, head_dim = 128, parts = 9;
  Buffer partial(parts * tokens * heads * head_dim * 4), partial_lse(parts * tokens * heads * 4);
  Buffer o(tokens * heads * head_dim * 2);
  FillNormal(partial, LLMD_F32, random_);
  FillNormal(partial_lse, LLMD_F32, random_);
  partial.Upload();
  partial_lse.Upload();
  std::vector<unsigned char> first;
  for (int i = 0; i < Repetitions(20); ++i) {
    o.Upload();
    RunDevice(&llmd_attention_backend::merge_states, [&](Side side) {
      llmd_merge_states_args args = {};
      args.partial_o = partial.at(side);
      args.partial_lse = partial_lse.as<float>(side);
      args.partial_dtype = LLMD_F32;
      args.num_tokens = tokens;
      args.num_heads = heads;
      args.head_dim = head_dim;
      args.num_parts = parts;
      args.o = o.at(side);
      args.o_strides = {heads * head_dim, head_dim};
      args.o_dtype = LLMD_BF16;
      return args;
    });
    if (first.empty()) first = o.Download();
    EXPECT_EQ(o.Download(), first);
  }
}

}  // namespace
}  // namespace llmd::testing
