// Golden tables of the flow control policies, computed by hand from scheduling.md 2.7.
#include <gmock/gmock.h>

#include <limits>

#include "llmd/sched/flow_policy.h"
#include "tests/sched/sched_test_util.h"

namespace llmd::sched {
namespace {

using ::testing::DoubleEq;
using ::testing::ElementsAre;

std::string Complaint(const std::string& type, const Value& parameters) {
  return std::string(PluginUnderTest(type, parameters).status.message());
}

// Ordering.

std::int64_t Nanos(absl::Time time) { return absl::ToUnixNanos(time); }

TEST(Ordering, FirstComeFirstServed) {
  PluginUnderTest policy("fcfs-ordering-policy", {});
  const auto& order = policy.As<OrderingPolicy>();
  FlowItem item{.received = kNow - absl::Hours(1), .slo_ttft = absl::Seconds(1)};
  EXPECT_EQ(order.Key(item, kNow, absl::Seconds(5)), (OrderKey{Nanos(kNow), 0}));
  EXPECT_LT(order.Key(item, kNow, absl::Seconds(5)), order.Key(item, kNow + absl::Nanoseconds(1), {}));
}

TEST(Ordering, EarliestDeadlineFirst) {
  PluginUnderTest policy("edf-ordering-policy", {});
  const auto& order = policy.As<OrderingPolicy>();
  const FlowItem item;
  // Deadlines: +9 s of the one that came first, +7 s of the one that came 2 s later, none of the last two.
  const OrderKey first = order.Key(item, kNow, absl::Seconds(9));
  const OrderKey second = order.Key(item, kNow + absl::Seconds(2), absl::Seconds(5));
  const OrderKey never = order.Key(item, kNow - absl::Seconds(5), absl::InfiniteDuration());
  const OrderKey never_later = order.Key(item, kNow, absl::InfiniteDuration());
  EXPECT_EQ(first.first, Nanos(kNow + absl::Seconds(9)));
  EXPECT_EQ(never.first, kNever);
  EXPECT_LT(second, first);
  EXPECT_LT(first, never);
  EXPECT_LT(never, never_later);  // equal deadlines go by arrival
}

TEST(Ordering, SloDeadline) {
  PluginUnderTest policy("slo-deadline-ordering-policy", {});
  const auto& order = policy.As<OrderingPolicy>();
  struct Row {
    FlowItem item;
    OrderKey key;
  };
  const std::int64_t now = Nanos(kNow);
  const Row rows[] = {
      {{.received = kNow - absl::Milliseconds(1), .slo_ttft = absl::Milliseconds(5)},
       {now + 4'000'000, now - 1'000'000}},
      {{.slo_ttft = absl::ZeroDuration()}, {now, now}},  // received when queued
      {{.received = kNow - absl::Milliseconds(1)}, {kNever, now - 1'000'000}},
      {{.slo_ttft = -absl::Milliseconds(1)}, {kNever, now}},
      {{.slo_ttft = absl::InfiniteDuration()}, {kNever, now}},
  };
  for (const Row& row : rows) {
    const OrderKey key = order.Key(row.item, kNow, absl::Seconds(1));
    EXPECT_EQ(key.first, row.key.first);
    EXPECT_EQ(key.second, row.key.second);
  }
}

TEST(Ordering, TakesNoParameters) {
  for (const char* type :
       {"fcfs-ordering-policy", "edf-ordering-policy", "slo-deadline-ordering-policy",
        "global-strict-fairness-policy", "round-robin-fairness-policy", "soft-reflective-ceiling-policy",
        "sheddable-eviction-filter", "priority-then-time-eviction-order-policy"}) {
    EXPECT_EQ(Complaint(type, {}), "");
    EXPECT_EQ(Complaint(type, Parameters({{"x", 1}})),
              std::string(type) + ": x is unknown, expected no parameters");
  }
}

TEST(Policies, StabilityIsAsGraded) {
  for (const char* type : {"priority-holdback-policy", "soft-reflective-ceiling-policy",
                           "sheddable-eviction-filter", "priority-then-time-eviction-order-policy"}) {
    EXPECT_EQ(PluginRegistry::Builtin().Find(type)->stability, Stability::kExperimental) << type;
  }
  for (const char* type : {"fcfs-ordering-policy", "global-strict-fairness-policy", "program-aware-fairness",
                           "static-usage-limit-policy", "concurrency-detector"}) {
    EXPECT_EQ(PluginRegistry::Builtin().Find(type)->stability, Stability::kStable) << type;
  }
}

// Fairness.

class Flows {
 public:
  explicit Flows(const std::string& type, const Value& parameters = {})
      : policy_(type, parameters),
        state(policy_.As<FairnessPolicy>().NewState()),
        selector(state->NewBand()) {}

