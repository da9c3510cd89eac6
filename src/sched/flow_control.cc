#include "llmd/sched/flow_control.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "src/sched/builtin_plugins.h"
#include "src/sched/eviction_policies.h"
#include "src/sched/flow_queues.h"
#include "src/sched/running_requests.h"

namespace llmd::sched {
namespace {

using Kind = FlowOutcome::Kind;

absl::Status CheckOptions(const FlowControllerOptions& options) {
  const auto check = [](std::string_view field, absl::Duration value) {
    if (value > absl::ZeroDuration()) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(ToAbsl(field), " is ", absl::FormatDuration(value), ", expected more than 0"));
  };
  for (const auto& [field, value] : {std::pair("ttl_sweep_interval", options.ttl_sweep_interval),
                                     std::pair("poll_interval", options.poll_interval),
                                     std::pair("flow_idle_timeout", options.flow_idle_timeout),
                                     std::pair("band_idle_timeout", options.band_idle_timeout),
                                     std::pair("eviction_timeout", options.eviction_timeout)}) {
    if (absl::Status status = check(field, value); !status.ok()) return status;
  }
  if (options.eviction_grace && *options.eviction_grace < absl::ZeroDuration()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "eviction_grace is ", absl::FormatDuration(*options.eviction_grace), ", expected at least 0"));
  }
  return absl::OkStatus();
}

// The plugin of that name, which Scheduler::Create() has checked.
template <typename T>
const T* Lookup(const Scheduler& scheduler, std::string_view name) {
  return dynamic_cast<const T*>(scheduler.FindPlugin(name));
}

template <typename T>
const T* FirstOf(const Scheduler& scheduler, const T* otherwise) {
  for (const PluginSpec& spec : scheduler.config().plugins) {
    if (const T* plugin = Lookup<T>(scheduler, spec.name)) return plugin;
  }
  return otherwise;
}

absl::Duration OrInfinite(absl::Duration ttl) {
  return ttl > absl::ZeroDuration() ? ttl : absl::InfiniteDuration();
}

EvictionRules MakeEvictionRules(const Scheduler& scheduler, const FlowControllerOptions& options) {
  static const SheddableFilter& filter = *new SheddableFilter;
  static const PriorityThenTimeOrder& order = *new PriorityThenTimeOrder;
  const FlowControlConfig& config = scheduler.config().flow_control;
  const Plugin* detector = scheduler.FindPlugin(config.saturation_detector);
  EvictionRules rules;
  rules.enabled = config.enable_eviction;
  rules.filter = FirstOf<EvictionFilter>(scheduler, &filter);
  rules.order = FirstOf<EvictionOrder>(scheduler, &order);
  // The router's own counts show freed capacity at once, scraped metrics when they are read again.
  rules.grace = options.eviction_grace.value_or(
      detector->type() == kConcurrencyDetectorType
          ? absl::Milliseconds(10)
          : options.metrics_refresh_interval + options.metrics_staleness_threshold + absl::Milliseconds(250));
  rules.timeout = options.eviction_timeout;
  return rules;
}

// Where a request is remembered.
struct Place {
  std::uint32_t index = 0;
  bool running = false;
};

}  // namespace

struct FlowController::Impl {
  Impl(const Scheduler& scheduler, const FlowControllerOptions& o)
      : options(o),
        detector(Lookup<SaturationDetector>(scheduler, scheduler.config().flow_control.saturation_detector)),
        limiter(Lookup<UsageLimitPolicy>(scheduler, scheduler.config().flow_control.usage_limit_policy)
                    ->NewLimiter()),
        queues(MakeQueueRules(scheduler)),
        running(MakeEvictionRules(scheduler, o)) {
    remembers_running = scheduler.config().flow_control.enable_eviction;
    for (const auto& [name, state] : fairness) remembers_running |= state->NeedsUsage();
  }

