#include "examples/trace_replay/simulation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "examples/trace_replay/bound.h"
#include "tests/replay/replay_test_util.h"

namespace llmd::replay {
namespace {

using ::testing::HasSubstr;

SimulationOptions Options(std::uint32_t endpoints, std::uint32_t capacity) {
  SimulationOptions options;
  options.endpoints = endpoints;
  options.engine.capacity_blocks = capacity;
  return options;
}

Workload Apart(Workload workload) {
  for (std::size_t i = 0; i < workload.size(); ++i)
    workload[i].arrival = static_cast<Nanos>(i) * 1000 * kSecond;
  return workload;
}

// The whole loop at once: when every request finds an idle fleet, what the index promises, after hashing,
// pool, encoding, decoding, ingestion and matching, is what the pool then reuses; evictions included.
TEST(SimulationTest, UnloadedExactPromiseIsWhatThePoolReuses) {
  for (const WorkloadKind kind : {WorkloadKind::kChat, WorkloadKind::kAgent, WorkloadKind::kRetrieval}) {
    const Workload workload = Apart(Generate({.kind = kind, .requests = 150, .seed = 3}));
    std::uint32_t smallest = 0;  // holds the largest request and little else
    for (const WorkloadRequest& request : workload) {
      smallest = std::max(smallest, (request.prompt_tokens() + request.output.tokens) / kBlockTokens + 1);
    }
    for (const std::uint32_t capacity : {smallest, 50'000u}) {
      // No load scorers: an idle fleet is full of ties for them, and prefixes are to decide.
      const auto simulation = RunSimulation(workload, *MakeMix("exact-prefix=1"), Options(3, capacity));
      std::uint64_t hits = 0;
      for (std::size_t i = 0; i < workload.size(); ++i) {
        const RequestResult& request = simulation->result().requests[i];
        ASSERT_EQ(request.expected_tokens, request.hit_tokens) << "request " << i;
        hits += request.hit_tokens;
      }
      EXPECT_GT(hits, 0u);
      const EventFigures& events = simulation->result().events;
      EXPECT_GT(events.ingest.stored_blocks, 0u);
      if (capacity == smallest) {
        EXPECT_GT(events.ingest.removed_blocks, 0u);
      }
      EXPECT_EQ(events.ingest.orphans_parked + events.ingest.orphans_dropped, 0u);
    }
  }
}

// Without the event path: where every request finds an idle fleet, no step is under way, and nothing differs.
TEST(SimulationTest, PoolLookupSaysWhatTheIndexSays) {
  const Workload workload = Apart(Generate({.kind = WorkloadKind::kChat, .requests = 150, .seed = 3}));
  SimulationOptions options = Options(3, 3'000);
  const auto events = RunSimulation(workload, *MakeMix("exact-prefix=1"), options);
  options.event_path = false;
  const auto pools = RunSimulation(workload, *MakeMix("exact-prefix=1"), options);
  for (std::size_t i = 0; i < workload.size(); ++i) {
    const RequestResult& a = events->result().requests[i];
    const RequestResult& b = pools->result().requests[i];
    ASSERT_EQ(a.expected_tokens, b.expected_tokens) << i;
    ASSERT_EQ(a.endpoint, b.endpoint) << i;
    ASSERT_EQ(a.finished, b.finished) << i;
  }
  EXPECT_EQ(pools->result().events.batches, 0u);
}

TEST(SimulationTest, OneLargeIdleEndpointReachesTheBound) {
  const Workload workload = Apart(SampleTrace());
  const auto simulation = RunSimulation(workload, *MakePolicy("exact"), Options(1, 50'000));
  InfiniteCache bound;
  const PromptMaker maker = MakePromptMaker();
  for (std::size_t i = 0; i < workload.size(); ++i) {
    bound.Add(workload[i], *maker.Make(i, workload[i]));
    EXPECT_EQ(simulation->result().requests[i].hit_tokens, bound.hit_tokens()[i]) << i;
  }
}

TEST(SimulationTest, EveryPolicyServesEveryRequestOnce) {
  Workload workload = SampleTrace();
  SpreadEqualArrivals(workload);
  for (const std::string& name : PolicyNames()) {
    const auto simulation = RunSimulation(workload, *MakePolicy(name), Options(4, 2'000));
    const PolicyResult& result = simulation->result();
    std::uint64_t routed = 0, served = 0;
    for (const EndpointResult& endpoint : result.endpoints) {
      EXPECT_EQ(endpoint.routed_requests, endpoint.totals.requests);
      routed += endpoint.routed_requests;
      served += endpoint.totals.requests;
    }
    EXPECT_EQ(routed, workload.size()) << name;
    EXPECT_EQ(served, workload.size()) << name;
    for (const RequestResult& request : result.requests) {
      EXPECT_LT(request.arrival, request.first_token);
      EXPECT_LE(request.first_token, request.finished);
      EXPECT_LT(request.hit_tokens, request.prompt_tokens);
    }
    EXPECT_EQ(result.has_expectation, name == "exact" || name == "approx");
  }
}

TEST(SimulationTest, RoundRobinTakesTurns) {
  const auto simulation = RunSimulation(SampleTrace(), *MakePolicy("round-robin"), Options(5, 5'000));
  for (std::size_t i = 0; i < 48; ++i) EXPECT_EQ(simulation->result().requests[i].endpoint, i % 5) << i;
}

TEST(SimulationTest, AffinityBeatsRoundRobinOnConversations) {
  const Workload workload = Generate({.kind = WorkloadKind::kChat, .requests = 300, .rate = 4, .seed = 2});
  const auto hits = [&](const char* policy) {
    const auto simulation = RunSimulation(workload, *MakePolicy(policy), Options(4, 20'000));
    std::uint64_t sum = 0;
    for (const RequestResult& request : simulation->result().requests) sum += request.hit_tokens;
    return sum;
  };
  const std::uint64_t round_robin = hits("round-robin");
  EXPECT_GT(hits("approx"), round_robin);
  EXPECT_GT(hits("exact"), round_robin);
}

TEST(SimulationTest, SameSeedSameDecisions) {
  Workload workload = SampleTrace();
  SpreadEqualArrivals(workload);
  SimulationOptions options = Options(4, 2'000);
  options.explain = 3;
  for (const std::string& name : PolicyNames()) {
    const auto a = RunSimulation(workload, *MakePolicy(name), options);
    const auto b = RunSimulation(workload, *MakePolicy(name), options);
    for (std::size_t i = 0; i < workload.size(); ++i) {
      EXPECT_EQ(a->result().requests[i].endpoint, b->result().requests[i].endpoint);
      EXPECT_EQ(a->result().requests[i].finished, b->result().requests[i].finished);
    }
    EXPECT_EQ(a->result().explanations, b->result().explanations);
    EXPECT_THAT(a->result().explanations, HasSubstr("default/gpu-3"));
    EXPECT_THAT(a->result().explanations, HasSubstr(name + ", request 2 at"));
    EXPECT_THAT(a->result().explanations, ::testing::Not(HasSubstr("request 3 at")));
  }
}

TEST(SimulationTest, BadOptionsAreRefused) {
  EXPECT_FALSE(Simulation::Create(Options(0, 100), *MakePolicy("random"), 1).ok());
  EXPECT_FALSE(Simulation::Create(Options(5'000, 100), *MakePolicy("random"), 1).ok());
  EXPECT_FALSE(Simulation::Create(Options(1, 0), *MakePolicy("random"), 1).ok());
}

TEST(PolicyTest, MixesAreReadStrictly) {
  const absl::StatusOr<Policy> mix = MakeMix("exact-prefix=3,queue=0.5,kv=2,running=-1,approx-prefix=1");
  ASSERT_TRUE(mix.ok()) << mix.status();
  EXPECT_EQ(mix->description, "exact-prefix 3, queue 0.5, kv 2, running -1, approx-prefix 1");
  EXPECT_TRUE(mix->uses_exact);
  EXPECT_TRUE(mix->uses_approx);
  const auto message = [](const char* text) { return std::string(MakeMix(text).status().message()); };
  EXPECT_THAT(message(""),
              HasSubstr("scorer is \"\", expected one of exact-prefix, approx-prefix, queue, kv, running"));
  EXPECT_THAT(message("kv"), HasSubstr("\"kv\" gives no weight"));
  EXPECT_THAT(message("kv=nan"), HasSubstr("\"kv=nan\" gives no weight"));
  EXPECT_THAT(message("kv=1e9"), HasSubstr("from -1e6 to 1e6"));
  EXPECT_THAT(message("kv=1,kv=2"), HasSubstr("kv is given twice"));
  EXPECT_THAT(std::string(MakePolicy("best").status().message()), HasSubstr("policy: is \"best\""));
}

TEST(PolicyTest, AMixOfBothIndexesRuns) {
  const auto simulation =
      RunSimulation(SampleTrace(), *MakeMix("exact-prefix=2,approx-prefix=1,queue=1"), Options(3, 2'000));
  EXPECT_EQ(simulation->result().wall.decision_ns.size(), 48u);
}

}  // namespace
}  // namespace llmd::replay
