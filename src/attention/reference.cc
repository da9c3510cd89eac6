#include "src/attention/reference.h"

#include <cstring>

#include "src/attention/check.h"
#include "src/attention/host_workspace.h"
#include "src/attention/numeric.h"
#include "src/attention/pages.h"

namespace llmd::attention::reference {

void AppendKv(const llmd_append_kv_args& args) {
  const llmd_kv_cache& cache = args.cache;
  for (int32_t t = 0; t < args.num_tokens; ++t) {
    const Place place = PlaceOf(args, t);
    if (place.error != LLMD_DATA_OK && args.error != nullptr && args.error[0] == LLMD_DATA_OK) {
      args.error[0] = place.error;
      args.error[1] = t;
      args.error[2] = place.value;
    }
    if (place.skip) continue;
    for (int32_t h = 0; h < cache.num_kv_heads; ++h) {
      const auto store = [&](const void* source, llmd_token_strides strides, void* pool,
                             llmd_kv_strides pool_strides, const float* scales) {
        const bool scaled = cache.dtype == LLMD_E4M3 && scales != nullptr;
        const float scale = scaled ? scales[h * cache.scale_stride] : 1.0f;
        const int64_t to = Offset(pool_strides, place.page, place.offset, h);
        for (int32_t d = 0; d < cache.head_dim; ++d) {
          const float x = LoadElement(args.dtype, source, t * strides.token + h * strides.head + d);
          StoreElement(cache.dtype, pool, to + d, x / scale);
        }
      };
      store(args.k, args.k_strides, cache.k, cache.k_strides, cache.k_scale);
      store(args.v, args.v_strides, cache.v, cache.v_strides, cache.v_scale);
    }
  }
}

namespace {

llmd_code CallAppendKv(const llmd_append_kv_args* args, llmd_stream) {
  return Guarded([&] {
    if (const llmd_code code = Check(*args); code != LLMD_OK) return code;
    AppendKv(*args);
    return LLMD_OK;
  });
}

llmd_code CallCopyBlocks(const llmd_copy_blocks_args* args, llmd_stream) {
  return Guarded([&] {
    if (const llmd_code code = Check(*args); code != LLMD_OK) return code;
    for (int32_t i = 0; i < args->num_pairs; ++i) {
      for (int32_t j = 0; j < args->num_bases; ++j) {
        auto* base = static_cast<char*>(args->bases[j]);
        std::memcpy(base + args->pairs[2 * i + 1] * args->page_stride_bytes,
                    base + args->pairs[2 * i] * args->page_stride_bytes, args->block_bytes);
      }
    }
    return LLMD_OK;
  });
}

// Calls f(pool block, staging block) for every block and base.
template <typename F>
llmd_code ForEachStaged(const llmd_gather_blocks_args* args, F&& f) {
  return Guarded([&] {
    if (const llmd_code code = Check(*args); code != LLMD_OK) return code;
    auto* staging = static_cast<char*>(args->staging);
    for (int32_t i = 0; i < args->num_blocks; ++i) {
      for (int32_t j = 0; j < args->num_bases; ++j, staging += args->block_bytes) {
        f(static_cast<char*>(args->bases[j]) + args->blocks[i] * args->page_stride_bytes, staging);
      }
    }
    return LLMD_OK;
  });
}

llmd_code CallGatherBlocks(const llmd_gather_blocks_args* args, llmd_stream) {
  return ForEachStaged(args,
                       [&](char* pool, char* staging) { std::memcpy(staging, pool, args->block_bytes); });
}

llmd_code CallScatterBlocks(const llmd_gather_blocks_args* args, llmd_stream) {
  return ForEachStaged(args,
                       [&](char* pool, char* staging) { std::memcpy(pool, staging, args->block_bytes); });
}

size_t WorkspaceBytes(const llmd_attention_shape* shape) {
  return Check(*shape) == LLMD_OK ? kHostWorkspaceBytes : 0;
}

llmd_code CallPlan(const llmd_plan_args* args, llmd_stream) {
  return Guarded([&] {
    if (const llmd_code code = Check(*args); code != LLMD_OK) return code;
    if (const llmd_code code = CheckWorkspaceBytes(args->workspace_bytes, kHostWorkspaceBytes);
        code != LLMD_OK) {
      return code;
    }
    return HostWorkspaceOf(args->workspace) != nullptr ? LLMD_OK : LLMD_INVALID_ARGUMENT;
  });
}

llmd_code CallAttention(const llmd_attention_args* args, llmd_stream) {
  return Guarded([&] {
    if (const llmd_code code = Check(*args); code != LLMD_OK) return code;
    if (const llmd_code code = CheckWorkspaceBytes(args->workspace_bytes, kHostWorkspaceBytes);
        code != LLMD_OK) {
      return code;
    }
    HostWorkspace* workspace = HostWorkspaceOf(args->workspace);
    if (workspace == nullptr) return LLMD_INVALID_ARGUMENT;
    Attention(*args, &workspace->error);
    return LLMD_OK;
  });
}

// Checks, then calls.
template <auto kFunction, typename Args>
llmd_code Call(const Args* args, llmd_stream) {
  return Guarded([&] {
    if (const llmd_code code = Check(*args); code != LLMD_OK) return code;
    kFunction(*args);
    return LLMD_OK;
  });
}

constexpr llmd_attention_backend kBackend = {
    .abi = LLMD_ATTENTION_ABI,
    .name = "reference",
    .last_error = LastError,
    .append_kv = CallAppendKv,
    .copy_blocks = CallCopyBlocks,
    .gather_blocks = CallGatherBlocks,
    .scatter_blocks = CallScatterBlocks,
    .workspace_bytes = WorkspaceBytes,
    .init_workspace = InitHostWorkspace,
    .plan = CallPlan,
    .attention = CallAttention,
    .check_workspace = CheckHostWorkspace,
    .merge_states = Call<MergeStates, llmd_merge_states_args>,
    .rope = Call<Rope, llmd_rope_args>,
    .rope_append = Call<RopeAppend, llmd_rope_append_args>,
    .rms_norm = Call<RmsNorm, llmd_rms_norm_args>,
    .silu_and_mul = Call<SiluAndMul, llmd_silu_and_mul_args>,
    .sample = Call<Sample, llmd_sample_args>,
};

}  // namespace
}  // namespace llmd::attention::reference

extern "C" const llmd_attention_backend* llmd_attention_reference(void) {
  return &llmd::attention::reference::kBackend;
}
