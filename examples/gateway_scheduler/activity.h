// How busy the host has been lately: rates, latencies and hit rates of the last minute, for the status page.
//
// Any thread; a mutex is held for a few additions per request. Time is that of the reports.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_ACTIVITY_H_
#define EXAMPLES_GATEWAY_SCHEDULER_ACTIVITY_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>

#include "absl/time/time.h"
#include "examples/gateway_scheduler/endpoint_table.h"
#include "examples/gateway_scheduler/host_state.h"
#include "examples/gateway_scheduler/observer.h"

namespace llmd::host {

// Durations from 100 us to some minutes, in steps of a fifth.
class DurationCounts {
 public:
  void Add(absl::Duration duration);
  void Merge(const DurationCounts& other);
  // Upper bound of the step that has the quantile; absent without counts.
  std::optional<double> Seconds(double quantile) const;

 private:
  std::array<std::uint32_t, 80> counts_{};
  std::uint32_t total_ = 0;
};

class Activity final : public Observer {
 public:
  void OnDecision(const DecisionReport& report) override;
  void OnFinished(const FinishReport& report) override;

  HostState::Traffic Traffic(absl::Time now) const;
  // Sets decisions and blocks of the endpoints by their ids.
  void FillEndpoints(const sched::EndpointPool& pool, HostState& state);

 private:
  struct Second {
    std::int64_t at = -1;  // Unix time
    std::uint32_t decided = 0, refused = 0, failed = 0;
    std::uint64_t cached_blocks = 0, total_blocks = 0;
    DurationCounts deciding, ttft, duration;
  };
  struct Tally {
    std::atomic<std::uint64_t> decisions = 0, cached_blocks = 0, total_blocks = 0;
  };
  static constexpr std::size_t kSeconds = 64;

  Second& SecondOf(absl::Time now);

  mutable std::mutex mutex_;
  std::array<Second, kSeconds> seconds_{};
  std::uint64_t decided_ = 0, refused_ = 0, failed_ = 0;
  std::int64_t running_ = 0;
  EndpointTable<Tally> endpoints_;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_ACTIVITY_H_
