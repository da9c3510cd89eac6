// A warm decision of a profile with every stateless scorer and filter does not allocate.
#include <cstddef>

#include "llmd/sched/encoder_cache.h"
#include "llmd/sched/in_flight.h"
#include "llmd/sched/latency.h"
#include "llmd/sched/peer_endpoint.h"
#include "tests/sched/sched_test_util.h"
#include "tests/support/allocation_count.h"

namespace llmd::sched {

namespace {

// Publishes something of all that the plugins read.
class EverythingProducer final : public Plugin, public DataProducer {
 public:
  explicit EverythingProducer(PluginBuilder& builder)
      : Plugin(builder.type(), builder.name()),
        load_(builder.Produces<InFlightLoad>()),
        cost_(builder.Produces<UncachedRequestTokens>()),
        predictions_(builder.Produces<LatencyPrediction>()),
        matches_(builder.Produces<PrefixMatch>()),
        items_(builder.Produces<EncoderCacheMatch>()) {}

  void Produce(Context& context, ThreadState*) const override {
    const auto load = context.data.Publish(load_);
    const auto cost = context.data.Publish(cost_);
    const auto predictions = context.data.Publish(predictions_);
    const auto matches = context.data.Publish(matches_);
    const auto items = context.data.Publish(items_);
    for (std::uint32_t i = 0; i < load.size(); ++i) {
      load[i] = {i % 9, i * 100};
      cost[i] = {i};
      if (i % 5 != 0)
        predictions[i] = {.known = true, .ttft_headroom_ms = 50.0 - i, .tpot_headroom_ms = 1.0 * i};
      matches[i] = {i % 11, 10, 16, i % 11};
      items[i] = {i % 3, 3};
    }
  }

 private:
  DataSlot<InFlightLoad> load_;
  DataSlot<UncachedRequestTokens> cost_;
  DataSlot<LatencyPrediction> predictions_;
  DataSlot<PrefixMatch> matches_;
  DataSlot<EncoderCacheMatch> items_;
};

// Stands in for the handler that tells the peer.
class PeerProducer final : public Plugin, public DataProducer {
 public:
  explicit PeerProducer(PluginBuilder& builder)
      : Plugin(builder.type(), builder.name()), peer_(builder.ProducesForRequest<PeerEndpoint>()) {}

  void Produce(Context& context, ThreadState*) const override { context.data.Publish(peer_).position = 3; }

