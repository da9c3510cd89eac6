#include "bench/sched/flow_simulation.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <numeric>
#include <queue>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "llmd/base/random.h"
#include "llmd/sched/in_flight.h"

namespace llmd::sched {
namespace {

constexpr const char* kProducer = "inflight-load-producer";
constexpr std::int64_t kConcurrency = 16;  // requests of one endpoint at a time
constexpr double kServiceSeconds = 0.2;    // mean, of one request
constexpr absl::Duration kTtl = absl::Seconds(2);
constexpr absl::Duration kNoEndpointTtl = absl::Milliseconds(500);
const absl::Time kStart = absl::FromUnixSeconds(1'700'000'000);

struct Tier {
  std::int32_t priority;
  double share;
  std::uint32_t flows;  // 0: all
};
// The first three are configured; the last two make dynamic bands. Programs are few, as their choice looks at
// each.
constexpr Tier kTiers[] = {{3, 0.1, 64}, {1, 0.25, 0}, {-1, 0.3, 0},
                           {0, 0.25, 0}, {7, 0.02, 8}, {-9, 0.08, 0}};

// Stands for the library's producer; the simulation keeps the table.
class NoProducer final : public Plugin, public DataProducer {
 public:
  explicit NoProducer(PluginBuilder& b) : Plugin(b.type(), b.name()) { b.Produces<InFlightLoad>(); }
  void Produce(Context&, ThreadState*) const override {}
};

SchedulerConfig Config(std::uint64_t endpoints) {
  SchedulerConfig config;
  config.feature_gates.flow_control = true;
  config.plugins = {
      {.name = kProducer, .type = "simulated-producer"},
      {.type = "concurrency-detector", .parameters = Parameters({{"maxConcurrency", kConcurrency}})},
      {.type = "round-robin-fairness-policy"},
      {.type = "program-aware-fairness"},
      {.type = "edf-ordering-policy"},
      {.type = "slo-deadline-ordering-policy"}};
  FlowControlConfig& flow = config.flow_control;
  flow.saturation_detector = "concurrency-detector";
  flow.enable_eviction = true;
  flow.default_request_ttl = kTtl;
  flow.no_endpoint_request_ttl = kNoEndpointTtl;
  flow.max_requests = 100 * endpoints;
  flow.bands = {
      {.priority = 3,
       .fairness_policy = "program-aware-fairness",
       .ordering_policy = "slo-deadline-ordering-policy"},
      {.priority = 1, .max_requests = 40 * endpoints, .fairness_policy = "round-robin-fairness-policy"},
      {.priority = -1, .max_requests = 20 * endpoints, .ordering_policy = "edf-ordering-policy"}};
  flow.default_band = {.max_requests = 3 * endpoints, .fairness_policy = "round-robin-fairness-policy"};
  return config;
}

std::uint64_t ResidentBytes() {
  std::uint64_t pages = 0;
  if (std::FILE* file = std::fopen("/proc/self/statm", "r")) {
    unsigned long total = 0, resident = 0;
    if (std::fscanf(file, "%lu %lu", &total, &resident) == 2) pages = resident;
    std::fclose(file);
  }
  return pages * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
}

// Counts of durations in buckets that grow by 2 %.
class Histogram {
 public:
  void Add(absl::Duration value) {
    const double ms = std::max(absl::ToDoubleMilliseconds(value), kLeast);
    ++counts_[std::min<std::size_t>(counts_.size() - 1,
                                    static_cast<std::size_t>(std::log(ms / kLeast) / kStep))];
    ++total_;
  }
  absl::Duration Quantile(double q) const {
    auto left = static_cast<std::uint64_t>(q * static_cast<double>(total_));
    for (std::size_t i = 0; i < counts_.size(); ++i) {
      if (counts_[i] > left)
        return absl::Milliseconds(i == 0 ? 0 : kLeast * std::exp(static_cast<double>(i) * kStep));
      left -= counts_[i];
    }
    return absl::ZeroDuration();
  }

 private:
  static constexpr double kLeast = 0.001;
  static constexpr double kStep = 0.02;
  std::array<std::uint64_t, 1200> counts_ = {};
  std::uint64_t total_ = 0;
};

class Simulation {
 public:
  explicit Simulation(const SimulationOptions& options)
      : options_(options), random_(options.seed), states_(options.requests, State::kNew) {
    for (std::uint32_t i = 0; i < options.flows; ++i) flow_ids_.push_back(absl::StrCat("tenant-", i));
    // 0.4 of the capacity, and for a fifth of the time 2.4.
    const double capacity = options.endpoints * static_cast<double>(kConcurrency) / kServiceSeconds;
    rate_ = 0.8 * capacity;
    period_ = absl::Seconds(static_cast<double>(options.requests) / rate_ / 8);
  }

  absl::StatusOr<SimulationReport> Run();

 private:
  enum class State : std::uint8_t { kNew, kQueued, kRunning, kStopping, kDone };
  enum class EventKind : std::uint8_t { kFinish, kCancel, kStopped, kJoin, kLeave, kOutage };
  struct Event {
    absl::Time at;
    std::uint64_t sequence;
    EventKind kind;
    std::uint64_t id;
    bool operator<(const Event& other) const {
      return std::pair(at, sequence) > std::pair(other.at, other.sequence);  // earliest on top
    }
  };
  struct Running {
    EndpointHandle endpoint;
    std::uint32_t prompt_tokens;
  };

  absl::Status Setup();
  absl::Time NextArrival(absl::Time now);
  absl::Status Arrive(std::uint64_t id);
  absl::Status Handle(const Event& event);
  absl::Status Pump();
  absl::Status Apply(const FlowOutcome& outcome);
  absl::Status Send(const FlowOutcome& outcome);
  void End(std::uint64_t id, Fate fate);
  void EndRunning(std::uint64_t id, Fate fate);
  void AddEndpoint();
  void RemoveEndpoint(Position position);
  void After(absl::Duration delay, EventKind kind, std::uint64_t id = 0) {
    events_.push({now_ + delay, sequence_++, kind, id});
  }
  absl::Status Wrong(std::uint64_t id, std::string_view what) const {
    return absl::InternalError(absl::StrCat("request ", id, " in state ", static_cast<int>(states_[id]), ": ",
                                            absl::string_view(what.data(), what.size())));
  }

  const SimulationOptions& options_;
  Random random_;
  double rate_;
  absl::Duration period_;
  std::vector<State> states_;
  std::vector<std::string> flow_ids_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<FlowController> controller_;
  std::shared_ptr<InFlightTable> table_;
  EndpointPool pool_;
  std::uint64_t next_name_ = 0;
  std::priority_queue<Event> events_;
  absl::flat_hash_map<std::uint64_t, Running> running_;
  std::vector<FlowOutcome> outcomes_;
  std::vector<std::uint64_t> lost_;
  absl::Time now_ = kStart;
  std::uint64_t sequence_ = 0;
  bool outage_ = false;
  Histogram waits_;
  SimulationReport report_;
};

absl::Status Simulation::Setup() {
  PluginRegistry registry = PluginRegistry::Builtin();
  absl::Status registered = registry.Register(
      "simulated-producer", [](PluginBuilder& b) -> absl::StatusOr<std::unique_ptr<Plugin>> {
        return std::make_unique<NoProducer>(b);
      });
  if (!registered.ok()) return registered;
  Resources resources{.states = std::make_shared<PluginStates>()};
  auto scheduler = Scheduler::Create(Config(options_.endpoints), registry, resources);
  if (!scheduler.ok()) return scheduler.status();
  scheduler_ = *std::move(scheduler);
  table_ =
      resources.states->GetOrMake<InFlightTable>(kProducer, [] { return std::make_shared<InFlightTable>(); });
  FlowControllerOptions options;
  options.poll_interval = absl::InfiniteDuration();  // every change is followed by cycles
  options.ttl_sweep_interval = absl::Milliseconds(100);
  options.flow_idle_timeout = absl::Seconds(20);
  options.band_idle_timeout = absl::Seconds(40);
  auto controller = FlowController::Create(*scheduler_, options);
  if (!controller.ok()) return controller.status();
  controller_ = *std::move(controller);
  for (std::uint32_t i = 0; i < options_.endpoints; ++i) AddEndpoint();
  After(absl::Seconds(1), EventKind::kLeave);
  After(period_ / 2, EventKind::kOutage);
  return absl::OkStatus();
}

void Simulation::AddEndpoint() {
  const std::uint64_t name = next_name_++;
  Labels labels;
  if (name % 4 == 0) labels[std::string(kRoleLabel)] = "prefill-decode";
  pool_
      .Add({.name = absl::StrCat("pod-", name),
            .address = "10.0.0.1",
            .port = 8000,
            .labels = std::move(labels)})
      .IgnoreError();
}

// What runs there is lost.
void Simulation::RemoveEndpoint(Position position) {
  const EndpointHandle handle = pool_[position].handle;
  pool_.Remove(handle);
  lost_.clear();
  for (const auto& [id, running] : running_) {
    if (running.endpoint == handle) lost_.push_back(id);
  }
  std::sort(lost_.begin(), lost_.end());
  for (const std::uint64_t id : lost_) EndRunning(id, Fate::kLost);
}

absl::Time Simulation::NextArrival(absl::Time now) {
  const double phase = absl::FDivDuration(now - kStart, period_);
  const bool burst = phase - std::floor(phase) > 0.8;
  return now + absl::Seconds(random_.Exponential(1 / (burst ? 3 * rate_ : 0.5 * rate_)));
}

absl::Status Simulation::Arrive(std::uint64_t id) {
  double draw = random_.Uniform();
  const Tier* tier = kTiers;
  while (tier != std::end(kTiers) - 1 && draw >= tier->share) draw -= (tier++)->share;
  const std::uint64_t flows = tier->flows != 0 ? std::min(tier->flows, options_.flows) : options_.flows;
  // Some tenants send far more than others.
  const auto flow = static_cast<std::uint64_t>(static_cast<double>(flows) * std::pow(random_.Uniform(), 3));
  FlowItem item{
      .id = id, .flow = flow_ids_[flow], .priority = tier->priority, .bytes = 500 + random_.Below(20000)};
  if (random_.Chance(0.05)) item.ttl = absl::Seconds(0.1 + random_.Uniform());
  if (random_.Chance(0.5)) item.slo_ttft = absl::Milliseconds(200 + random_.Below(2000));
  states_[id] = State::kQueued;
  outcomes_.clear();
  if (absl::Status status = controller_->Enqueue(item, now_, outcomes_); !status.ok()) return status;
  for (const FlowOutcome& outcome : outcomes_) {
    if (absl::Status status = Apply(outcome); !status.ok()) return status;
  }
  if (outcomes_.empty() && random_.Chance(0.03)) {
    After(absl::Seconds(random_.Exponential(0.5)), EventKind::kCancel, id);
  }
  return absl::OkStatus();
}

void Simulation::End(std::uint64_t id, Fate fate) {
  states_[id] = State::kDone;
  ++report_.fates[static_cast<std::size_t>(fate)];
}

void Simulation::EndRunning(std::uint64_t id, Fate fate) {
  const auto it = running_.find(id);
  table_->Subtract(it->second.endpoint, {.requests = 1, .tokens = it->second.prompt_tokens});
  std::optional<TokenUsage> usage;
  if (fate == Fate::kServed) usage = {it->second.prompt_tokens, 100};
  running_.erase(it);
  controller_->OnFinished(id, now_, usage);
  End(id, fate);
}

absl::Status Simulation::Apply(const FlowOutcome& outcome) {
  using Kind = FlowOutcome::Kind;
  State& state = states_[outcome.id];
  if (outcome.kind == Kind::kEvictRunning) {
    if (state != State::kRunning) return Wrong(outcome.id, "is to be stopped");
    state = State::kStopping;
    ++report_.evictions_ordered;
    // Some streams take longer to end than anyone waits.
    After(random_.Chance(0.01) ? absl::Seconds(12) : absl::Milliseconds(20), EventKind::kStopped, outcome.id);
    return absl::OkStatus();
  }
  if (state != State::kQueued) return Wrong(outcome.id, ToString(outcome.kind));
  switch (outcome.kind) {
    case Kind::kDispatched:
      return Send(outcome);
    case Kind::kRejectedCapacity:
      End(outcome.id, Fate::kRejectedCapacity);
      break;
    case Kind::kRejectedNoEndpoints:
      End(outcome.id, Fate::kRejectedNoEndpoints);
      break;
    case Kind::kRejectedShuttingDown:
      End(outcome.id, Fate::kRejectedShuttingDown);
      break;
    case Kind::kEvictedTtl:
      End(outcome.id, Fate::kExpired);
      break;
    case Kind::kEvictedNoEndpoints:
      End(outcome.id, Fate::kExpiredNoEndpoints);
      break;
    case Kind::kEvictedCancelled:
      End(outcome.id, Fate::kCancelledQueued);
      break;
    case Kind::kEvictedShuttingDown:
      End(outcome.id, Fate::kShutDown);
      break;
    case Kind::kEvictRunning:
      break;
  }
  return absl::OkStatus();
}

// To the endpoint with least in flight.
absl::Status Simulation::Send(const FlowOutcome& outcome) {
  if (pool_.size() == 0) return Wrong(outcome.id, "is dispatched into an empty pool");
  Position best = 0;
  for (Position p = 1; p < pool_.size(); ++p) {
    if (table_->Get(pool_[p].handle).requests < table_->Get(pool_[best].handle).requests) best = p;
  }
  const Running running{pool_[best].handle, static_cast<std::uint32_t>(100 + random_.Below(4000))};
  table_->Add(running.endpoint, {.requests = 1, .tokens = running.prompt_tokens});
  running_.emplace(outcome.id, running);
  states_[outcome.id] = State::kRunning;
  waits_.Add(outcome.waited);
  After(absl::Seconds(random_.Exponential(kServiceSeconds)), EventKind::kFinish, outcome.id);
  return absl::OkStatus();
}

absl::Status Simulation::Handle(const Event& event) {
  switch (event.kind) {
    case EventKind::kFinish:
      if (states_[event.id] == State::kRunning) EndRunning(event.id, Fate::kServed);
      break;
    case EventKind::kStopped:
      if (states_[event.id] == State::kStopping) EndRunning(event.id, Fate::kEvicted);
      break;
    case EventKind::kCancel: {
      outcomes_.clear();
      const bool queued = states_[event.id] == State::kQueued;
      if (controller_->Cancel(event.id, now_, outcomes_) != queued) return Wrong(event.id, "is cancelled");
      for (const FlowOutcome& outcome : outcomes_) {
        if (absl::Status status = Apply(outcome); !status.ok()) return status;
      }
      if (states_[event.id] == State::kRunning) EndRunning(event.id, Fate::kCancelledRunning);
      break;
    }
    case EventKind::kLeave:
      if (!outage_ && pool_.size() > 1) {
        RemoveEndpoint(static_cast<Position>(random_.Below(pool_.size())));
        After(absl::Milliseconds(300), EventKind::kJoin);
      }
      After(absl::Seconds(random_.Exponential(1)), EventKind::kLeave);
      break;
    case EventKind::kJoin:
      if (!outage_) AddEndpoint();
      break;
    case EventKind::kOutage:
      outage_ = !outage_;
      if (outage_) {
        while (pool_.size() > 0) RemoveEndpoint(0);
        After(std::min(absl::Seconds(2), period_ / 4), EventKind::kOutage);
      } else {
        while (pool_.size() < options_.endpoints) AddEndpoint();
        After(period_, EventKind::kOutage);
      }
      break;
  }
  return absl::OkStatus();
}

// Cycles until one dispatches nothing; each decision is carried out before the next.
absl::Status Simulation::Pump() {
  for (bool sent = true; sent;) {
    outcomes_.clear();
    sent = controller_->Step(now_, pool_, outcomes_);
    ++report_.cycles;
    for (const FlowOutcome& outcome : outcomes_) {
      if (absl::Status status = Apply(outcome); !status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<SimulationReport> Simulation::Run() {
  if (absl::Status status = Setup(); !status.ok()) return status;
  // The last thousandth arrives after the shutdown.
  const std::uint64_t shutdown_at = options_.requests - options_.requests / 1000;
  const std::uint64_t warm_at = options_.requests / 5;
  std::uint64_t arrived = 0;
  absl::Time arrival = NextArrival(now_);
  while (arrived < options_.requests || !running_.empty()) {
    const absl::Time wakeup = controller_->NextWakeup(now_);
    const absl::Time event = events_.empty() ? absl::InfiniteFuture() : events_.top().at;
    const absl::Time next_arrival = arrived < options_.requests ? arrival : absl::InfiniteFuture();
    now_ = std::max(now_, std::min({wakeup, event, next_arrival}));
    if (now_ == absl::InfiniteFuture()) return absl::InternalError("nothing will ever happen again");
    absl::Status status;
    if (now_ >= event) {
      const Event next = events_.top();
      events_.pop();
      status = Handle(next);
    } else if (now_ >= next_arrival) {
      if (arrived == shutdown_at) {
        outcomes_.clear();
        controller_->Shutdown(now_, outcomes_);
        for (const FlowOutcome& outcome : outcomes_) {
          if (absl::Status s = Apply(outcome); !s.ok()) return s;
        }
      }
      status = Arrive(arrived++);
      arrival = NextArrival(now_);
      if (arrived == warm_at) {
        report_.rss_warm = ResidentBytes();
        report_.controller_warm = controller_->MemoryBytes();
      }
      if (arrived % 8192 == 0 && options_.progress) options_.progress(arrived);
    }
    if (status.ok()) status = Pump();
    if (!status.ok()) return status;
    report_.peak_queued = std::max(report_.peak_queued, controller_->stats().queued_requests);
  }
  report_.rss_end = ResidentBytes();
  report_.controller_end = controller_->MemoryBytes();
  report_.simulated = now_ - kStart;
  report_.wait_p50 = waits_.Quantile(0.5);
  report_.wait_p99 = waits_.Quantile(0.99);
  const FlowControlStats stats = controller_->stats();
  report_.unconfirmed_evictions = stats.unconfirmed_evictions;
  for (std::uint64_t id = 0; id < options_.requests; ++id) {
    if (states_[id] != State::kDone) return Wrong(id, "has no end");
  }
  const std::uint64_t ends = std::accumulate(report_.fates.begin(), report_.fates.end(), std::uint64_t{0});
  if (ends != options_.requests || stats.queued_requests != 0 || stats.queued_bytes != 0 ||
      stats.running != 0) {
    return absl::InternalError(absl::StrCat(options_.requests, " requests arrived, ", ends, " ended, ",
                                            stats.queued_requests, " are queued, ", stats.running,
                                            " running"));
  }
  return report_;
}

}  // namespace

const char* ToString(Fate fate) {
  static constexpr const char* kNames[kFates] = {
      "served",          "rejected_capacity",     "rejected_no_endpoints", "rejected_shutting_down",
      "expired",         "expired_no_endpoints",  "cancelled_queued",      "cancelled_running",
      "queued_shutdown", "evicted_while_running", "lost_with_endpoint"};
  return kNames[static_cast<std::size_t>(fate)];
}

absl::StatusOr<SimulationReport> Simulate(const SimulationOptions& options) {
  if (options.requests < 10 || options.flows == 0 || options.endpoints == 0) {
    return absl::InvalidArgumentError("expected at least 10 requests, 1 flow and 1 endpoint");
  }
  return Simulation(options).Run();
}

}  // namespace llmd::sched
