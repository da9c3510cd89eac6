// What attention asks of a page list: a request's pages, length and query rows, the same for both formats.
#ifndef LLMD_ATTENTION_PAGES_H_
#define LLMD_ATTENTION_PAGES_H_

#include <algorithm>
#include <cstdint>

#include "llmd/attention/attention.h"
#include "llmd/attention/cache.h"

namespace llmd::attention {

struct Request {
  const int32_t* pages = nullptr;
  int64_t length = 0;     // L
  int64_t first_row = 0;  // of q
  int64_t rows = 0;       // n
  bool bad = false;       // a length or row range that cannot be; the request is then empty
  int64_t bad_value = 0;

  int64_t Position(int64_t row) const { return length - rows + row; }
  // Keys that row sees: [Begin, End), empty if End <= Begin.
  int64_t End(int64_t row) const { return Position(row) + 1; }
  int64_t Begin(int64_t row, int32_t window) const {
    return window > 0 ? std::max<int64_t>(0, Position(row) - window + 1) : 0;
  }
};

inline Request RequestOf(const llmd_attention_args& args, int32_t b) {
  const llmd_page_list& list = args.pages;
  const int64_t page_size = args.shape.page_size;
  Request request;
  bool bad = false;
  if (list.indptr != nullptr) {
    const int64_t begin = list.indptr[b];
    const int64_t count = list.indptr[b + 1] - begin;
    const bool range = begin >= 0 && count >= 0 && begin + count <= list.max_pages;
    request.bad_value = count;
    if (range && count > 0) {
      request.pages = list.pages + begin;
      request.length = (count - 1) * page_size + list.last_page_len[b];
      bad = list.last_page_len[b] < 1 || list.last_page_len[b] > page_size;
      request.bad_value = request.length;
    }
    bad = bad || !range;
  } else {
    request.pages = list.pages + b * list.row_stride;
    request.length = list.seq_lens[b];
    request.bad_value = request.length;
    bad = request.length < 0 || request.length > list.max_pages * page_size;
  }
  if (args.shape.mode == LLMD_DECODE) {
    request.first_row = b;
    request.rows = 1;
  } else {
    request.first_row = args.q_start[b];
    request.rows = int64_t{args.q_start[b + 1]} - request.first_row;
    if (request.first_row < 0 || request.rows < 0 || request.first_row + request.rows > args.num_tokens) {
      request.bad_value = request.rows;
      request.rows = 0;
      bad = true;
    }
  }
  request.bad = bad;
  if (bad) request.length = 0;
  return request;
}

// First bad element of a request's visible part, as validated mode reports it.
inline llmd_data_error FirstError(const llmd_attention_args& args, int32_t b, const Request& request) {
  if (request.bad) return {LLMD_BAD_LENGTH, b, 0, request.bad_value};
  if (request.rows == 0) return {};
  const int64_t page_size = args.shape.page_size;
  const int64_t end = request.length;
  for (int64_t i = request.Begin(0, args.shape.window) / page_size; i * page_size < end; ++i) {
    const int32_t page = request.pages[i];
    if (page < 0 || page >= args.cache.num_pages) return {LLMD_BAD_PAGE, b, static_cast<int32_t>(i), page};
  }
  return {};
}

// Where a token is stored.
struct Place {
  bool skip = true;
  int64_t page = 0;
  int64_t offset = 0;
  llmd_data_error_kind error = LLMD_DATA_OK;
  int64_t value = 0;
};

inline Place PlaceOf(const llmd_append_kv_args& args, int32_t token) {
  const int64_t page_size = args.cache.page_size;
  Place place;
  if (args.slots != nullptr) {
    const int64_t slot = args.slots[token];
    if (slot < 0) return place;
    place.page = slot / page_size;
    place.offset = slot % page_size;
    if (place.page >= args.cache.num_pages) {
      place.error = LLMD_BAD_SLOT;
      place.value = slot;
      return place;
    }
    place.skip = false;
    return place;
  }
  const int32_t b = args.batch_index[token];
  if (b < 0) return place;
  const llmd_page_list& list = args.pages;
  const int64_t position = args.positions[token];
  const int64_t index = position / page_size;
  const int32_t* pages;
  int64_t count;
  if (list.indptr != nullptr) {
    pages = list.pages + list.indptr[b];
    count = std::min(list.indptr[b + 1], list.max_pages) - int64_t{list.indptr[b]};
    if (list.indptr[b] < 0) count = 0;
  } else {
    pages = list.pages + b * list.row_stride;
    count = list.max_pages;
  }
  if (position < 0 || index >= count) {
    place.error = LLMD_BAD_LENGTH;
    place.value = position;
    return place;
  }
  place.page = pages[index];
  place.offset = position % page_size;
  if (place.page < 0 || place.page >= args.cache.num_pages) {
    place.error = LLMD_BAD_PAGE;
    place.value = place.page;
    return place;
  }
  place.skip = false;
  return place;
}

inline int64_t Offset(const llmd_kv_strides& strides, int64_t page, int64_t token, int64_t head) {
  return page * strides.page + token * strides.token + head * strides.head;
}

}  // namespace llmd::attention

#endif  // LLMD_ATTENTION_PAGES_H_
