// The stream state machine, situation by situation.
#include "llmd/events/publisher_stream.h"

#include <sstream>

#include "gtest/gtest.h"
#include "llmd/base/strings.h"
#include "llmd/events/frames.h"

namespace llmd::events {
namespace {

using Mode = StreamOptions::Mode;

// Feeds a stream and writes its actions as text: "apply 3", "clear", "replay 4", "cancel".
class StreamTest : public testing::Test {
 protected:
  explicit StreamTest(StreamOptions options = {}) : stream_(options) {}

  std::string Connect() { return Text(stream_.OnConnected(now_)); }
  std::string Live(std::uint64_t seq, std::string_view payload = "p") {
    return Text(stream_.OnLive(now_, seq, AsBytes(payload)));
  }
  std::string Replayed(std::uint64_t seq, std::string_view payload = "p") {
    return Text(stream_.OnReplayBatch(now_, request_, seq, AsBytes(payload)));
  }
  std::string End() { return Text(stream_.OnReplayEnd(now_, request_)); }
  std::string Fail(PublisherStream::ReplayFailure why) {
    return Text(stream_.OnReplayFailed(now_, request_, why));
  }
  std::string After(absl::Duration time) {
    now_ += time;
    return Text(stream_.Tick(now_));
  }
  // As a host would: ticks at each deadline until `time` has passed.
  std::string RunFor(absl::Duration time) {
    const absl::Time end = now_ + time;
    std::string text;
    while (stream_.next_deadline() <= end) {
      now_ = std::max(now_, stream_.next_deadline());
      const std::string step = Text(stream_.Tick(now_));
      text += (text.empty() || step.empty() ? "" : ", ") + step;
    }
    now_ = end;
    return text;
  }
  // Connected, with an empty publisher that then publishes 0..count-1.
  void Start(std::uint64_t count) {
    EXPECT_EQ(Connect(), "replay 0");
    EXPECT_EQ(End(), "");
    for (std::uint64_t seq = 0; seq < count; ++seq) EXPECT_EQ(Live(seq), "apply " + std::to_string(seq));
    EXPECT_TRUE(stream_.in_sync());
    now_ += absl::Seconds(10);
  }
  const StreamCounters& counters() const { return stream_.counters(); }

  PublisherStream stream_;
  absl::Time now_ = absl::FromUnixSeconds(1000);
  std::uint64_t request_ = 0;

