// A workload from a request trace in Mooncake's schema (one JSON object a line, one hash id per 512 tokens).
//
// Each of eight endpoints has a cache of 60,000 blocks of 16 tokens with LRU eviction. A request goes to
// the endpoint whose cache has the longest leading part of it (of equals, to the one with the fewest
// requests), stores what is missing in batches of 8 blocks and evicts, last blocks of a chain first. An id
// stands for 32 blocks, whose keys are made from (id, position): hashing is not what is measured. Queries are
// the requests' whole chains.
#ifndef BENCH_INDEX_TRACE_H_
#define BENCH_INDEX_TRACE_H_

#include <cstdint>
#include <istream>
#include <string>

#include "absl/status/statusor.h"
#include "bench/index/workload.h"

namespace llmd::bench {

inline constexpr std::uint32_t kTraceEndpoints = 8;
inline constexpr std::uint32_t kBlocksPerId = 32;
inline constexpr std::uint32_t kTraceCapacityIds =
    1875;  // 60,000 blocks, 960,000 tokens: an 8B model on a 141 GB GPU

// InvalidArgument names the line and the field. Reads at most `max_requests` lines.
absl::StatusOr<Workload> TraceWorkload(std::istream& trace, std::size_t max_requests);

}  // namespace llmd::bench

#endif  // BENCH_INDEX_TRACE_H_
