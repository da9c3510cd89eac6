// The engine in virtual time: what vLLM's scheduler promises, and that nothing is lost under pressure.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "examples/sim_worker/tokenizer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "llmd/base/random.h"
#include "tests/hosts/sim_test_util.h"

namespace llmd::sim {
namespace {

EngineOptions Options() {
  return {.num_gpu_blocks = 65, .max_model_len = 1024, .mean_output_tokens = 0, .latency = {.jitter = 0.2}};
}

TEST(SimEngineTest, AFullyCachedPromptRecomputesItsLastToken) {
  SimEngine sim(Options());
  const Tokens prompt = MakePrompt(1, 64);  // four blocks exactly
  const auto first = sim.Add(prompt, 1);
  sim.RunToEnd();
  const auto second = sim.Add(prompt, 1);
  sim.RunToEnd();
  EXPECT_EQ(first->cached, 0);
  EXPECT_EQ(second->cached, 48);  // the last block is computed again
  EXPECT_EQ(sim.metrics().prefix_queries.value(), 128);
  EXPECT_EQ(sim.metrics().prefix_hits.value(), 48);
  EXPECT_EQ(sim.metrics().prompt_tokens.value(), 128);
  EXPECT_EQ(sim.metrics().prompt_local_compute.value(), 80);

  const auto longer = sim.Add(MakePrompt(1, 65), 1);  // the same and one token
  sim.RunToEnd();
  EXPECT_EQ(longer->cached, 64);
}

TEST(SimEngineTest, TheOutputOfATurnIsCachedForTheNext) {
  SimEngine sim(Options());
  Tokens conversation = MakePrompt(3, 20);
  const auto first = sim.Add(conversation, 45);
  sim.RunToEnd();
  ASSERT_EQ(first->tokens.size(), 45);
  conversation.insert(conversation.end(), first->tokens.begin(), first->tokens.end());
  conversation.resize(conversation.size() + 10, 7);
  const auto second = sim.Add(conversation, 1);
  sim.RunToEnd();
  EXPECT_EQ(second->cached, 64);  // of 20 + 45: the last token's KV was never computed
}

TEST(SimEngineTest, PrefillCostsByUncachedToken) {
  EngineOptions options = Options();
  options.latency = {.prefill_us_per_token = 1000, .decode_us_per_token = 5000, .decode_us_per_sequence = 0};
  options.latency.jitter = 0;
  SimEngine sim(options);
  const double start = sim.now();
  sim.Add(MakePrompt(1, 160), 3);
  sim.RunToEnd();
  EXPECT_NEAR(sim.now() - start, 0.160 + 2 * 0.005, 1e-9);
  const double again = sim.now();
  sim.Add(MakePrompt(1, 160), 1);
  sim.RunToEnd();
  EXPECT_NEAR(sim.now() - again, 0.016, 1e-9);
}

TEST(SimEngineTest, TokensDependOnThePromptAndTheSeedsAlone) {
  EngineOptions options = Options();
  SimEngine alone(options);
  const auto one = alone.Add(MakePrompt(5, 40), 30);
  const auto seeded = alone.Add(MakePrompt(5, 40), 30, {.seed = 9});
  alone.RunToEnd();
  // Another worker, other company, preemptions.
  options.num_gpu_blocks = 9;
  options.max_model_len = 128;
  SimEngine crowded(options);
  std::vector<std::shared_ptr<Received>> company;
  for (int i = 0; i < 5; ++i) company.push_back(crowded.Add(MakePrompt(50 + i, 40), 30));
  const auto two = crowded.Add(MakePrompt(5, 40), 30);
  crowded.RunToEnd();
  EXPECT_GT(crowded.metrics().preemptions.value(), 0);
  EXPECT_EQ(one->tokens, two->tokens);
  EXPECT_NE(one->tokens, seeded->tokens);
  std::set<Tokens> different;
  for (const auto& received : company) different.insert(received->tokens);
  EXPECT_EQ(different.size(), company.size());
}

TEST(SimEngineTest, EndsOfText) {
  EngineOptions options = Options();
  options.mean_output_tokens = 20;
  SimEngine sim(options);
  const auto natural = sim.Add(MakePrompt(1, 10), 500);
  const auto limited = sim.Add(MakePrompt(1, 10), 5);
  const auto ignored = sim.Add(MakePrompt(1, 10), 200, {.ignore_eos = true});
  const auto at_least = sim.Add(MakePrompt(1, 10), 500, {.min_tokens = 100});
  sim.RunToEnd();
  EXPECT_EQ(natural->finish, FinishReason::kStop);
  EXPECT_EQ(natural->tokens.back(), Tokenizer::kEot);
  EXPECT_GE(natural->tokens.size(), 11);
  EXPECT_LE(natural->tokens.size(), 31);
  EXPECT_EQ(limited->finish, FinishReason::kLength);
  EXPECT_EQ(limited->tokens.size(), 5);
  EXPECT_EQ(ignored->finish, FinishReason::kLength);
  EXPECT_EQ(ignored->tokens.size(), 200);
  EXPECT_EQ(at_least->finish, FinishReason::kStop);
  EXPECT_EQ(at_least->tokens.size(), 101);
  const auto stopped = sim.Add(MakePrompt(1, 10), 50, {.stop_token_ids = {limited->tokens[3]}});
  sim.RunToEnd();
  EXPECT_EQ(stopped->finish, FinishReason::kStop);
  EXPECT_EQ(stopped->tokens.size(), 4);
}

TEST(SimEngineTest, RunningIsBoundedAndTheQueueIsSeen) {
  EngineOptions options = Options();
  options.max_num_seqs = 2;
  SimEngine sim(options);
  for (int i = 0; i < 5; ++i) sim.Add(MakePrompt(i, 16), 4);
  EXPECT_EQ(sim.metrics().waiting.value(), 5);
  sim.Step();
  EXPECT_EQ(sim.metrics().running.value(), 2);
  EXPECT_EQ(sim.metrics().waiting.value(), 3);
  sim.RunToEnd();
  EXPECT_EQ(sim.metrics().running.value(), 0);
  EXPECT_EQ(sim.metrics().waiting.value(), 0);
  EXPECT_EQ(sim.metrics().kv_usage.value(), 0);
}

TEST(SimEngineTest, LongPromptsAreComputedInChunks) {
  EngineOptions options = Options();
  options.max_num_batched_tokens = 100;
  SimEngine sim(options);
  const auto received = sim.Add(MakePrompt(1, 250), 1);
  for (int step = 0; step < 2; ++step) {
    ASSERT_TRUE(sim.Step());
    EXPECT_EQ(received->ends, 0);
  }
  ASSERT_TRUE(sim.Step());
  EXPECT_EQ(received->ends, 1);

  options.chunked_prefill = false;
  Metrics metrics({.model_name = "m"});
  EXPECT_FALSE(Engine::Create(options, metrics, {}).ok());  // no prompt of more than 100 could ever run
}

TEST(SimEngineTest, RemoteKvIsAnExternalHit) {
  SimEngine prefiller(Options());
  const Tokens prompt = MakePrompt(1, 100);
  const auto prefilled = prefiller.Add(prompt, 1, {.remote_decode = true});
  ASSERT_TRUE(prefiller.Step());
  EXPECT_EQ(prefilled->finish, FinishReason::kLength);
  EXPECT_EQ(prefilled->held_blocks.size(), 7);
  EXPECT_GT(prefiller.metrics().kv_usage.value(), 0);  // kept for the other worker
  EXPECT_EQ(prefiller.engine().pool().num_held(), 7);
  prefiller.RunToEnd();
  EXPECT_EQ(prefiller.engine().pool().num_held(), 0);

  SimEngine decoder(Options());
  const auto decoded = decoder.Add(prompt, 10, {.remote_prefill = true});
  ASSERT_TRUE(decoder.Step());
  EXPECT_EQ(decoder.metrics().waiting_deferred.value(), 1);
  decoder.RunToEnd();
  EXPECT_EQ(decoded->cached, 99);
  EXPECT_EQ(decoder.metrics().external_queries.value(), 100);
  EXPECT_EQ(decoder.metrics().external_hits.value(), 100);
  EXPECT_EQ(decoder.metrics().prompt_external.value(), 99);
  EXPECT_EQ(decoder.metrics().prompt_local_compute.value(), 1);
  const auto plain = prefiller.Add(prompt, 10);
  prefiller.RunToEnd();
  EXPECT_EQ(decoded->tokens, plain->tokens);  // as without disaggregation

  const auto again = decoder.Add(prompt, 10, {.remote_prefill = true});
  decoder.RunToEnd();
  EXPECT_EQ(again->cached, 99);
  EXPECT_EQ(decoder.metrics().external_queries.value(), 104);  // 96 are here
}

TEST(SimEngineTest, AbortFreesBlocksInEveryState) {
  EngineOptions options = Options();
  options.max_num_seqs = 2;
  SimEngine sim(options);
  const auto running = sim.Add(MakePrompt(1, 100), 100);
  const RequestId running_id = sim.last_id();
  const auto loading = sim.Add(MakePrompt(2, 100), 100, {.remote_prefill = true});
  const RequestId loading_id = sim.last_id();
  sim.Add(MakePrompt(3, 100), 100);
  const RequestId second_id = sim.last_id();
  const auto waiting = sim.Add(MakePrompt(4, 100), 100);
  const RequestId waiting_id = sim.last_id();
  ASSERT_TRUE(sim.Step());
  EXPECT_GT(sim.engine().pool().num_held(), 14);
  // In the middle of a step.
  const Engine::Tick tick = sim.engine().Begin(sim.now());
  ASSERT_EQ(tick.kind, Engine::Tick::Kind::kStep);
  for (const RequestId id : {running_id, loading_id, waiting_id, waiting_id, RequestId{999}}) {
    sim.engine().Abort(id, sim.now());
  }
  sim.engine().End(sim.now());
  EXPECT_EQ(running->finish, FinishReason::kAbort);
  EXPECT_EQ(loading->finish, FinishReason::kAbort);
  EXPECT_EQ(waiting->finish, FinishReason::kAbort);
  EXPECT_EQ(sim.engine().num_requests(), 1);
  EXPECT_EQ(sim.engine().pool().num_held(), 7);
  sim.engine().Abort(second_id, sim.now());
  EXPECT_EQ(sim.engine().pool().num_held(), 0);
  EXPECT_FALSE(sim.Step());
  EXPECT_EQ(sim.metrics().success[static_cast<std::size_t>(FinishReason::kAbort)].value(), 4);
}

TEST(SimEngineTest, SaltsAndAdaptersDoNotShareBlocks) {
  SimEngine sim(Options());
  const Tokens prompt = MakePrompt(1, 50);
  sim.Add(prompt, 40, {.lora_name = "a"});
  sim.RunToEnd();
  for (const auto& [salt, lora, cached] : {std::tuple("", "", 0u),
                                           {"", "", 48u},
                                           {"s", "", 0u},
                                           {"s", "", 48u},
                                           {"", "a", 48u},
                                           {"", "b", 0u}}) {
    const auto received = sim.Add(prompt, 1, {.cache_salt = salt, .lora_name = lora});
    sim.RunToEnd();
    EXPECT_EQ(received->cached, cached) << salt << " " << lora;
  }
}

TEST(SimEngineTest, RefusesWhatCannotWork) {
  Metrics metrics({.model_name = "m"});
  EngineOptions options = Options();
  options.max_model_len = 1025;  // 64 usable blocks of 16
  const auto engine = Engine::Create(options, metrics, {});
  ASSERT_FALSE(engine.ok());
  EXPECT_THAT(engine.status().message(), testing::HasSubstr("max_model_len is 1025"));
  for (std::uint32_t EngineOptions::*field : {&EngineOptions::block_size, &EngineOptions::max_model_len,
                                              &EngineOptions::max_num_seqs, &EngineOptions::num_gpu_blocks}) {
    EngineOptions bad = Options();
    bad.*field = 0;
    EXPECT_FALSE(Engine::Create(bad, metrics, {}).ok());
  }
}

// Random load in a pool that is far too small: every request ends once, and at the end nothing is held.
class SimEngineRandomTest : public testing::TestWithParam<int> {};

struct RunResult {
  std::vector<Tokens> tokens;
  std::vector<FinishReason> finish;
  double end = 0;
  std::string page;
};

RunResult RunRandom(std::uint64_t seed) {
  EngineOptions options = {.num_gpu_blocks = 24,
                           .max_model_len = 23 * 16,
                           .max_num_seqs = 6,
                           .max_num_batched_tokens = seed % 2 == 0 ? 64u : 512u,
                           .watermark = seed % 3 == 0 ? 0.1 : 0.0,
                           .mean_output_tokens = 40,
                           .seed = seed};
  SimEngine sim(options);
  Random random(seed);
  std::vector<std::shared_ptr<Received>> all;
  std::vector<RequestId> ids;
  for (int i = 0; i < 300; ++i) {
    const std::size_t length = 1 + random.Below(250);
    const auto max_tokens = static_cast<std::uint32_t>(1 + random.Below(options.max_model_len - length));
    const std::uint64_t kind = random.Below(6);
    Tokens prompt = MakePrompt(random.Below(8), length);
    all.push_back(sim.Add(std::move(prompt), max_tokens,
                          {.remote_decode = kind == 0, .remote_prefill = kind == 1 || kind == 2}));
    ids.push_back(sim.last_id());
    if (random.Chance(0.2)) sim.engine().Abort(ids[random.Below(ids.size())], sim.now());
    for (std::uint64_t steps = random.Below(20); steps > 0; --steps) sim.Step();
    EXPECT_LE(sim.metrics().running.value(), options.max_num_seqs);
  }
  sim.RunToEnd();
  RunResult result;
  std::uint64_t generated = 0;
  for (const auto& received : all) {
    EXPECT_EQ(received->ends, 1);
    result.tokens.push_back(received->tokens);
    result.finish.push_back(received->finish);
    generated += received->tokens.size();
  }
  EXPECT_EQ(sim.engine().num_requests(), 0);
  EXPECT_EQ(sim.engine().pool().num_held(), 0);
  EXPECT_EQ(sim.metrics().generation_tokens.value(), generated);
  std::uint64_t ended = 0;
  for (const Counter& counter : sim.metrics().success) ended += counter.value();
  EXPECT_EQ(ended, all.size());
  EXPECT_GT(sim.metrics().preemptions.value(), 0);
  EXPECT_EQ(sim.metrics().prompt_tokens.value(), sim.metrics().prompt_local_compute.value() +
                                                     sim.metrics().prompt_cache_hit.value() +
                                                     sim.metrics().prompt_external.value());
  sim.metrics().Render(result.page);
  result.end = sim.now();
  return result;
}

TEST_P(SimEngineRandomTest, EveryRequestEndsOnceAndTheSeedDecides) {
  const RunResult one = RunRandom(GetParam());
  const RunResult two = RunRandom(GetParam());
  EXPECT_EQ(one.tokens, two.tokens);
  EXPECT_EQ(one.finish, two.finish);
  EXPECT_EQ(one.end, two.end);
  EXPECT_EQ(one.page, two.page);
}

INSTANTIATE_TEST_SUITE_P(Seeds, SimEngineRandomTest, testing::Range(0, 6));

}  // namespace
}  // namespace llmd::sim
