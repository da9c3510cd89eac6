// A C++ hold on one backend's attention for one shape: it owns the workspace, turns codes into absl::Status,
// and remembers the step that was planned, so that a layer names only its own tensors:
//
//   auto attention = PagedAttention::Create(*llmd_attention_cpu(), shape, HostMemory());
//   for every step:   attention->Plan(batch, pages, q_start, stream)
//     for every layer:  attention->Run({.num_tokens = n, .q = q, ..., .cache = layer}, stream)
//
// Not thread safe, and for one stream at a time, as the workspace is. The other functions of a backend need
// no state: call them through the table, with ToStatus.
#ifndef LLMD_ATTENTION_PAGED_ATTENTION_H_
#define LLMD_ATTENTION_PAGED_ATTENTION_H_

#include <cstddef>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llmd/attention/backend.h"

namespace llmd::attention {

// OK, InvalidArgument, Unimplemented, Internal (the device) or DataLoss (bad pages, lengths or slots), with
// the backend's last_error(): to be asked for on the thread that called, before its next call.
absl::Status ToStatus(const llmd_attention_backend& backend, llmd_code code);

// Where a workspace comes from, for example cudaMalloc and cudaFree; null from `allocate` is a failure.
struct Memory {
  std::function<void*(std::size_t bytes)> allocate;
  std::function<void(void* memory)> free;
};
Memory HostMemory();

class PagedAttention {
 public:
  // The workspace is allocated, and initialized on the stream, here and nowhere else.
  static absl::StatusOr<PagedAttention> Create(const llmd_attention_backend& backend,
                                               const llmd_attention_shape& shape, Memory memory,
                                               llmd_stream stream = nullptr);

  // What `pages` and `q_start` point to must live until the step's last Run.
  absl::Status Plan(int32_t batch, const llmd_page_list& pages, const int32_t* q_start = nullptr,
                    llmd_stream stream = nullptr);

  // Fills in the shape, the planned step (in decode also num_tokens) and the workspace.
  absl::Status Run(llmd_attention_args layer, llmd_stream stream = nullptr);

  // Waits for the stream and reports what LLMD_VALIDATE found since the last Check.
  absl::Status Check(llmd_data_error* error = nullptr, llmd_stream stream = nullptr);

  const llmd_attention_backend& backend() const { return *backend_; }
  const llmd_attention_shape& shape() const { return plan_.shape; }
  std::size_t workspace_bytes() const { return plan_.workspace_bytes; }

 private:
  using Workspace = std::unique_ptr<void, std::function<void(void*)>>;

  PagedAttention(const llmd_attention_backend& backend, const llmd_plan_args& plan, Workspace workspace)
      : backend_(&backend), plan_(plan), workspace_(std::move(workspace)) {}

  const llmd_attention_backend* backend_;
  llmd_plan_args plan_;
  Workspace workspace_;
};

}  // namespace llmd::attention

#endif  // LLMD_ATTENTION_PAGED_ATTENTION_H_
