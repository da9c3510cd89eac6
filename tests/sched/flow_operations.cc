#include "tests/sched/flow_operations.h"

#include <cmath>
#include <limits>
#include <map>
#include <memory>

#include "tests/sched/fake_detector.h"

namespace llmd::sched {
namespace {

const absl::Time kStart = absl::FromUnixSeconds(1'700'000'000);

// Follows each id through its life, by the outcomes alone.
class Accounts {
 public:
  // Of the next Apply(): the id that is being enqueued.
  std::optional<std::uint64_t> arriving;

  std::string Apply(const FlowOutcome& outcome) {
    using Kind = FlowOutcome::Kind;
    const std::string who = "id " + std::to_string(outcome.id) + " " + std::string(ToString(outcome.kind));
    switch (outcome.kind) {
      case Kind::kRejectedCapacity:
      case Kind::kRejectedNoEndpoints:
      case Kind::kRejectedShuttingDown:
        if (arriving != outcome.id) return who + " though it is not arriving";
        arriving.reset();
        return "";
      case Kind::kEvictRunning:
        return running[outcome.id]-- > 0 ? "" : who + " though it is not running, or twice";
      default:
        if (queued.erase(outcome.id) == 0) return who + " though it is not queued";
        if (outcome.kind == Kind::kDispatched) running[outcome.id] = 1;
        return "";
    }
  }

  std::set<std::uint64_t> queued;
  std::map<std::uint64_t, int> running;  // 1, or 0 when it is to be evicted
};

std::string Describe(const FlowOutcome& o) {
  return std::to_string(o.id) + " " + std::string(ToString(o.kind)) + " priority " +
         std::to_string(o.priority) + " after " + absl::FormatDuration(o.waited);
}

std::string Compare(const std::vector<FlowOutcome>& real, const std::vector<FlowOutcome>& model) {
  for (std::size_t i = 0; i < std::max(real.size(), model.size()); ++i) {
    const std::string a = i < real.size() ? Describe(real[i]) : "nothing";
    const std::string b = i < model.size() ? Describe(model[i]) : "nothing";
    if (a != b) return "outcome " + std::to_string(i) + ": " + a + ", expected " + b;
  }
  return "";
}

std::string Compare(const FlowControlStats& stats, const FlowModel& model) {
  const auto differ = [](const char* what, std::uint64_t a, std::uint64_t b) {
    return a == b ? std::string()
                  : std::string(what) + " are " + std::to_string(a) + ", expected " + std::to_string(b);
  };
  for (const std::string& difference :
       {differ("queued", stats.queued_requests, model.queued()),
        differ("bytes", stats.queued_bytes, model.bytes()), differ("running", stats.running, model.running()),
        differ("flows", stats.flows, model.flows()), differ("bands", stats.bands, model.bands())}) {
    if (!difference.empty()) return difference;
  }
  return "";
}

struct RealController {
  std::unique_ptr<Scheduler> scheduler;
  std::unique_ptr<FlowController> controller;
};

RealController MakeReal(const FlowModelConfig& config, const FakeDetector::Control& detector) {
  PluginRegistry registry = PluginRegistry::Builtin();
  registry
      .Register("fake-detector",
                [&detector](PluginBuilder& b) -> absl::StatusOr<std::unique_ptr<Plugin>> {
                  return std::make_unique<FakeDetector>(b.type(), b.name(), detector);
                })
      .IgnoreError();
  SchedulerConfig scheduler;
  scheduler.allow_experimental = true;
  scheduler.feature_gates.flow_control = true;
  Value parameters;
  if (config.usage_limit == "priority-holdback-policy") {
    parameters = Parameters(
        {{"minCeiling", config.holdback_min}, {"domain", config.holdback_by_value ? "value" : "rank"}});
  }
  scheduler.plugins = {{.type = "fake-detector"},
                       {.type = config.fairness},
                       {.type = config.ordering},
                       {.type = config.usage_limit, .parameters = parameters}};
  scheduler.flow_control = config.flow;
  scheduler.flow_control.saturation_detector = "fake-detector";
  scheduler.flow_control.usage_limit_policy = config.usage_limit;
  const auto set = [&config](PriorityBandConfig& band) {
    band.fairness_policy = config.fairness;
    band.ordering_policy = config.ordering;
  };
  for (PriorityBandConfig& band : scheduler.flow_control.bands) set(band);
  set(scheduler.flow_control.default_band);
  if (scheduler.flow_control.default_negative_band) set(*scheduler.flow_control.default_negative_band);
  RealController real;
  real.scheduler = *Scheduler::Create(scheduler, registry, {});
  real.controller = *FlowController::Create(*real.scheduler, config.options);
  return real;
}

FlowItem MakeItem(const FlowOperation& op, const std::string& flow, absl::Time now) {
  FlowItem item{.id = op.id, .flow = flow, .priority = op.priority, .bytes = op.amount};
  if (op.ttl != 0) item.ttl = absl::Seconds(op.ttl);
  if (op.slo != 0) item.slo_ttft = absl::Milliseconds(op.slo);
  if (op.slo % 3 == 1) item.received = now - absl::Milliseconds(op.slo);
  return item;
}

}  // namespace

FlowModelConfig FlowConfigNumber(std::uint64_t number) {
  static constexpr const char* kFairness[] = {"global-strict-fairness-policy", "round-robin-fairness-policy",
                                              "program-aware-fairness"};
  static constexpr const char* kOrdering[] = {"fcfs-ordering-policy", "edf-ordering-policy",
                                              "slo-deadline-ordering-policy"};
  static constexpr const char* kUsage[] = {"static-usage-limit-policy", "priority-holdback-policy",
                                           "priority-holdback-policy", "soft-reflective-ceiling-policy"};
  const auto choose = [&number](std::uint64_t n) {
    const std::uint64_t chosen = number % n;
    number /= n;
    return chosen;
  };
  FlowModelConfig config;
  config.fairness = kFairness[choose(3)];
  config.ordering = kOrdering[choose(3)];
  const std::uint64_t usage = choose(4);
  config.usage_limit = kUsage[usage];
  config.holdback_by_value = usage == 2;
  config.flow.enable_eviction = choose(2) == 1;
  config.flow.bands = {{.priority = 2, .max_requests = 20},
                       {.priority = -1, .max_requests = 12, .max_bytes = 900}};
  config.flow.default_band = {.max_requests = 10};
  if (choose(2) == 1) config.flow.default_negative_band = PriorityBandConfig{.max_requests = 5};
  if (choose(2) == 1) {
    config.flow.max_requests = 30;
    config.flow.max_bytes = 2000;
  }
  config.flow.default_request_ttl = absl::Seconds(5 * choose(3));
  config.flow.no_endpoint_request_ttl = absl::Seconds(4 * choose(3));
  config.options.max_dynamic_bands = 3;
  config.options.max_running = 40;
  config.options.eviction_grace = absl::Milliseconds(300);
  return config;
}

std::optional<std::string> RunFlowOnBoth(const FlowModelConfig& config,
                                         const std::vector<FlowOperation>& operations,
                                         FlowControlStats* stats) {
  FakeDetector::Control detector;
  const RealController real = MakeReal(config, detector);
  FlowController& controller = *real.controller;
  FlowModel model(config);
  EndpointPool filled;
  filled.Add({.name = "pod", .address = "10.0.0.1", .port = 8000}).IgnoreError();
  const EndpointPool empty;
  const EndpointPool* pool = &filled;
  absl::Time now = kStart;
  Accounts accounts;
  std::vector<FlowOutcome> outcomes, expected;

  std::vector<FlowOperation> all = operations;
  all.push_back({.kind = FlowOperation::Kind::kShutdown});
  for (std::size_t step = 0; step < all.size(); ++step) {
    const FlowOperation& op = all[step];
    const auto fail = [&](const std::string& what) {
      return "step " + std::to_string(step) + " of kind " + std::to_string(static_cast<int>(op.kind)) + ": " +
             what;
    };
    outcomes.clear();
    expected.clear();
    now += op.later;
    bool same = true;
    switch (op.kind) {
      case FlowOperation::Kind::kEnqueue: {
        const std::string flow = "flow-" + std::to_string(op.flow);
        const FlowItem item = MakeItem(op, flow, now);
        const bool accepted = controller.Enqueue(item, now, outcomes).ok();
        same = accepted == model.Enqueue(item, now, expected);
        if (accepted && outcomes.empty()) {
          if (!accounts.queued.insert(op.id).second) return fail("a queued id is accepted again");
        } else if (accepted) {
          accounts.arriving = op.id;
        }
        break;
      }
      case FlowOperation::Kind::kCancel: {
        const bool known = controller.Cancel(op.id, now, outcomes);
        same = known == model.Cancel(op.id, now, expected);
        if (known != (accounts.queued.count(op.id) > 0)) return fail("cancel does not tell what is queued");
        break;
      }
      case FlowOperation::Kind::kFinish: {
        std::optional<TokenUsage> usage;
        if (op.amount % 4 != 0) usage = {op.amount, op.amount / 2};
        same = controller.OnFinished(op.id, now, usage) == model.OnFinished(op.id, now, usage);
        accounts.running.erase(op.id);
        break;
      }
      case FlowOperation::Kind::kDispatch:
        same = controller.Dispatch(now, *pool, op.amount, outcomes) ==
               model.Dispatch(now, pool == &empty, detector.saturation, op.amount, expected);
        break;
      case FlowOperation::Kind::kTick:
        controller.Tick(now, *pool, outcomes);
        model.Tick(now, pool == &empty, expected);
        break;
      case FlowOperation::Kind::kSaturation:
        detector.saturation =
            op.amount == 255 ? std::numeric_limits<double>::quiet_NaN() : static_cast<double>(op.amount) / 16;
        break;
      case FlowOperation::Kind::kPool:
        pool = op.amount == 0 ? &empty : &filled;
        break;
      case FlowOperation::Kind::kShutdown:
        controller.Shutdown(now, outcomes);
        model.Shutdown(now, expected);
        break;
    }
    if (std::string difference = Compare(outcomes, expected); !difference.empty()) return fail(difference);
    if (!same) return fail("the returned values differ");
    for (const FlowOutcome& outcome : outcomes) {
      if (std::string wrong = accounts.Apply(outcome); !wrong.empty()) return fail(wrong);
    }
    accounts.arriving.reset();
    if (accounts.queued.size() != controller.stats().queued_requests) return fail("accounts do not add up");
    if (std::string difference = Compare(controller.stats(), model); !difference.empty())
      return fail(difference);
    if (controller.NextWakeup(now) < now) return fail("the next wakeup has passed");
  }
  if (stats != nullptr) *stats = controller.stats();
  if (!accounts.queued.empty()) return "requests without an outcome are left";
  return std::nullopt;
}

}  // namespace llmd::sched
