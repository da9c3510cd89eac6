// A publisher that loses messages, restarts and overwrites its buffer, behind a connection that breaks,
// against the promise of PublisherStream: between two clears, consecutive batches of one process; in the end,
// all that there is.
#include <deque>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "llmd/base/random.h"
#include "llmd/base/strings.h"
#include "llmd/events/publisher_stream.h"

namespace llmd::events {
namespace {

struct Faults {
  double loss = 0;        // of a live message
  double restart = 0;     // of the process, per step
  double reconnect = 0;   // of the connection, per step
  double bad_replay = 0;  // no answer, an answer cut short, a failure, a malformed one
};

class Simulation {
 public:
  Simulation(std::uint64_t seed, const StreamOptions& options)
      : random_(seed), options_(options), stream_(options), buffer_steps_(random_.Between(3, 40)) {
    // What is not held must still be in the publisher's buffer when it is asked for.
    if (options.max_held_bytes < 1000) buffer_steps_ += 60;
    Do(stream_.OnConnected(now_));
  }

  void Run(int steps, const Faults& faults) {
    for (int i = 0; i < steps && !testing::Test::HasFailure(); ++i) Step(faults);
  }

  // Everything that the process has published since the first batch in the model is applied.
  void ExpectComplete() {
    EXPECT_TRUE(stream_.in_sync());
    ASSERT_FALSE(applied_.empty());
    EXPECT_EQ(applied_.back(), Name(next_seq_ - 1));
    EXPECT_EQ(stream_.held_bytes(), 0u);
  }

  const StreamCounters& counters() const { return stream_.counters(); }
  std::uint64_t published() const { return next_seq_; }
  const std::set<std::string>& ever_applied() const { return ever_applied_; }

 private:
  struct Replay {
    std::uint64_t request;
    absl::Time next_message;
    std::deque<std::uint64_t> batches;
    bool ends = true;
    std::optional<PublisherStream::ReplayFailure> fails;
  };

  std::string Name(std::uint64_t seq) const { return std::to_string(process_) + ":" + std::to_string(seq); }

  void Step(const Faults& faults) {
    now_ += absl::Milliseconds(random_.Between(1, 400));
    if (random_.Chance(faults.restart)) {
      ++process_;
      buffer_.clear();
      replays_.clear();  // its sockets are gone
      next_seq_ = 0;
      // It may have published a good deal before the connection is back.
      for (std::uint64_t n = random_.Below(60); n > 0; --n) Publish(1.0);
      Do(stream_.OnConnected(now_));
    }
    if (random_.Chance(faults.reconnect)) {
      for (std::uint64_t n = random_.Below(5); n > 0; --n) Publish(1.0);
      Do(stream_.OnConnected(now_));
    }
    for (std::uint64_t n = random_.Below(3); n > 0; --n) Publish(faults.loss);
    Answer(faults);
    if (now_ >= stream_.next_deadline() || random_.Chance(0.1)) Do(stream_.Tick(now_));
  }

  void Publish(double loss) {
    const std::uint64_t seq = next_seq_++;
    buffer_.push_back(seq);
    if (buffer_.size() > buffer_steps_) buffer_.pop_front();
    if (random_.Chance(loss)) return;
    const std::string payload = Name(seq);
    Do(stream_.OnLive(now_, seq, AsBytes(payload)));
  }

  void Answer(const Faults& faults) {
    // Serves requests that have come in since.
    for (const auto& [request, start] : std::exchange(requests_, {})) {
      Replay replay{.request = request, .next_message = now_, .batches = {}, .ends = true, .fails = {}};
      for (const std::uint64_t seq : buffer_) {
        if (seq >= start) replay.batches.push_back(seq);
      }
      if (random_.Chance(faults.bad_replay)) {
        replay.ends = false;
        replay.batches.resize(random_.Below(replay.batches.size() + 1));
        if (random_.Chance(0.3)) replay.fails = PublisherStream::ReplayFailure::kTransport;
        if (random_.Chance(0.1)) replay.fails = PublisherStream::ReplayFailure::kMalformed;
      }
      replays_.push_back(std::move(replay));
    }
    for (std::uint64_t n = random_.Below(12); n > 0 && !replays_.empty(); --n) {
      Replay& replay = replays_.front();
      const std::uint64_t request = replay.request;
      if (!replay.batches.empty()) {
        const std::uint64_t seq = replay.batches.front();
        replay.batches.pop_front();
        const std::string payload = Name(seq);
        Do(stream_.OnReplayBatch(now_, request, seq, AsBytes(payload)));
        continue;
      }
      const bool ends = replay.ends;
      const auto fails = replay.fails;
      replays_.pop_front();
      if (ends) Do(stream_.OnReplayEnd(now_, request));
      if (fails) Do(stream_.OnReplayFailed(now_, request, *fails));
    }
  }

