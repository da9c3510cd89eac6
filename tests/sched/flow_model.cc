#include "tests/sched/flow_model.h"

#include <algorithm>
#include <cmath>

namespace llmd::sched {

FlowModel::FlowModel(const FlowModelConfig& config) : config_(config) {
  bands_[0] = {};
  for (const PriorityBandConfig& band : config_.flow.bands) bands_[band.priority] = {};
}

std::uint64_t FlowModel::bytes() const {
  std::uint64_t sum = 0;
  for (const Queued& q : queue_) sum += q.bytes;
  return sum;
}

const PriorityBandConfig& FlowModel::BandConfig(std::int32_t priority) const {
  for (const PriorityBandConfig& band : config_.flow.bands) {
    if (band.priority == priority) return band;
  }
  if (priority < 0 && config_.flow.default_negative_band) return *config_.flow.default_negative_band;
  return config_.flow.default_band;
}

std::size_t FlowModel::CountOf(std::int32_t priority) const {
  return std::count_if(queue_.begin(), queue_.end(), [&](const Queued& q) { return q.priority == priority; });
}

bool FlowModel::HasQueued(const FlowKey& key) const {
  return std::any_of(queue_.begin(), queue_.end(),
                     [&](const Queued& q) { return q.priority == key.first && q.flow == key.second; });
}

bool FlowModel::Known(std::uint64_t id) const {
  return std::any_of(queue_.begin(), queue_.end(), [&](const Queued& q) { return q.id == id; }) ||
         std::any_of(running_.begin(), running_.end(), [&](const Running& r) { return r.id == id; });
}

bool FlowModel::Fits(const FlowItem& item) const {
  std::uint64_t band_bytes = 0;
  for (const Queued& q : queue_) band_bytes += q.priority == item.priority ? q.bytes : 0;
  const PriorityBandConfig& band = BandConfig(item.priority);
  const FlowControlConfig& all = config_.flow;
  if (CountOf(item.priority) + 1 > band.max_requests || band_bytes + item.bytes > band.max_bytes)
    return false;
  if (all.max_requests != 0 && queue_.size() + 1 > all.max_requests) return false;
  if (all.max_bytes != 0 && bytes() + item.bytes > all.max_bytes) return false;
  const auto dynamic =
      std::count_if(bands_.begin(), bands_.end(), [](const auto& b) { return b.second.dynamic; });
  return bands_.count(item.priority) > 0 ||
         static_cast<std::size_t>(dynamic) < config_.options.max_dynamic_bands;
}

bool FlowModel::Enqueue(const FlowItem& item, absl::Time time, std::vector<FlowOutcome>& outcomes) {
  Advance(time);
  if (Known(item.id)) return false;
  if (shut_down_ || !Fits(item)) {
    const Kind kind = shut_down_       ? Kind::kRejectedShuttingDown
                      : pool_is_empty_ ? Kind::kRejectedNoEndpoints
                                       : Kind::kRejectedCapacity;
    outcomes.push_back({item.id, kind, item.priority, absl::ZeroDuration()});
    return true;
  }
  if (bands_.count(item.priority) == 0) bands_[item.priority] = {.dynamic = true};
  Queued queued{item.id, std::string(item.flow), item.priority, item.bytes, now_, {}, {}};
  queued.ttl = item.ttl && *item.ttl > absl::ZeroDuration()              ? *item.ttl
               : config_.flow.default_request_ttl > absl::ZeroDuration() ? config_.flow.default_request_ttl
                                                                         : absl::InfiniteDuration();
  const absl::Time received = item.received.value_or(now_);
  if (config_.ordering == "fcfs-ordering-policy") {
    queued.key = {now_, now_};
  } else if (config_.ordering == "edf-ordering-policy") {
    queued.key = {now_ + queued.ttl, now_};
  } else {
    const bool slo = item.slo_ttft && *item.slo_ttft >= absl::ZeroDuration();
    queued.key = {slo ? received + *item.slo_ttft : absl::InfiniteFuture(), received};
  }
  flows_[{item.priority, queued.flow}] = absl::InfiniteFuture();
  queue_.push_back(std::move(queued));
  return true;
}

FlowModel::Queued FlowModel::Take(std::size_t i) {
  Queued taken = queue_[i];
  queue_.erase(queue_.begin() + static_cast<std::ptrdiff_t>(i));
  if (CountOf(taken.priority) == 0) bands_[taken.priority].empty_since = now_;
  const FlowKey key{taken.priority, taken.flow};
  if (!HasQueued(key)) flows_[key] = now_;
  const bool used =
      std::any_of(queue_.begin(), queue_.end(), [&](const Queued& q) { return q.flow == taken.flow; });
  if (const auto it = programs_.find(taken.flow); it != programs_.end() && !used) it->second.used = now_;
  return taken;
}

void FlowModel::Finish(std::size_t i, Kind kind, std::vector<FlowOutcome>& outcomes) {
  const Queued taken = Take(i);
  outcomes.push_back({taken.id, kind, taken.priority, now_ - taken.enqueued});
}

bool FlowModel::Cancel(std::uint64_t id, absl::Time time, std::vector<FlowOutcome>& outcomes) {
  Advance(time);
  for (std::size_t i = 0; i < queue_.size(); ++i) {
    if (queue_[i].id != id) continue;
    Finish(i, Kind::kEvictedCancelled, outcomes);
    return true;
  }
  return false;
}

absl::Time FlowModel::Expiry(const Queued& item) const {
  const absl::Duration none = config_.flow.no_endpoint_request_ttl;
  const absl::Duration empty = none > absl::ZeroDuration() ? none : absl::InfiniteDuration();
  return std::max(item.enqueued, pool_changed_) + (pool_is_empty_ ? empty : item.ttl);
}

void FlowModel::Tick(absl::Time time, bool pool_is_empty, std::vector<FlowOutcome>& outcomes) {
  Advance(time);
  if (pool_changed_ == absl::InfinitePast() || pool_is_empty != pool_is_empty_) {
    pool_is_empty_ = pool_is_empty;
    pool_changed_ = now_;
  }
  if (next_sweep_ == absl::InfinitePast()) next_sweep_ = now_ + config_.options.ttl_sweep_interval;
  if (next_sweep_ <= now_) {
    next_sweep_ = now_ + config_.options.ttl_sweep_interval;
    for (;;) {
      std::size_t best = queue_.size();
      for (std::size_t i = 0; i < queue_.size(); ++i) {
        if (Expiry(queue_[i]) <= now_ &&
            (best == queue_.size() || Expiry(queue_[i]) < Expiry(queue_[best]))) {
          best = i;
        }
      }
      if (best == queue_.size()) break;
      Finish(best, pool_is_empty_ ? Kind::kEvictedNoEndpoints : Kind::kEvictedTtl, outcomes);
    }
  }
  std::erase_if(flows_, [&](const auto& flow) {
    return flow.second + config_.options.flow_idle_timeout <= now_ && !HasQueued(flow.first);
  });
  std::erase_if(bands_, [&](const auto& band) {
    const bool gone = band.second.dynamic && CountOf(band.first) == 0 &&
                      band.second.empty_since + config_.options.band_idle_timeout <= now_;
    if (gone) std::erase_if(flows_, [&](const auto& flow) { return flow.first.first == band.first; });
    return gone;
  });
  if (next_program_sweep_ <= now_) {
    next_program_sweep_ = now_ + absl::Seconds(300);
    std::erase_if(programs_, [&](const auto& program) {
      return program.second.used + absl::Seconds(3600) <= now_ &&
             std::none_of(queue_.begin(), queue_.end(),
                          [&](const Queued& q) { return q.flow == program.first; });
    });
  }
  for (Running& r : running_) {
    if (!r.unconfirmed || *r.unconfirmed + config_.options.eviction_timeout > now_) continue;
    r.unconfirmed.reset();
    grace_until_ = std::max(grace_until_, now_ + *config_.options.eviction_grace);
  }
}

std::vector<std::int32_t> FlowModel::Priorities() const {
  std::vector<std::int32_t> priorities;
  for (auto it = bands_.rbegin(); it != bands_.rend(); ++it) priorities.push_back(it->first);
  return priorities;
}

std::vector<double> FlowModel::Ceilings(double saturation) {
  const std::vector<std::int32_t> priorities = Priorities();
  const std::size_t n = priorities.size();
  std::vector<double> ceilings(n, 1.0);
  if (config_.usage_limit == "priority-holdback-policy" && n > 1) {
    const double min = config_.holdback_min;
    for (std::size_t i = 0; i < n; ++i) {
      const double p = priorities[i];
      const double low = priorities[n - 1];
      const double high = priorities[0];
      ceilings[i] = i == 0 ? 1.0
                    : config_.holdback_by_value
                        ? min + (p - low) / (high - low) * (1.0 - min)
                        : 1.0 - static_cast<double>(i) * (1.0 - min) / static_cast<double>(n - 1);
    }
  }
  if (config_.usage_limit == "soft-reflective-ceiling-policy" && n > 1) {
    bool open = false;
    if (saturation >= 1 - saturation && saturation < 1) {
      const double period = std::max(1.0, std::round(saturation / (1 - saturation)));
      open = std::fmod(static_cast<double>(++soft_calls_), period) == 0;
    }
    for (std::size_t i = 1; i < n; ++i) {
      if (saturation < 1 - static_cast<double>(i) * saturation / static_cast<double>(n - 1)) continue;
      ceilings[i] = open ? 1.0 : 0.0;
    }
  }
  return ceilings;
}

std::size_t FlowModel::HeadOf(const FlowKey& key) const {
  std::size_t best = queue_.size();
  for (std::size_t i = 0; i < queue_.size(); ++i) {
    if (queue_[i].priority != key.first || queue_[i].flow != key.second) continue;
    if (best == queue_.size() || queue_[i].key < queue_[best].key) best = i;
  }
  return best;
}

double FlowModel::Service(const std::string& program) const {
  const auto it = programs_.find(program);
  if (it == programs_.end() || it->second.service == 0) return 0;
  return it->second.service * std::exp2(-absl::FDivDuration(now_ - it->second.at, absl::Seconds(60)));
}

// The index of the request to go; the size of the queue for none.
std::size_t FlowModel::Pick(std::int32_t priority) {
  std::set<std::string> ids;
  for (const Queued& q : queue_) {
    if (q.priority == priority) ids.insert(q.flow);
  }
  if (ids.empty()) return queue_.size();
  if (config_.fairness == "round-robin-fairness-policy") {
    std::optional<std::string>& last = bands_[priority].last;
    auto next = last ? ids.upper_bound(*last) : ids.begin();
    if (next == ids.end()) next = ids.begin();
    last = *next;
    return HeadOf({priority, *next});
  }
  std::vector<std::size_t> heads;
  for (const std::string& id : ids) heads.push_back(HeadOf({priority, id}));
  std::sort(heads.begin(), heads.end());  // by arrival
  if (config_.fairness == "global-strict-fairness-policy") {
    return *std::min_element(heads.begin(), heads.end(),
                             [&](std::size_t a, std::size_t b) { return queue_[a].key < queue_[b].key; });
  }
  std::vector<double> services, waits;
  for (const std::size_t head : heads) {
    services.push_back(Service(queue_[head].flow));
    waits.push_back(absl::ToDoubleMilliseconds(now_ - queue_[head].enqueued));
  }
  const auto scaled = [](const std::vector<double>& values, std::size_t i) {
    const auto [min, max] = std::minmax_element(values.begin(), values.end());
    return *min == *max ? 0.5 : (values[i] - *min) / (*max - *min);
  };
  std::size_t best = 0;
  double best_score = -1;
  for (std::size_t i = 0; i < heads.size(); ++i) {
    const double score = 0.8 * (1 - scaled(services, i)) + 0.2 * scaled(waits, i);
    if (score > best_score) {
      best = i;
      best_score = score;
    }
  }
  return heads[best];
}

std::size_t FlowModel::Dispatch(absl::Time time, bool pool_is_empty, double saturation, std::size_t max,
                                std::vector<FlowOutcome>& outcomes) {
  Tick(time, pool_is_empty, outcomes);
  saturation = std::isnan(saturation) ? 1.0 : std::max(0.0, saturation);
  std::size_t sent = 0;
  while (sent < max && !queue_.empty() && !pool_is_empty_) {
    const std::vector<double> ceilings = Ceilings(saturation);
    const std::vector<std::int32_t> priorities = Priorities();
    std::size_t picked = queue_.size();
    for (std::size_t i = 0; i < priorities.size() && picked == queue_.size(); ++i) {
      if (saturation >= ceilings[i]) {
        EvictRunning(i, saturation, ceilings, outcomes);
        break;
      }
      picked = Pick(priorities[i]);
    }
    if (picked == queue_.size()) break;
    const Queued item = queue_[picked];
    if ((config_.flow.enable_eviction || config_.fairness == "program-aware-fairness") &&
        running_.size() < config_.options.max_running) {
      running_.push_back({item.id, item.flow, item.priority, now_});
    }
    Finish(picked, Kind::kDispatched, outcomes);
    ++sent;
  }
  return sent;
}

// The newest of the lowest priority that may be shed.
std::optional<std::size_t> FlowModel::Victim() const {
  std::optional<std::size_t> best;
  for (std::size_t i = 0; i < running_.size(); ++i) {
    const Running& r = running_[i];
    if (r.ordered || r.priority >= 0) continue;
    if (!best || r.priority <= running_[*best].priority) best = i;
  }
  return best;
}

void FlowModel::EvictRunning(std::size_t first, double saturation, const std::vector<double>& ceilings,
                             std::vector<FlowOutcome>& outcomes) {
  if (!config_.flow.enable_eviction || grace_until_ > now_) return;
  if (std::any_of(running_.begin(), running_.end(),
                  [](const Running& r) { return r.unconfirmed.has_value(); })) {
    return;
  }
  const std::vector<std::int32_t> priorities = Priorities();
  for (std::size_t i = first; i < priorities.size(); ++i) {
    std::optional<std::size_t> victim = Victim();
    if (!victim || priorities[i] <= running_[*victim].priority) return;
    if (ceilings[i] <= 0 || saturation < ceilings[i] || CountOf(priorities[i]) == 0) continue;
    const double part = saturation / static_cast<double>(running_.size());
    const int wanted = std::isfinite(part) ? (saturation - ceilings[i] > part ? 2 : 1) : 0;
    for (int n = 0; n < wanted; ++n) {
      victim = Victim();
      if (!victim || running_[*victim].priority >= priorities[i]) return;
      Running& r = running_[*victim];
      r.ordered = true;
      r.unconfirmed = now_;
      outcomes.push_back({r.id, Kind::kEvictRunning, r.priority, now_ - r.dispatched});
    }
    return;
  }
}

bool FlowModel::OnFinished(std::uint64_t id, absl::Time time, const std::optional<TokenUsage>& usage) {
  Advance(time);
  for (std::size_t i = 0; i < running_.size(); ++i) {
    const Running r = running_[i];
    if (r.id != id) continue;
    if (usage && config_.fairness == "program-aware-fairness") {
      const double cost =
          static_cast<double>(usage->prompt_tokens) + 2 * static_cast<double>(usage->completion_tokens);
      const double left = Service(r.flow);
      programs_[r.flow] = {left + cost, now_, now_};
    }
    if (r.unconfirmed) grace_until_ = std::max(grace_until_, now_ + *config_.options.eviction_grace);
    running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(i));
    return true;
  }
  return false;
}

void FlowModel::Shutdown(absl::Time time, std::vector<FlowOutcome>& outcomes) {
  Advance(time);
  shut_down_ = true;
  while (!queue_.empty()) Finish(0, Kind::kEvictedShuttingDown, outcomes);
}

}  // namespace llmd::sched