  FairnessState* FairnessOf(const Scheduler& scheduler, const std::string& name) {
    std::unique_ptr<FairnessState>& state = fairness[name];
    if (state == nullptr) state = Lookup<FairnessPolicy>(scheduler, name)->NewState();
    return state.get();
  }
  BandRules MakeBandRules(const Scheduler& scheduler, const PriorityBandConfig& band) {
    const PriorityBandConfig none;
    return {band.max_requests != 0 ? band.max_requests : none.max_requests,
            band.max_bytes != 0 ? band.max_bytes : none.max_bytes,
            FairnessOf(scheduler, band.fairness_policy),
            Lookup<OrderingPolicy>(scheduler, band.ordering_policy)};
  }
  QueueRules MakeQueueRules(const Scheduler& scheduler) {
    const FlowControlConfig& config = scheduler.config().flow_control;
    QueueRules rules{.max_requests = config.max_requests,
                     .max_bytes = config.max_bytes,
                     .ttl = OrInfinite(config.default_request_ttl),
                     .no_endpoint_ttl = OrInfinite(config.no_endpoint_request_ttl),
                     .flow_idle_timeout = options.flow_idle_timeout,
                     .band_idle_timeout = options.band_idle_timeout,
                     .max_idle_flows = options.max_idle_flows,
                     .max_dynamic_bands = options.max_dynamic_bands};
    for (const PriorityBandConfig& band : config.bands) {
      rules.bands.emplace_back(band.priority, MakeBandRules(scheduler, band));
    }
    rules.default_band = MakeBandRules(scheduler, config.default_band);
    rules.default_negative_band = MakeBandRules(
        scheduler, config.default_negative_band ? *config.default_negative_band : config.default_band);
    return rules;
  }

  absl::Time Advance(absl::Time time) {
    now = std::max(now, time);
    return now;
  }

  void Emit(std::uint64_t id, Kind kind, std::int32_t priority, absl::Duration waited,
            std::vector<FlowOutcome>& outcomes) {
    outcomes.push_back({id, kind, priority, waited});
    ++counts[static_cast<std::size_t>(kind)];
  }

  // Takes a queued request out for good.
  void Finish(std::uint32_t item, Kind kind, std::vector<FlowOutcome>& outcomes) {
    const QueuedItem& queued = queues[item];
    Emit(queued.id, kind, queued.band->priority, now - queued.enqueued, outcomes);
    places.erase(queued.id);
    queues.Remove(item, now);
  }

  void Tick(const EndpointPool& pool, std::vector<FlowOutcome>& outcomes) {
    queues.SetPoolIsEmpty(pool.size() == 0, now);
    if (next_sweep == absl::InfinitePast()) next_sweep = now + options.ttl_sweep_interval;
    if (next_sweep <= now) {
      next_sweep = now + options.ttl_sweep_interval;
      // A change of the pool starts the time anew, so what expires now has waited under the present regime.
      const Kind kind = queues.pool_is_empty() ? Kind::kEvictedNoEndpoints : Kind::kEvictedTtl;
      while (const std::optional<std::uint32_t> item = queues.NextExpired(now)) Finish(*item, kind, outcomes);
    }
    queues.Collect(now);
    for (const auto& [name, state] : fairness) state->Sweep(now);
    running.Expire(now);
  }

  // Of the fuller stage of serving. An endpoint for several stages counts in each. (spec: scheduling.md 2.7)
  double Saturation(const EndpointPool& pool) {
    double worst = -1;
    for (const Role role : {kRolePrefill, kRoleDecode}) {
      stage.clear();
      for (Position p = 0; p < pool.size(); ++p) {
        if ((pool[p].identity->roles & role) != 0) stage.push_back(p);
      }
      if (!stage.empty()) worst = std::max(worst, Judge(pool));
    }
    if (worst >= 0) return worst;
    stage.resize(pool.size());
    std::iota(stage.begin(), stage.end(), Position{0});
    return Judge(pool);
  }
  // At least 0; a detector that does not know is taken for one that says full.
  double Judge(const EndpointPool& pool) const {
    const double value = detector->Saturation(pool, stage, now);
    return std::isnan(value) ? 1.0 : std::max(value, 0.0);
  }