 private:
  std::string Text(PublisherStream::Actions actions) {
    std::ostringstream text;
    for (const StreamAction& action : actions) {
      if (text.tellp() > 0) text << ", ";
      switch (action.kind) {
        case StreamAction::Kind::kApply:
          text << "apply " << action.seq;
          break;
        case StreamAction::Kind::kClear:
          text << "clear";
          break;
        case StreamAction::Kind::kRequestReplay:
          text << "replay " << action.seq;
          EXPECT_GT(action.request, request_);
          request_ = action.request;
          break;
        case StreamAction::Kind::kCancelReplay:
          text << "cancel";
          EXPECT_EQ(action.request, request_);
          break;
      }
    }
    return text.str();
  }
};

class BestEffortTest : public StreamTest {
 protected:
  BestEffortTest() : StreamTest({.mode = Mode::kBestEffort}) {}
};

class NoReplayTest : public StreamTest {
 protected:
  NoReplayTest() : StreamTest({.replay = false}) {}
};

TEST_F(StreamTest, RebuildsOnTheFirstConnection) {
  EXPECT_EQ(Connect(), "replay 0");
  EXPECT_FALSE(stream_.in_sync());
  EXPECT_EQ(Replayed(0), "apply 0");
  EXPECT_EQ(Live(2), "");  // held
  EXPECT_EQ(Replayed(1), "apply 1");
  EXPECT_EQ(Live(3), "");
  EXPECT_EQ(Replayed(2), "apply 2");
  EXPECT_EQ(End(), "apply 3");
  EXPECT_TRUE(stream_.in_sync());
  EXPECT_EQ(stream_.held_bytes(), 0u);
  EXPECT_EQ(counters().duplicates, 1u);
  EXPECT_EQ(counters().gaps_total, 0u);
  EXPECT_EQ(stream_.next_deadline(), absl::InfiniteFuture());
}

TEST_F(StreamTest, TheFirstRebuildMayBeginAboveZero) {
  Connect();
  EXPECT_EQ(Replayed(5000), "apply 5000");
  EXPECT_EQ(Replayed(5001), "apply 5001");
  EXPECT_EQ(End(), "");
  EXPECT_TRUE(stream_.in_sync());
}

TEST_F(StreamTest, DuplicatesAreDropped) {
  Start(3);
  EXPECT_EQ(Live(2), "");
  EXPECT_EQ(counters().duplicates, 1u);
  EXPECT_EQ(Live(3), "apply 3");
}

TEST_F(StreamTest, AGapIsFilledByAReplay) {
  Start(3);
  EXPECT_EQ(Live(5), "replay 3");
  EXPECT_EQ(Live(6), "");
  EXPECT_EQ(Replayed(3), "apply 3");
  EXPECT_EQ(Replayed(4), "apply 4");
  EXPECT_EQ(End(), "apply 5, apply 6");
  EXPECT_EQ(Live(7), "apply 7");
  EXPECT_EQ(counters().gaps_total, 1u);
  EXPECT_EQ(counters().events_lost_total, 0u);
  EXPECT_EQ(counters().clears, 0u);
}

TEST_F(StreamTest, AReplayThatStopsShortIsResumedAfterItsLastBatch) {
  Start(1);
  EXPECT_EQ(Live(4), "replay 1");
  EXPECT_EQ(Replayed(1), "apply 1");
  EXPECT_EQ(After(absl::Seconds(2)), "cancel");
  EXPECT_EQ(After(absl::Milliseconds(100)), "replay 2");
  EXPECT_EQ(Replayed(2), "apply 2");
  EXPECT_EQ(Fail(PublisherStream::ReplayFailure::kTransport), "cancel");
  EXPECT_EQ(After(absl::Milliseconds(100)), "replay 3");
  EXPECT_EQ(Replayed(3), "apply 3");
  EXPECT_EQ(End(), "apply 4");
  EXPECT_TRUE(stream_.in_sync());
}

TEST_F(StreamTest, AnswersToAnEarlierRequestAreIgnored) {
  Start(1);
  EXPECT_EQ(Live(3), "replay 1");
  const std::uint64_t old = request_;
  EXPECT_EQ(RunFor(absl::Milliseconds(2100)), "cancel, replay 1");
  EXPECT_TRUE(stream_.OnReplayBatch(now_, old, 1, AsBytes("p")).empty());
  EXPECT_TRUE(stream_.OnReplayEnd(now_, old).empty());
  EXPECT_EQ(Replayed(1), "apply 1");
}

TEST_F(StreamTest, ThreeAttemptsWithoutProgressClearAndCoolDown) {
  Start(2);
  EXPECT_EQ(Live(9), "replay 2");
  EXPECT_EQ(RunFor(absl::Seconds(7)), "cancel, replay 2, cancel, replay 2, cancel, clear");
  EXPECT_EQ(counters().replays_failed, 1u);
  EXPECT_EQ(Live(10), "");  // strict: nothing is applied
  EXPECT_EQ(counters().dropped, 2u);
  EXPECT_EQ(RunFor(absl::Seconds(30)), "replay 0");  // the cooldown is over
  EXPECT_EQ(Replayed(4), "apply 4");
  for (int seq = 5; seq <= 10; ++seq) Replayed(seq);
  EXPECT_EQ(End(), "");
  EXPECT_TRUE(stream_.in_sync());
  EXPECT_EQ(counters().events_lost_total, 2u);  // 2 and 3
}

TEST_F(StreamTest, ALiveMessageAfterTheCooldownStartsTheRebuildToo) {
  Start(2);
  Live(9);
  RunFor(absl::Seconds(7));
  now_ += absl::Seconds(40);
  EXPECT_EQ(Live(11), "replay 0");
}

TEST_F(StreamTest, AnOverwrittenBufferClears) {
  Start(3);
  EXPECT_EQ(Live(20), "replay 3");
  EXPECT_EQ(Replayed(10), "cancel, clear");
  EXPECT_FALSE(stream_.in_sync());
  EXPECT_EQ(Live(21), "");
}

TEST_F(StreamTest, AHoleInsideAReplayClears) {
  Connect();
  EXPECT_EQ(Replayed(0), "apply 0");
  EXPECT_EQ(Replayed(2), "cancel, clear");
}

TEST_F(StreamTest, AReplayThatGoesBackwardsClears) {
  Start(3);
  EXPECT_EQ(Live(6), "replay 3");
  EXPECT_EQ(Replayed(2), "cancel, clear");
  EXPECT_EQ(counters().malformed, 1u);
}

TEST_F(StreamTest, AMalformedReplayClears) {
  Start(3);
  Live(6);
  EXPECT_EQ(Fail(PublisherStream::ReplayFailure::kMalformed), "cancel, clear");
}

TEST_F(StreamTest, ATrickleEndsAtTheDeadline) {
  Start(1);
  EXPECT_EQ(Live(1000), "replay 1");
  std::uint64_t seq = 1;
  for (int second = 1; second < 120; ++second) {
    EXPECT_EQ(After(absl::Seconds(1)), "");
    EXPECT_EQ(Replayed(seq), "apply " + std::to_string(seq));
    ++seq;
  }
  EXPECT_EQ(After(absl::Seconds(1)), "cancel, clear");
}

TEST_F(StreamTest, ALowerNumberIsARestart) {
  Start(5);
  EXPECT_EQ(Live(1, "new"), "clear, replay 0");
  EXPECT_EQ(counters().restarts, 1u);
  EXPECT_EQ(Replayed(0, "new"), "apply 0");
  EXPECT_EQ(Replayed(1, "new"), "apply 1");
  EXPECT_EQ(End(), "");
  EXPECT_EQ(Live(2, "new"), "apply 2");
}

TEST_F(StreamTest, ARestartDuringAReplayStartsOver) {
  Start(5);
  EXPECT_EQ(Live(8), "replay 5");
  now_ += absl::Seconds(1);
  EXPECT_EQ(Live(0, "new"), "cancel, clear, replay 0");
  EXPECT_EQ(Replayed(0, "new"), "apply 0");
  EXPECT_EQ(End(), "");
  EXPECT_TRUE(stream_.in_sync());
}

TEST_F(StreamTest, RestartsInQuickSuccessionDoNotFloodThePublisher) {
  Start(5);
  for (int i = 0; i < 100; ++i) {
    Live(7);
    Live(3);
    now_ += absl::Milliseconds(1);
  }
  EXPECT_LE(counters().replays_requested, 4u);
}

TEST_F(StreamTest, AReconnectIsVerified) {
  Start(3);
  EXPECT_EQ(Connect(), "replay 2");
  EXPECT_EQ(Live(4), "");
  EXPECT_EQ(Replayed(2), "");  // the same batch again
  EXPECT_EQ(Replayed(3), "apply 3");
  EXPECT_EQ(End(), "apply 4");
  EXPECT_EQ(counters().restarts, 0u);
  EXPECT_TRUE(stream_.in_sync());
}

TEST_F(StreamTest, AReconnectToARestartedPublisherThatIsAlreadyFurther) {
  Start(3);
  EXPECT_EQ(Connect(), "replay 2");
  EXPECT_EQ(Live(9, "new"), "");
  now_ += absl::Milliseconds(50);
  EXPECT_EQ(Replayed(2, "new"), "cancel, clear");  // another batch under the same number
  EXPECT_EQ(counters().restarts, 1u);
  EXPECT_EQ(After(absl::Milliseconds(50)), "replay 0");
  for (int seq = 0; seq <= 9; ++seq) EXPECT_EQ(Replayed(seq, "new"), "apply " + std::to_string(seq));
  EXPECT_EQ(End(), "");
  EXPECT_EQ(Live(10, "new"), "apply 10");
}

TEST_F(StreamTest, AReconnectToARestartedPublisherThatIsBehind) {
  Start(3);
  EXPECT_EQ(Connect(), "replay 2");
  now_ += absl::Seconds(1);
  EXPECT_EQ(End(), "clear, replay 0");  // it does not know batch 2
  EXPECT_EQ(Replayed(0, "new"), "apply 0");
  EXPECT_EQ(End(), "");
  EXPECT_TRUE(stream_.in_sync());
}

TEST_F(StreamTest, AReconnectThatCannotBeVerifiedClears) {
  Start(3);
  Connect();
  EXPECT_EQ(RunFor(absl::Seconds(7)), "cancel, replay 2, cancel, replay 2, cancel, clear");
}

TEST_F(StreamTest, AReconnectWithNothingAppliedForgetsTheOldNumbers) {
  Start(3);
  EXPECT_EQ(Live(9), "replay 3");
  EXPECT_EQ(RunFor(absl::Seconds(7)), "cancel, replay 3, cancel, replay 3, cancel, clear");
  now_ += absl::Seconds(40);
  EXPECT_EQ(Connect(), "replay 0");
  EXPECT_EQ(Replayed(0, "new"), "apply 0");
  EXPECT_EQ(End(), "");
  EXPECT_TRUE(stream_.in_sync());  // 9 was the old process's
}

TEST_F(StreamTest, AReconnectDuringTheCooldownWaits) {
  Start(3);
  Live(9);
  RunFor(absl::Seconds(7));
  EXPECT_EQ(Connect(), "");
  EXPECT_EQ(RunFor(absl::Seconds(30)), "replay 0");
}

TEST_F(StreamTest, HeldBatchesStayWithinTheirBudget) {
  stream_ = PublisherStream({.max_held_bytes = 1000});
  Connect();
  const std::string payload(100, 'x');
  for (int seq = 10; seq < 30; ++seq) {
    EXPECT_EQ(Live(seq, payload), "");
    EXPECT_LE(stream_.held_bytes(), 1000u);
  }
  for (int seq = 0; seq < 20; ++seq) Replayed(seq, payload);
  EXPECT_EQ(End(), "");  // 20..23 fell out of the budget
  EXPECT_EQ(RunFor(absl::Milliseconds(100)), "replay 20");
  for (int seq = 20; seq < 24; ++seq) Replayed(seq, payload);
  EXPECT_EQ(End(), "apply 24, apply 25, apply 26, apply 27, apply 28, apply 29");
  EXPECT_TRUE(stream_.in_sync());
}

TEST_F(StreamTest, TheEndMarkersNumberIsNoBatch) {
  Start(1);
  EXPECT_EQ(Live(kEndSeq), "");
  EXPECT_EQ(counters().malformed, 1u);
  EXPECT_EQ(Live(1), "apply 1");
}

TEST_F(BestEffortTest, AfterGivingUpItFollowsTheLiveBatches) {
  Start(2);
  EXPECT_EQ(Live(9), "replay 2");
  EXPECT_EQ(Live(10), "");
  EXPECT_EQ(RunFor(absl::Seconds(7)), "cancel, replay 2, cancel, replay 2, cancel, clear, apply 9, apply 10");
  EXPECT_EQ(counters().events_lost_total, 7u);
  EXPECT_EQ(Live(11), "apply 11");
  EXPECT_EQ(Live(13), "clear, apply 13");  // still cooling down
  EXPECT_EQ(counters().gaps_total, 2u);
  EXPECT_EQ(counters().events_lost_total, 8u);
  EXPECT_EQ(RunFor(absl::Seconds(30)), "");
  EXPECT_EQ(Live(15), "replay 14");
}

TEST_F(BestEffortTest, AnOverwrittenBufferIsTakenFromWhereItBegins) {
  Start(3);
  EXPECT_EQ(Live(20), "replay 3");
  EXPECT_EQ(Replayed(10), "clear, apply 10");
  for (int seq = 11; seq < 20; ++seq) Replayed(seq);
  EXPECT_EQ(End(), "apply 20");
  EXPECT_EQ(counters().events_lost_total, 7u);
}

TEST_F(NoReplayTest, AGapClearsAndGoesOn) {
  EXPECT_EQ(Connect(), "");
  EXPECT_EQ(Live(7), "apply 7");
  EXPECT_EQ(Live(8), "apply 8");
  EXPECT_EQ(Live(10), "clear, apply 10");
  EXPECT_EQ(Live(10), "");
  EXPECT_EQ(Live(2), "clear, apply 2");
  EXPECT_EQ(counters().gaps_total, 1u);
  EXPECT_EQ(counters().events_lost_total, 1u);
  EXPECT_EQ(counters().restarts, 1u);
  EXPECT_EQ(stream_.next_deadline(), absl::InfiniteFuture());
}

}  // namespace
}  // namespace llmd::events
