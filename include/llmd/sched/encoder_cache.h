// What an endpoint has, in its encoder cache, of the images, sounds and videos of a request.
//
// Published for each endpoint by mm-embeddings-cache-producer, read by mm-embeddings-cache-scorer. Plain
// value. (spec: scheduling.md 2.8)
#ifndef LLMD_SCHED_ENCODER_CACHE_H_
#define LLMD_SCHED_ENCODER_CACHE_H_

#include <cstdint>
#include <string_view>

namespace llmd::sched {

// Sizes are placeholder tokens, summed over distinct items.
struct EncoderCacheMatch {
  static constexpr std::string_view kDataType = "EncoderCacheMatchInfo";

  std::int64_t matched = 0;    // of the items believed to be cached there
  std::int64_t requested = 0;  // of all items; 0: the request has none
};

}  // namespace llmd::sched

#endif  // LLMD_SCHED_ENCODER_CACHE_H_