  bool Cycle(std::vector<FlowOutcome>& outcomes) {
    const std::span<const std::unique_ptr<Band>> bands = queues.bands();
    ceilings.assign(bands.size(), 1.0);
    limiter->Limit(saturation, queues.priorities(), ceilings);
    for (std::size_t i = 0; i < bands.size(); ++i) {
      if (!(saturation < ceilings[i])) {
        EvictRunning(i, outcomes);
        return false;
      }
      const std::optional<std::uint32_t> item = queues.Pick(*bands[i], now);
      if (!item) continue;
      Send(*item, outcomes);
      return true;
    }
    return false;
  }

  void Send(std::uint32_t item, std::vector<FlowOutcome>& outcomes) {
    const QueuedItem queued = queues[item];
    FairnessState* usage = queued.band->rules.fairness;
    if (!usage->NeedsUsage()) usage = nullptr;
    const std::string_view flow = queued.band->flows[queued.flow].id;
    std::uint32_t index = kNoNode;
    if (remembers_running && running.size() < options.max_running) {
      index = running.Add({queued.id, queued.band->priority, now}, flow, usage);
    }
    Finish(item, Kind::kDispatched, outcomes);
    if (index != kNoNode) places.emplace(queued.id, Place{index, true});
  }

  // For the first blocked band from `first` down that has requests, if the next victim is below it.
  void EvictRunning(std::size_t first, std::vector<FlowOutcome>& outcomes) {
    const std::span<const std::unique_ptr<Band>> bands = queues.bands();
    for (std::size_t i = first; i < bands.size() && running.CanEvict(now); ++i) {
      const std::int32_t priority = bands[i]->priority;
      if (priority <= running.VictimPriority()) return;
      // A ceiling of 0 closes the band whatever the load; nothing is gained by stopping requests for it.
      if (!(ceilings[i] > 0) || saturation < ceilings[i] || bands[i]->requests == 0) continue;
      running.Decide(saturation, ceilings[i], priority, now, [&](std::uint32_t victim) {
        const RunningRequest& request = running[victim].request;
        Emit(request.id, Kind::kEvictRunning, request.priority, now - request.dispatched, outcomes);
      });
      return;
    }
  }

  const FlowControllerOptions options;
  const SaturationDetector* detector;
  std::unique_ptr<UsageLimiter> limiter;
  std::map<std::string, std::unique_ptr<FairnessState>> fairness;  // by policy; outlives the bands
  FlowQueues queues;
  RunningRequests running;
  bool remembers_running = false;
  bool shut_down = false;
  absl::flat_hash_map<std::uint64_t, Place> places;
  absl::Time now = absl::InfinitePast();
  absl::Time next_sweep = absl::InfinitePast();
  double saturation = 0;
  std::vector<double> ceilings;
  std::vector<Position> stage;
  std::array<std::uint64_t, FlowOutcome::kKinds> counts = {};
};

absl::StatusOr<std::unique_ptr<FlowController>> FlowController::Create(const Scheduler& scheduler,
                                                                       const FlowControllerOptions& options) {
  if (!scheduler.config().feature_gates.flow_control) {
    return absl::FailedPreconditionError("feature gate flowControl is off, expected on");
  }
  if (absl::Status status = CheckOptions(options); !status.ok()) return status;
  return std::unique_ptr<FlowController>(new FlowController(std::make_unique<Impl>(scheduler, options)));
}

