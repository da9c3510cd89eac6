#include "src/attention/check.h"

#include <cstdint>
#include <limits>
#include <string>
#include <utility>

#include "src/attention/rules.h"

namespace llmd::attention {
namespace {

std::string& Message() {
  thread_local std::string message;
  return message;
}

void CheckPool(Rules& rules, const char* base_name, const void* base, const char* strides_name,
               const llmd_kv_strides& strides, const llmd_kv_cache& cache) {
  rules.Pointer("cache.", base_name, base, 16);
  const auto size = static_cast<int64_t>(SizeOf(cache.dtype));
  int64_t end = Product(cache.head_dim, size);
  const struct {
    const char* name;
    int64_t stride;
    int64_t count;
  } dims[] = {{".page", strides.page, cache.num_pages},
              {".token", strides.token, cache.page_size},
              {".head", strides.head, cache.num_kv_heads}};
  for (const auto& dim : dims) {
    if (dim.count == 1 || !rules.ok()) continue;  // never multiplied by more than 0
    rules.Stride("cache.", strides_name, dim.name, dim.stride, cache.head_dim);
    const int64_t bytes = Product(dim.stride, size);
    const int64_t reach = Product(dim.count - 1, dim.stride, size);
    if (!rules.ok()) return;
    if (bytes < 0 || reach < 0 || __builtin_add_overflow(end, reach, &end)) {
      rules.Broken("cache.", strides_name,
                   dim.name + (" is " + Text(dim.stride) + ", the pool would reach past 2^63 bytes"));
    } else if (bytes % 16 != 0) {
      rules.Broken("cache.", strides_name,
                   dim.name + (" is " + Text(dim.stride) + ", must be a multiple of 16 bytes"));
    }
  }
}

void CheckCache(Rules& rules, const llmd_kv_cache& cache) {
  rules.Stored("cache.", "dtype", cache.dtype);
  rules.AtLeast("cache.", "num_pages", cache.num_pages, 1);
  rules.AtMost("cache.", "num_pages", cache.num_pages, std::numeric_limits<int32_t>::max(),
               " (pages are int32)");
  rules.AtLeast("cache.", "page_size", cache.page_size, 1);
  rules.AtLeast("cache.", "num_kv_heads", cache.num_kv_heads, 1);
  rules.AtLeast("cache.", "head_dim", cache.head_dim, 1);
  if (!rules.ok()) return;
  CheckPool(rules, "k", cache.k, "k_strides", cache.k_strides, cache);
  CheckPool(rules, "v", cache.v, "v_strides", cache.v_strides, cache);
  if (cache.dtype != LLMD_E4M3) return;
  if (cache.scale_stride != 0 && cache.scale_stride != 1) {
    rules.Broken("cache.", "scale_stride", " is " + Text(cache.scale_stride) + ", must be 0 or 1");
  }
  rules.Optional("cache.", "k_scale", cache.k_scale, 4);
  rules.Optional("cache.", "v_scale", cache.v_scale, 4);
}

// `lengths`: whether the caller reads lengths, and not only page ids. `batch`: -1 if it is not known.
void CheckPages(Rules& rules, const llmd_page_list& list, int64_t batch, bool lengths) {
  rules.AtLeast("pages.", "max_pages", list.max_pages, 0);
  if (batch == 0) return;
  if (list.max_pages > 0) rules.Pointer("pages.", "pages", list.pages, 4);
  if (list.indptr != nullptr) {
    rules.Optional("pages.", "indptr", list.indptr, 4);
    if (list.seq_lens != nullptr) rules.Broken("pages.", "seq_lens", " and pages.indptr are both given");
    if (lengths) rules.Pointer("pages.", "last_page_len", list.last_page_len, 4);
    return;
  }
  if (lengths) {
    if (list.seq_lens == nullptr) rules.Broken("pages.", "seq_lens", " and pages.indptr are both null");
    rules.Optional("pages.", "seq_lens", list.seq_lens, 4);
  }
  if (batch != 1) rules.AtLeast("pages.", "row_stride", list.row_stride, list.max_pages);
  if (list.row_stride > 0 && batch > 1 && Product(batch, list.row_stride, 4) < 0) {
    rules.Broken("pages.", "row_stride",
                 " is " + Text(list.row_stride) + ", the table would reach past 2^63 bytes");
  }
}

void CheckShape(Rules& rules, const llmd_attention_shape& shape) {
  if (const int mode = Value(shape.mode); mode != LLMD_DECODE && mode != LLMD_PREFILL && mode != LLMD_MIXED) {
    return rules.Broken("shape.", "mode", " is " + Text(mode) + ", must be decode, prefill or mixed");
  }
  rules.AtLeast("shape.", "max_batch", shape.max_batch, 1);
  if (shape.mode != LLMD_DECODE) rules.AtLeast("shape.", "max_tokens", shape.max_tokens, 1);
  rules.AtLeast("shape.", "num_kv_heads", shape.num_kv_heads, 1);
  rules.AtLeast("shape.", "num_q_heads", shape.num_q_heads, 1);
  rules.AtLeast("shape.", "head_dim", shape.head_dim, 1);
  rules.AtLeast("shape.", "page_size", shape.page_size, 1);
  if (rules.ok() && shape.num_q_heads % shape.num_kv_heads != 0) {
    rules.Broken("shape.", "num_q_heads",
                 " is " + Text(shape.num_q_heads) + ", must be a multiple of num_kv_heads, " +
                     Text(shape.num_kv_heads));
  }
  rules.Stored("shape.", "kv_dtype", shape.kv_dtype);
  rules.AtLeast("shape.", "fixed_split", shape.fixed_split, 0);
  rules.MultipleOf("shape.", "fixed_split", shape.fixed_split, 64);
  if (shape.fixed_split > 0) rules.AtLeast("shape.", "max_kv_tokens", shape.max_kv_tokens, 1);
  const int64_t rows = shape.mode == LLMD_DECODE ? shape.max_batch : shape.max_tokens;
  if (rules.ok() && Product(rows, shape.num_q_heads, shape.head_dim, 4) < 0) {
    rules.Broken(
        "shape.", "head_dim",
        " is " + Text(shape.head_dim) + ", tokens * num_q_heads * head_dim would be past 2^63 bytes");
  }
}

void CheckCommon(Rules& rules, const llmd_attention_shape& shape, int32_t batch, const llmd_page_list& pages,
                 const int32_t* q_start, const void* workspace) {
  CheckShape(rules, shape);
  if (!rules.ok()) return;
  rules.AtLeast("", "batch", batch, 0);
  rules.AtMost("", "batch", batch, shape.max_batch, ", shape.max_batch");
  CheckPages(rules, pages, batch, /*lengths=*/true);
  if (shape.mode != LLMD_DECODE) rules.Pointer("", "q_start", q_start, 4);
  rules.Pointer("", "workspace", workspace, 16);
}

void CheckAppend(Rules& rules, const char* group, const llmd_append_kv_args& args, bool needs_positions) {
  CheckCache(rules, args.cache);
  rules.Float(group, "dtype", args.dtype, /*f32=*/true);
  rules.AtLeast(group, "num_tokens", args.num_tokens, 0);
  if (!rules.ok() || args.num_tokens == 0) return;
  const auto size = static_cast<int64_t>(SizeOf(args.dtype));
  rules.Pointer(group, "k", args.k, size);
  rules.Pointer(group, "v", args.v, size);
  const llmd_kv_cache& cache = args.cache;
  rules.Input(group, "k_strides", args.k_strides, args.num_tokens, cache.num_kv_heads, cache.head_dim,
              args.dtype);
  rules.Input(group, "v_strides", args.v_strides, args.num_tokens, cache.num_kv_heads, cache.head_dim,
              args.dtype);
  rules.Optional(group, "slots", args.slots, 8);
  rules.Optional(group, "error", args.error, 8);
  if (args.slots == nullptr) {
    rules.Pointer(group, "batch_index", args.batch_index, 4);
    CheckPages(rules, args.pages, /*batch=*/-1, /*lengths=*/false);
  }
  if (args.slots == nullptr || needs_positions) rules.Pointer(group, "positions", args.positions, 4);
}

void CheckBlocks(Rules& rules, void* const* bases, int32_t num_bases, int64_t page_stride_bytes,
                 int64_t block_bytes) {
  rules.AtLeast("", "num_bases", num_bases, 1);
  rules.AtLeast("", "block_bytes", block_bytes, 1);
  rules.MultipleOf("", "block_bytes", block_bytes, 16);
  rules.AtLeast("", "page_stride_bytes", page_stride_bytes, block_bytes);
  rules.MultipleOf("", "page_stride_bytes", page_stride_bytes, 16);
  rules.Pointer("", "bases", bases, 8);
}

// Where attention and merges of it leave o and, if asked to, the log-sums.
template <typename Args>
void CheckResults(Rules& rules, const Args& args, int32_t num_heads, int32_t head_dim) {
  rules.Pointer("", "o", args.o, static_cast<int64_t>(SizeOf(args.o_dtype)));
  rules.Output("", "o_strides", args.o_strides, args.num_tokens, num_heads, head_dim, args.o_dtype);
  if (args.lse == nullptr) return;
  rules.Optional("", "lse", args.lse, 4);
  rules.Output("", "lse_strides", args.lse_strides, args.num_tokens, num_heads, 1, LLMD_F32);
}

void CheckRope(Rules& rules, const llmd_rope& rope, int32_t head_dim) {
  rules.Positive("rope.", "theta", rope.theta);
  rules.Finite("rope.", "theta", rope.theta);
  rules.AtLeast("rope.", "rotary_dim", rope.rotary_dim, 2);
  rules.MultipleOf("rope.", "rotary_dim", rope.rotary_dim, 2);
  rules.AtMost("rope.", "rotary_dim", rope.rotary_dim, head_dim, ", the head dim");
  if (rope.interleaved != 0 && rope.interleaved != 1) {
    rules.Broken("rope.", "interleaved", " is " + Text(rope.interleaved) + ", must be 0 or 1");
  }
  rules.Finite("rope.", "scale_factor", rope.scale_factor);
  if (rope.scale_factor < 0) rules.Positive("rope.", "scale_factor", rope.scale_factor);
  if (!(rope.scale_factor > 0)) return;
  rules.Positive("rope.", "low_freq_factor", rope.low_freq_factor);
  rules.Finite("rope.", "high_freq_factor", rope.high_freq_factor);
  rules.Positive("rope.", "old_context", rope.old_context);
  rules.Finite("rope.", "old_context", rope.old_context);
  if (!(rope.high_freq_factor > rope.low_freq_factor)) {
    rules.Broken("rope.", "high_freq_factor",
                 " is " + Text(rope.high_freq_factor) + ", must be greater than low_freq_factor, " +
                     Text(rope.low_freq_factor));
  }
}

}  // namespace

const char* LastError() { return Message().c_str(); }

llmd_code Fail(llmd_code code, std::string message) {
  Message() = std::move(message);
  return code;
}

std::size_t SizeOf(llmd_dtype dtype) {
  switch (dtype) {
    case LLMD_F32:
      return 4;
    case LLMD_F16:
    case LLMD_BF16:
      return 2;
    case LLMD_E4M3:
      return 1;
  }
  return 0;
}

const char* NameOf(llmd_dtype dtype) {
  switch (dtype) {
    case LLMD_F32:
      return "f32";
    case LLMD_F16:
      return "f16";
    case LLMD_BF16:
      return "bf16";
    case LLMD_E4M3:
      return "e4m3";
  }
  return "no dtype";
}

bool IsAligned(const void* pointer, llmd_token_strides strides, llmd_dtype dtype, std::size_t alignment) {
  const auto unit = static_cast<uint64_t>(alignment);
  const auto size = static_cast<uint64_t>(SizeOf(dtype));
  return reinterpret_cast<uintptr_t>(pointer) % unit == 0 &&
         static_cast<uint64_t>(strides.token) * size % unit == 0 &&
         static_cast<uint64_t>(strides.head) * size % unit == 0;
}

llmd_code CheckWorkspaceBytes(std::size_t bytes, std::size_t needed) {
  if (bytes >= needed) return LLMD_OK;
  return Fail(LLMD_INVALID_ARGUMENT,
              "workspace_bytes is " + std::to_string(bytes) + ", must be at least " + std::to_string(needed));
}

llmd_code Check(const llmd_append_kv_args& args) {
  Rules rules("append_kv");
  CheckAppend(rules, "", args, /*needs_positions=*/false);
  return rules.code();
}

llmd_code Check(const llmd_copy_blocks_args& args) {
  Rules rules("copy_blocks");
  rules.AtLeast("", "num_pairs", args.num_pairs, 0);
  if (args.num_pairs == 0) return rules.code();
  CheckBlocks(rules, args.bases, args.num_bases, args.page_stride_bytes, args.block_bytes);
  rules.Pointer("", "pairs", args.pairs, 8);
  return rules.code();
}

llmd_code Check(const llmd_gather_blocks_args& args) {
  Rules rules("gather_blocks or scatter_blocks");
  rules.AtLeast("", "num_blocks", args.num_blocks, 0);
  if (args.num_blocks == 0) return rules.code();
  CheckBlocks(rules, args.bases, args.num_bases, args.page_stride_bytes, args.block_bytes);
  rules.Pointer("", "blocks", args.blocks, 8);
  rules.Pointer("", "staging", args.staging, 16);
  if (rules.ok() && Product(args.num_blocks, args.num_bases, args.block_bytes) < 0) {
    rules.Broken("", "block_bytes",
                 " is " + Text(args.block_bytes) + ", staging would reach past 2^63 bytes");
  }
  return rules.code();
}

llmd_code Check(const llmd_attention_shape& shape) {
  Rules rules("workspace_bytes");
  CheckShape(rules, shape);
  return rules.code();
}

llmd_code Check(const llmd_plan_args& args) {
  Rules rules("plan");
  CheckCommon(rules, args.shape, args.batch, args.pages, args.q_start, args.workspace);
  return rules.code();
}

llmd_code Check(const llmd_attention_args& args) {
  Rules rules("attention");
  const llmd_attention_shape& shape = args.shape;
  CheckCommon(rules, shape, args.batch, args.pages, args.q_start, args.workspace);
  if (!rules.ok()) return rules.code();
  if (shape.mode == LLMD_DECODE) {
    rules.Equal("", "num_tokens", args.num_tokens, args.batch, "batch in decode");
  } else {
    rules.AtLeast("", "num_tokens", args.num_tokens, 0);
    rules.AtMost("", "num_tokens", args.num_tokens, shape.max_tokens, ", shape.max_tokens");
  }
  CheckCache(rules, args.cache);
  rules.Float("", "q_dtype", args.q_dtype, /*f32=*/false);
  rules.Float("", "o_dtype", args.o_dtype, /*f32=*/true);
  if (!rules.ok()) return rules.code();
  rules.Equal("cache.", "num_kv_heads", args.cache.num_kv_heads, shape.num_kv_heads, "shape.num_kv_heads");
  rules.Equal("cache.", "head_dim", args.cache.head_dim, shape.head_dim, "shape.head_dim");
  rules.Equal("cache.", "page_size", args.cache.page_size, shape.page_size, "shape.page_size");
  if (args.cache.dtype != shape.kv_dtype) {
    rules.Broken("cache.", "dtype",
                 std::string(" is ") + NameOf(args.cache.dtype) + ", must be shape.kv_dtype, " +
                     NameOf(shape.kv_dtype));
  }
  if (args.cache.dtype != LLMD_E4M3 && args.q_dtype != args.cache.dtype) {
    rules.Broken("", "q_dtype",
                 std::string(" is ") + NameOf(args.q_dtype) + ", must be that of the cache, " +
                     NameOf(args.cache.dtype));
  }
  rules.Finite("", "scale", args.scale);
  rules.Optional("", "sinks", args.sinks, 4);
  constexpr uint32_t kFlags = LLMD_VALIDATE | LLMD_ZERO_PADDING | LLMD_EARLY_START;
  if ((args.flags & ~kFlags) != 0)
    rules.Broken("", "flags", " is " + Text(args.flags) + ", has unknown bits");
  if (!rules.ok() || args.num_tokens == 0) return rules.code();
  rules.Pointer("", "q", args.q, static_cast<int64_t>(SizeOf(args.q_dtype)));
  rules.Input("", "q_strides", args.q_strides, args.num_tokens, shape.num_q_heads, shape.head_dim,
              args.q_dtype);
  CheckResults(rules, args, shape.num_q_heads, shape.head_dim);
  return rules.code();
}

llmd_code Check(const llmd_merge_states_args& args) {
  Rules rules("merge_states");
  rules.AtLeast("", "num_tokens", args.num_tokens, 0);
  rules.AtLeast("", "num_heads", args.num_heads, 1);
  rules.AtLeast("", "head_dim", args.head_dim, 1);
  rules.Float("", "partial_dtype", args.partial_dtype, /*f32=*/true);
  rules.Float("", "o_dtype", args.o_dtype, /*f32=*/true);
  rules.Optional("", "part_start", args.part_start, 4);
  if (args.part_start == nullptr) {
    rules.AtLeast("", "num_parts", args.num_parts, 0);
    if (rules.ok() && (Product(args.num_parts, args.num_tokens, args.num_heads) < 0 ||
                       Product(int64_t{args.num_parts} * args.num_tokens,
                               int64_t{args.num_heads} * args.head_dim, 4) < 0)) {
      rules.Broken("", "num_parts",
                   " is " + Text(args.num_parts) + ", partial_o would reach past 2^63 bytes");
    }
  }
  if (!rules.ok() || args.num_tokens == 0) return rules.code();
  if (args.part_start != nullptr || args.num_parts > 0) {
    rules.Pointer("", "partial_o", args.partial_o, static_cast<int64_t>(SizeOf(args.partial_dtype)));
    rules.Pointer("", "partial_lse", args.partial_lse, 4);
  }
  CheckResults(rules, args, args.num_heads, args.head_dim);
  return rules.code();
}

llmd_code Check(const llmd_rope_args& args) {
  Rules rules("rope");
  rules.AtLeast("", "num_tokens", args.num_tokens, 0);
  rules.AtLeast("", "num_q_heads", args.num_q_heads, 1);
  rules.AtLeast("", "head_dim", args.head_dim, 1);
  rules.Float("", "dtype", args.dtype, /*f32=*/true);
  CheckRope(rules, args.rope, args.head_dim);
  if (args.k != nullptr) rules.AtLeast("", "num_kv_heads", args.num_kv_heads, 1);
  if (!rules.ok() || args.num_tokens == 0) return rules.code();
  const auto size = static_cast<int64_t>(SizeOf(args.dtype));
  rules.Pointer("", "positions", args.positions, 4);
  rules.Pointer("", "q", args.q, size);
  rules.Pointer("", "q_out", args.q_out, size);
  rules.Input("", "q_strides", args.q_strides, args.num_tokens, args.num_q_heads, args.head_dim, args.dtype);
  rules.Output("", "q_out_strides", args.q_out_strides, args.num_tokens, args.num_q_heads, args.head_dim,
               args.dtype);
  rules.InPlace("", "q_out_strides", args.q, args.q_strides, args.q_out, args.q_out_strides);
  if (args.k == nullptr) return rules.code();
  rules.Pointer("", "k", args.k, size);
  rules.Pointer("", "k_out", args.k_out, size);
  rules.Input("", "k_strides", args.k_strides, args.num_tokens, args.num_kv_heads, args.head_dim, args.dtype);
  rules.Output("", "k_out_strides", args.k_out_strides, args.num_tokens, args.num_kv_heads, args.head_dim,
               args.dtype);
  rules.InPlace("", "k_out_strides", args.k, args.k_strides, args.k_out, args.k_out_strides);
  return rules.code();
}

llmd_code Check(const llmd_rope_append_args& args) {
  Rules rules("rope_append");
  const llmd_append_kv_args& append = args.append;
  const llmd_kv_cache& cache = append.cache;
  CheckAppend(rules, "append.", append, /*needs_positions=*/true);
  CheckRope(rules, args.rope, cache.head_dim);
  rules.AtLeast("", "num_q_heads", args.num_q_heads, 1);
  if (!rules.ok() || append.num_tokens == 0) return rules.code();
  const auto size = static_cast<int64_t>(SizeOf(append.dtype));
  rules.Pointer("", "q", args.q, size);
  rules.Pointer("", "q_out", args.q_out, size);
  rules.Input("", "q_strides", args.q_strides, append.num_tokens, args.num_q_heads, cache.head_dim,
              append.dtype);
  rules.Output("", "q_out_strides", args.q_out_strides, append.num_tokens, args.num_q_heads, cache.head_dim,
               append.dtype);
  rules.InPlace("", "q_out_strides", args.q, args.q_strides, args.q_out, args.q_out_strides);
  return rules.code();
}

llmd_code Check(const llmd_rms_norm_args& args) {
  Rules rules("rms_norm");
  rules.Float("", "dtype", args.dtype, /*f32=*/true);
  rules.AtLeast("", "num_rows", args.num_rows, 0);
  rules.AtLeast("", "size", args.size, 1);
  rules.Finite("", "epsilon", args.epsilon);
  if (args.epsilon < 0) rules.Positive("", "epsilon", args.epsilon);
  if (!rules.ok() || args.num_rows == 0) return rules.code();
  const auto size = static_cast<int64_t>(SizeOf(args.dtype));
  rules.Pointer("", "x", args.x, size);
  rules.Pointer("", "weight", args.weight, size);
  rules.Pointer("", "y", args.y, size);
  rules.Optional("", "residual", args.residual, size);
  rules.AtLeast("", "x_stride", args.x_stride, 0);
  rules.AtLeast("", "y_stride", args.y_stride, args.num_rows > 1 ? args.size : 0);
  rules.Input("", "x_stride", {args.x_stride, 0}, args.num_rows, 1, args.size, args.dtype);
  rules.Output("", "y_stride", {args.y_stride, 0}, args.num_rows, 1, args.size, args.dtype);
  rules.InPlace("", "y_stride", args.x, {args.x_stride, 0}, args.y, {args.y_stride, 0});
  if (rules.ok() && Product(args.num_rows, args.size, size) < 0) {
    rules.Broken("", "num_rows", " is " + Text(args.num_rows) + ", the rows would reach past 2^63 bytes");
  }
  return rules.code();
}

llmd_code Check(const llmd_silu_and_mul_args& args) {
  Rules rules("silu_and_mul");
  rules.Float("", "dtype", args.dtype, /*f32=*/true);
  rules.AtLeast("", "num_rows", args.num_rows, 0);
  rules.AtLeast("", "size", args.size, 1);
  if (!rules.ok() || args.num_rows == 0) return rules.code();
  const auto size = static_cast<int64_t>(SizeOf(args.dtype));
  rules.Pointer("", "x", args.x, size);
  rules.Pointer("", "y", args.y, size);
  if (Product(args.num_rows, args.size, 2 * size) < 0) {
    rules.Broken("", "num_rows", " is " + Text(args.num_rows) + ", the rows would reach past 2^63 bytes");
  }
  return rules.code();
}

llmd_code Check(const llmd_sample_args& args) {
  Rules rules("sample");
  rules.Float("", "dtype", args.dtype, /*f32=*/true);
  rules.AtLeast("", "batch", args.batch, 0);
  rules.AtLeast("", "vocab", args.vocab, 1);
  if (!rules.ok() || args.batch == 0) return rules.code();
  rules.Pointer("", "logits", args.logits, static_cast<int64_t>(SizeOf(args.dtype)));
  rules.AtLeast("", "row_stride", args.row_stride, args.batch > 1 ? args.vocab : 0);
  rules.Input("", "row_stride", {args.row_stride, 0}, args.batch, 1, args.vocab, args.dtype);
  rules.Optional("", "temperature", args.temperature, 4);
  rules.Optional("", "min_p", args.min_p, 4);
  rules.Optional("", "top_k", args.top_k, 4);
  rules.Optional("", "top_p", args.top_p, 4);
  rules.Optional("", "request_ids", args.request_ids, 8);
  rules.Optional("", "steps", args.steps, 8);
  rules.Pointer("", "tokens", args.tokens, 4);
  rules.Optional("", "logprobs", args.logprobs, 4);
  return rules.code();
}

}  // namespace llmd::attention
