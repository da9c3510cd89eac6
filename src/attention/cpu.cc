#include "src/attention/cpu.h"

#include "src/attention/check.h"
#include "src/attention/cpu_kernels.h"
#include "src/attention/host_workspace.h"

namespace llmd::attention::cpu {
namespace {

llmd_code TooLarge(const char* field, int64_t value, int64_t limit) {
  return Fail(LLMD_UNSUPPORTED, std::string(field) + " is " + std::to_string(value) +
                                    ", the cpu backend goes up to " + std::to_string(limit));
}

llmd_code Supported(const llmd_attention_shape& shape) {
  if (shape.head_dim > kMostHeadDim) return TooLarge("shape.head_dim", shape.head_dim, kMostHeadDim);
  const int64_t group = shape.num_q_heads / shape.num_kv_heads;
  if (group > kMostGroup) return TooLarge("num_q_heads / num_kv_heads", group, kMostGroup);
  return LLMD_OK;
}
llmd_code Supported(const llmd_rope_args& args) {
  return args.head_dim > kMostHeadDim ? TooLarge("head_dim", args.head_dim, kMostHeadDim) : LLMD_OK;
}
llmd_code Supported(const llmd_rope_append_args& args) {
  const int32_t dim = args.append.cache.head_dim;
  return dim > kMostHeadDim ? TooLarge("append.cache.head_dim", dim, kMostHeadDim) : LLMD_OK;
}
template <typename Args>
llmd_code Supported(const Args&) {
  return LLMD_OK;
}

template <auto kFunction, typename Args>
llmd_code Call(const Args* args, llmd_stream) {
  return Guarded([&] {
    if (const llmd_code code = Check(*args); code != LLMD_OK) return code;
    if (const llmd_code code = Supported(*args); code != LLMD_OK) return code;
    kFunction(*args);
    return LLMD_OK;
  });
}

size_t CallWorkspaceBytes(const llmd_attention_shape* shape) {
  if (Check(*shape) != LLMD_OK || Supported(*shape) != LLMD_OK) return 0;
  return WorkspaceBytes(*shape);
}

// What plan and attention ask of a workspace.
template <typename Args>
llmd_code Ready(const Args& args) {
  if (const llmd_code code = Check(args); code != LLMD_OK) return code;
  if (const llmd_code code = Supported(args.shape); code != LLMD_OK) return code;
  const llmd_code code = CheckWorkspaceBytes(args.workspace_bytes, WorkspaceBytes(args.shape));
  if (code != LLMD_OK) return code;
  return HostWorkspaceOf(args.workspace) != nullptr ? LLMD_OK : LLMD_INVALID_ARGUMENT;
}

// Work is cut by each attention call from the lengths it reads: a plan is only checked.
llmd_code CallPlan(const llmd_plan_args* args, llmd_stream) {
  return Guarded([&] { return Ready(*args); });
}

llmd_code CallAttention(const llmd_attention_args* args, llmd_stream) {
  return Guarded([&] {
    if (const llmd_code code = Ready(*args); code != LLMD_OK) return code;
    Attention(*args, &HostWorkspaceOf(args->workspace)->error);
    return LLMD_OK;
  });
}

constexpr llmd_attention_backend kBackend = {
    .abi = LLMD_ATTENTION_ABI,
    .name = "cpu",
    .last_error = LastError,
    .append_kv = Call<AppendKv, llmd_append_kv_args>,
    .copy_blocks = Call<CopyBlocks, llmd_copy_blocks_args>,
    .gather_blocks = Call<GatherBlocks, llmd_gather_blocks_args>,
    .scatter_blocks = Call<ScatterBlocks, llmd_gather_blocks_args>,
    .workspace_bytes = CallWorkspaceBytes,
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
}  // namespace llmd::attention::cpu

extern "C" const llmd_attention_backend* llmd_attention_cpu(void) { return &llmd::attention::cpu::kBackend; }
