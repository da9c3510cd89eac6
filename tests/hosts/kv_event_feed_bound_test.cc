// The feed's own socket, which publishers connect to.
#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/hosts/kv_feed_rig.h"

namespace llmd::host {
namespace {

using testing::IsEmpty;

class KvEventFeedBoundTest : public KvFeedTest {
 protected:
  static KvFeedOptions Bound() {
    KvFeedOptions options = Quick();
    options.precise.kv_events.zmq_endpoint = "tcp://127.0.0.1:*";
    options.precise.kv_events.discover_pods = false;
    return options;
  }
  // Of messages that arrive in order on the same connection, this is the last.
  void Flush(TestPublisher& publisher) {
    const auto before = feed_->stats()->storage_messages;
    publisher.SendRaw({"kv@SHARED_STORAGE@m", std::string(8, '\0'), "x"});
    Await("the last message", [&] { return feed_->stats()->storage_messages > before; });
  }
};

TEST_F(KvEventFeedBoundTest, TopicSaysWhichEndpoint) {
  StartFeed(Bound());
  SetEndpoints({EndpointAt("a", 1, 0, 0), EndpointAt("b", 2, 0, 0)});
  TestPublisher a({.topic = "kv@127.0.0.1:1@m", .connect = feed_->bound_endpoint(), .replay_port = -1});
  TestPublisher b({.topic = "kv@127.0.0.1:2@m", .connect = feed_->bound_endpoint(), .replay_port = -1});
  TestEngine engine_a;
  TestEngine engine_b;
  a.AwaitSubscriber();
  b.AwaitSubscriber();
  a.Publish(engine_a.Store(MakePrompt(1, 4)));
  b.Publish(engine_b.Store(MakePrompt(1, 6)));
  AwaitDepth("a", MakePrompt(1, 6), 4);
  AwaitDepth("b", MakePrompt(1, 6), 6);
  AwaitPublisher("it counts as connected", "127.0.0.1:1",
                 [](const KvPublisherStats& row) { return row.connected && row.address.empty(); });
}

TEST_F(KvEventFeedBoundTest, AddressAloneWillDoWhereItIsUnique) {
  StartFeed(Bound());
  SetEndpoints({EndpointAt("a", 1, 0, 0)});
  TestPublisher a({.topic = "kv@127.0.0.1@m", .connect = feed_->bound_endpoint(), .replay_port = -1});
  TestEngine engine;
  a.AwaitSubscriber();
  a.Publish(engine.Store(MakePrompt(1, 4)));
  AwaitDepth("a", MakePrompt(1, 4), 4);
}

TEST_F(KvEventFeedBoundTest, RanksBehindOneAddressAreFoundByTheirNumber) {
  StartFeed(Bound());
  auto first = EndpointAt("r0", 1, 0, 0);
  auto second = EndpointAt("r1", 2, 0, 0);
  second.rank = 1;
  SetEndpoints({first, second});
  TestPublisher p0({.topic = "kv@127.0.0.1@m", .connect = feed_->bound_endpoint(), .replay_port = -1});
  TestPublisher p1({.topic = "kv@127.0.0.1@m", .connect = feed_->bound_endpoint(), .replay_port = -1});
  TestEngine engines[2];
  engines[0].rank = 0;
  engines[1].rank = 1;
  p0.AwaitSubscriber();
  p1.AwaitSubscriber();
  // Interleaved, with numbers of their own.
  for (std::uint32_t i = 1; i < 5; ++i) {
    p0.Publish(engines[0].Store(MakePrompt(i, 4)));
    p1.Publish(engines[1].Store(MakePrompt(i, 3)));
  }
  AwaitDepth("r0", MakePrompt(4, 4), 4);
  AwaitDepth("r1", MakePrompt(4, 4), 3);
  EXPECT_EQ(Match(MakePrompt(1, 4))["r0"], 4);
  EXPECT_EQ(Match(MakePrompt(1, 4))["r1"], 3);
}

TEST_F(KvEventFeedBoundTest, RanksOfOneEndpointAreStreamsOfTheirOwn) {
  StartFeed(Bound());
  SetEndpoints({EndpointAt("a", 1, 0, 0)});
  TestPublisher p0({.connect = feed_->bound_endpoint(), .replay_port = -1});
  TestPublisher p1({.connect = feed_->bound_endpoint(), .replay_port = -1});
  TestEngine engines[2];
  engines[0].rank = 0;
  engines[1].rank = 1;
  p0.AwaitSubscriber();
  p1.AwaitSubscriber();
  for (std::uint32_t i = 1; i < 5; ++i) {
    p0.Publish(engines[0].Store(MakePrompt(i, 4)));
    p1.Publish(engines[1].Store(MakePrompt(10 + i, 4)));
  }
  AwaitDepth("a", MakePrompt(4, 4), 4);
  AwaitDepth("a", MakePrompt(14, 4), 4);
  EXPECT_EQ(Match(MakePrompt(1, 4))["a"], 4);
  EXPECT_EQ(Match(MakePrompt(11, 4))["a"], 4);
  // A gap of one rank costs that rank.
  p0.Publish(engines[0].Store(MakePrompt(5, 4)), /*lost=*/true);
  p0.Publish(engines[0].Store(MakePrompt(6, 4)));
  AwaitDepth("a", MakePrompt(6, 4), 4);
  EXPECT_THAT(Match(MakePrompt(1, 4)), IsEmpty());
  EXPECT_EQ(Match(MakePrompt(11, 4))["a"], 4);
}

TEST_F(KvEventFeedBoundTest, ReplaySocketOfTheEndpointFillsGaps) {
  StartFeed(Bound());
  TestPublisher publisher({.connect = feed_->bound_endpoint()});
  SetEndpoints({EndpointAt("a", 1, 0, publisher.replay_port())});
  TestEngine engine;
  publisher.AwaitSubscriber();
  publisher.Publish(engine.Store(MakePrompt(1, 4)), /*lost=*/true);
  // Sent until the feed knows the endpoint: it hears of the pool in its own time.
  std::uint32_t last = 1;
  Await("something arrives", [&] {
    publisher.Publish(engine.Store(MakePrompt(++last, 4)));
    return !Match(MakePrompt(1, 4)).empty();
  });
  publisher.Publish(engine.Store(MakePrompt(100, 4)), /*lost=*/true);
  publisher.Publish(engine.Store(MakePrompt(101, 4)));
  AwaitDepth("a", MakePrompt(100, 4), 4);
  AwaitDepth("a", MakePrompt(101, 4), 4);
  for (std::uint32_t i = 1; i <= last; ++i) EXPECT_EQ(Match(MakePrompt(i, 4))["a"], 4) << i;
}

TEST_F(KvEventFeedBoundTest, LossOfTheConnectionIsNoticed) {
  KvFeedOptions options = Bound();
  options.disconnect_grace = absl::Milliseconds(200);
  StartFeed(options);
  SetEndpoints({EndpointAt("a", 1, 0, 0)});
  auto publisher = std::make_unique<TestPublisher>(
      TestPublisher::Options{.connect = feed_->bound_endpoint(), .replay_port = -1});
  TestEngine engine;
  publisher->AwaitSubscriber();
  publisher->Publish(engine.Store(MakePrompt(1, 4)));
  AwaitDepth("a", MakePrompt(1, 4), 4);
  publisher.reset();
  AwaitDepth("a", MakePrompt(1, 4), 0);
  AwaitPublisher("it counts as gone", "127.0.0.1:1",
                 [](const KvPublisherStats& row) { return !row.connected && !row.in_sync; });
}

TEST_F(KvEventFeedBoundTest, StrangersAndStorageAreCountedOnly) {
  StartFeed(Bound());
  SetEndpoints({EndpointAt("a", 1, 0, 0)});
  TestPublisher stranger({.topic = "kv@10.9.9.9:1@m", .connect = feed_->bound_endpoint(), .replay_port = -1});
  TestEngine engine;
  stranger.AwaitSubscriber();
  stranger.Publish(engine.Store(MakePrompt(1, 4)));
  Flush(stranger);
  Await("counts",
        [&] { return feed_->stats()->unknown_endpoints == 1 && feed_->stats()->storage_messages == 1; });
  EXPECT_TRUE(feed_->stats()->publishers.empty());
  EXPECT_EQ(feed_->stats()->index.holders, 0);
}

TEST_F(KvEventFeedBoundTest, EndpointIsHeardOneWayAtATime) {
  KvFeedOptions options = Bound();
  options.precise.kv_events.discover_pods = true;
  StartFeed(options);
  auto own = std::make_unique<TestPublisher>(TestPublisher::Options{});
  const int port = own->port();
  const int replay_port = own->replay_port();
  SetEndpoints({EndpointAt("a", 1, port, replay_port)});
  TestEngine engine;
  own->AwaitSubscriber();
  own->Publish(engine.Store(MakePrompt(1, 4)));
  AwaitDepth("a", MakePrompt(1, 4), 4);

  TestPublisher visitor({.connect = feed_->bound_endpoint(), .replay_port = -1});
  TestEngine second;
  visitor.AwaitSubscriber();
  visitor.Publish(second.Store(MakePrompt(2, 4)));
  Flush(visitor);
  EXPECT_EQ(feed_->stats()->second_source, 1);
  EXPECT_THAT(Match(MakePrompt(2, 4)), IsEmpty());

  own.reset();  // now the visitor is the only one
  AwaitPublisher("the loss", "127.0.0.1:1", [](const KvPublisherStats& row) { return !row.connected; });
  visitor.Publish(second.Store(MakePrompt(3, 4)));
  AwaitDepth("a", MakePrompt(3, 4), 4);
  EXPECT_THAT(Match(MakePrompt(1, 4)), IsEmpty());

  own = std::make_unique<TestPublisher>(TestPublisher::Options{.port = port, .replay_port = replay_port});
  TestEngine third;
  own->Publish(third.Store(MakePrompt(4, 4)), /*lost=*/true);
  AwaitDepth("a", MakePrompt(4, 4), 4);
  EXPECT_THAT(Match(MakePrompt(3, 4)), IsEmpty());
}

TEST_F(KvEventFeedBoundTest, EndpointThatLeavesTakesItsVisitorsAlong) {
  StartFeed(Bound());
  SetEndpoints({EndpointAt("a", 1, 0, 0)});
  TestPublisher publisher({.connect = feed_->bound_endpoint(), .replay_port = -1});
  TestEngine engine;
  publisher.AwaitSubscriber();
  publisher.Publish(engine.Store(MakePrompt(1, 4)));
  AwaitDepth("a", MakePrompt(1, 4), 4);
  SetEndpoints({});
  Await("the holder's retirement", [&] { return feed_->stats()->index.holders == 0; });
  SetEndpoints({EndpointAt("a", 1, 0, 0)});
  Await("the endpoint is back", [&] {
    publisher.Publish(engine.Store(MakePrompt(2, 4)));
    return !Match(MakePrompt(2, 4)).empty();
  });
  EXPECT_THAT(Match(MakePrompt(1, 4)), IsEmpty());
}

}  // namespace
}  // namespace llmd::host
