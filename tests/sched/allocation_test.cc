// A warm decision does not allocate, explained or not.
#include <cstddef>

#include "llmd/sched/decision_record.h"
#include "tests/sched/sched_test_util.h"
#include "tests/support/allocation_count.h"

namespace llmd::sched {

namespace {

TEST(Allocation, NoneOnceWarm) {
  EndpointPool pool;
  FakeIndex exact, approximate;
  for (std::uint16_t i = 0; i < 100; ++i) {
    const EndpointHandle handle =
        AddEndpoint(pool, {{std::string(kRoleLabel), i % 10 == 0 ? "prefill" : "decode"}});
    Metrics& metrics = *pool.mutable_metrics(handle);
    metrics.waiting_requests = {i % 7, kNow};
    metrics.running_requests = {i % 11, kNow};
    metrics.kv_cache_usage = {i * 0.01, kNow};
    ASSERT_TRUE(pool.BindHolder(kExactSource, {i, 1}, handle, i % 2 ? "gpu" : "cpu").ok());
    ASSERT_TRUE(pool.BindHolder(kApproximateSource, {i, 1}, handle).ok());
    exact.Store(i, {0, 1, 2});
    approximate.Store(i, {0, 1});
  }
  SchedulerConfig config;
  config.plugins = {
      {"exact", "precise-prefix-cache-producer", {}},
      {"precise", "prefix-cache-scorer", Parameters({{"prefixMatchInfoProducerName", "exact"}})},
      {"approx", "prefix-cache-scorer", {}},
      {"", "queue-scorer", {}},
      {"", "running-requests-size-scorer", {}},
      {"", "kv-cache-utilization-scorer", {}},
      {"", "decode-filter", {}},
      {"", "max-score-picker", Parameters({{"maxNumOfEndpoints", 3}})}};
  const auto scheduler =
      Scheduler::Create(config, PluginRegistry::Builtin(), {{exact.source(), approximate.source()}});
  ASSERT_TRUE(scheduler.ok()) << scheduler.status();
  const TestRequest request(20);
  Workspace workspace(**scheduler);
  Decision decision;
  Explanation explanation;
  const auto decide = [&](std::uint64_t seed, Explanation* explain) {
    return (*scheduler)
        ->Schedule({.request = request.request, .pool = pool, .now = kNow, .seed = seed}, workspace, decision,
                   explain)
        .ok();
  };
  ASSERT_TRUE(decide(0, &explanation));
  const std::size_t before = AllocationCount();
  ASSERT_GT(before, 0u);
  bool ok = true;
  for (std::uint64_t seed = 1; seed < 100; ++seed) ok &= decide(seed, seed % 2 ? &explanation : nullptr);
  const std::size_t during = AllocationCount() - before;
  EXPECT_TRUE(ok);
  EXPECT_EQ(during, 0u);
}

TEST(Allocation, NoneInThreeStagesWithAdmission) {
  EndpointPool pool;
  FakeIndex approximate;
  for (std::uint16_t i = 0; i < 30; ++i) {
    const char* const roles[] = {"encode", "prefill", "decode"};
    const EndpointHandle handle = AddEndpoint(pool, {{std::string(kRoleLabel), roles[i % 3]}});
    Metrics& metrics = *pool.mutable_metrics(handle);
    metrics.waiting_requests = {0, kNow};
    metrics.running_requests = {i % 11, kNow};
    metrics.kv_cache_usage = {i * 0.001, kNow};
    ASSERT_TRUE(pool.BindHolder(kApproximateSource, {i, 1}, handle).ok());
    approximate.Store(i, {0, 1});
  }
  SchedulerConfig config;
  const Value deciders =
      Parameters({{"encode", "always-disagg-multimodal-decider"}, {"prefill", "prefix-based-pd-decider"}});
  config.plugins = {{"", "always-disagg-multimodal-decider", {}},
                    {"", "prefix-based-pd-decider", Parameters({{"nonCachedTokens", 512}})},
                    {"", "disagg-profile-handler", Parameters({{"deciders", deciders}})},
                    {"", "probabilistic-admitter", {}},
                    {"", "encode-filter", {}},
                    {"", "prefill-filter", {}},
                    {"", "decode-filter", {}},
                    {"", "prefix-cache-scorer", {}},
                    {"", "weighted-random-picker", {}}};
  for (const char* stage : {"encode", "prefill", "decode"}) {
    config.profiles.push_back({stage, {{std::string(stage) + "-filter", {}}, {"prefix-cache-scorer", {}}}});
  }
  const auto scheduler = Scheduler::Create(config, PluginRegistry::Builtin(), {{{}, approximate.source()}});
  ASSERT_TRUE(scheduler.ok()) << scheduler.status();
  TestRequest request(20, 64);
  const MultimodalItem image{.modality = "image", .hash = "h", .offset = 0, .length = 1};
  request.prompts[0].items = {&image, 1};
  request.request.priority = -1;
  Workspace workspace(**scheduler);
  Decision decision;
  bool ok = true;
  const auto decide = [&](std::uint64_t seed) {
    ok &= (*scheduler)
              ->Schedule({.request = request.request, .pool = pool, .now = kNow, .seed = seed}, workspace,
                         decision)
              .ok();
    for (const ProfileResult& result : decision.profiles) ok &= result.state == ProfileState::kDone;
  };
  decide(0);
  const std::size_t before = AllocationCount();
  for (std::uint64_t seed = 1; seed < 100; ++seed) decide(seed);
  const std::size_t during = AllocationCount() - before;
  EXPECT_TRUE(ok);
  EXPECT_EQ(during, 0u);
}

// Nor is anything allocated for its record, but by the caller's buffer.
TEST(Allocation, RecordsNeedNoneOnceWarm) {
  EndpointPool pool;
  FakeIndex exact;
  for (std::uint16_t i = 0; i < 100; ++i) {
    const EndpointHandle handle =
        AddEndpoint(pool, {{std::string(kRoleLabel), i % 10 == 0 ? "prefill" : "decode"}});
    ASSERT_TRUE(pool.BindHolder(kExactSource, {i, 1}, handle).ok());
    pool.SetAttribute(handle, "power", {i * 1.5, kNow});
    MetricsAt(pool, i).adapters = {std::make_shared<AdapterState>(AdapterState{4, {"a"}, {"b"}}), kNow};
    exact.Store(i, std::vector<BlockKey>(1 + i % 3, 0));
  }
  SchedulerConfig config;
  config.plugins = {
      {"exact", "precise-prefix-cache-producer", {}},
      {"precise", "prefix-cache-scorer", Parameters({{"prefixMatchInfoProducerName", "exact"}})},
      {"", "queue-scorer", {}},
      {"", "kv-cache-utilization-scorer", {}},
      {"", "decode-filter", {}}};
  const auto scheduler = Scheduler::Create(config, PluginRegistry::Builtin(), {{exact.source()}});
  ASSERT_TRUE(scheduler.ok()) << scheduler.status();
  const TestRequest request(20);
  Workspace workspace(**scheduler);
  Decision decision;
  Explanation explanation;
  DecisionLogWriter writer(**scheduler, {});
  std::vector<std::byte> out;
  out.reserve(std::size_t{1} << 22);
  writer.Begin(out);
  bool ok = true;
  const auto decide = [&](std::uint64_t seed) {
    for (std::uint16_t i = 0; i < 100; ++i) {
      Metrics& metrics = MetricsAt(pool, i);
      metrics.waiting_requests = {static_cast<std::int64_t>((i * seed) % 7), kNow + absl::Milliseconds(seed)};
      metrics.running_requests = {3, kNow + absl::Milliseconds(seed)};
      metrics.kv_cache_usage = {static_cast<double>((i + seed) % 50) / 49, kNow + absl::Milliseconds(seed)};
    }
    const ScheduleInput input{.request = request.request, .pool = pool, .now = kNow, .seed = seed};
    const absl::Status status = (*scheduler)->Schedule(input, workspace, decision, &explanation);
    ok &= status.ok() && writer.Append(input, workspace, decision, explanation, status, out).ok();
  };
  decide(0);
  decide(1);
  const std::size_t before = AllocationCount();
  for (std::uint64_t seed = 2; seed < 100; ++seed) decide(seed);
  const std::size_t during = AllocationCount() - before;
  EXPECT_TRUE(ok);
  EXPECT_EQ(during, 0u);
}

}  // namespace
}  // namespace llmd::sched
