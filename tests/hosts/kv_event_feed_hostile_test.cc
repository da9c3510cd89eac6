// What a publisher must not be able to do to the feed.
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "llmd/events/frames.h"
#include "tests/hosts/kv_feed_rig.h"

namespace llmd::host {
namespace {

using testing::IsEmpty;

std::string Seq(std::uint64_t seq) {
  const auto bytes = events::EncodeSeq(seq);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

class KvEventFeedHostileTest : public KvFeedTest {};

// Frames of every wrong shape: counted, and the publisher's good batches still arrive.
TEST_F(KvEventFeedHostileTest, MalformedMessagesAreCountedAndSurvived) {
  TestPublisher publisher({});
  TestEngine engine;
  StartFeed();
  SetEndpoints({EndpointAt("a", 1, publisher.port(), publisher.replay_port())});
  publisher.AwaitSubscriber();
  publisher.Publish(engine.Store(MakePrompt(1, 4)));
  AwaitDepth("a", MakePrompt(1, 4), 4);
  const std::string topic = "kv@127.0.0.1:1@m";
  const std::vector<std::vector<std::string>> wrong = {
      {topic},
      {topic, Seq(1)},
      {topic, "1234567", "x"},
      {topic, "123456789", "x"},
      {topic, Seq(events::kEndSeq), ""},
      {topic, Seq(1), "x", "y"},
      {topic, "", ""},
      std::vector<std::string>(1000, topic),
      {"kv@127.0.0.1:1@\xff\xfe", Seq(1), "x"},
      {"kv@127.0.0.1:1@" + std::string(100000, 'm'), Seq(1), "x"},
      {"kv@127.0.0.1:1@a\nb", Seq(1), "x"},
  };
  for (const auto& frames : wrong) publisher.SendRaw(frames);
  publisher.Publish(engine.Store(MakePrompt(2, 4)));
  AwaitDepth("a", MakePrompt(2, 4), 4);
  AwaitPublisher("counts", "127.0.0.1:1",
                 [&](const KvPublisherStats& row) { return row.malformed == wrong.size(); });
  EXPECT_EQ(Match(MakePrompt(1, 4))["a"], 4);
}

TEST_F(KvEventFeedHostileTest, GarbagePayloadsAreCountedAndSurvived) {
  TestPublisher publisher({});
  TestEngine engine;
  StartFeed();
  SetEndpoints({EndpointAt("a", 1, publisher.port(), publisher.replay_port())});
  publisher.AwaitSubscriber();
  std::mt19937 random(1);
  for (int i = 0; i < 500; ++i) {
    std::vector<std::byte> payload(random() % 200);
    for (std::byte& byte : payload) byte = std::byte(random());
    publisher.Publish(std::move(payload));
    auto cut = engine.Store(MakePrompt(i, 4));
    cut.resize(random() % cut.size());
    publisher.Publish(std::move(cut));
  }
  TestEngine honest;
  publisher.Publish(honest.Store(MakePrompt(10000, 4)));
  AwaitDepth("a", MakePrompt(10000, 4), 4);
  AwaitPublisher("counts", "127.0.0.1:1", [](const KvPublisherStats& row) {
    return row.stream.applied == 1001 && row.bad_batches > 100 && !row.last_error.empty();
  });
}

TEST_F(KvEventFeedHostileTest, OversizedFrameEndsTheConnectionOnly) {
  TestPublisher publisher({});
  TestEngine engine;
  KvFeedOptions options = Quick();
  options.max_message_bytes = 1 << 16;
  StartFeed(options);
  SetEndpoints({EndpointAt("a", 1, publisher.port(), publisher.replay_port())});
  publisher.AwaitSubscriber();
  publisher.Publish(engine.Store(MakePrompt(1, 4)));
  AwaitDepth("a", MakePrompt(1, 4), 4);
  publisher.SendRaw({"kv@127.0.0.1:1@m", Seq(7), std::string(1 << 20, 'x')});
  publisher.AwaitSubscriber();  // it is back
  publisher.Publish(engine.Store(MakePrompt(2, 4)));
  AwaitDepth("a", MakePrompt(2, 4), 4);
  EXPECT_EQ(Match(MakePrompt(1, 4))["a"], 4);
  AwaitPublisher("a reconnection", "127.0.0.1:1",
                 [](const KvPublisherStats& row) { return row.reconnections >= 1; });
}

TEST_F(KvEventFeedHostileTest, ReplaysOfEveryWrongShapeEnd) {
  TestPublisher publisher({});
  TestEngine engine;
  const auto payload = [&](std::uint32_t i) {
    const auto bytes = engine.Store(MakePrompt(i, 4));
    return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  };
  const std::string good = payload(1);
  using Replies = std::vector<std::vector<std::string>>;
  const std::vector<Replies> wrong = {
      {{"", "short", good}},
      {{"x"}},
      {std::vector<std::string>(50, "")},
      {{"", "", Seq(5), good}, {"", "", Seq(3), good}},  // backwards
      {{"", "", Seq(5), good}, {"", "", Seq(9), good}},  // with a hole
      {{"", "", Seq(events::kEndSeq), "payload"}},       // an end that is none
      {{"", std::string("kv@x@\xff"), Seq(0), good}},
      {},  // silence
      {{"", "kv@x@one", Seq(0), good}, {"", "kv@x@two", Seq(1), good}, {"", "kv@x@three", Seq(2), good}},
  };
  std::atomic<std::size_t> round = 0;
  publisher.set_replies([&](std::uint64_t) { return wrong[round++ % wrong.size()]; });
  KvFeedOptions options = Quick();
  options.replay_idle_timeout = absl::Milliseconds(30);
  options.stream.cooldown = absl::Milliseconds(10);
  StartFeed(options);
  SetEndpoints({EndpointAt("a", 1, publisher.port(), publisher.replay_port())});
  publisher.AwaitSubscriber();
  // Live batches keep coming with holes that make the feed ask.
  TestEngine other;
  Await("each shape twice", [&] {
    publisher.Publish(other.Store(MakePrompt(100 + round, 4)), /*lost=*/true);
    publisher.Publish(other.Store(MakePrompt(5000, 4)));
    return round >= 2 * wrong.size();
  });
  publisher.set_replies(nullptr);
  publisher.Publish(other.Clear());
  publisher.Publish(other.Store(MakePrompt(7, 4)));
  AwaitDepth("a", MakePrompt(7, 4), 4);
  AwaitPublisher("it comes to rest", "127.0.0.1:1", [](const KvPublisherStats& row) { return row.in_sync; });
}

TEST_F(KvEventFeedHostileTest, EndlessReplayDoesNotKeepOthersWaiting) {
  TestPublisher endless({});
  TestPublisher honest({});
  TestEngine engine;
  TestEngine honest_engine;
  const auto bytes = engine.Store(MakePrompt(1, 4));
  const std::string payload(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  endless.set_replies([&](std::uint64_t start) {
    std::vector<std::vector<std::string>> replies;
    for (std::uint64_t i = 0; i < 20000; ++i) replies.push_back({"", "", Seq(start + i), payload});
    return replies;  // and no end
  });
  KvFeedOptions options = Quick();
  options.max_replays = 2;
  options.default_model = std::string(kModel);
  options.stream.replay_deadline = absl::Milliseconds(400);
  StartFeed(options);
  SetEndpoints({EndpointAt("endless", 1, endless.port(), endless.replay_port()),
                EndpointAt("honest", 2, honest.port(), honest.replay_port())});
  honest.AwaitSubscriber();
  for (std::uint32_t i = 0; i < 50; ++i) honest.Publish(honest_engine.Store(MakePrompt(i, 4)), i % 3 == 0);
  AwaitDepth("honest", MakePrompt(49, 4), 4);
  AwaitPublisher("the deadline", "127.0.0.1:1",
                 [](const KvPublisherStats& row) { return row.stream.replays_failed > 0; });
  endless.set_replies(nullptr);
}

TEST_F(KvEventFeedHostileTest, AlternatingModelsCostLittle) {
  TestPublisher publisher({});
  TestEngine engine;
  StartFeed();
  SetEndpoints({EndpointAt("a", 1, publisher.port(), publisher.replay_port())});
  publisher.AwaitSubscriber();
  for (int i = 0; i < 1000; ++i) {
    publisher.set_topic(i % 2 == 0 ? "kv@x@one" : "kv@x@two");
    publisher.Publish(engine.Store(MakePrompt(i, 1)));
  }
  AwaitPublisher("all came", "127.0.0.1:1",
                 [](const KvPublisherStats& row) { return row.live_messages == 1000; });
  const auto stats = feed_->stats();
  EXPECT_LE(Find(*stats, "127.0.0.1:1")->model_changes, 30);  // one a second
  EXPECT_LE(stats->index.holders, 1);
}

// Ranks are numbers that a publisher makes up.
TEST_F(KvEventFeedHostileTest, HoldersAndVisitorsAreBounded) {
  KvFeedOptions options = Quick();
  options.precise.kv_events.zmq_endpoint = "tcp://127.0.0.1:*";
  StartFeed(options);
  SetEndpoints({EndpointAt("a", 1, 0, 0)});
  TestPublisher visitor({.connect = feed_->bound_endpoint(), .replay_port = -1});
  visitor.AwaitSubscriber();
  for (std::uint32_t i = 0; i < 1000; ++i) {
    TestEngine engine;
    engine.rank = i * 7919;
    visitor.Publish(engine.Store(MakePrompt(i, 2)));
  }
  Await("the rest was refused", [&] { return feed_->stats()->refused_publishers == 1000 - 64; });
  EXPECT_EQ(feed_->stats()->publishers.size(), 64);
  EXPECT_LE(feed_->stats()->index.holders, 64);
}

TEST_F(KvEventFeedHostileTest, SpeaksToWhatIsNoPublisher) {
  // A DEALER, a listener that says nothing, and a port where nobody is.
  zmq::context_t context;
  zmq::socket_t wrong_type(context, zmq::socket_type::dealer);
  wrong_type.set(zmq::sockopt::linger, 0);
  wrong_type.bind("tcp://127.0.0.1:*");
  const std::string address = wrong_type.get(zmq::sockopt::last_endpoint);
  const int port = std::stoi(address.substr(address.rfind(':') + 1));
  TestPublisher publisher({});
  TestEngine engine;
  StartFeed();
  SetEndpoints({EndpointAt("dealer", 1, port, port), EndpointAt("nobody", 2, 1, 1),
                EndpointAt("a", 3, publisher.port(), publisher.replay_port())});
  publisher.Publish(engine.Store(MakePrompt(1, 4)));
  AwaitDepth("a", MakePrompt(1, 4), 4);
  Await("errors are counted", [&] { return feed_->stats()->socket_errors > 0; });
  const auto stats = feed_->stats();
  EXPECT_FALSE(Find(*stats, "127.0.0.1:1")->connected);
  EXPECT_FALSE(Find(*stats, "127.0.0.1:2")->connected);
}

}  // namespace
}  // namespace llmd::host
