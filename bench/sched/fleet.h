// Endpoints, indexes and prompts for the scheduler's benchmark.
#ifndef BENCH_SCHED_FLEET_H_
#define BENCH_SCHED_FLEET_H_

#include <cstddef>
#include <memory>
#include <vector>

#include "llmd/index/approx_index.h"
#include "llmd/index/prefix_index.h"
#include "llmd/sched/scheduler.h"

namespace llmd::sched {

inline const absl::Time kFleetTime = absl::FromUnixSeconds(1'700'000'000);

struct FleetOptions {
  std::size_t endpoints = 100;
  std::size_t tokens = 16384;  // of each prompt
  std::size_t prompts = 512;   // distinct
  std::size_t holders = 64;    // of one prompt, at most
};

// Every tenth endpoint only prefills, the others decode. Each has a gpu and a cpu holder in the exact index
// (blocks of 16) and one in the approximate (blocks of 64). Prompt i is held, each time to a random depth, by
// a random share of i % 10 / 9 of at most `holders` endpoints.
struct Fleet {
  explicit Fleet(const FleetOptions& options);

  Resources resources() { return {.prefix_sources = {ExactIndex(*exact), ApproximateIndex(*approximate)}}; }

  EndpointPool pool;
  std::unique_ptr<index::PrefixIndex> exact;
  std::unique_ptr<index::ApproxIndex> approximate;
  std::vector<std::vector<BlockKey>> keys;  // two chains a prompt
  std::vector<std::vector<KeyChain>> chains;
  std::vector<Prompt> prompts;
};

}  // namespace llmd::sched

#endif  // BENCH_SCHED_FLEET_H_