  void Set(std::uint32_t flow, std::string_view id, std::int64_t key = 0, absl::Time enqueued = kNow) {
    selector->Set({flow, id, {key, 0}, sequence++, enqueued}, now);
  }
  std::optional<std::uint32_t> Pick() { return selector->Pick(now); }

 private:
  PluginUnderTest policy_;

 public:
  std::unique_ptr<FairnessState> state;
  std::unique_ptr<FlowSelector> selector;
  absl::Time now = kNow;
  std::uint64_t sequence = 0;
};

TEST(GlobalStrict, TheBestHead) {
  Flows flows("global-strict-fairness-policy");
  EXPECT_EQ(flows.Pick(), std::nullopt);
  flows.Set(0, "a", 30);
  flows.Set(1, "b", 10);
  flows.Set(2, "c", 20);
  EXPECT_EQ(flows.Pick(), 1u);
  EXPECT_EQ(flows.Pick(), 1u);  // nothing has changed
  flows.Set(1, "b", 25);        // the next head of b
  EXPECT_EQ(flows.Pick(), 2u);
  flows.selector->Clear(2, kNow);
  EXPECT_EQ(flows.Pick(), 1u);
  flows.Set(3, "d", 25);  // the same, and came later
  EXPECT_EQ(flows.Pick(), 1u);
  flows.Set(1, "b", 25);  // now b's head came later
  EXPECT_EQ(flows.Pick(), 3u);
  for (const std::uint32_t flow : {0u, 1u, 3u}) flows.selector->Clear(flow, kNow);
  EXPECT_EQ(flows.Pick(), std::nullopt);
  EXPECT_FALSE(flows.state->NeedsUsage());
}

TEST(RoundRobin, InOrderOfIds) {
  Flows flows("round-robin-fairness-policy");
  EXPECT_EQ(flows.Pick(), std::nullopt);
  flows.Set(0, "m", 5);
  flows.Set(1, "z", 1);
  flows.Set(2, "b", 9);
  EXPECT_EQ(flows.Pick(), 2u);
  EXPECT_EQ(flows.Pick(), 0u);
  EXPECT_EQ(flows.Pick(), 1u);
  EXPECT_EQ(flows.Pick(), 2u);  // round
  flows.Set(3, "a", 0);
  flows.Set(4, "c", 0);
  EXPECT_EQ(flows.Pick(), 4u);  // the first after "b"; "a" has to wait
  EXPECT_EQ(flows.Pick(), 0u);
  flows.selector->Clear(1, kNow);
  EXPECT_EQ(flows.Pick(), 3u);  // "z" is gone, round
}

TEST(RoundRobin, RemembersAFlowThatIsGone) {
  Flows flows("round-robin-fairness-policy");
  flows.Set(0, "a");
  flows.Set(1, "b");
  flows.Set(2, "c");
  EXPECT_EQ(flows.Pick(), 0u);
  EXPECT_EQ(flows.Pick(), 1u);
  flows.selector->Clear(1, kNow);
  EXPECT_EQ(flows.Pick(), 2u);
  flows.Set(1, "aa");  // the number is used again
  EXPECT_EQ(flows.Pick(), 0u);
  EXPECT_EQ(flows.Pick(), 1u);
  EXPECT_EQ(flows.Pick(), 2u);
}

TEST(ProgramAware, LeastServiceAndLongestWait) {
  // Service a 100 + 2 * 100 = 300, b 0, c 600: scaled 0.5, 0, 1. Waits 100, 0, 100 ms: scaled 1, 0, 1.
  const auto pick = [](double service, double wait) {
    Flows flows("program-aware-fairness",
                Parameters({{"lasWeightService", service}, {"lasWeightHeadWait", wait}}));
    EXPECT_TRUE(flows.state->NeedsUsage());
    flows.state->OnFinished("a", {.prompt_tokens = 100, .completion_tokens = 100}, kNow);
    flows.state->OnFinished("c", {.prompt_tokens = 600}, kNow);
    flows.Set(0, "c", 0, kNow - absl::Milliseconds(100));
    flows.Set(1, "a", 0, kNow - absl::Milliseconds(100));
    flows.Set(2, "b", 0, kNow);
    return *flows.Pick();
  };
  EXPECT_EQ(pick(0.8, 0.2), 2u);  // a 0.4 + 0.2 = 0.6, b 0.8, c 0.2
  EXPECT_EQ(pick(0.4, 0.4), 1u);  // a 0.2 + 0.4 = 0.6, b 0.4, c 0.4
  EXPECT_EQ(pick(0.0, 1.0), 0u);  // a and c 1: c came first
}

TEST(ProgramAware, DefaultWeights) {
  // With 0.8 and 0.2: b's 0.8 for no service beats a's wait of 0.2.
  Flows flows("program-aware-fairness");
  flows.state->OnFinished("a", {.prompt_tokens = 1}, kNow);
  flows.Set(0, "a", 0, kNow - absl::Hours(1));
  flows.Set(1, "b", 0, kNow);
  EXPECT_EQ(flows.Pick(), 1u);
}

TEST(ProgramAware, EqualsGoByArrival) {
  Flows flows("program-aware-fairness");
  EXPECT_EQ(flows.Pick(), std::nullopt);
  flows.Set(0, "b");
  flows.Set(1, "a");
  EXPECT_EQ(flows.Pick(), 0u);
  flows.Set(0, "b");  // b's next request
  EXPECT_EQ(flows.Pick(), 1u);
}

TEST(ProgramAware, ServiceIsForgottenByHalves) {
  const auto pick_after_two_minutes = [](int half_life) {
    Flows flows("program-aware-fairness",
                Parameters({{"lasWeightHeadWait", 0}, {"lasHalfLifeSeconds", half_life}}));
    flows.state->OnFinished("a", {.prompt_tokens = 800}, kNow);
    flows.now += absl::Seconds(120);
    flows.state->OnFinished("b", {.prompt_tokens = 300}, flows.now);
    flows.Set(0, "a");
    flows.Set(1, "b");
    return *flows.Pick();
  };
  EXPECT_EQ(pick_after_two_minutes(60), 0u);   // a has 800 / 4 = 200 left
  EXPECT_EQ(pick_after_two_minutes(120), 1u);  // 400
  EXPECT_EQ(pick_after_two_minutes(0), 1u);    // 800
}

TEST(ProgramAware, ServiceAddsToWhatIsLeft) {
  Flows flows("program-aware-fairness", Parameters({{"lasWeightHeadWait", 0}}));
  flows.state->OnFinished("a", {.prompt_tokens = 800}, kNow);
  flows.now += absl::Seconds(60);
  flows.state->OnFinished("a", {.prompt_tokens = 100}, flows.now);  // 500
  flows.state->OnFinished("b", {.prompt_tokens = 501}, flows.now);
  flows.state->OnFinished("c", {.prompt_tokens = 499}, flows.now);
  flows.Set(0, "a");
  flows.Set(1, "b");
  EXPECT_EQ(flows.Pick(), 0u);
  flows.Set(2, "c");
  EXPECT_EQ(flows.Pick(), 2u);
}

TEST(ProgramAware, ServiceCountsInEveryBand) {
  Flows flows("program-aware-fairness");
  const std::unique_ptr<FlowSelector> other = flows.state->NewBand();
  flows.state->OnFinished("a", {.prompt_tokens = 1}, kNow);
  for (FlowSelector* band : {flows.selector.get(), other.get()}) {
    band->Set({0, "a", {}, 0, kNow}, kNow);
    band->Set({1, "b", {}, 1, kNow}, kNow);
    EXPECT_EQ(band->Pick(kNow), 1u);
  }
}

TEST(ProgramAware, ForgetsProgramsThatAreNotUsed) {
  Flows flows("program-aware-fairness", Parameters({{"evictionTtlSeconds", 10},
                                                    {"evictionSweepSeconds", 5},
                                                    {"lasHalfLifeSeconds", 0},
                                                    {"lasWeightHeadWait", 0}}));
  flows.state->Sweep(kNow);
  flows.state->OnFinished("a", {.prompt_tokens = 1000}, kNow);
  flows.state->OnFinished("b", {.prompt_tokens = 500}, kNow);
  const auto pick = [&flows] {
    flows.Set(0, "a");
    flows.Set(1, "b");
    const std::uint32_t picked = *flows.Pick();
    flows.selector->Clear(0, flows.now);
    flows.selector->Clear(1, flows.now);
    return picked;
  };
  flows.now += absl::Seconds(4);
  EXPECT_EQ(pick(), 1u);  // and both were used now
  flows.now += absl::Seconds(9);
  flows.state->Sweep(flows.now);
  EXPECT_EQ(pick(), 1u);
  flows.now += absl::Seconds(10);
  flows.Set(0, "a");  // queued when the sweep comes
  flows.state->Sweep(flows.now);
  flows.Set(1, "b");
  EXPECT_EQ(flows.Pick(), 1u);  // b is forgotten and has 0, a still its 1000
  flows.selector->Clear(0, flows.now);
  flows.selector->Clear(1, flows.now);
  flows.now += absl::Seconds(11);
  flows.state->Sweep(flows.now);
  EXPECT_EQ(pick(), 0u);  // both are forgotten
}

TEST(ProgramAware, HostileUsage) {
  Flows flows("program-aware-fairness");
  constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
  constexpr std::int64_t kMin = std::numeric_limits<std::int64_t>::min();
  for (int i = 0; i < 100; ++i) flows.state->OnFinished("a", {kMax, kMax}, kNow);
  flows.state->OnFinished("b", {kMin, kMin}, kNow);  // counts as none
  flows.Set(0, "a");
  flows.Set(1, "b");
  flows.Set(2, "c");
  EXPECT_EQ(flows.Pick(), 1u);
}

TEST(ProgramAware, MemoryIsBounded) {
  Flows flows("program-aware-fairness");
  for (int i = 0; i < 70000; ++i) flows.state->OnFinished(std::to_string(i), {.prompt_tokens = 1}, kNow);
  const std::size_t full = flows.state->MemoryBytes();
  for (int i = 0; i < 300000; ++i)
    flows.state->OnFinished("x" + std::to_string(i), {.prompt_tokens = 1}, kNow);
  EXPECT_LE(flows.state->MemoryBytes(), full);
}

TEST(ProgramAware, ParameterErrors) {
  const char* type = "program-aware-fairness";
  EXPECT_EQ(Complaint(type, Parameters({{"strategy", "las"}})), "");
  EXPECT_EQ(Complaint(type, Parameters({{"strategy", "drr"}})),
            "program-aware-fairness: strategy is \"drr\", expected las");
  EXPECT_EQ(Complaint(type, Parameters({{"lasWeightService", -0.1}})),
            "program-aware-fairness: lasWeightService is -0.1, expected at least 0");
  EXPECT_EQ(Complaint(type, Parameters({{"lasWeightHeadWait", -1}})),
            "program-aware-fairness: lasWeightHeadWait is -1, expected at least 0");
  EXPECT_EQ(Complaint(type, Parameters({{"lasHalfLifeSeconds", -1}})),
            "program-aware-fairness: lasHalfLifeSeconds is -1, expected 0 to 1e10");
  EXPECT_EQ(Complaint(type, Parameters({{"evictionTtlSeconds", 0}})),
            "program-aware-fairness: evictionTtlSeconds is 0, expected more than 0 and at most 1e10");
  EXPECT_EQ(Complaint(type, Parameters({{"evictionSweepSeconds", 1e11}})),
            "program-aware-fairness: evictionSweepSeconds is 1e+11, expected more than 0 and at most 1e10");
  EXPECT_EQ(Complaint(type, Parameters({{"lasHalfLifeSeconds", "60s"}})),
            "program-aware-fairness: lasHalfLifeSeconds is a string, expected a number");
}

// Usage limits.

class Limits {
 public:
  explicit Limits(const std::string& type, const Value& parameters = {})
      : policy_(type, parameters), limiter_(policy_.As<UsageLimitPolicy>().NewLimiter()) {}
  std::vector<double> operator()(double saturation, const std::vector<std::int32_t>& priorities) {
    std::vector<double> ceilings(priorities.size(), 1.0);
    limiter_->Limit(saturation, priorities, ceilings);
    return ceilings;
  }