FlowController::FlowController(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
FlowController::~FlowController() = default;

absl::Status FlowController::Enqueue(const FlowItem& item, absl::Time now,
                                     std::vector<FlowOutcome>& outcomes) {
  now = impl_->Advance(now);
  if (impl_->places.contains(item.id)) {
    return absl::AlreadyExistsError(
        absl::StrCat("id ", item.id, " is queued or running, expected a new one"));
  }
  const auto reject = [&](Kind kind) {
    impl_->Emit(item.id, kind, item.priority, absl::ZeroDuration(), outcomes);
    return absl::OkStatus();
  };
  if (impl_->shut_down) return reject(Kind::kRejectedShuttingDown);
  const std::optional<std::uint32_t> index = impl_->queues.Add(item, now);
  if (!index) {
    return reject(impl_->queues.pool_is_empty() ? Kind::kRejectedNoEndpoints : Kind::kRejectedCapacity);
  }
  impl_->places.emplace(item.id, Place{*index, false});
  return absl::OkStatus();
}

bool FlowController::Cancel(std::uint64_t id, absl::Time now, std::vector<FlowOutcome>& outcomes) {
  impl_->Advance(now);
  const auto it = impl_->places.find(id);
  if (it == impl_->places.end() || it->second.running) return false;
  impl_->Finish(it->second.index, Kind::kEvictedCancelled, outcomes);
  return true;
}

void FlowController::Tick(absl::Time now, const EndpointPool& pool, std::vector<FlowOutcome>& outcomes) {
  impl_->Advance(now);
  impl_->Tick(pool, outcomes);
}

std::size_t FlowController::Dispatch(absl::Time now, const EndpointPool& pool, std::size_t max,
                                     std::vector<FlowOutcome>& outcomes) {
  Tick(now, pool, outcomes);
  if (max == 0 || impl_->queues.requests() == 0 || pool.size() == 0) return 0;
  impl_->saturation = impl_->Saturation(pool);
  std::size_t sent = 0;
  while (sent < max && impl_->queues.requests() > 0 && impl_->Cycle(outcomes)) ++sent;
  return sent;
}

bool FlowController::OnFinished(std::uint64_t id, absl::Time now, const std::optional<TokenUsage>& usage) {
  now = impl_->Advance(now);
  const auto it = impl_->places.find(id);
  if (it == impl_->places.end() || !it->second.running) return false;
  const RunningRequests::Entry& entry = impl_->running[it->second.index];
  if (usage && entry.fairness != nullptr) entry.fairness->OnFinished(entry.flow, *usage, now);
  impl_->running.Remove(it->second.index, now);
  impl_->places.erase(it);
  return true;
}

void FlowController::Shutdown(absl::Time now, std::vector<FlowOutcome>& outcomes) {
  impl_->Advance(now);
  impl_->shut_down = true;
  for (const std::uint32_t item : impl_->queues.All()) {
    impl_->Finish(item, Kind::kEvictedShuttingDown, outcomes);
  }
}

absl::Time FlowController::NextWakeup(absl::Time now) const {
  now = std::max(now, impl_->now);
  absl::Time next = impl_->queues.NextCollection();
  if (impl_->queues.requests() > 0) {
    next = std::min(next, now + impl_->options.poll_interval);
    // The first sweep at which something has expired.
    const absl::Time expiry = impl_->queues.FirstExpiry();
    const absl::Time sweep = impl_->next_sweep == absl::InfinitePast()
                                 ? now + impl_->options.ttl_sweep_interval
                                 : impl_->next_sweep;
    if (expiry != absl::InfiniteFuture()) next = std::min(next, std::max(expiry, sweep));
    if (const absl::Time change = impl_->running.NextChange(); change > now) next = std::min(next, change);
  }
  return std::max(next, now);
}

FlowControlStats FlowController::stats() const {
  return {.queued_requests = impl_->queues.requests(),
          .queued_bytes = impl_->queues.bytes(),
          .running = impl_->running.size(),
          .flows = impl_->queues.flow_count(),
          .bands = impl_->queues.bands().size(),
          .unconfirmed_evictions = impl_->running.given_up(),
          .saturation = impl_->saturation,
          .outcomes = impl_->counts};
}

std::size_t FlowController::MemoryBytes() const {
  std::size_t bytes = sizeof(Impl) + impl_->queues.MemoryBytes() + impl_->running.MemoryBytes() +
                      impl_->places.capacity() * (sizeof(std::uint64_t) + sizeof(Place) + 1) +
                      impl_->ceilings.capacity() * sizeof(double) +
                      impl_->stage.capacity() * sizeof(Position);
  for (const auto& [name, state] : impl_->fairness) bytes += state->MemoryBytes();
  return bytes;
}

}  // namespace llmd::sched
