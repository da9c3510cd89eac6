#include "llmd/attention/paged_attention.h"

#include <new>
#include <string>
#include <utility>

namespace llmd::attention {

absl::Status ToStatus(const llmd_attention_backend& backend, llmd_code code) {
  switch (code) {
    case LLMD_OK:
      return absl::OkStatus();
    case LLMD_INVALID_ARGUMENT:
      return absl::InvalidArgumentError(backend.last_error());
    case LLMD_UNSUPPORTED:
      return absl::UnimplementedError(backend.last_error());
    case LLMD_DEVICE_ERROR:
      return absl::InternalError(backend.last_error());
    case LLMD_BAD_DATA:
      return absl::DataLossError(backend.last_error());
  }
  return absl::UnknownError("code " + std::to_string(code) + " of backend " + backend.name);
}

Memory HostMemory() {
  constexpr std::align_val_t kAlignment{64};
  return {[](std::size_t bytes) { return ::operator new(bytes, kAlignment, std::nothrow); },
          [](void* memory) { ::operator delete(memory, kAlignment); }};
}

absl::StatusOr<PagedAttention> PagedAttention::Create(const llmd_attention_backend& backend,
                                                      const llmd_attention_shape& shape, Memory memory,
                                                      llmd_stream stream) {
  if (backend.abi != LLMD_ATTENTION_ABI) {
    return absl::FailedPreconditionError("the backend's abi is " + std::to_string(backend.abi) +
                                         ", wanted is " + std::to_string(LLMD_ATTENTION_ABI));
  }
  llmd_plan_args plan = {};
  plan.shape = shape;
  plan.workspace_bytes = backend.workspace_bytes(&shape);
  if (plan.workspace_bytes == 0) return absl::InvalidArgumentError(backend.last_error());
  Workspace workspace(memory.allocate(plan.workspace_bytes), std::move(memory.free));
  if (workspace == nullptr) {
    return absl::ResourceExhaustedError("no memory for a workspace of " +
                                        std::to_string(plan.workspace_bytes) + " bytes");
  }
  plan.workspace = workspace.get();
  const llmd_code code = backend.init_workspace(plan.workspace, plan.workspace_bytes, stream);
  if (code != LLMD_OK) return ToStatus(backend, code);
  return PagedAttention(backend, plan, std::move(workspace));
}

absl::Status PagedAttention::Plan(int32_t batch, const llmd_page_list& pages, const int32_t* q_start,
                                  llmd_stream stream) {
  plan_.batch = batch;
  plan_.pages = pages;
  plan_.q_start = q_start;
  return ToStatus(*backend_, backend_->plan(&plan_, stream));
}

absl::Status PagedAttention::Run(llmd_attention_args layer, llmd_stream stream) {
  layer.shape = plan_.shape;
  layer.batch = plan_.batch;
  if (plan_.shape.mode == LLMD_DECODE) layer.num_tokens = plan_.batch;
  layer.pages = plan_.pages;
  layer.q_start = plan_.q_start;
  layer.workspace = plan_.workspace;
  layer.workspace_bytes = plan_.workspace_bytes;
  return ToStatus(*backend_, backend_->attention(&layer, stream));
}

absl::Status PagedAttention::Check(llmd_data_error* error, llmd_stream stream) {
  llmd_data_error found = {};
  const llmd_code code = backend_->check_workspace(plan_.workspace, &found, stream);
  if (error != nullptr) *error = found;
  return ToStatus(*backend_, code);
}

}  // namespace llmd::attention
