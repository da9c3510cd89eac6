// Decisions with all plugins that remember something do not allocate once warm; what they write after a
// decision may.
#include <cstddef>

#include "tests/sched/sched_test_util.h"
#include "tests/support/allocation_count.h"

namespace llmd::sched {

namespace {

TEST(StateAllocation, NoneOnceWarm) {
  EndpointPool pool = MakePool(100);
  FakeIndex exact, approximate;
  for (std::uint16_t i = 0; i < 100; ++i) {
    ASSERT_TRUE(pool.BindHolder(kExactSource, {i, 1}, pool[i].handle, i % 2 ? "gpu" : "cpu").ok());
    ASSERT_TRUE(pool.BindHolder(kApproximateSource, {i, 1}, pool[i].handle).ok());
    exact.Store(i, {0, 1, 2});
  }
  SchedulerConfig config;
  config.allow_experimental = true;
  config.compatibility = {.tier_weights_added_one_by_one = true, .lru_position_is_global = true};
  const Value by_attribute =
      Parameters({{"strategy", "session_id"},
                  {"sessionIdConfig",
                   Parameters({{"sources", Value::MakeList({Parameters({{"attribute", "SessionID"}})})}})}});
  config.plugins = {
      {.type = "inflight-load-producer", .parameters = Parameters({{"addEstimatedOutputTokens", true}})},
      {.type = "session-id-producer", .parameters = Parameters({{"cookieName", "sid"}})},
      {.name = "sticky", .type = "session-affinity-scorer", .parameters = by_attribute},
      {.name = "stateless", .type = "session-affinity-scorer"},
      {.type = "no-hit-lru-scorer"},
      {.type = "mm-embeddings-cache-producer"},
      {.type = "burst-prefix-cache-producer"},
      {.type = "precise-prefix-cache-scorer", .parameters = Parameters({{"speculativeIndexing", true}})},
      {.type = "predicted-latency-producer",
       .parameters = Parameters({{"streamingMode", true}, {"useEncoderCacheFeatures", true}})},
      {.type = "p2p-source-producer",
       .parameters = Parameters({{"prefixMatchInfoProducerName", "precise-prefix-cache-scorer"}})}};
  config.profiles = {{"default",
                      {{.plugin = "sticky"},
                       {.plugin = "stateless"},
                       {.plugin = "no-hit-lru-scorer"},
                       {.plugin = "precise-prefix-cache-scorer"}}}};
  const LatencyPredictor predictor = [](std::span<const LatencyFeatures>, std::span<LatencyEstimate> out) {
    for (LatencyEstimate& estimate : out) estimate = {1, 1};
    return true;
  };
  const auto scheduler = Scheduler::Create(config, PluginRegistry::Builtin(),
                                           {{exact.source(), approximate.source()}, {}, predictor});
  ASSERT_TRUE(scheduler.ok()) << scheduler.status();
  TestRequest test(20);
  const std::vector<Header> headers = {{"cookie", "a=b; sid=\"abc\""},
                                       {"x-session-token", "ZGVmYXVsdC9wb2QtMQ=="},
                                       {"x-llm-d-slo-ttft-ms", "200"},
                                       {"x-slo-tpot-ms", "30.5"}};
  const std::vector<MultimodalItem> items = {{.modality = "image", .hash = "i"}, {.hash = "j"}};
  test.prompts[0].items = items;
  test.request.headers = headers;
  test.request.id = "request";
  Workspace workspace(**scheduler);
  Decision decision;
  std::vector<Dispatch> flights;
  const auto decide = [&](std::uint64_t seed) {
    return (*scheduler)
        ->Schedule({.request = test.request, .pool = pool, .now = kNow, .seed = seed}, workspace, decision)
        .ok();
  };
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    ASSERT_TRUE(decide(seed));
    ASSERT_TRUE((*scheduler)
                    ->RunPreRequest({.request = test.request, .pool = pool, .now = kNow, .seed = seed},
                                    workspace, decision, flights.emplace_back())
                    .ok());
  }
  ASSERT_TRUE(decide(10));
  const std::size_t before = AllocationCount();
  ASSERT_GT(before, 0u);
  bool ok = true;
  for (std::uint64_t seed = 11; seed < 100; ++seed) ok &= decide(seed);
  const std::size_t during = AllocationCount() - before;
  EXPECT_TRUE(ok);
  EXPECT_EQ(during, 0u);
}

}  // namespace
}  // namespace llmd::sched