 private:
  PluginUnderTest policy_;
  std::unique_ptr<UsageLimiter> limiter_;
};

TEST(StaticLimit, OneForAll) {
  EXPECT_THAT(Limits("static-usage-limit-policy")(0.3, {5, 0, -5}), ElementsAre(1.0, 1.0, 1.0));
  Limits limits("static-usage-limit-policy", Parameters({{"threshold", 0.8}}));
  EXPECT_THAT(limits(0.3, {5, 0, -5}), ElementsAre(0.8, 0.8, 0.8));
  EXPECT_THAT(limits(7, {}), ElementsAre());
  EXPECT_EQ(Complaint("static-usage-limit-policy", Parameters({{"threshold", 0}})),
            "static-usage-limit-policy: threshold is 0, expected more than 0");
}

TEST(Holdback, ByRank) {
  Limits limits("priority-holdback-policy", Parameters({{"minCeiling", 0.4}, {"maxCeiling", 0.9}}));
  EXPECT_THAT(limits(0, {}), ElementsAre());
  EXPECT_THAT(limits(0, {7}), ElementsAre(0.9));
  EXPECT_THAT(limits(0, {7, -7}), ElementsAre(0.9, DoubleEq(0.4)));
  EXPECT_THAT(limits(0, {1000, 1, 0}), ElementsAre(0.9, DoubleEq(0.65), DoubleEq(0.4)));
}

TEST(Holdback, ByValue) {
  Limits limits("priority-holdback-policy", Parameters({{"minCeiling", 0.5}, {"domain", "value"}}));
  EXPECT_THAT(limits(0, {3}), ElementsAre(1.0));
  // 4 lies at 0.4 between 0 and 10: 0.5 + 0.4 * 0.5.
  EXPECT_THAT(limits(0, {10, 4, 0}), ElementsAre(1.0, DoubleEq(0.7), 0.5));
  constexpr std::int32_t kMax = std::numeric_limits<std::int32_t>::max();
  constexpr std::int32_t kMin = std::numeric_limits<std::int32_t>::min();
  EXPECT_THAT(limits(0, {kMax, kMin}), ElementsAre(1.0, 0.5));  // the distance is no int32
}

TEST(Holdback, ParameterErrors) {
  const char* type = "priority-holdback-policy";
  const auto complaint = [type](std::initializer_list<Value::Field> fields) {
    return Complaint(type, Parameters(fields));
  };
  EXPECT_EQ(complaint({}),
            "priority-holdback-policy: minCeiling is missing, expected at least 0 and less than 1");
  EXPECT_EQ(complaint({{"minCeiling", 0}}), "");
  EXPECT_EQ(complaint({{"minCeiling", 1}}),
            "priority-holdback-policy: minCeiling is 1, expected at least 0 and less than 1");
  EXPECT_EQ(complaint({{"minCeiling", -0.1}}),
            "priority-holdback-policy: minCeiling is -0.1, expected at least 0 and less than 1");
  EXPECT_EQ(complaint({{"minCeiling", 0.5}, {"maxCeiling", 1.1}}),
            "priority-holdback-policy: maxCeiling is 1.1, expected more than 0 and at most 1");
  EXPECT_EQ(complaint({{"minCeiling", 0.5}, {"maxCeiling", 0.4}}),
            "priority-holdback-policy: minCeiling is 0.5, expected at most maxCeiling 0.4");
  EXPECT_EQ(complaint({{"minCeiling", 0.5}, {"shape", "cubic"}}),
            "priority-holdback-policy: shape is \"cubic\", expected linear");
  EXPECT_EQ(complaint({{"minCeiling", 0.5}, {"domain", "x"}}),
            "priority-holdback-policy: domain is \"x\", expected rank or value");
}

TEST(SoftReflective, OpenBelowTheCeiling) {
  Limits limits("soft-reflective-ceiling-policy");
  EXPECT_THAT(limits(0.9, {}), ElementsAre());
  EXPECT_THAT(limits(0.9, {1}), ElementsAre(1.0));
  // Ceilings 0.85 and 0.7.
  for (int i = 0; i < 5; ++i) EXPECT_THAT(limits(0.3, {5, 0, -5}), ElementsAre(1.0, 1.0, 1.0));
}

TEST(SoftReflective, OneInAPeriodBeyond) {
  Limits limits("soft-reflective-ceiling-policy");
  const std::vector<std::int32_t> bands = {5, 0, -5};
  // 0.625: ceilings 1 - 0.3125 = 0.6875 (open) and 0.375 (shut); period round(0.625 / 0.375) = round(1.67)
  // = 2.
  for (int i = 0; i < 3; ++i) {
    EXPECT_THAT(limits(0.625, bands), ElementsAre(1.0, 1.0, 0.0));
    EXPECT_THAT(limits(0.625, bands), ElementsAre(1.0, 1.0, 1.0));
  }
  // Six calls were counted. 0.75: ceilings 0.625 and 0.25, period 3; open at the 9th.
  EXPECT_THAT(limits(0.75, bands), ElementsAre(1.0, 0.0, 0.0));
  EXPECT_THAT(limits(0.3, bands), ElementsAre(1.0, 1.0, 1.0));  // not counted
  EXPECT_THAT(limits(0.75, bands), ElementsAre(1.0, 0.0, 0.0));
  EXPECT_THAT(limits(1.5, bands), ElementsAre(1.0, 0.0, 0.0));  // not counted
  EXPECT_THAT(limits(0.75, bands), ElementsAre(1.0, 1.0, 1.0));
  // 0.5: the lowest ceiling is reached, with a period of 1.
  EXPECT_THAT(limits(0.5, bands), ElementsAre(1.0, 1.0, 1.0));
}

TEST(SoftReflective, ShutWhenFull) {
  Limits limits("soft-reflective-ceiling-policy");
  for (int i = 0; i < 3; ++i) EXPECT_THAT(limits(1.0, {5, 0}), ElementsAre(1.0, 0.0));
  EXPECT_THAT(limits(std::nextafter(1.0, 0.0), {5, 0}), ElementsAre(1.0, 0.0));
  EXPECT_THAT(limits(std::numeric_limits<double>::infinity(), {5, 0}), ElementsAre(1.0, 0.0));
}

TEST(Limits, StatesDoNotMix) {
  PluginUnderTest policy("soft-reflective-ceiling-policy", {});
  const auto a = policy.As<UsageLimitPolicy>().NewLimiter();
  const auto b = policy.As<UsageLimitPolicy>().NewLimiter();
  const std::vector<std::int32_t> bands = {1, 0};
  std::vector<double> ceilings = {1, 1};
  a->Limit(0.625, bands, ceilings);
  b->Limit(0.625, bands, ceilings);
  EXPECT_EQ(ceilings[1], 0.0);
  a->Limit(0.625, bands, ceilings);
  EXPECT_EQ(ceilings[1], 1.0);
}

// Eviction.

TEST(Eviction, SheddableOnly) {
  PluginUnderTest policy("sheddable-eviction-filter", {});
  EXPECT_TRUE(policy.As<EvictionFilter>().MayEvict({.priority = -1}));
  EXPECT_FALSE(policy.As<EvictionFilter>().MayEvict({.priority = 0}));
  EXPECT_FALSE(policy.As<EvictionFilter>().MayEvict({.priority = 1}));
}

TEST(Eviction, PriorityThenTime) {
  PluginUnderTest policy("priority-then-time-eviction-order-policy", {});
  const auto key = [&policy](std::int32_t priority, absl::Duration after) {
    return policy.As<EvictionOrder>().Key({.priority = priority, .dispatched = kNow + after});
  };
  EXPECT_LT(key(-2, {}), key(-1, absl::Hours(1)));
  EXPECT_LT(key(-1, absl::Nanoseconds(1)), key(-1, {}));  // the newest first
  EXPECT_LT(key(-1, absl::InfiniteDuration()), key(-1, {}));
  EXPECT_LT(key(-1, {}), key(-1, -absl::InfiniteDuration()));
}

}  // namespace
}  // namespace llmd::sched
