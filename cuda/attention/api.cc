// Workspaces, plans and attention: what the backend table calls. Arguments have been checked
// (src/attention/check.h); what only these kernels cannot do is refused here.
#include <cuda_runtime_api.h>

#include <string>

#include "cuda/attention/launch.h"
#include "cuda/common/launch.h"
#include "cuda/kernels.h"

namespace llmd::cuda {
namespace {

constexpr int kLeastSharedBytes = 163 * 1024;  // of a block, for decode
constexpr int kMaxSplit = 1 << 30;
constexpr int64_t kMaxKvTokens = int64_t{1} << 40;  // keeps the sizes of a workspace within 64 bits

int Grid(const Device& device) { return std::min(device.sms, kMaxStarts); }  // one block a multiprocessor

llmd_code Supported(const llmd_attention_shape& shape) {
  if (shape.head_dim != 64 && shape.head_dim != 128) {
    return attention::Fail(LLMD_UNSUPPORTED, "shape.head_dim is " + std::to_string(shape.head_dim) +
                                                 ", the kernels have 64 and 128");
  }
  if (shape.kv_dtype == LLMD_F32) {
    return attention::Fail(LLMD_UNSUPPORTED, "shape.kv_dtype is f32, the kernels have bf16, f16 and e4m3");
  }
  const int64_t heads =
      int64_t{shape.num_kv_heads} * CeilDivide(shape.num_q_heads / shape.num_kv_heads, kRowTile);
  if (shape.max_batch >= UnitCount::kMaxItems / heads) {
    return attention::Fail(LLMD_UNSUPPORTED, "shape.max_batch is " + std::to_string(shape.max_batch) +
                                                 ", the plan holds fewer than " +
                                                 std::to_string(UnitCount::kMaxItems) + " requests * heads");
  }
  if (shape.fixed_split > kMaxSplit) {
    return attention::Fail(LLMD_UNSUPPORTED, "shape.fixed_split is " + std::to_string(shape.fixed_split) +
                                                 ", must be at most " + std::to_string(kMaxSplit));
  }
  if (shape.fixed_split > 0 && shape.max_kv_tokens > kMaxKvTokens) {
    return attention::Fail(LLMD_UNSUPPORTED, "shape.max_kv_tokens is " + std::to_string(shape.max_kv_tokens) +
                                                 ", must be at most " + std::to_string(kMaxKvTokens));
  }
  return LLMD_OK;
}

// The layout, or a failure if the shape has no kernels or the workspace is too small for it.
llmd_code LayoutFor(const llmd_attention_shape& shape, size_t bytes, WorkspaceLayout* layout) {
  if (llmd_code code = Supported(shape); code != LLMD_OK) return code;
  const Device* device = CurrentDevice();
  if (device == nullptr) return LLMD_DEVICE_ERROR;
  if (device->max_shared_bytes < kLeastSharedBytes) {
    return attention::Fail(LLMD_UNSUPPORTED, "this device has " + std::to_string(device->max_shared_bytes) +
                                                 " bytes of shared memory a block, attention needs " +
                                                 std::to_string(kLeastSharedBytes));
  }
  *layout = LayoutOf(shape, Grid(*device));
  if (bytes < layout->bytes) {
    return attention::Fail(LLMD_INVALID_ARGUMENT, "workspace_bytes is " + std::to_string(bytes) +
                                                      ", must be at least " + std::to_string(layout->bytes));
  }
  return LLMD_OK;
}

llmd_kv_strides InBytes(const llmd_kv_strides& strides, size_t element) {
  const auto size = static_cast<int64_t>(element);
  return {strides.page * size, strides.token * size, strides.head * size};
}

DecodeParams ParamsOf(const llmd_attention_args& args, const WorkspaceLayout& layout) {
  const llmd_attention_shape& shape = args.shape;
  const size_t element = attention::SizeOf(args.cache.dtype);
  const bool scaled = args.cache.dtype == LLMD_E4M3;
  return {.q = static_cast<const char*>(args.q),
          .o = static_cast<char*>(args.o),
          .lse = args.lse,
          .q_strides = args.q_strides,
          .o_strides = args.o_strides,
          .lse_strides = args.lse_strides,
          .q_start = shape.mode == LLMD_DECODE ? nullptr : args.q_start,
          .k = static_cast<const char*>(args.cache.k),
          .v = static_cast<const char*>(args.cache.v),
          .k_strides = InBytes(args.cache.k_strides, element),
          .v_strides = InBytes(args.cache.v_strides, element),
          .k_scale = scaled ? args.cache.k_scale : nullptr,
          .v_scale = scaled ? args.cache.v_scale : nullptr,
          .sinks = args.sinks,
          .pages = args.pages,
          .workspace = WorkspaceAt(args.workspace, layout),
          .num_pages = args.cache.num_pages,
          .page_size = FastDivide(shape.page_size),
          .unit_keys = FastDivide(layout.unit_keys),
          .scale_log2 = args.scale * kLog2E,
          .scale_stride = args.cache.scale_stride,
          .batch = args.batch,
          .num_tokens = args.num_tokens,
          .q_heads = shape.num_q_heads,
          .group = shape.num_q_heads / shape.num_kv_heads,
          .row_tiles = layout.row_tiles,
          .heads = layout.heads,
          .item_heads = layout.item_heads,
          .head_dim = shape.head_dim,
          .window = shape.window,
          .grid = layout.grid,
          .q_dtype = args.q_dtype,
          .o_dtype = args.o_dtype,
          .groups_in_pages = shape.page_size % kGroupKeys == 0,
          .fixed_split = shape.fixed_split > 0,
          .validate = (args.flags & LLMD_VALIDATE) != 0,
          .zero_padding = (args.flags & LLMD_ZERO_PADDING) != 0,
          .early_start = (args.flags & LLMD_EARLY_START) != 0};
}

}  // namespace

size_t WorkspaceBytes(const llmd_attention_shape& shape) {
  WorkspaceLayout layout;
  return LayoutFor(shape, SIZE_MAX, &layout) == LLMD_OK ? layout.bytes : 0;
}

llmd_code InitWorkspace(void* workspace, size_t bytes, llmd_stream stream) {
  const cudaError_t error = cudaMemsetAsync(workspace, 0, bytes, stream);
  return error == cudaSuccess ? LLMD_OK : DeviceError(error, "init_workspace");
}

llmd_code Plan(const llmd_plan_args& args, llmd_stream stream) {
  WorkspaceLayout layout;
  if (llmd_code code = LayoutFor(args.shape, args.workspace_bytes, &layout); code != LLMD_OK) return code;
  return LaunchPlan(args, layout, stream);
}

llmd_code Attention(const llmd_attention_args& args, llmd_stream stream) {
  WorkspaceLayout layout;
  const llmd_attention_shape& shape = args.shape;
  if (llmd_code code = LayoutFor(shape, args.workspace_bytes, &layout); code != LLMD_OK) return code;
  // How q is read: copied by prefill, four or two elements at a time by decode. o is written two at a time.
  const size_t q_bytes = shape.mode != LLMD_DECODE ? 16 : shape.kv_dtype == LLMD_E4M3 ? 8 : 4;
  if (!attention::IsAligned(args.q, args.q_strides, args.q_dtype, q_bytes)) {
    return attention::Fail(LLMD_UNSUPPORTED, "rows of q do not begin at multiples of " +
                                                 std::to_string(q_bytes) + " bytes, as this mode needs");
  }
  const size_t o_bytes = 2 * attention::SizeOf(args.o_dtype);
  if (!attention::IsAligned(args.o, args.o_strides, args.o_dtype, o_bytes)) {
    return attention::Fail(LLMD_UNSUPPORTED,
                           "rows of o do not begin at multiples of " + std::to_string(o_bytes) + " bytes");
  }
  const DecodeParams params = ParamsOf(args, layout);
  if (shape.mode != LLMD_PREFILL) {
    const llmd_code code = shape.kv_dtype == LLMD_BF16  ? LaunchDecodeKernel<__nv_bfloat16>(params, stream)
                           : shape.kv_dtype == LLMD_F16 ? LaunchDecodeKernel<__half>(params, stream)
                                                        : LaunchDecodeKernel<__nv_fp8_e4m3>(params, stream);
    if (code != LLMD_OK || shape.mode == LLMD_DECODE) return code;
  }
  const PrefillParams prefill{.common = params,
                              .group = FastDivide(params.group),
                              .kv_heads = shape.num_kv_heads,
                              .grid = layout.prefill_grid,
                              .rows_of_part = layout.prefill_rows,
                              .zero_padding = shape.mode == LLMD_PREFILL};
  return shape.kv_dtype == LLMD_BF16  ? LaunchPrefillKernel<__nv_bfloat16>(prefill, stream)
         : shape.kv_dtype == LLMD_F16 ? LaunchPrefillKernel<__half>(prefill, stream)
                                      : LaunchPrefillKernel<__nv_fp8_e4m3>(prefill, stream);
}

llmd_code CheckWorkspace(void* workspace, llmd_data_error* error, llmd_stream stream) {
  PlanHeader header;
  auto* on_device = static_cast<PlanHeader*>(workspace);
  cudaError_t result = cudaMemcpyAsync(&header, on_device, sizeof(header), cudaMemcpyDeviceToHost, stream);
  if (result == cudaSuccess) result = cudaStreamSynchronize(stream);
  if (result == cudaSuccess && header.error_kind != LLMD_DATA_OK) {
    result = cudaMemsetAsync(&on_device->error_kind, 0, sizeof(header.error_kind), stream);
  }
  if (result != cudaSuccess) return DeviceError(result, "check_workspace");
  *error = {.kind = static_cast<llmd_data_error_kind>(header.error_kind),
            .request = header.error_request,
            .index = header.error_index,
            .value = header.error_value};
  if (header.error_kind == LLMD_DATA_OK) {
    *error = {};
    return LLMD_OK;
  }
  return attention::Fail(LLMD_BAD_DATA, (header.error_kind == LLMD_BAD_PAGE ? "page " : "length ") +
                                            std::to_string(header.error_value) + " of request " +
                                            std::to_string(header.error_request) + " at index " +
                                            std::to_string(header.error_index) + " is out of range");
}

}  // namespace llmd::cuda
