#include "examples/trace_replay/engine.h"

#include <gtest/gtest.h>

#include <map>
#include <vector>

#include "llmd/base/random.h"
#include "tests/replay/replay_test_util.h"

namespace llmd::replay {
namespace {

struct Fixture {
  explicit Fixture(EngineOptions options) {
    absl::StatusOr<Engine> made = Engine::Create(
        options,
        [this](const ServedRequest& served) {
          EXPECT_TRUE(this->served.emplace(served.index, served).second);
        },
        [this](Nanos at, const worker::BlockEvents& events) {
          EXPECT_GE(at, last_event);
          last_event = at;
          num_events += events.size();
          return absl::OkStatus();
        });
    EXPECT_TRUE(made.ok()) << made.status();
    engine = std::make_unique<Engine>(*std::move(made));
  }
  void Submit(std::shared_ptr<const PreparedRequest> request, Nanos now) {
    ASSERT_TRUE(engine->AdvanceTo(now).ok());
    ASSERT_TRUE(engine->Submit(std::move(request), now).ok());
  }

  std::map<std::size_t, ServedRequest> served;
  std::size_t num_events = 0;
  Nanos last_event = 0;
  std::unique_ptr<Engine> engine;
};

Nanos TimeOf(const EngineOptions& options, std::uint64_t computed, std::uint64_t count) {
  StepWork work;
  work.Add(computed, count);
  return StepTime(options.latency, work);
}

TEST(EngineTest, OneRequestTakesItsStepsAndNoMore) {
  const EngineOptions options{.capacity_blocks = 2000};
  Fixture f(options);
  f.Submit(Prepare(0, 1, 10'000, 3), 5 * kSecond);
  ASSERT_TRUE(f.engine->AdvanceTo(kForever).ok());
  // Two prefill chunks, then two decode steps for the second and third token.
  const Nanos first = 5 * kSecond + TimeOf(options, 0, 8192) + TimeOf(options, 8192, 10'000 - 8192);
  EXPECT_EQ(f.served.at(0).first_token, first);
  EXPECT_EQ(f.served.at(0).finished, first + TimeOf(options, 10'000, 1) + TimeOf(options, 10'001, 1));
  EXPECT_EQ(f.engine->totals().steps, 4u);
  EXPECT_EQ(f.engine->totals().computed_tokens, 10'002u);
  EXPECT_EQ(f.engine->totals().busy, f.served.at(0).finished - 5 * kSecond);
  EXPECT_EQ(f.engine->cache_usage(), 0);
}

TEST(EngineTest, ASecondEqualPromptComputesItsLastBlockOnly) {
  const EngineOptions options{.capacity_blocks = 2000};
  Fixture f(options);
  f.Submit(Prepare(0, 1, 1600, 1), 0);
  f.Submit(Prepare(1, 1, 1600, 1), 100 * kSecond);
  ASSERT_TRUE(f.engine->AdvanceTo(kForever).ok());
  EXPECT_EQ(f.served.at(0).hit_tokens, 0u);
  EXPECT_EQ(f.served.at(1).hit_tokens, 1584u);
  EXPECT_EQ(f.served.at(1).first_token, 100 * kSecond + TimeOf(options, 1584, 16));
}

TEST(EngineTest, ARequestJoinsAtTheNextStep) {
  const EngineOptions options{.capacity_blocks = 2000};
  Fixture f(options);
  f.Submit(Prepare(0, 1, 8000, 1), 0);
  f.Submit(Prepare(1, 2, 100, 1), 1);
  EXPECT_EQ(f.engine->waiting(), 1u);
  EXPECT_EQ(f.engine->running(), 1u);
  ASSERT_TRUE(f.engine->AdvanceTo(kForever).ok());
  EXPECT_EQ(f.served.at(0).first_token, TimeOf(options, 0, 8000));
  EXPECT_EQ(f.served.at(1).first_token, TimeOf(options, 0, 8000) + TimeOf(options, 0, 100));
}

TEST(EngineTest, AnswersCanBeReused) {
  Fixture f({.capacity_blocks = 2000});
  const auto first = Prepare(0, 1, 160, 65);
  WorkloadRequest next;
  next.prompt = {{1, 160}, {kAnswerStreams + 0, 65}, {9, 50}};
  next.output = {10, 1};
  f.Submit(first, 0);
  ASSERT_TRUE(f.engine->AdvanceTo(50 * kSecond).ok());
  f.Submit(MakePromptMaker().Make(1, next), 50 * kSecond);
  ASSERT_TRUE(f.engine->AdvanceTo(kForever).ok());
  EXPECT_EQ(f.served.at(1).hit_tokens, 224u);  // 160 + 64 of the 65: the last is never fed back
}

TEST(EngineTest, WhatCanNeverFitIsRefused) {
  Fixture f({.capacity_blocks = 10});
  EXPECT_TRUE(f.engine->Submit(Prepare(0, 1, 150, 10), 0).ok());
  EXPECT_EQ(f.engine->Submit(Prepare(1, 1, 151, 10), 0).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(Engine::Create({.max_running = 0}, nullptr, nullptr).ok());
  EXPECT_FALSE(Engine::Create({.max_running = 100, .max_batched_tokens = 99}, nullptr, nullptr).ok());
}

// Any load, any pool: all requests are served in full, in time order, and nothing stays held.
TEST(EngineTest, EverythingIsServedAndTokensAreConserved) {
  Random random(11);
  bool preempted = false;
  for (int round = 0; round < 12; ++round) {
    const auto capacity = static_cast<std::uint32_t>(random.Between(80, 400));
    Fixture f({.capacity_blocks = capacity,
               .max_running = static_cast<std::uint32_t>(random.Between(1, 40)),
               .max_batched_tokens = static_cast<std::uint32_t>(random.Between(40, 600)),
               .latency = {},
               .publish_events = true});
    Nanos now = 0;
    std::uint64_t prompt = 0, output = 0;
    std::map<std::size_t, Nanos> arrivals;
    for (std::size_t i = 0; i < 120; ++i) {
      now += static_cast<Nanos>(random.Below(40'000'000));
      const auto prompt_tokens = static_cast<std::uint32_t>(random.Between(1, 700));
      const auto output_tokens = static_cast<std::uint32_t>(random.Between(1, 300));
      prompt += prompt_tokens;
      output += output_tokens;
      arrivals[i] = now;
      f.Submit(Prepare(i, random.Below(6), prompt_tokens, output_tokens, now), now);
      EXPECT_LE(f.engine->kv().pool().num_held(), capacity);
    }
    ASSERT_TRUE(f.engine->AdvanceTo(kForever).ok());
    ASSERT_EQ(f.served.size(), 120u);
    for (const auto& [index, served] : f.served) {
      EXPECT_GT(served.first_token, arrivals[index]);
      EXPECT_GE(served.finished, served.first_token);
    }
    const EngineTotals& totals = f.engine->totals();
    EXPECT_EQ(totals.requests, 120u);
    EXPECT_EQ(totals.prompt_tokens, prompt);
    EXPECT_EQ(totals.output_tokens, output);
    // Each request computes its prompt and its answer but the last token, less what it found.
    const std::uint64_t once = prompt + output - 120 - totals.hit_tokens;
    if (totals.preemptions == 0) {
      EXPECT_EQ(totals.computed_tokens, once);
    } else {
      EXPECT_GE(totals.computed_tokens, once);
      preempted = true;
    }
    EXPECT_EQ(f.engine->kv().num_requests(), 0u);
    EXPECT_EQ(f.engine->kv().pool().num_held(), 0u);
    EXPECT_GT(f.num_events, 0u);
  }
  EXPECT_TRUE(preempted) << "the rounds should cover preemption";
}

TEST(LatencyModelTest, DefaultsAreWhatTheHeaderSays) {
  const LatencyModel model;
  StepWork prefill;
  prefill.Add(0, 12'000);
  EXPECT_NEAR(Seconds(StepTime(model, prefill)), 0.35, 0.01);
  StepWork decode;
  for (int i = 0; i < 16; ++i) decode.Add(7'999, 1);
  EXPECT_NEAR(Seconds(StepTime(model, decode)), 0.0097, 0.0002);
}

}  // namespace
}  // namespace llmd::replay
