// What plugins remember, under threads: readers see what was written whole, and everything undone is zero.
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <thread>

#include "llmd/index/approx_index.h"
#include "llmd/sched/in_flight.h"
#include "llmd/sched/session.h"
#include "src/sched/endpoint_index.h"
#include "src/sched/recency.h"
#include "src/sched/running_slos.h"
#include "tests/index/sanitized.h"
#include "tests/sched/sched_test_util.h"

namespace llmd::sched {
namespace {

constexpr int kRounds = index::kSanitized ? 2'000 : 20'000;
constexpr absl::Duration kTtl = absl::Seconds(1);

// Runs each function in a thread of its own.
void Together(const std::vector<std::function<void()>>& all) {
  std::atomic<std::size_t> ready = 0;
  std::vector<std::thread> threads;
  for (const std::function<void()>& run : all) {
    threads.emplace_back([&] {
      ++ready;
      while (ready.load() < all.size()) std::this_thread::yield();
      run();
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// A table that is much too small for its sessions: entries change hands all the time. An endpoint's slot
// tells whose it is.
TEST(SessionTableThreads, NobodyReadsAnothersBinding) {
  SessionTable table(64);
  constexpr std::uint32_t kSessions = 400;
  std::vector<std::string> names;
  for (std::uint32_t i = 0; i < kSessions; ++i) names.push_back("session " + std::to_string(i));
  std::atomic<int> wrong = 0;
  std::atomic<int> found = 0;
  const auto write = [&](std::uint64_t seed) {
    Random random(seed);
    for (int round = 0; round < kRounds; ++round) {
      const auto i = static_cast<std::uint32_t>(random.Below(kSessions));
      const absl::Time now = kNow + absl::Milliseconds(round);
      table.Use(names[i], {i, 1 + static_cast<std::uint32_t>(random.Below(3))},
                table.Find(names[i], now, kTtl), now, kTtl);
    }
  };
  const auto read = [&](std::uint64_t seed) {
    Random random(seed);
    for (int round = 0; round < kRounds; ++round) {
      const auto i = static_cast<std::uint32_t>(random.Below(kSessions));
      const auto bound = table.Find(names[i], kNow + absl::Milliseconds(round), absl::InfiniteDuration());
      if (!bound) continue;
      ++found;
      if (bound->slot != i || bound->generation < 1 || bound->generation > 3) ++wrong;
    }
  };
  write(0);  // so that readers find something however the threads are timed
  Together({[&] { write(1); }, [&] { write(2); }, [&] { read(3); }, [&] { read(4); }});
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(found, 0);
  EXPECT_EQ(table.size(), 64u);
}

// A session that is bound stays readable while others come and go.
TEST(SessionTableThreads, ABoundSessionIsNeverMissed) {
  SessionTable table(4096);
  table.Use("mine", {7, 7}, std::nullopt, kNow, kTtl);
  std::atomic<bool> done = false;
  std::atomic<int> missed = 0;
  Together({[&] {
              for (int i = 0; i < kRounds; ++i) {
                table.Use("other " + std::to_string(i % 1000), {1, 1}, std::nullopt, kNow, kTtl);
                table.Use("mine", {7, 7}, std::nullopt, kNow + absl::Microseconds(i), kTtl);
              }
              done = true;
            },
            [&] {
              do {
                if (table.Find("mine", kNow, kTtl) != EndpointHandle{7, 7}) ++missed;
              } while (!done);
            }});
  EXPECT_EQ(missed, 0);
}

TEST(RecencyThreads, UsesAreWholeAndBounded) {
  Recency recency;
  recency.SetCapacity(8);
  std::atomic<int> wrong = 0;
  const auto write = [&](std::uint64_t seed) {
    Random random(seed);
    for (int i = 0; i < kRounds; ++i) {
      recency.Use({static_cast<std::uint32_t>(random.Below(16)), 1 + static_cast<std::uint32_t>(i / 1000)});
      if (i % 500 == 0) recency.SetCapacity(random.Between(4, 8));
    }
  };
  const auto read = [&] {
    for (int i = 0; i < kRounds; ++i) {
      std::size_t uses = 0;
      recency.ForEachUse([&](std::uint64_t) { ++uses; });
      for (std::uint32_t slot = 0; slot < 16; ++slot) {
        if (recency.LastUse({slot, 1}) > 2u * kRounds) ++wrong;
      }
      if (uses > 8) ++wrong;
    }
  };
  Together({[&] { write(1); }, [&] { write(2); }, read});
  EXPECT_EQ(wrong, 0);
}

TEST(CountsThreads, EverythingUndoneIsZero) {
  InFlightTable table;
  RunningSlos slos;
  std::atomic<int> wrong = 0;
  const auto work = [&](double tpot) {
    for (int i = 0; i < kRounds; ++i) {
      const EndpointHandle endpoint{static_cast<std::uint32_t>(i % 3), 1};
      table.Add(endpoint, {1, 100});
      const bool added = slos.Add(endpoint, tpot);
      const InFlightLoad load = table.Get(endpoint);
      const RunningSlos::View view = slos.Get(endpoint);
      if (load.requests < 1 || view.requests < 1 || view.min_tpot_ms <= 0 || view.min_tpot_ms > tpot) ++wrong;
      table.Subtract(endpoint, {0, 100});
      if (added) slos.Remove(endpoint, tpot);
      table.Subtract(endpoint, {1, 0});
    }
  };
  Together({[&] { work(10); }, [&] { work(20); }, [&] { work(30); }});
  EXPECT_EQ(wrong, 0);
  for (std::uint32_t slot = 0; slot < 3; ++slot) {
    EXPECT_EQ(table.Get({slot, 1}).requests, 0);
    EXPECT_EQ(table.Get({slot, 1}).tokens, 0);
    EXPECT_EQ(slos.Get({slot, 1}).requests, 0);
    EXPECT_EQ(slos.Get({slot, 1}).min_tpot_ms, 0);
  }
}

// Endpoints come and go under readers.
TEST(EndpointIndexThreads, MatchesNameWhatWasRecorded) {
  const auto index = std::make_shared<EndpointIndex>(absl::Seconds(1));
  const EndpointPool pool = MakePool(4);
  const auto chain_of = [](std::uint32_t parity) {
    std::vector<BlockKey> chain;
    for (BlockKey key = 0; key < 20; ++key) chain.push_back(1 + parity * 100 + key);
    return chain;
  };
  const std::vector<BlockKey> even = chain_of(0), odd = chain_of(1);
  std::atomic<int> wrong = 0;
  const auto write = [&](std::uint64_t seed) {
    Random random(seed);
    for (int i = 0; i < kRounds; ++i) {
      const auto slot = static_cast<std::uint32_t>(random.Below(8));
      EndpointIndex::Writer writer(*index, pool, kNow + absl::Milliseconds(i), 100);
      writer.Record({slot, 1 + static_cast<std::uint32_t>(i / 500)}, {1, 1}, slot % 2 == 0 ? even : odd);
    }
  };
  const auto read = [&] {
    EndpointIndex::Reader reader(index);
    for (int i = 0; i < kRounds; ++i) {
      for (const std::uint32_t parity : {0, 1}) {
        reader.Match({1, 1}, parity == 0 ? even : odd, kNow + absl::Milliseconds(i),
                     [&](EndpointHandle endpoint, std::uint32_t depth) {
                       if (endpoint.slot > 7 || depth > 20) ++wrong;
                     });
      }
    }
  };
  Together({[&] { write(1); }, [&] { write(2); }, read, read});
  EXPECT_EQ(wrong, 0);
}

// Everything at once: threads decide, dispatch and end requests, while schedulers are replaced.
TEST(SchedulerThreads, LoadIsZeroInTheEnd) {
  SchedulerConfig config;
  config.allow_experimental = true;
  config.plugins = {
      {.type = "approx-prefix-cache-producer"},
      {.name = "load",
       .type = "inflight-load-producer",
       .parameters = Parameters({{"addEstimatedOutputTokens", true}})},
      {.type = "no-hit-lru-scorer"},
      {.type = "prefix-cache-scorer"},
      {.type = "mm-embeddings-cache-producer"},
      {.type = "predicted-latency-producer", .parameters = Parameters({{"streamingMode", true}})},
      {.type = "p2p-source-producer"},
      {.name = "exact",
       .type = "precise-prefix-cache-producer",
       .parameters = Parameters({{"speculativeIndexing", true}})},
      {.name = "precise",
       .type = "prefix-cache-scorer",
       .parameters = Parameters({{"prefixMatchInfoProducerName", "exact"}})},
      {.name = "sticky",
       .type = "session-affinity-scorer",
       .parameters = Parameters(
           {{"strategy", "session_id"}, {"sessionIdConfig", Parameters({{"maxSessions", 1000}})}})}};
  config.profiles = {{"default",
                      {{.plugin = "no-hit-lru-scorer"},
                       {.plugin = "prefix-cache-scorer"},
                       {.plugin = "precise"},
                       {.plugin = "sticky"}}}};
  const auto approximate = *index::ApproxIndex::Create({});
  FakeIndex exact;
  EndpointPool pool = MakePool(6);
  for (const Endpoint& endpoint : pool.endpoints()) {
    const auto holder = approximate->AddHolder(endpoint.id());
    ASSERT_TRUE(holder.ok());
    ASSERT_TRUE(pool.BindHolder(kApproximateSource, *holder, endpoint.handle).ok());
  }
  const Resources resources{{exact.source(), ApproximateIndex(*approximate)},
                            std::make_shared<PluginStates>(),
                            [](std::span<const LatencyFeatures>, std::span<LatencyEstimate> out) {
                              for (LatencyEstimate& estimate : out) estimate = {10, 10};
                              return true;
                            }};
  std::atomic<int> failures = 0;
  const int requests = kRounds / 20;
  const auto work = [&](std::uint64_t seed) {
    Random random(seed);
    std::vector<Dispatch> under_way;
    for (int generation = 0; generation < 4; ++generation) {
      const auto scheduler = Scheduler::Create(config, PluginRegistry::Builtin(), resources);
      if (!scheduler.ok()) {
        ++failures;
        return;
      }
      Workspace workspace(**scheduler);
      Decision decision;
      for (int i = 0; i < requests; ++i) {
        TestRequest test(1 + random.Below(30));
        const std::string session = std::to_string(random.Below(50));
        const std::vector<Header> headers = {{"x-session-id", session}, {"x-llm-d-slo-tpot-ms", "20"}};
        const std::vector<MultimodalItem> items = {{.modality = "image", .hash = session}};
        test.prompts[0].items = items;
        test.request.headers = headers;
        const ScheduleInput input{.request = test.request,
                                  .pool = pool,
                                  .now = kNow + absl::Milliseconds(i),
                                  .seed = random.Next()};
        Dispatch dispatch;
        if (!(*scheduler)->Schedule(input, workspace, decision).ok() ||
            !(*scheduler)->RunPreRequest(input, workspace, decision, dispatch).ok()) {
          ++failures;
        }
        under_way.push_back(std::move(dispatch));
        if (under_way.size() < 20) continue;
        Dispatch& ending = under_way[random.Below(under_way.size())];
        if (random.Chance(0.5)) ending.flight.OnResponseBody({.first = true});
        if (random.Chance(0.5)) ending.flight.OnResponseBody({.last = true});
        std::swap(ending, under_way.back());
        under_way.pop_back();
      }
    }
  };
  Together({[&] { work(1); }, [&] { work(2); }, [&] { work(3); }});
  EXPECT_EQ(failures, 0);
  const auto table = resources.states->GetOrMake<InFlightTable>("load", [] { return nullptr; });
  const auto slos =
      resources.states->GetOrMake<RunningSlos>("predicted-latency-producer", [] { return nullptr; });
  for (const Endpoint& endpoint : pool.endpoints()) {
    EXPECT_EQ(table->Get(endpoint.handle).requests, 0);
    EXPECT_EQ(table->Get(endpoint.handle).tokens, 0);
    EXPECT_EQ(slos->Get(endpoint.handle).requests, 0);
    EXPECT_EQ(slos->Get(endpoint.handle).min_tpot_ms, 0);
  }
}

}  // namespace
}  // namespace llmd::sched
