// A pool and requests that change at random, plugins of every kind that a record has to stand in for, and a
// scheduler whose decisions are recorded.
#ifndef TESTS_SCHED_RECORDED_WORLD_H_
#define TESTS_SCHED_RECORDED_WORLD_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "llmd/sched/decision_record.h"
#include "tests/sched/sched_test_util.h"

namespace llmd::sched {

// Publishes what the test wants: loads of each endpoint and a prediction for some.
class TestProducer final : public Plugin, public DataProducer {
 public:
  explicit TestProducer(PluginBuilder& builder)
      : Plugin(builder.type(), builder.name()),
        load_(builder.Produces<InFlightLoad>()),
        prediction_(builder.Produces<LatencyPrediction>()) {}

  void Produce(Context& context, ThreadState*) const override {
    if (context.random.Chance(0.1)) return;  // nothing is published
    for (InFlightLoad& load : context.data.Publish(load_)) {
      load = {static_cast<std::int64_t>(context.random.Below(5)) - 1, INT64_MIN};
    }
    for (LatencyPrediction& p : context.data.Publish(prediction_)) {
      if (context.random.Chance(0.5)) continue;
      p.known = true;
      p.ttft_ms = context.random.Uniform();
      p.tpot_headroom_ms = -std::numeric_limits<double>::infinity();
    }
  }

 private:
  DataSlot<InFlightLoad> load_;
  DataSlot<LatencyPrediction> prediction_;
};

class PredictionScorer final : public Plugin, public Scorer {
 public:
  explicit PredictionScorer(PluginBuilder& builder)
      : Plugin(builder.type(), builder.name()),
        load_(builder.Consumes<InFlightLoad>("test-producer")),
        prediction_(builder.Consumes<LatencyPrediction>("test-producer")) {}

  void Score(Context& context, std::span<const Position> candidates,
             std::span<double> scores) const override {
    const auto loads = context.data.Read(load_);
    const auto predictions = context.data.Read(prediction_);
    for (std::size_t i = 0; i < candidates.size() && !loads.empty(); ++i) {
      scores[i] = predictions[candidates[i]].ttft_ms / static_cast<double>(2 + loads[candidates[i]].requests);
    }
  }

 private:
  DataSlot<InFlightLoad> load_;
  DataSlot<LatencyPrediction> prediction_;
};

// Remembers the last target: as a filter it drops it, as a scorer it likes its neighbour.
class Memory final : public Plugin, public Filter, public Scorer, public PreRequest {
 public:
  explicit Memory(PluginBuilder& builder) : Plugin(builder.type(), builder.name()) {
    ParameterReader read = builder.Read();
    read.Optional("shift", &shift_);
  }

  void Apply(Context&, std::span<const Position> candidates, std::span<DropReason> dropped) const override {
    for (std::size_t i = 0; i < candidates.size() && candidates.size() > 1; ++i) {
      if (candidates[i] == last_) dropped[i] = "had its turn";
    }
  }
  void Score(Context&, std::span<const Position> candidates, std::span<double> scores) const override {
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      scores[i] = static_cast<double>((candidates[i] + last_ + shift_) % 4) / 4;
    }
  }
  absl::Status OnDecision(Context&, const Decision& decision, std::span<const std::string>,
                          Dispatch&) override {
    last_ = decision.target();
    return absl::OkStatus();
  }

 private:
  std::int64_t shift_ = 0;
  Position last_ = 0;
};

template <typename T>
void Add(PluginRegistry& registry, const char* type) {
  ASSERT_TRUE(registry
                  .Register(type,
                            [](PluginBuilder& b) -> absl::StatusOr<std::unique_ptr<Plugin>> {
                              return std::make_unique<T>(b);
                            })
                  .ok());
}

inline PluginRegistry TestRegistry() {
  PluginRegistry registry = PluginRegistry::Builtin();
  Add<TestProducer>(registry, "test-producer");
  Add<PredictionScorer>(registry, "prediction-scorer");
  Add<Memory>(registry, "memory");
  return registry;
}

inline SchedulerConfig TestConfig(double queue_weight = 1.1) {
  SchedulerConfig config;
  config.plugins = {
      {"exact", "precise-prefix-cache-producer", {}},
      {"", "test-producer", {}},
      {"", "decode-filter", {}},
      {"", "memory", {}},
      {"precise", "prefix-cache-scorer", Parameters({{"prefixMatchInfoProducerName", "exact"}})},
      {"", "queue-scorer", {}},
      {"", "kv-cache-utilization-scorer", {}},
      {"", "prediction-scorer", {}},
      {"", "max-score-picker", Parameters({{"maxNumOfEndpoints", 2}})}};
  config.profiles = {{"default",
                      {{"decode-filter", std::nullopt},
                       {"memory", 0.3},
                       {"precise", 3.0},
                       {"queue-scorer", queue_weight},
                       {"kv-cache-utilization-scorer", -0.7},
                       {"prediction-scorer", 0.9}}}};
  return config;
}

// A pool and requests that change at random, and a scheduler that is recorded.
class World {
 public:
  explicit World(std::uint64_t seed, RecordOptions options = {}) : random_(seed), registry_(TestRegistry()) {
    options.text = "the configuration";
    auto made = Scheduler::Create(TestConfig(), registry_, {{index_.source(), index_.source()}});
    EXPECT_TRUE(made.ok()) << made.status();
    scheduler_ = *std::move(made);
    workspace_.emplace(*scheduler_);
    writer_.emplace(*scheduler_, std::move(options));
    writer_->Begin(log);
    for (int i = 0; i < 6; ++i) AddEndpoint();
  }

