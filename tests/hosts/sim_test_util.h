// An engine in virtual time, and what its requests got.
#ifndef TESTS_HOSTS_SIM_TEST_UTIL_H_
#define TESTS_HOSTS_SIM_TEST_UTIL_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "examples/sim_worker/engine.h"
#include "examples/sim_worker/metrics.h"
#include "gtest/gtest.h"
#include "llmd/base/random.h"
#include "llmd/base/types.h"

namespace llmd::sim {

using Tokens = std::vector<TokenId>;

// What one request got.
struct Received : OutputSink {
  Tokens tokens;
  int ends = 0;
  FinishReason finish = FinishReason::kNone;
  std::uint32_t cached = 0;
  std::vector<worker::BlockId> held_blocks;

  void OnOutput(Output output) override {
    EXPECT_EQ(ends, 0) << "output after the end";
    if (output.has_token) tokens.push_back(output.token);
    if (output.finish == FinishReason::kNone) return;
    ++ends;
    finish = output.finish;
    cached = output.cached_tokens;
    held_blocks = std::move(output.held_blocks);
  }
};

inline Tokens MakePrompt(std::uint64_t seed, std::size_t count) {
  Random random(seed);
  Tokens tokens(count);
  for (TokenId& token : tokens) token = static_cast<TokenId>(random.Below(128'000));
  return tokens;
}

class SimEngine {
 public:
  explicit SimEngine(const EngineOptions& options, Engine::EventSink on_events = {})
      : metrics_({.model_name = "m", .max_model_len = options.max_model_len}) {
    auto engine = Engine::Create(options, metrics_, std::move(on_events));
    EXPECT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }

  std::shared_ptr<Received> Add(Tokens prompt, std::uint32_t max_tokens, EngineRequest rest = {}) {
    auto received = std::make_shared<Received>();
    rest.prompt = std::move(prompt);
    rest.max_tokens = max_tokens;
    rest.arrival = now_;
    rest.sink = received;
    engine_->Add(++last_id_, std::move(rest), now_);
    return received;
  }

  // One step or wait. False when there is nothing to do.
  bool Step() {
    const Engine::Tick tick = engine_->Begin(now_);
    if (tick.kind == Engine::Tick::Kind::kIdle) return false;
    now_ += tick.seconds;
    if (engine_->in_step()) engine_->End(now_);
    return true;
  }
  void RunToEnd() {
    int steps = 0;
    while (Step()) ASSERT_LT(++steps, 1'000'000) << "the engine does not come to an end";
  }

  Engine& engine() { return *engine_; }
  const Metrics& metrics() const { return metrics_; }
  double now() const { return now_; }
  RequestId last_id() const { return last_id_; }

 private:
  Metrics metrics_;
  std::unique_ptr<Engine> engine_;
  double now_ = 100;
  RequestId last_id_ = 0;
};

}  // namespace llmd::sim

#endif  // TESTS_HOSTS_SIM_TEST_UTIL_H_
