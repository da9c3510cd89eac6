// A workspace's parts as pointers; what kernels get by value.
#ifndef LLMD_CUDA_ATTENTION_WORKSPACE_H_
#define LLMD_CUDA_ATTENTION_WORKSPACE_H_

#include "cuda/attention/plan.h"

namespace llmd::cuda {

struct Workspace {
  PlanHeader* header;
  PieceStart* starts;     // [grid + 1]
  std::int64_t* units;    // [batch + 1] UnitCount of the requests before
  std::int32_t* lengths;  // [batch] keys, 0 where the given length is bad
  std::int32_t* empty;    // [empty_rows] rows of q that see nothing
  // Parts of cut items (decode_parts.cuh): slots of parts, then slots of groups of them. Between launches,
  // LSEs and every fourth word of the output are zero.
  std::uint32_t* part_lse;     // [all slots][kRowTile] base 2
  std::uint32_t* part_o;       // [all slots][kRowTile][D] normalized
  std::int32_t* prefill;       // [batch + 1] prefix sums of row tiles
  std::int64_t slots;          // of parts
  PieceStart* prefill_starts;  // [prefill_grid + 1]
  unsigned* prefill_counters;  // [prefill_grid] parts that have arrived, by the block of an item's first
  float* prefill_lse;          // [prefill_slots][prefill_rows] base 2
  float* prefill_partials;     // [prefill_slots][prefill_rows][D] normalized
};

inline Workspace WorkspaceAt(void* memory, const WorkspaceLayout& layout) {
  char* base = static_cast<char*>(memory);
  return {reinterpret_cast<PlanHeader*>(base),
          reinterpret_cast<PieceStart*>(base + layout.starts),
          reinterpret_cast<std::int64_t*>(base + layout.units),
          reinterpret_cast<std::int32_t*>(base + layout.lengths),
          reinterpret_cast<std::int32_t*>(base + layout.empty),
          reinterpret_cast<std::uint32_t*>(base + layout.part_lse),
          reinterpret_cast<std::uint32_t*>(base + layout.part_o),
          reinterpret_cast<std::int32_t*>(base + layout.prefill),
          layout.slots,
          reinterpret_cast<PieceStart*>(base + layout.prefill_starts),
          reinterpret_cast<unsigned*>(base + layout.prefill_counters),
          reinterpret_cast<float*>(base + layout.prefill_lse),
          reinterpret_cast<float*>(base + layout.prefill_partials)};
}

#ifdef __CUDACC__
// Leaves the first error of validated mode in the workspace.
__device__ inline void ReportDataError(PlanHeader* header, int kind, int request, int index,
                                       std::int64_t value) {
  if (atomicCAS(&header->error_kind, LLMD_DATA_OK, kind) == LLMD_DATA_OK) {
    header->error_request = request;
    header->error_index = index;
    header->error_value = value;
  }
}

// A request's page ids, in either format.
__device__ inline const std::int32_t* PagesOf(const llmd_page_list& list, int request) {
  return list.pages + (list.indptr != nullptr ? list.indptr[request] : request * list.row_stride);
}
#endif

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_WORKSPACE_H_
