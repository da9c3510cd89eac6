// Where a new token goes in a paged cache: by slot, or by position through the page list.
#ifndef LLMD_CUDA_CACHE_PLACEMENT_CUH_
#define LLMD_CUDA_CACHE_PLACEMENT_CUH_

#include <cstdint>

#include "cuda/common/divide.h"
#include "llmd/attention/attention.h"
#include "llmd/attention/cache.h"

namespace llmd::cuda {

struct Place {
  int64_t page;  // negative: the token is not stored
  int64_t offset;
};

// Leaves the first offender in the caller's error word.
__device__ __forceinline__ void ReportBadToken(int64_t* error, int64_t kind, int64_t token, int64_t value) {
  auto* word = reinterpret_cast<unsigned long long*>(error);
  if (atomicCAS(word, 0ULL, static_cast<unsigned long long>(kind)) == 0) {
    error[1] = token;
    error[2] = value;
  }
}

// `report`: whether this thread speaks for the token.
__device__ __forceinline__ Place FindPlace(const llmd_append_kv_args& args, const FastDivide& page_size,
                                           int token, bool report) {
  constexpr Place kNowhere = {-1, 0};
  const int64_t num_pages = args.cache.num_pages;
  if (args.slots != nullptr) {
    const int64_t slot = args.slots[token];
    if (slot < 0) return kNowhere;
    Place place;
    if (slot >> 31 == 0) {
      uint32_t rest;
      place.page = page_size.DivMod(static_cast<uint32_t>(slot), &rest);
      place.offset = rest;
    } else {
      place.page = slot / page_size.divisor();
      place.offset = slot % page_size.divisor();
    }
    if (args.error != nullptr && place.page >= num_pages) {
      if (report) ReportBadToken(args.error, LLMD_BAD_SLOT, token, slot);
      return kNowhere;
    }
    return place;
  }
  const int request = args.batch_index[token];
  if (request < 0) return kNowhere;
  const int position = args.positions[token];
  uint32_t rest;
  const int64_t index = page_size.DivMod(static_cast<uint32_t>(position), &rest);
  const int32_t* pages;
  int64_t count;
  if (args.pages.indptr != nullptr) {
    const int32_t first = args.pages.indptr[request];
    pages = args.pages.pages + first;
    count = first < 0 ? 0 : min(args.pages.indptr[request + 1], args.pages.max_pages) - first;
  } else {
    pages = args.pages.pages + request * args.pages.row_stride;
    count = args.pages.max_pages;
  }
  if (args.error != nullptr && (position < 0 || index >= count)) {
    if (report) ReportBadToken(args.error, LLMD_BAD_LENGTH, token, position);
    return kNowhere;
  }
  const int32_t page = pages[index];
  if (args.error != nullptr && (page < 0 || page >= num_pages)) {
    if (report) ReportBadToken(args.error, LLMD_BAD_PAGE, token, page);
    return kNowhere;
  }
  return {page, rest};
}

__device__ __forceinline__ int64_t Offset(const llmd_kv_strides& strides, const Place& place, int head) {
  return place.page * strides.page + place.offset * strides.token + head * strides.head;
}

__device__ __forceinline__ float ScaleOf(const float* scale, int32_t stride, int head) {
  return scale == nullptr ? 1.0f : scale[head * stride];
}

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_CACHE_PLACEMENT_CUH_
