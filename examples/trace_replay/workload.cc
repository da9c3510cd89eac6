#include "examples/trace_replay/workload.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "llmd/base/random.h"

namespace llmd::replay {

void FillTokens(StreamId stream, std::span<TokenId> out) {
  constexpr std::uint64_t kVocabulary = 128256;
  std::uint64_t state = stream;
  state = SplitMix64(state);  // neighbouring ids get unrelated streams
  for (std::size_t i = 0; i < out.size(); i += 2) {
    const std::uint64_t word = SplitMix64(state);
    out[i] = static_cast<TokenId>(((word >> 32) * kVocabulary) >> 32);
    if (i + 1 < out.size()) out[i + 1] = static_cast<TokenId>(((word & 0xFFFFFFFFu) * kVocabulary) >> 32);
  }
}

void SpreadEqualArrivals(Workload& workload) {
  Nanos gap = 0;
  for (std::size_t begin = 0, end = 0; begin < workload.size(); begin = end) {
    const Nanos at = workload[begin].arrival;
    while (end < workload.size() && workload[end].arrival == at) ++end;
    if (end < workload.size()) gap = workload[end].arrival - at;
    const auto count = static_cast<Nanos>(end - begin);
    // Quotient and remainder apart, so that no product overflows.
    for (Nanos i = 1; i < count; ++i) {
      workload[begin + i].arrival = at + gap / count * i + gap % count * i / count;
    }
  }
}

Workload Merge(Workload a, Workload b) {
  Workload merged;
  merged.reserve(a.size() + b.size());
  std::merge(std::make_move_iterator(a.begin()), std::make_move_iterator(a.end()),
             std::make_move_iterator(b.begin()), std::make_move_iterator(b.end()), std::back_inserter(merged),
             [](const WorkloadRequest& x, const WorkloadRequest& y) { return x.arrival < y.arrival; });
  return merged;
}

void CompressAndCut(double factor, std::size_t limit, Workload& workload) {
  if (limit > 0 && limit < workload.size()) workload.resize(limit);
  for (WorkloadRequest& request : workload) {
    request.arrival = std::llround(static_cast<double>(request.arrival) / factor);
  }
}

}  // namespace llmd::replay