 private:
  RequestSlot<PeerEndpoint> peer_;
};

template <typename T>
absl::StatusOr<std::unique_ptr<Plugin>> Make(PluginBuilder& builder) {
  return std::make_unique<T>(builder);
}

Value From(std::initializer_list<const char*> fields, std::vector<Value::Field> more = {}) {
  for (const char* field : fields) more.emplace_back(field, "everything");
  return Value::MakeMap(more);
}

TEST(ScorersAllocation, NoneOnceWarm) {
  EndpointPool pool;
  for (int i = 0; i < 100; ++i) {
    const EndpointHandle handle = AddEndpoint(
        pool,
        {{"llm-d.ai/context-length-range", i % 2 ? "0-1000000" : "100-200"},
         {"tier", i % 3 ? "a label value too long for a small string" : "b"},
         {"kubernetes.io/hostname", "a host name too long for a small string " + std::to_string(i / 10)}});
    Metrics& metrics = *pool.mutable_metrics(handle);
    metrics.waiting_requests = {i % 7, kNow};
    metrics.running_requests = {i % 11, kNow};
    if (i % 13 != 0) metrics.kv_cache_usage = {i * 0.01, kNow};
    metrics.adapters = {std::make_shared<const AdapterState>(AdapterState{4, {"x", "model"}, {"y"}}), kNow};
    ASSERT_TRUE(pool.SetAttribute(handle, "power", {1.0 * i, kNow}));
  }

  PluginRegistry registry = PluginRegistry::Builtin();
  ASSERT_TRUE(registry.Register("everything", Make<EverythingProducer>).ok());
  ASSERT_TRUE(registry.Register("peer", Make<PeerProducer>).ok());
  const Value algorithm = Parameters({{"type", "linear_lower_is_better"}});
  const Value threshold = Parameters(
      {{"type", "threshold"}, {"threshold", Parameters({{"operator", "LessThan"}, {"value", 90}})}});
  SchedulerConfig config;
  config.allow_experimental = true;
  config.plugins = {
      {.type = "everything"},
      {"disagg-profile-handler", "peer", {}},
      {"", "context-length-aware", Parameters({{"enableFiltering", true}})},
      {"", "endpoint-attribute-filter", Parameters({{"attribute", "power"}, {"algorithm", threshold}})},
      {"", "utilization-filter",
       From({"inFlightLoadProducerName"},
            {{"conditions",
              Value::MakeList({Parameters({{"metric", "active-requests"}, {"maxValue", 7}}),
                               Parameters({{"metric", "kv-cache-utilization"}, {"maxValue", 0.85}})})}})},
      {"", "load-outlier-filter", From({"inFlightLoadProducerName"}, {{"standardDeviations", 1.5}})},
      {"queue-outlier", "load-outlier-filter", Parameters({{"metric", "waiting-queue"}})},
      {"", "slo-headroom-tier-filter",
       From({"latencyPredictionInfoProducerName"}, {{"epsilonExploreNeg", 0.5}})},
      {"", "prefix-cache-affinity-filter",
       From({"prefixMatchInfoProducerName", "inFlightLoadProducerName"},
            {{"affinityThreshold", 0.2}, {"explorationProbability", 0.5}})},
      {"", "topology-affinity-filter", Parameters({{"minAffinity", "host"}})},
      {"", "load-aware-scorer", {}},
      {"", "active-request-scorer", From({"inFlightLoadProducerName"})},
      {"", "token-load-scorer", From({"inFlightLoadProducerName"})},
      {"", "lora-affinity-scorer", {}},
      {"", "header-label-affinity-scorer", Parameters({{"headerName", "X-Tier"}, {"labelKey", "tier"}})},
      {"", "endpoint-attribute-scorer", Parameters({{"attributeKey", "power"}, {"algorithm", algorithm}})},
      {"", "mm-embeddings-cache-scorer", From({"producerName"})},
      {"", "latency-scorer", From({"latencyPredictionInfoProducerName", "prefixMatchInfoProducerName"})},
      {"composite", "latency-scorer", From({"prefixMatchInfoProducerName"})},
      {"", "topology-affinity-scorer", {}}};
  const auto scheduler = Scheduler::Create(config, registry, {});
  ASSERT_TRUE(scheduler.ok()) << scheduler.status();

  TestRequest request(100);
  const Header headers[] = {{"x-tier", "a label value too long for a small string"}};
  request.request.headers = headers;
  request.request.model = "model";
  Workspace workspace(**scheduler);
  Decision decision;
  Explanation explanation;
  const auto decide = [&](std::uint64_t seed, Explanation* explain) {
    return (*scheduler)
        ->Schedule({.request = request.request, .pool = pool, .now = kNow, .seed = seed}, workspace, decision,
                   explain)
        .ok();
  };
  bool ok = true;
  for (std::uint64_t seed = 0; seed < 20; ++seed) ok &= decide(seed, &explanation);
  ASSERT_TRUE(ok);
  // The test is about something: filters dropped some, scorers gave scores.
  EXPECT_EQ(explanation.profiles[0].scorers.size(), 11u);
  EXPECT_FALSE(explanation.profiles[0].drops.empty());
  EXPECT_GT(decision.primary_result().scored.size(), 1u);
  const std::size_t before = AllocationCount();
  for (std::uint64_t seed = 100; seed < 200; ++seed) ok &= decide(seed, nullptr);
  const std::size_t during = AllocationCount() - before;
  EXPECT_TRUE(ok);
  EXPECT_EQ(during, 0u);
}

}  // namespace
}  // namespace llmd::sched
