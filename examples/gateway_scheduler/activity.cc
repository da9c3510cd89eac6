#include "examples/gateway_scheduler/activity.h"

#include <algorithm>
#include <cmath>

namespace llmd::host {
namespace {

constexpr double kSmallest = 1e-4;  // seconds
constexpr double kStep = 1.2;

}  // namespace

void DurationCounts::Add(absl::Duration duration) {
  const double seconds = absl::ToDoubleSeconds(duration);
  std::size_t step = 0;
  if (seconds > kSmallest) {
    const double steps = std::ceil(std::log(seconds / kSmallest) / std::log(kStep));
    step = static_cast<std::size_t>(std::min(steps, static_cast<double>(counts_.size() - 1)));
  }
  ++counts_[step];
  ++total_;
}

void DurationCounts::Merge(const DurationCounts& other) {
  for (std::size_t i = 0; i < counts_.size(); ++i) counts_[i] += other.counts_[i];
  total_ += other.total_;
}

std::optional<double> DurationCounts::Seconds(double quantile) const {
  if (total_ == 0) return std::nullopt;
  double left = quantile * total_;
  std::size_t step = 0;
  while (step + 1 < counts_.size() && left > counts_[step]) left -= counts_[step++];
  return kSmallest * std::pow(kStep, static_cast<double>(step));
}

Activity::Second& Activity::SecondOf(absl::Time now) {
  const std::int64_t at = absl::ToUnixSeconds(now);
  Second& second = seconds_[static_cast<std::size_t>(at) % kSeconds];
  if (second.at != at) {
    second = Second();
    second.at = at;
  }
  return second;
}

void Activity::OnDecision(const DecisionReport& report) {
  const bool ok = report.status.ok();
  if (ok && report.decision != nullptr) {
    endpoints_.With(report.pool[report.decision->target()], report.pool, [&](Tally& tally) {
      tally.decisions.fetch_add(1, std::memory_order_relaxed);
      tally.cached_blocks.fetch_add(report.cached_blocks, std::memory_order_relaxed);
      tally.total_blocks.fetch_add(report.total_blocks, std::memory_order_relaxed);
    });
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  Second& second = SecondOf(report.now);
  if (!ok) {
    ++second.refused;
    ++refused_;
    return;
  }
  ++second.decided;
  ++decided_;
  ++running_;
  second.cached_blocks += report.cached_blocks;
  second.total_blocks += report.total_blocks;
  second.deciding.Add(report.deciding);
}

void Activity::OnFinished(const FinishReport& report) {
  if (!report.decided) return;
  const gateway::ResponseFacts& response = report.response;
  const std::lock_guard<std::mutex> lock(mutex_);
  --running_;
  Second& second = SecondOf(report.now);
  const bool failed = report.completion.cause == gateway::CompletionCause::kError ||
                      report.completion.refused_with != 0 ||
                      (response.status != 0 && (response.status < 200 || response.status > 299));
  if (failed) {
    ++second.failed;
    ++failed_;
  }
  if (response.first_byte != absl::InfiniteFuture()) {
    second.ttft.Add(response.first_byte - report.request.received);
  }
  if (response.ended) second.duration.Add(report.now - report.request.received);
}

HostState::Traffic Activity::Traffic(absl::Time now) const {
  constexpr std::int64_t kShown = 60;
  constexpr std::int64_t kRecent = 10;
  // The second that has just begun is left out: it would look like a drop.
  const std::int64_t end = absl::ToUnixSeconds(now);
  HostState::Traffic traffic;
  DurationCounts deciding, ttft, duration;
  std::uint64_t cached = 0, total = 0, recent = 0, recent_refused = 0, recent_failed = 0;
  const std::lock_guard<std::mutex> lock(mutex_);
  for (std::int64_t at = end - kShown; at < end; ++at) {
    const Second& second = seconds_[static_cast<std::size_t>(at) % kSeconds];
    if (second.at != at) {
      traffic.decided_per_second.push_back(0);
      continue;
    }
    traffic.decided_per_second.push_back(second.decided);
    if (at >= end - kRecent) {
      recent += second.decided;
      recent_refused += second.refused;
      recent_failed += second.failed;
    }
    cached += second.cached_blocks;
    total += second.total_blocks;
    deciding.Merge(second.deciding);
    ttft.Merge(second.ttft);
    duration.Merge(second.duration);
  }
  traffic.decided_rate = static_cast<double>(recent) / kRecent;
  traffic.refused_rate = static_cast<double>(recent_refused) / kRecent;
  traffic.failed_rate = static_cast<double>(recent_failed) / kRecent;
  traffic.decided = decided_;
  traffic.refused = refused_;
  traffic.failed = failed_;
  traffic.running = running_;
  if (total > 0) traffic.hit_ratio = static_cast<double>(cached) / static_cast<double>(total);
  const auto quantiles = [](const DurationCounts& counts) {
    return HostState::Quantiles{counts.Seconds(0.5), counts.Seconds(0.95), counts.Seconds(0.99)};
  };
  traffic.deciding = quantiles(deciding);
  traffic.ttft = quantiles(ttft);
  traffic.duration = quantiles(duration);
  return traffic;
}

void Activity::FillEndpoints(const sched::EndpointPool& pool, HostState& state) {
  endpoints_.Visit(pool, [&](const sched::Endpoint& endpoint, const Tally& tally) {
    for (HostState::Endpoint& shown : state.endpoints) {
      if (shown.id != endpoint.id()) continue;
      shown.decisions = tally.decisions.load(std::memory_order_relaxed);
      shown.cached_blocks = tally.cached_blocks.load(std::memory_order_relaxed);
      shown.total_blocks = tally.total_blocks.load(std::memory_order_relaxed);
      return;
    }
  });
}

}  // namespace llmd::host