  void Decide(int decisions) {
    for (int i = 0; i < decisions; ++i) {
      if (random_.Chance(0.5)) ChangeMetrics();
      if (random_.Chance(0.05)) ChangePool();
      DecideOnce();
    }
  }

  std::vector<std::byte> log;
  std::vector<Explanation> explanations;
  std::vector<Decision> decisions;
  std::vector<absl::Status> statuses;
  std::vector<EndpointPool> pools;

 private:
  void AddEndpoint() {
    static constexpr const char* kRoles[] = {"decode", "prefill", "both", ""};
    Labels labels = {{"zone", "z" + std::to_string(names_ % 3)}};
    const std::string role = kRoles[random_.Below(4)];
    if (!role.empty()) labels[std::string(kRoleLabel)] = role;
    const auto handle = pool_.Add({.name = "pod-" + std::to_string(names_),
                                   .address = "10.0.0.1",
                                   .port = static_cast<std::uint16_t>(8000 + names_),
                                   .labels = labels});
    ASSERT_TRUE(handle.ok());
    ASSERT_TRUE(pool_.BindHolder(kExactSource, {names_, 1}, *handle).ok());
    index_.Store(names_, std::vector<BlockKey>({0, 1, 2, 3, 4, 5}));
    ++names_;
  }
  void ChangePool() {
    if (random_.Chance(0.5) && pool_.size() > 0) {
      pool_.Remove(pool_[static_cast<Position>(random_.Below(pool_.size()))].handle);
    } else {
      AddEndpoint();
    }
  }
  absl::Time RandomTime() {
    if (random_.Chance(0.1)) return absl::InfinitePast();
    if (random_.Chance(0.05)) return absl::InfiniteFuture();
    if (random_.Chance(0.1)) return absl::FromUnixSeconds(-1'000'000'000'000) - absl::Nanoseconds(1) / 4;
    return now_ - absl::Nanoseconds(random_.Below(1'000'000)) / 4;
  }
  double RandomNumber() {
    static const double kOdd[] = {std::numeric_limits<double>::quiet_NaN(), -0.0, 1e308,
                                  -std::numeric_limits<double>::infinity()};
    return random_.Chance(0.2) ? kOdd[random_.Below(4)] : random_.Uniform();
  }
  void ChangeMetrics() {
    const bool together = random_.Chance(0.5);
    for (const Endpoint& endpoint : pool_.endpoints()) {
      Metrics& metrics = *pool_.mutable_metrics(endpoint.handle);
      if (together) {
        metrics.waiting_requests.at = metrics.running_requests.at = metrics.kv_cache_usage.at = now_;
        continue;
      }
      if (random_.Chance(0.5))
        metrics.waiting_requests = {static_cast<std::int64_t>(random_.Next()), RandomTime()};
      if (random_.Chance(0.3)) metrics.running_requests = {3, RandomTime()};
      if (random_.Chance(0.5)) metrics.kv_cache_usage = {RandomNumber(), RandomTime()};
      if (random_.Chance(0.2)) metrics.cache_num_blocks = random_.Next();
      if (random_.Chance(0.2)) {
        metrics.adapters = {std::make_shared<AdapterState>(AdapterState{4, {"a", "b"}, {"c"}}), RandomTime()};
      }
      if (random_.Chance(0.1)) metrics.adapters = {};
      if (random_.Chance(0.2)) pool_.SetAttribute(endpoint.handle, "power", {RandomNumber(), RandomTime()});
      if (random_.Chance(0.1)) pool_.SetAttribute(endpoint.handle, "heat", {RandomNumber(), RandomTime()});
    }
  }
  void DecideOnce() {
    now_ += absl::Nanoseconds(random_.Below(5'000'000)) / 4;
    TestRequest test(random_.Below(12));
    const std::string id = "request-" + std::to_string(decisions.size());
    const std::vector<Header> headers = {{"x-color", "red"}, {"authorization", "secret"}, {"x-empty", ""}};
    const std::vector<MultimodalItem> items = {{"image", "abc", 7, 1}};
    Request& request = test.request;
    request.id = id;
    request.model = random_.Chance(0.5) ? "model-a" : "model-b";
    request.headers = headers;
    request.priority = static_cast<std::int32_t>(random_.Below(3)) - 1;
    if (random_.Chance(0.5)) request.max_output_tokens = 77;
    if (random_.Chance(0.2)) test.prompts.front().items = items;
    request.prompts = test.prompts;
    std::vector<Position> some;
    for (Position p = 0; p < pool_.size(); ++p) {
      if (random_.Chance(0.7)) some.push_back(p);
    }
    ScheduleInput input{.request = request, .pool = pool_, .now = now_, .seed = random_.Next()};
    if (random_.Chance(0.3)) input.candidates = some;
    Decision decision;
    Explanation explanation;
    const absl::Status status = scheduler_->Schedule(input, *workspace_, decision, &explanation);
    const absl::Status appended = writer_->Append(input, *workspace_, decision, explanation, status, log);
    ASSERT_TRUE(appended.ok()) << appended;
    Dispatch dispatch;
    if (status.ok()) {
      ASSERT_TRUE(scheduler_->RunPreRequest(input, *workspace_, decision, dispatch).ok());
    }
    decisions.push_back(decision);
    explanations.push_back(explanation);
    statuses.push_back(status);
    pools.push_back(pool_);
  }

  Random random_;
  PluginRegistry registry_;
  FakeIndex index_;
  EndpointPool pool_;
  std::uint16_t names_ = 0;
  absl::Time now_ = kNow;
  std::unique_ptr<Scheduler> scheduler_;
  std::optional<Workspace> workspace_;
  std::optional<DecisionLogWriter> writer_;
};

}  // namespace llmd::sched

#endif  // TESTS_SCHED_RECORDED_WORLD_H_