  void Do(PublisherStream::Actions actions) {
    for (const StreamAction& action : actions) {
      switch (action.kind) {
        case StreamAction::Kind::kClear:
          applied_.clear();
          break;
        case StreamAction::Kind::kApply: {
          const std::string name(reinterpret_cast<const char*>(action.payload.data()), action.payload.size());
          EXPECT_EQ(name.substr(name.find(':') + 1), std::to_string(action.seq));
          if (!applied_.empty()) {
            EXPECT_EQ(action.seq, last_seq_ + 1);
            // Without replay, a restart that goes on just behind the old numbers looks like no restart.
            const std::string before = applied_.back().substr(0, applied_.back().find(':'));
            EXPECT_TRUE(!options_.replay || name.substr(0, name.find(':')) == before)
                << name << " behind " << before;
          }
          applied_.push_back(name);
          ever_applied_.insert(name);
          last_seq_ = action.seq;
          break;
        }
        case StreamAction::Kind::kRequestReplay:
          EXPECT_TRUE(options_.replay);
          EXPECT_TRUE(requests_.empty() || requests_.back().first < action.request);
          requests_ = {{action.request, action.seq}};
          break;
        case StreamAction::Kind::kCancelReplay:
          std::erase_if(requests_, [&](const auto& r) { return r.first == action.request; });
          // Half of the time answers are on the way already.
          if (random_.Chance(0.5)) {
            std::erase_if(replays_, [&](const Replay& r) { return r.request == action.request; });
          }
          break;
      }
    }
    EXPECT_LE(stream_.held_bytes(), options_.max_held_bytes);
  }

  Random random_;
  StreamOptions options_;
  PublisherStream stream_;
  absl::Time now_ = absl::FromUnixSeconds(1'760'000'000);

  // The publisher.
  std::size_t buffer_steps_;
  int process_ = 0;
  std::uint64_t next_seq_ = 0;
  std::deque<std::uint64_t> buffer_;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> requests_;
  std::deque<Replay> replays_;

  // What the host has applied since the last clear, and ever.
  std::vector<std::string> applied_;
  std::set<std::string> ever_applied_;
  std::uint64_t last_seq_ = 0;
};

struct Setting {
  const char* name;
  StreamOptions options;
};

class StreamSimulation : public testing::TestWithParam<Setting> {};

TEST_P(StreamSimulation, KeepsItsPromiseAndCatchesUp) {
  StreamCounters sum;
  for (std::uint64_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE(seed);
    Simulation simulation(seed, GetParam().options);
    simulation.Run(600, {.loss = 0.05, .restart = 0.01, .reconnect = 0.01, .bad_replay = 0.3});
    simulation.Run(600, {});  // two minutes of calm: more than deadline and cooldown
    simulation.ExpectComplete();
    if (HasFailure()) return;
    sum.restarts += simulation.counters().restarts;
    sum.gaps_total += simulation.counters().gaps_total;
    sum.replays_failed += simulation.counters().replays_failed;
    sum.clears += simulation.counters().clears;
  }
  // Each kind of trouble has come up.
  EXPECT_GT(sum.gaps_total, 50u);
  EXPECT_GT(sum.clears, 50u);
  EXPECT_GT(sum.restarts, GetParam().options.replay ? 50u : 20u);
  EXPECT_EQ(sum.replays_failed > 20, GetParam().options.replay);
}

TEST_P(StreamSimulation, CountsWhatItNeverApplied) {
  if (!GetParam().options.replay) return;
  for (std::uint64_t seed = 1; seed <= 30; ++seed) {
    Simulation simulation(seed, GetParam().options);
    simulation.Run(500, {.loss = 0.1, .reconnect = 0.01, .bad_replay = 0.5});
    simulation.Run(600, {});
    std::uint64_t first = simulation.published(), never = 0;
    for (std::uint64_t seq = simulation.published(); seq-- > 0;) {
      if (simulation.ever_applied().contains("0:" + std::to_string(seq))) first = seq;
    }
    for (std::uint64_t seq = first; seq < simulation.published(); ++seq) {
      never += !simulation.ever_applied().contains("0:" + std::to_string(seq));
    }
    EXPECT_GE(simulation.counters().events_lost_total, never) << seed;
    EXPECT_EQ(simulation.counters().events_lost_total > 0, never > 0) << seed;
    EXPECT_EQ(simulation.counters().restarts, 0u) << seed;
  }
}

TEST_P(StreamSimulation, WithoutTroubleNothingIsCleared) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Simulation simulation(seed, GetParam().options);
    simulation.Run(300, {});
    simulation.ExpectComplete();
    EXPECT_EQ(simulation.counters().clears, 0u);
    EXPECT_EQ(simulation.counters().gaps_total, 0u);
    EXPECT_EQ(simulation.counters().events_lost_total, 0u);
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, StreamSimulation,
                         testing::Values(Setting{"strict", {}},
                                         Setting{"best_effort", {.mode = StreamOptions::Mode::kBestEffort}},
                                         Setting{"no_replay", {.replay = false}},
                                         Setting{"tight_budget", {.max_held_bytes = 200}}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace llmd::events
