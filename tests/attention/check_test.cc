// Every rule of the arguments: what breaks it gives INVALID_ARGUMENT and a message with the field, the value
// and the limit.
#include "src/attention/check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

extern "C" int CompiledAsC(void);

namespace llmd::attention {
namespace {

using testing::HasSubstr;

template <typename Args>
struct Rule {
  const char* message;  // part of it; null: nothing is wrong
  void (*change)(Args&);
};

template <typename Args>
void ExpectRules(const Args& valid, std::initializer_list<Rule<Args>> rules) {
  ASSERT_EQ(Check(valid), LLMD_OK) << LastError();
  for (const Rule<Args>& rule : rules) {
    Args args = valid;
    rule.change(args);
    if (rule.message == nullptr) {
      EXPECT_EQ(Check(args), LLMD_OK) << LastError();
      continue;
    }
    EXPECT_EQ(Check(args), LLMD_INVALID_ARGUMENT) << rule.message;
    EXPECT_THAT(LastError(), HasSubstr(rule.message));
  }
}

// Sets an enumeration to what it has no name for, as a C caller may.
template <typename Enum>
void Spoil(Enum& value, int number) {
  std::memcpy(&value, &number, sizeof value);
}

alignas(64) char memory[256];
void* Aligned() { return memory; }
void* Odd(int by) { return memory + by; }
template <typename T>
T* As(int by = 0) {
  return reinterpret_cast<T*>(memory + by);
}
constexpr int64_t kHuge = int64_t{1} << 61;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

llmd_kv_cache ACache() {
  llmd_kv_cache cache = {};
  cache.k = cache.v = Aligned();
  cache.k_strides = cache.v_strides = {16 * 2 * 64, 2 * 64, 64};
  cache.num_pages = 10;
  cache.page_size = 16;
  cache.num_kv_heads = 2;
  cache.head_dim = 64;
  cache.dtype = LLMD_BF16;
  return cache;
}

llmd_append_kv_args Append() {
  llmd_append_kv_args args = {};
  args.cache = ACache();
  args.k = args.v = Aligned();
  args.k_strides = args.v_strides = {128, 64};
  args.dtype = LLMD_BF16;
  args.num_tokens = 3;
  args.slots = As<int64_t>();
  return args;
}

TEST(Check, AppendKv) {
  using Args = llmd_append_kv_args;
  ExpectRules<Args>(
      Append(),
      {
          {"append_kv: cache.k is null", [](Args& a) { a.cache.k = nullptr; }},
          {"append_kv: cache.v is not a multiple of 16 bytes", [](Args& a) { a.cache.v = Odd(8); }},
          {"cache.dtype is f32, must be f16, bf16 or e4m3", [](Args& a) { a.cache.dtype = LLMD_F32; }},
          {"cache.dtype is no dtype", [](Args& a) { Spoil(a.cache.dtype, 9); }},
          {"dtype is no dtype", [](Args& a) { Spoil(a.dtype, -1); }},
          {"cache.num_pages is 0, must be at least 1", [](Args& a) { a.cache.num_pages = 0; }},
          {"cache.num_pages is 2147483648, must be at most 2147483647",
           [](Args& a) { a.cache.num_pages = int64_t{1} << 31; }},
          {"cache.page_size is 0", [](Args& a) { a.cache.page_size = 0; }},
          {"cache.num_kv_heads is -1", [](Args& a) { a.cache.num_kv_heads = -1; }},
          {"cache.head_dim is 0", [](Args& a) { a.cache.head_dim = 0; }},
          {"cache.k_strides.token is 132, must be a multiple of 16 bytes",
           [](Args& a) { a.cache.k_strides.token = 132; }},
          {"cache.v_strides.head is 63, must be at least 64", [](Args& a) { a.cache.v_strides.head = 63; }},
          {"cache.k_strides.page is 2305843009213693952, the pool would reach past 2^63 bytes",
           [](Args& a) { a.cache.k_strides.page = kHuge; }},
          {nullptr, [](Args& a) { a.cache.num_pages = 1, a.cache.k_strides.page = 3; }},  // not used
          {"cache.scale_stride is 2, must be 0 or 1",
           [](Args& a) { a.cache.dtype = LLMD_E4M3, a.cache.scale_stride = 2; }},
          {"cache.k_scale is not a multiple of 4 bytes",
           [](Args& a) { a.cache.dtype = LLMD_E4M3, a.cache.k_scale = As<float>(2); }},
          {nullptr, [](Args& a) { a.cache.scale_stride = 2; }},  // of no meaning in bf16
          {"dtype is e4m3, must be f32, f16 or bf16", [](Args& a) { a.dtype = LLMD_E4M3; }},
          {"num_tokens is -1, must be at least 0", [](Args& a) { a.num_tokens = -1; }},
          {nullptr, [](Args& a) { a.num_tokens = 0, a.k = a.v = nullptr, a.slots = nullptr; }},
          {"append_kv: k is null", [](Args& a) { a.k = nullptr; }},
          {"append_kv: v is not a multiple of 2 bytes", [](Args& a) { a.v = Odd(1); }},
          {"k_strides.token is -1, must be at least 0", [](Args& a) { a.k_strides.token = -1; }},
          {"v_strides reach past 2^63 bytes", [](Args& a) { a.v_strides.token = kHuge; }},
          {nullptr,
           [](Args& a) {
             a.k_strides = {0, 0};
           }},  // one vector for all
          {"slots is not a multiple of 8 bytes", [](Args& a) { a.slots = As<int64_t>(4); }},
          {"error is not a multiple of 8 bytes", [](Args& a) { a.error = As<int64_t>(4); }},
          {"batch_index is null", [](Args& a) { a.slots = nullptr; }},
          {"positions is null", [](Args& a) { a.slots = nullptr, a.batch_index = As<int32_t>(); }},
          {"pages.pages is null",
           [](Args& a) {
             a.slots = nullptr, a.batch_index = a.positions = As<int32_t>();
             a.pages.max_pages = a.pages.row_stride = 2;
           }},
          {"pages.row_stride is 1, must be at least 2",
           [](Args& a) {
             a.slots = nullptr, a.batch_index = a.positions = As<int32_t>();
             a.pages = {As<int32_t>(), 1, 2, nullptr, nullptr, nullptr};
           }},
          {nullptr,  // lengths are not read
           [](Args& a) {
             a.slots = nullptr, a.batch_index = a.positions = As<int32_t>();
             a.pages = {As<int32_t>(), 0, 2, nullptr, As<int32_t>(), nullptr};
           }},
      });
}

TEST(Check, CopyAndGatherBlocks) {
  using Copy = llmd_copy_blocks_args;
  const Copy copy = {As<void*>(), 4, 96, 80, As<int64_t>(), 3};
  ExpectRules<Copy>(
      copy,
      {
          {"copy_blocks: bases is null", [](Copy& a) { a.bases = nullptr; }},
          {"num_bases is 0", [](Copy& a) { a.num_bases = 0; }},
          {"num_pairs is -1", [](Copy& a) { a.num_pairs = -1; }},
          {"pairs is null", [](Copy& a) { a.pairs = nullptr; }},
          {"block_bytes is 0", [](Copy& a) { a.block_bytes = 0; }},
          {"block_bytes is 72, must be a multiple of 16", [](Copy& a) { a.block_bytes = 72; }},
          {"page_stride_bytes is 64, must be at least 80", [](Copy& a) { a.page_stride_bytes = 64; }},
          {"page_stride_bytes is 88, must be a multiple of 16", [](Copy& a) { a.page_stride_bytes = 88; }},
          {nullptr, [](Copy& a) { a = {}; }},
      });
  using Gather = llmd_gather_blocks_args;
  const Gather gather = {As<void*>(), 4, 96, 80, As<int64_t>(), 3, Aligned()};
  ExpectRules<Gather>(gather, {
                                  {"staging is null", [](Gather& a) { a.staging = nullptr; }},
                                  {"staging is not a multiple of 16", [](Gather& a) { a.staging = Odd(8); }},
                                  {"blocks is null", [](Gather& a) { a.blocks = nullptr; }},
                                  {"num_blocks is -3", [](Gather& a) { a.num_blocks = -3; }},
                                  {"staging would reach past 2^63 bytes",
                                   [](Gather& a) { a.block_bytes = a.page_stride_bytes = kHuge; }},
                                  {nullptr, [](Gather& a) { a = {}; }},
                              });
}

llmd_attention_shape Shape(llmd_attention_mode mode) {
  llmd_attention_shape shape = {};
  shape.mode = mode;
  shape.max_batch = 4;
  shape.max_tokens = 8;
  shape.num_q_heads = 6;
  shape.num_kv_heads = 2;
  shape.head_dim = 64;
  shape.kv_dtype = LLMD_BF16;
  shape.page_size = 16;
  return shape;
}

TEST(Check, Shape) {
  using Args = llmd_attention_shape;
  ExpectRules<Args>(
      Shape(LLMD_MIXED),
      {
          {"shape.mode is 7", [](Args& a) { Spoil(a.mode, 7); }},
          {"shape.max_batch is 0, must be at least 1", [](Args& a) { a.max_batch = 0; }},
          {"shape.max_tokens is 0", [](Args& a) { a.max_tokens = 0; }},
          {nullptr, [](Args& a) { a.mode = LLMD_DECODE, a.max_tokens = 0; }},
          {"shape.num_q_heads is 0", [](Args& a) { a.num_q_heads = 0; }},
          {"shape.num_kv_heads is 0", [](Args& a) { a.num_kv_heads = 0; }},
          {"shape.num_q_heads is 7, must be a multiple of num_kv_heads, 2",
           [](Args& a) { a.num_q_heads = 7; }},
          {"shape.head_dim is -64", [](Args& a) { a.head_dim = -64; }},
          {"shape.page_size is 0", [](Args& a) { a.page_size = 0; }},
          {"shape.kv_dtype is f32", [](Args& a) { a.kv_dtype = LLMD_F32; }},
          {"shape.fixed_split is -64", [](Args& a) { a.fixed_split = -64; }},
          {"shape.fixed_split is 100, must be a multiple of 64", [](Args& a) { a.fixed_split = 100; }},
          {"shape.max_kv_tokens is 0, must be at least 1", [](Args& a) { a.fixed_split = 128; }},
          {nullptr, [](Args& a) { a.fixed_split = 128, a.max_kv_tokens = 1; }},
          {nullptr, [](Args& a) { a.window = -5; }},
          {"would be past 2^63 bytes",
           [](Args& a) {
             a.max_tokens = a.num_q_heads = a.head_dim = std::numeric_limits<int32_t>::max() - 1;
           }},
      });
}

llmd_page_list Table() { return {As<int32_t>(), 5, 5, As<int32_t>(), nullptr, nullptr}; }

llmd_plan_args Plan() {
  llmd_plan_args args = {};
  args.shape = Shape(LLMD_PREFILL);
  args.batch = 3;
  args.pages = Table();
  args.q_start = As<int32_t>();
  args.workspace = Aligned();
  args.workspace_bytes = 256;
  return args;
}

TEST(Check, Plan) {
  using Args = llmd_plan_args;
  ExpectRules<Args>(
      Plan(),
      {
          {"plan: shape.head_dim is 0", [](Args& a) { a.shape.head_dim = 0; }},
          {"batch is -1", [](Args& a) { a.batch = -1; }},
          {"batch is 5, must be at most 4, shape.max_batch", [](Args& a) { a.batch = 5; }},
          {"q_start is null", [](Args& a) { a.q_start = nullptr; }},
          {nullptr, [](Args& a) { a.shape.mode = LLMD_DECODE, a.q_start = nullptr; }},
          {"workspace is null", [](Args& a) { a.workspace = nullptr; }},
          {"workspace is not a multiple of 16", [](Args& a) { a.workspace = Odd(8); }},
          {"pages.max_pages is -1", [](Args& a) { a.pages.max_pages = -1; }},
          {"pages.pages is null", [](Args& a) { a.pages.pages = nullptr; }},
          {"pages.seq_lens and pages.indptr are both null", [](Args& a) { a.pages.seq_lens = nullptr; }},
          {"pages.seq_lens and pages.indptr are both given", [](Args& a) { a.pages.indptr = As<int32_t>(); }},
          {"pages.last_page_len is null",
           [](Args& a) { a.pages.seq_lens = nullptr, a.pages.indptr = As<int32_t>(); }},
          {"pages.row_stride is 4, must be at least 5", [](Args& a) { a.pages.row_stride = 4; }},
          {nullptr, [](Args& a) { a.batch = 1, a.pages.row_stride = 0; }},
          {"pages.row_stride is 2305843009213693952", [](Args& a) { a.pages.row_stride = kHuge; }},
          {nullptr, [](Args& a) { a.batch = 0, a.pages = {}; }},
      });
  EXPECT_EQ(CheckWorkspaceBytes(100, 100), LLMD_OK);
  EXPECT_EQ(CheckWorkspaceBytes(99, 100), LLMD_INVALID_ARGUMENT);
  EXPECT_STREQ(LastError(), "workspace_bytes is 99, must be at least 100");
}

llmd_attention_args Attention() {
  llmd_attention_args args = {};
  args.shape = Shape(LLMD_PREFILL);
  args.batch = 3;
  args.num_tokens = 8;
  args.q = args.o = Aligned();
  args.q_strides = args.o_strides = {6 * 64, 64};
  args.q_dtype = LLMD_BF16;
  args.lse = As<float>();
  args.lse_strides = {6, 1};
  args.q_start = As<int32_t>();
  args.cache = ACache();
  args.pages = Table();
  args.scale = 0.125f;
  args.workspace = Aligned();
  args.workspace_bytes = 256;
  return args;
}

TEST(Check, Attention) {
  using Args = llmd_attention_args;
  ExpectRules<Args>(
      Attention(),
      {
          {"num_tokens is 9, must be at most 8, shape.max_tokens", [](Args& a) { a.num_tokens = 9; }},
          {"num_tokens is -1", [](Args& a) { a.num_tokens = -1; }},
          {"num_tokens is 8, must be batch in decode, 3", [](Args& a) { a.shape.mode = LLMD_DECODE; }},
          {"cache.num_kv_heads is 1, must be shape.num_kv_heads, 2",
           [](Args& a) { a.cache.num_kv_heads = 1; }},
          {"cache.head_dim is 32, must be shape.head_dim, 64", [](Args& a) { a.cache.head_dim = 32; }},
          {"cache.page_size is 8, must be shape.page_size, 16", [](Args& a) { a.cache.page_size = 8; }},
          {"cache.dtype is f16, must be shape.kv_dtype, bf16", [](Args& a) { a.cache.dtype = LLMD_F16; }},
          {"q_dtype is f32, must be f16 or bf16", [](Args& a) { a.q_dtype = LLMD_F32; }},
          {"q_dtype is f16, must be that of the cache, bf16", [](Args& a) { a.q_dtype = LLMD_F16; }},
          {nullptr, [](Args& a) { a.q_dtype = LLMD_F16, a.cache.dtype = a.shape.kv_dtype = LLMD_E4M3; }},
          {"o_dtype is e4m3, must be f32, f16 or bf16", [](Args& a) { a.o_dtype = LLMD_E4M3; }},
          {"shape.mode is 3", [](Args& a) { Spoil(a.shape.mode, 3); }},
          {"shape.kv_dtype is no dtype", [](Args& a) { Spoil(a.shape.kv_dtype, 4); }},
          {"q_dtype is no dtype", [](Args& a) { Spoil(a.q_dtype, 1 << 30); }},
          {"o_dtype is no dtype", [](Args& a) { Spoil(a.o_dtype, -7); }},
          {"scale is inf, must be finite", [](Args& a) { a.scale = kInfinity; }},
          {"scale is nan, must be finite", [](Args& a) { a.scale = NAN; }},
          {"flags is 12, has unknown bits", [](Args& a) { a.flags = 12; }},
          {"sinks is not a multiple of 4", [](Args& a) { a.sinks = As<float>(1); }},
          {"q is null", [](Args& a) { a.q = nullptr; }},
          {"attention: o is not a multiple of 4 bytes", [](Args& a) { a.o_dtype = LLMD_F32, a.o = Odd(2); }},
          {"q_strides.head is -64", [](Args& a) { a.q_strides.head = -64; }},
          {"o_strides.head is 63, must be at least 64", [](Args& a) { a.o_strides.head = 63; }},
          {"o_strides.token is 0, must be at least 64", [](Args& a) { a.o_strides.token = 0; }},
          {"o_strides {128, 64} make rows of 64 elements overlap", [](Args& a) { a.o_strides.token = 128; }},
          {nullptr,
           [](Args& a) {
             a.o_strides = {64, 8 * 64};
           }},  // head-major
          {"lse is not a multiple of 4", [](Args& a) { a.lse = As<float>(2); }},
          {"lse_strides {1, 1} make rows of 1 elements overlap",
           [](Args& a) {
             a.lse_strides = {1, 1};
           }},
          {nullptr, [](Args& a) { a.lse = nullptr, a.lse_strides = {}; }},
          {nullptr, [](Args& a) { a.num_tokens = 0, a.q = nullptr, a.o = nullptr; }},
      });
}

TEST(Check, MergeStates) {
  using Args = llmd_merge_states_args;
  Args valid = {};
  valid.partial_o = valid.o = Aligned();
  valid.partial_lse = As<float>();
  valid.num_tokens = 2;
  valid.num_heads = 3;
  valid.head_dim = 8;
  valid.num_parts = 4;
  valid.o_strides = {24, 8};
  ExpectRules<Args>(
      valid, {
                 {"merge_states: num_tokens is -1", [](Args& a) { a.num_tokens = -1; }},
                 {"num_heads is 0", [](Args& a) { a.num_heads = 0; }},
                 {"head_dim is 0", [](Args& a) { a.head_dim = 0; }},
                 {"num_parts is -1", [](Args& a) { a.num_parts = -1; }},
                 {"partial_o would reach past 2^63 bytes",
                  [](Args& a) { a.num_parts = a.num_tokens = a.num_heads = 1 << 30; }},
                 {"partial_dtype is e4m3", [](Args& a) { a.partial_dtype = LLMD_E4M3; }},
                 {"o_dtype is e4m3", [](Args& a) { a.o_dtype = LLMD_E4M3; }},
                 {"partial_o is null", [](Args& a) { a.partial_o = nullptr; }},
                 {"partial_lse is null", [](Args& a) { a.partial_lse = nullptr; }},
                 {nullptr, [](Args& a) { a.num_parts = 0, a.partial_o = a.partial_lse = nullptr; }},
                 {nullptr, [](Args& a) { a.num_parts = -1, a.part_start = As<int32_t>(); }},
                 {"o is null", [](Args& a) { a.o = nullptr; }},
                 {"o_strides {8, 8} make rows",
                  [](Args& a) {
                    a.o_strides = {8, 8};
                  }},
                 {"lse_strides.token is 0", [](Args& a) { a.lse = As<float>(), a.lse_strides.head = 1; }},
             });
}

llmd_rope ARope() { return {10000, 32, 0, 8, 1, 4, 8192}; }

TEST(Check, Rope) {
  using Args = llmd_rope_args;
  Args valid = {};
  valid.rope = ARope();
  valid.num_tokens = 2;
  valid.num_q_heads = 3;
  valid.num_kv_heads = 1;
  valid.head_dim = 64;
  valid.positions = As<int32_t>();
  valid.q_out = valid.k_out = Aligned();
  valid.q = valid.k = Aligned();
  valid.q_strides = valid.q_out_strides = {192, 64};
  valid.k_strides = valid.k_out_strides = {64, 64};
  ExpectRules<Args>(
      valid,
      {
          {"rope: rope.theta is 0.0", [](Args& a) { a.rope.theta = 0; }},
          {"rope.theta is inf", [](Args& a) { a.rope.theta = kInfinity; }},
          {"rope.rotary_dim is 0, must be at least 2", [](Args& a) { a.rope.rotary_dim = 0; }},
          {"rope.rotary_dim is 31, must be a multiple of 2", [](Args& a) { a.rope.rotary_dim = 31; }},
          {"rope.rotary_dim is 66, must be at most 64, the head dim",
           [](Args& a) { a.rope.rotary_dim = 66; }},
          {"rope.interleaved is 2", [](Args& a) { a.rope.interleaved = 2; }},
          {"rope.scale_factor is -1", [](Args& a) { a.rope.scale_factor = -1; }},
          {"rope.low_freq_factor is 0", [](Args& a) { a.rope.low_freq_factor = 0; }},
          {"rope.high_freq_factor is 1.000000, must be greater than low_freq_factor, 1.0",
           [](Args& a) { a.rope.high_freq_factor = 1; }},
          {"rope.old_context is 0", [](Args& a) { a.rope.old_context = 0; }},
          {nullptr, [](Args& a) { a.rope.scale_factor = a.rope.old_context = a.rope.high_freq_factor = 0; }},
          {"dtype is e4m3", [](Args& a) { a.dtype = LLMD_E4M3; }},
          {"positions is null", [](Args& a) { a.positions = nullptr; }},
          {"q_out is null", [](Args& a) { a.q_out = nullptr; }},
          {"k_out is null", [](Args& a) { a.k_out = nullptr; }},
          {"num_kv_heads is 0", [](Args& a) { a.num_kv_heads = 0; }},
          {nullptr, [](Args& a) { a.k = a.k_out = nullptr, a.num_kv_heads = 0; }},
          {"q_out_strides differ from those of the input in the same memory",
           [](Args& a) { a.q_out_strides.token = 256; }},
          {"q_out_strides {64, 64} make rows",
           [](Args& a) { a.q_out = Odd(64), a.q_out_strides.token = 64; }},
          {nullptr, [](Args& a) { a.num_tokens = 0, a.q = a.q_out = nullptr; }},
      });
}

TEST(Check, RopeAppend) {
  using Args = llmd_rope_append_args;
  Args valid = {};
  valid.rope = ARope();
  valid.append = Append();
  valid.append.positions = As<int32_t>();
  valid.num_q_heads = 4;
  valid.q = valid.q_out = Aligned();
  valid.q_strides = valid.q_out_strides = {256, 64};
  ExpectRules<Args>(
      valid, {
                 {"rope_append: append.k is null", [](Args& a) { a.append.k = nullptr; }},
                 {"append.positions is null", [](Args& a) { a.append.positions = nullptr; }},
                 {"append.dtype is e4m3", [](Args& a) { a.append.dtype = LLMD_E4M3; }},
                 {"cache.page_size is 0", [](Args& a) { a.append.cache.page_size = 0; }},
                 {"rope.rotary_dim is 128, must be at most 64", [](Args& a) { a.rope.rotary_dim = 128; }},
                 {"num_q_heads is 0", [](Args& a) { a.num_q_heads = 0; }},
                 {"q is null", [](Args& a) { a.q = nullptr; }},
             });
}

TEST(Check, RmsNormAndSiluAndMul) {
  using Norm = llmd_rms_norm_args;
  const Norm norm = {LLMD_BF16, 3, 8, Aligned(), 8, nullptr, Aligned(), 1e-5f, Aligned(), 8};
  ExpectRules<Norm>(norm, {
                              {"rms_norm: dtype is e4m3", [](Norm& a) { a.dtype = LLMD_E4M3; }},
                              {"num_rows is -1", [](Norm& a) { a.num_rows = -1; }},
                              {"size is 0", [](Norm& a) { a.size = 0; }},
                              {"epsilon is nan", [](Norm& a) { a.epsilon = NAN; }},
                              {"epsilon is -1.0", [](Norm& a) { a.epsilon = -1; }},
                              {"x is null", [](Norm& a) { a.x = nullptr; }},
                              {"weight is null", [](Norm& a) { a.weight = nullptr; }},
                              {"y is not a multiple of 2", [](Norm& a) { a.y = Odd(1); }},
                              {"residual is not a multiple of 2", [](Norm& a) { a.residual = Odd(1); }},
                              {"y_stride is 7, must be at least 8", [](Norm& a) { a.y_stride = 7; }},
                              {"y_stride differ", [](Norm& a) { a.y_stride = 16; }},
                              {"reach past 2^63", [](Norm& a) { a.num_rows = kHuge, a.x_stride = 0; }},
                              {nullptr, [](Norm& a) { a.num_rows = 0, a.x = nullptr; }},
                          });
  using Silu = llmd_silu_and_mul_args;
  const Silu silu = {LLMD_F16, 3, 8, Aligned(), Aligned()};
  ExpectRules<Silu>(silu, {
                              {"silu_and_mul: dtype is e4m3", [](Silu& a) { a.dtype = LLMD_E4M3; }},
                              {"num_rows is -1", [](Silu& a) { a.num_rows = -1; }},
                              {"size is 0", [](Silu& a) { a.size = 0; }},
                              {"y is null", [](Silu& a) { a.y = nullptr; }},
                              {"would reach past 2^63", [](Silu& a) { a.num_rows = kHuge; }},
                          });
}

TEST(Check, Sample) {
  using Args = llmd_sample_args;
  Args valid = {};
  valid.logits = Aligned();
  valid.row_stride = valid.vocab = 100;
  valid.batch = 2;
  valid.tokens = As<int32_t>();
  ExpectRules<Args>(valid, {
                               {"sample: logits is null", [](Args& a) { a.logits = nullptr; }},
                               {"dtype is e4m3", [](Args& a) { a.dtype = LLMD_E4M3; }},
                               {"batch is -1", [](Args& a) { a.batch = -1; }},
                               {"vocab is 0", [](Args& a) { a.vocab = 0; }},
                               {"row_stride is 99, must be at least 100", [](Args& a) { a.row_stride = 99; }},
                               {nullptr, [](Args& a) { a.batch = 1, a.row_stride = 0; }},
                               {"tokens is null", [](Args& a) { a.tokens = nullptr; }},
                               {"top_k is not a multiple of 4", [](Args& a) { a.top_k = As<int32_t>(2); }},
                               {"steps is not a multiple of 8", [](Args& a) { a.steps = As<uint64_t>(4); }},
                               {nullptr, [](Args& a) { a = {}, a.vocab = 1; }},
                           });
}

TEST(Check, Alignment) {
  EXPECT_TRUE(IsAligned(Aligned(), {64, 8}, LLMD_BF16, 16));
  EXPECT_FALSE(IsAligned(Odd(8), {64, 8}, LLMD_BF16, 16));
  EXPECT_FALSE(IsAligned(Aligned(), {64, 4}, LLMD_BF16, 16));
  EXPECT_FALSE(IsAligned(Aligned(), {60, 8}, LLMD_BF16, 16));
}

TEST(Check, HeadersAreC) { EXPECT_EQ(CompiledAsC(), 1); }

TEST(Check, TheCpuBackendSaysWhatIsTooLarge) {
  llmd_attention_shape shape = Shape(LLMD_DECODE);
  shape.head_dim = 1025;
  EXPECT_EQ(llmd_attention_cpu()->workspace_bytes(&shape), 0u);
  EXPECT_STREQ(llmd_attention_cpu()->last_error(), "shape.head_dim is 1025, the cpu backend goes up to 1024");
  EXPECT_NE(llmd_attention_reference()->workspace_bytes(&shape), 0u);
}

}  // namespace
}  // namespace llmd::attention
