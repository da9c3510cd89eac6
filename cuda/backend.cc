// The table of the CUDA backend: every entry checks its arguments, then calls its kernel file's function.
#include "cuda/kernels.h"
#include "src/attention/check.h"

namespace llmd::cuda {
namespace {

// No exception crosses the C interface: std::string may throw when a message is made.
template <typename Result, typename F>
Result Guarded(Result failed, F&& f) {
  try {
    return f();
  } catch (...) {
    return failed;
  }
}

template <auto kFunction, typename Args>
llmd_code Call(const Args* args, llmd_stream stream) {
  return Guarded(LLMD_DEVICE_ERROR, [&] {
    if (args == nullptr) return attention::Fail(LLMD_INVALID_ARGUMENT, "the arguments are null");
    const llmd_code code = attention::Check(*args);
    return code == LLMD_OK ? kFunction(*args, stream) : code;
  });
}

size_t CallWorkspaceBytes(const llmd_attention_shape* shape) {
  return Guarded(size_t{0}, [&]() -> size_t {
    if (shape == nullptr) {
      attention::Fail(LLMD_INVALID_ARGUMENT, "the shape is null");
      return 0;
    }
    return attention::Check(*shape) == LLMD_OK ? WorkspaceBytes(*shape) : 0;
  });
}

llmd_code CallInitWorkspace(void* workspace, size_t bytes, llmd_stream stream) {
  return Guarded(LLMD_DEVICE_ERROR, [&] { return InitWorkspace(workspace, bytes, stream); });
}

llmd_code CallCheckWorkspace(void* workspace, llmd_data_error* error, llmd_stream stream) {
  return Guarded(LLMD_DEVICE_ERROR, [&] { return CheckWorkspace(workspace, error, stream); });
}

constexpr llmd_attention_backend kBackend = {
    .abi = LLMD_ATTENTION_ABI,
    .name = "cuda",
    .last_error = attention::LastError,
    .append_kv = Call<AppendKv, llmd_append_kv_args>,
    .copy_blocks = Call<CopyBlocks, llmd_copy_blocks_args>,
    .gather_blocks = Call<GatherBlocks, llmd_gather_blocks_args>,
    .scatter_blocks = Call<ScatterBlocks, llmd_gather_blocks_args>,
    .workspace_bytes = CallWorkspaceBytes,
    .init_workspace = CallInitWorkspace,
    .plan = Call<Plan, llmd_plan_args>,
    .attention = Call<Attention, llmd_attention_args>,
    .check_workspace = CallCheckWorkspace,
    .merge_states = Call<MergeStates, llmd_merge_states_args>,
    .rope = Call<Rope, llmd_rope_args>,
    .rope_append = Call<RopeAppend, llmd_rope_append_args>,
    .rms_norm = Call<RmsNorm, llmd_rms_norm_args>,
    .silu_and_mul = Call<SiluAndMul, llmd_silu_and_mul_args>,
    .sample = Call<Sample, llmd_sample_args>,
};

}  // namespace
}  // namespace llmd::cuda

extern "C" __attribute__((visibility("default"))) const llmd_attention_backend* llmd_attention_cuda(void) {
  return &llmd::cuda::kBackend;
}
