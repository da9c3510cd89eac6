// A service under load, simulated around a real FlowController: tenants, priorities, bursts, endpoints that
// come and go, outages, clients that give up, evictions, and a shutdown at the end.
//
// Discrete events on a clock of its own; everything follows from the options. Each request is followed from
// arrival to its end, and the run stops at the first that gets no outcome, two, or one that does not fit.
#ifndef BENCH_SCHED_FLOW_SIMULATION_H_
#define BENCH_SCHED_FLOW_SIMULATION_H_

#include <array>
#include <cstdint>
#include <functional>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "llmd/sched/flow_control.h"

namespace llmd::sched {

struct SimulationOptions {
  std::uint64_t requests = 1000000;
  std::uint64_t seed = 1;
  std::uint32_t flows = 2000;
  std::uint32_t endpoints = 24;
  // Called now and then with the number of requests that have arrived.
  std::function<void(std::uint64_t)> progress = {};
};

// How a request ended.
enum class Fate : std::uint8_t {
  kServed,
  kRejectedCapacity,
  kRejectedNoEndpoints,
  kRejectedShuttingDown,
  kExpired,             // in the queue
  kExpiredNoEndpoints,  // in the queue, while there was no endpoint
  kCancelledQueued,     // by the client
  kCancelledRunning,
  kShutDown,  // was queued
  kEvicted,   // was running
  kLost,      // its endpoint left
};
inline constexpr std::size_t kFates = 11;
const char* ToString(Fate fate);

struct SimulationReport {
  std::array<std::uint64_t, kFates> fates = {};
  std::uint64_t cycles = 0;
  std::uint64_t evictions_ordered = 0;
  std::uint64_t unconfirmed_evictions = 0;
  std::uint64_t peak_queued = 0;
  absl::Duration simulated = absl::ZeroDuration();
  absl::Duration wait_p50 = absl::ZeroDuration();  // in the queue, of those dispatched; within 2 %
  absl::Duration wait_p99 = absl::ZeroDuration();
  std::uint64_t rss_warm = 0;  // bytes of the process after a fifth of the requests
  std::uint64_t rss_end = 0;
  std::uint64_t controller_warm = 0;  // FlowController::MemoryBytes()
  std::uint64_t controller_end = 0;
};

// Internal when some request is not accounted for exactly once; the message names it.
absl::StatusOr<SimulationReport> Simulate(const SimulationOptions& options);

}  // namespace llmd::sched

#endif  // BENCH_SCHED_FLOW_SIMULATION_H_
