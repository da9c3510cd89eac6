// What is replayed: requests with arrival times, and prompts as sequences of named token streams.
//
// A *segment* is the beginning of an endless, deterministic stream of tokens that is named by a number: equal
// names give equal tokens, so two prompts share a prefix exactly as far as their segments agree. A recorded
// trace gives one segment for each of its 512-token blocks; a generated workload one for each system prompt,
// message, document or answer. The tokens that a request will generate are a stream as well, so that a later
// turn can repeat them.
//
// Plain values.
#ifndef LLMD_EXAMPLES_TRACE_REPLAY_WORKLOAD_H_
#define LLMD_EXAMPLES_TRACE_REPLAY_WORKLOAD_H_

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "llmd/base/types.h"

namespace llmd::replay {

// Virtual time, in nanoseconds since the workload's clock started.
using Nanos = std::int64_t;
inline constexpr Nanos kSecond = 1'000'000'000;
inline constexpr Nanos kForever = std::numeric_limits<Nanos>::max();
inline double Seconds(Nanos t) { return static_cast<double>(t) * 1e-9; }

// Prompt tokens that one hash id of a recorded trace stands for.
inline constexpr std::uint32_t kTraceBlockTokens = 512;

using StreamId = std::uint64_t;
// Streams of recorded hash ids begin at 0, the others here.
inline constexpr StreamId kAnswerStreams = StreamId{1} << 61;     // + index of a recorded request
inline constexpr StreamId kGeneratedStreams = StreamId{1} << 62;  // + counter of the generator

struct Segment {
  StreamId stream = 0;
  std::uint32_t tokens = 0;  // leading tokens of the stream, at least 1
};

struct WorkloadRequest {
  Nanos arrival = 0;
  std::vector<Segment> prompt;  // not empty
  Segment output;
  bool recorded = false;  // from a trace: prompt segments are its 512-token blocks

  std::uint32_t prompt_tokens() const {
    std::uint32_t sum = 0;
    for (const Segment& segment : prompt) sum += segment.tokens;
    return sum;
  }
};

using Workload = std::vector<WorkloadRequest>;  // by ascending arrival

// Writes the first out.size() tokens of a stream: ids of a 128,256-word vocabulary.
void FillTokens(StreamId stream, std::span<TokenId> out);

// Spreads requests with equal arrivals evenly up to the next arrival (the last group: over the gap before
// it).
void SpreadEqualArrivals(Workload& workload);

// Both workloads in one, by arrival; on equal arrivals `a` first.
Workload Merge(Workload a, Workload b);

// Divides arrival times by `factor` (> 0) and keeps the first `limit` requests (0: all).
void CompressAndCut(double factor, std::size_t limit, Workload& workload);

}  // namespace llmd::replay

#endif  // LLMD_EXAMPLES_TRACE_REPLAY_WORKLOAD_H_
