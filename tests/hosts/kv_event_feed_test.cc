// The feed against publishers that it connects to.
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/hosts/kv_feed_rig.h"

namespace llmd::host {
namespace {

using testing::IsEmpty;

class KvEventFeedTest : public KvFeedTest {};

TEST_F(KvEventFeedTest, IndexHoldsWhatTheEngineCaches) {
  TestPublisher publisher({});
  TestEngine engine;
  StartFeed();
  SetEndpoints({EndpointAt("a", 1, publisher.port(), publisher.replay_port())});
  publisher.AwaitSubscriber();
  const Tokens prompt = MakePrompt(1, 8);
  publisher.Publish(engine.Store(prompt));
  AwaitDepth("a", prompt, 8);
  publisher.Publish(engine.Remove(prompt, 5));
  AwaitDepth("a", prompt, 5);
  publisher.Publish(engine.Clear());
  AwaitDepth("a", prompt, 0);
  AwaitPublisher("figures", "127.0.0.1:1", [](const KvPublisherStats& row) {
    return row.connected && row.in_sync && row.model == kModel && row.stream.applied == 3 && row.holders == 1;
  });
  EXPECT_EQ(feed_->stats()->ingest.stored_blocks, 8);
  EXPECT_GT(feed_->stats()->memory.total_bytes(), 0);
}

TEST_F(KvEventFeedTest, EventsFromBeforeTheFeedComeByReplay) {
  TestPublisher publisher({});
  TestEngine engine;
  const Tokens prompt = MakePrompt(1, 8);
  publisher.Publish(engine.Store(prompt));
  publisher.Publish(engine.Store(MakePrompt(2, 3)));
  SetEndpoints({EndpointAt("a", 1, publisher.port(), publisher.replay_port())});
  StartFeed();
  AwaitDepth("a", prompt, 8);
  AwaitDepth("a", MakePrompt(2, 3), 3);
}

TEST_F(KvEventFeedTest, GapIsFilledByReplay) {
  TestPublisher publisher({});
  TestEngine engine;
  StartFeed();
  SetEndpoints({EndpointAt("a", 1, publisher.port(), publisher.replay_port())});
  publisher.AwaitSubscriber();
  publisher.Publish(engine.Store(MakePrompt(1, 4)));
  AwaitDepth("a", MakePrompt(1, 4), 4);
  publisher.Publish(engine.Store(MakePrompt(2, 4)), /*lost=*/true);
  publisher.Publish(engine.Remove(MakePrompt(1, 4), 2), /*lost=*/true);
  publisher.Publish(engine.Store(MakePrompt(3, 4)));
  AwaitDepth("a", MakePrompt(3, 4), 4);
  EXPECT_EQ(Match(MakePrompt(2, 4))["a"], 4);
  EXPECT_EQ(Match(MakePrompt(1, 4))["a"], 2);
  AwaitPublisher("a gap without a clear", "127.0.0.1:1", [](const KvPublisherStats& row) {
    return row.stream.gaps_total == 1 && row.stream.clears == 0 && row.stream.events_lost_total == 0 &&
           row.in_sync;
  });
}

TEST_F(KvEventFeedTest, WithoutReplayAGapStartsOver) {
  TestPublisher publisher({.replay_port = -1});
  TestEngine engine;
  StartFeed();
  SetEndpoints({EndpointAt("a", 1, publisher.port(), 0)});
  publisher.AwaitSubscriber();
  publisher.Publish(engine.Store(MakePrompt(1, 4)));
  AwaitDepth("a", MakePrompt(1, 4), 4);
  publisher.Publish(engine.Store(MakePrompt(2, 4)), /*lost=*/true);
  publisher.Publish(engine.Store(MakePrompt(3, 4)));
  AwaitDepth("a", MakePrompt(3, 4), 4);
  EXPECT_THAT(Match(MakePrompt(1, 4)), IsEmpty());
}

TEST_F(KvEventFeedTest, RestartedPublisherIsNotMistakenForTheOld) {
  auto publisher = std::make_unique<TestPublisher>(TestPublisher::Options{});
  const int port = publisher->port();
  const int replay_port = publisher->replay_port();
  TestEngine engine;
  StartFeed();
  SetEndpoints({EndpointAt("a", 1, port, replay_port)});
  publisher->AwaitSubscriber();
  publisher->Publish(engine.Store(MakePrompt(1, 4)));
  AwaitDepth("a", MakePrompt(1, 4), 4);
  publisher.reset();
  // The new process is past the old numbers before anybody hears it.
  publisher =
      std::make_unique<TestPublisher>(TestPublisher::Options{.port = port, .replay_port = replay_port});
  TestEngine second;
  for (std::uint32_t i = 2; i < 6; ++i) publisher->Publish(second.Store(MakePrompt(i, 4)), /*lost=*/true);
  AwaitDepth("a", MakePrompt(5, 4), 4);
  EXPECT_THAT(Match(MakePrompt(1, 4)), IsEmpty());
  AwaitPublisher("a restart", "127.0.0.1:1", [](const KvPublisherStats& row) {
    return row.stream.restarts == 1 && row.reconnections == 1 && row.connected;
  });
}

TEST_F(KvEventFeedTest, PublisherThatStaysAwayIsEmptiedAfterTheGrace) {
  auto publisher = std::make_unique<TestPublisher>(TestPublisher::Options{});
  const int port = publisher->port();
  const int replay_port = publisher->replay_port();
  TestEngine engine;
  KvFeedOptions options = Quick();
  options.disconnect_grace = absl::Milliseconds(300);
  StartFeed(options);
  SetEndpoints({EndpointAt("a", 1, port, replay_port)});
  publisher->AwaitSubscriber();
  publisher->Publish(engine.Store(MakePrompt(1, 4)));
  AwaitDepth("a", MakePrompt(1, 4), 4);
  publisher.reset();
  AwaitDepth("a", MakePrompt(1, 4), 0);
  publisher =
      std::make_unique<TestPublisher>(TestPublisher::Options{.port = port, .replay_port = replay_port});
  TestEngine second;
  publisher->Publish(second.Store(MakePrompt(2, 4)), /*lost=*/true);
  AwaitDepth("a", MakePrompt(2, 4), 4);
}

TEST_F(KvEventFeedTest, EndpointThatLeavesTakesItsBlocksAlong) {
  TestPublisher publisher({});
  TestPublisher other({});
  TestEngine engine;
  TestEngine other_engine;
  StartFeed();
  const auto a = EndpointAt("a", 1, publisher.port(), publisher.replay_port());
  const auto b = EndpointAt("b", 2, other.port(), other.replay_port());
  SetEndpoints({a, b});
  const Tokens prompt = MakePrompt(1, 4);
  publisher.Publish(engine.Store(prompt));
  other.Publish(other_engine.Store(prompt));
  AwaitDepth("a", prompt, 4);
  AwaitDepth("b", prompt, 4);
  SetEndpoints({b});
  EXPECT_EQ(Match(prompt).count("a"), 0);  // at once
  Await("the holder's retirement", [&] { return feed_->stats()->index.holders == 1; });
  EXPECT_EQ(Match(prompt)["b"], 4);
  SetEndpoints({a, b});
  AwaitDepth("a", prompt, 4);  // by replay
}

TEST_F(KvEventFeedTest, EndpointThatWasGoneForAMomentStartsFromNothing) {
  TestPublisher publisher({.replay_port = -1});
  TestEngine engine;
  StartFeed();
  const auto a = EndpointAt("a", 1, publisher.port(), 0);
  SetEndpoints({a});
  publisher.AwaitSubscriber();
  publisher.Publish(engine.Store(MakePrompt(1, 4)));
  AwaitDepth("a", MakePrompt(1, 4), 4);
  // Both changes in one turn of the feed's attention.
  std::atomic<bool> go = false;
  ASSERT_TRUE(feed_->RunOnIndex([&](index::PrefixIndex&) {
    while (!go) std::this_thread::yield();
  }));
  ASSERT_TRUE(pool_.SetEndpoints({}).ok());
  ASSERT_TRUE(pool_.SetEndpoints(std::vector{a}).ok());
  go = true;
  publisher.AwaitSubscriber();
  publisher.Publish(engine.Store(MakePrompt(2, 4)));
  AwaitDepth("a", MakePrompt(2, 4), 4);
  EXPECT_THAT(Match(MakePrompt(1, 4)), IsEmpty());
}

TEST_F(KvEventFeedTest, OtherNameAtTheAddressInheritsNothing) {
  TestPublisher publisher({.replay_port = -1});
  TestEngine engine;
  StartFeed();
  SetEndpoints({EndpointAt("a", 1, publisher.port(), 0)});
  publisher.AwaitSubscriber();
  publisher.Publish(engine.Store(MakePrompt(1, 4)));
  AwaitDepth("a", MakePrompt(1, 4), 4);
  SetEndpoints({EndpointAt("b", 1, publisher.port(), 0)});
  publisher.AwaitSubscriber();
  publisher.Publish(engine.Store(MakePrompt(2, 4)));
  AwaitDepth("b", MakePrompt(2, 4), 4);
  EXPECT_THAT(Match(MakePrompt(1, 4)), IsEmpty());
}

TEST_F(KvEventFeedTest, ChangedLabelsKeepTheHoldersWithoutAMoment) {
  TestPublisher publisher({.replay_port = -1});
  TestEngine engine;
  StartFeed();
  SetEndpoints({EndpointAt("a", 1, publisher.port(), 0)});
  publisher.AwaitSubscriber();
  publisher.Publish(engine.Store(MakePrompt(1, 4)));
  AwaitDepth("a", MakePrompt(1, 4), 4);
  for (int i = 0; i < 20; ++i) {
    SetEndpoints({EndpointAt("a", 1, publisher.port(), 0, {{"version", std::to_string(i)}})});
    ASSERT_EQ(Match(MakePrompt(1, 4))["a"], 4);
  }
  publisher.Publish(engine.Store(MakePrompt(2, 4)));
  AwaitDepth("a", MakePrompt(2, 4), 4);
  EXPECT_EQ(Match(MakePrompt(1, 4))["a"], 4);
}

TEST_F(KvEventFeedTest, ChangedPortIsAnotherPublisher) {
  TestPublisher publisher({});
  TestPublisher second({});
  TestEngine engine;
  TestEngine second_engine;
  StartFeed();
  SetEndpoints({EndpointAt("a", 1, publisher.port(), publisher.replay_port())});
  publisher.Publish(engine.Store(MakePrompt(1, 4)));
  AwaitDepth("a", MakePrompt(1, 4), 4);
  second.Publish(second_engine.Store(MakePrompt(2, 4)));
  SetEndpoints({EndpointAt("a", 1, second.port(), second.replay_port())});
  AwaitDepth("a", MakePrompt(2, 4), 4);
  EXPECT_THAT(Match(MakePrompt(1, 4)), IsEmpty());
}

TEST_F(KvEventFeedTest, PortRangeIsAPublisherForEachRank) {
  auto first = std::make_unique<TestPublisher>(TestPublisher::Options{});
  std::unique_ptr<TestPublisher> second;
  // A free port after the first one, for events and for replays.
  for (int attempt = 0; attempt < 100 && second == nullptr; ++attempt) {
    try {
      second = std::make_unique<TestPublisher>(
          TestPublisher::Options{.port = first->port() + 1, .replay_port = first->replay_port() + 1});
    } catch (const zmq::error_t&) {
      first = std::make_unique<TestPublisher>(TestPublisher::Options{});
    }
  }
  ASSERT_NE(second, nullptr);
  auto endpoint = EndpointAt("a", 1, 0, 0);
  const auto range = [](int port) { return std::to_string(port) + "-" + std::to_string(port + 1); };
  endpoint.labels["llmd.ai/kv-events-port"] = range(first->port());
  endpoint.labels["llmd.ai/kv-replay-port"] = range(first->replay_port());
  TestEngine engines[2];
  engines[0].rank = 0;
  engines[1].rank = 1;
  first->Publish(engines[0].Store(MakePrompt(1, 4)));
  second->Publish(engines[1].Store(MakePrompt(2, 6)));
  StartFeed();
  SetEndpoints({endpoint});
  AwaitDepth("a", MakePrompt(1, 4), 4);
  AwaitDepth("a", MakePrompt(2, 6), 6);
  // A rank's clear is its own.
  first->Publish(engines[0].Clear());
  AwaitDepth("a", MakePrompt(1, 4), 0);
  EXPECT_EQ(Match(MakePrompt(2, 6))["a"], 6);
  Await("two publishers", [&] { return feed_->stats()->publishers.size() == 2; });
  EXPECT_EQ(feed_->stats()->publishers[1].holder_name, "127.0.0.1:1#1");
}

TEST_F(KvEventFeedTest, ReplayWithoutTopicWaitsForTheModel) {
  TestPublisher publisher({.topic_in_replay = false});
  TestEngine engine;
  publisher.Publish(engine.Store(MakePrompt(1, 4)));
  StartFeed();
  SetEndpoints({EndpointAt("a", 1, publisher.port(), publisher.replay_port())});
  AwaitPublisher("an answer of no known model", "127.0.0.1:1",
                 [](const KvPublisherStats& row) { return row.replay_messages > 0 && !row.in_sync; });
  EXPECT_THAT(Match(MakePrompt(1, 4), ""), IsEmpty());
  publisher.Publish(engine.Store(MakePrompt(2, 4)));
  AwaitDepth("a", MakePrompt(2, 4), 4);
  EXPECT_EQ(Match(MakePrompt(1, 4))["a"], 4);
}

TEST_F(KvEventFeedTest, ModelOfTheEndpointsLabelServesWhereTheTopicIsSilent) {
  TestPublisher publisher({.topic = "", .topic_in_replay = false});
  TestEngine engine;
  publisher.Publish(engine.Store(MakePrompt(1, 4)));
  KvFeedOptions options = Quick();
  options.precise.kv_events.topic_filter = "";
  StartFeed(options);
  SetEndpoints(
      {EndpointAt("a", 1, publisher.port(), publisher.replay_port(), {{"llmd.ai/kv-model", "labelled"}})});
  AwaitDepth("a", MakePrompt(1, 4), 4, "labelled");
}

TEST_F(KvEventFeedTest, LabelSaysWhetherCopiesAreCounted) {
  TestPublisher counted({.replay_port = -1});
  TestPublisher once({.replay_port = -1});
  TestEngine engine;
  StartFeed();
  SetEndpoints({EndpointAt("a", 1, counted.port(), 0, {{"llmd.ai/kv-removal", "refcount"}}),
                EndpointAt("b", 2, once.port(), 0)});
  const auto stored = engine.Store(MakePrompt(1, 4));
  const auto removed = engine.Remove(MakePrompt(1, 4), 2);
  const auto last = engine.Store(MakePrompt(2, 1));
  for (TestPublisher* publisher : {&counted, &once}) {
    publisher->AwaitSubscriber();
    for (const auto& batch : {stored, stored, removed, last}) publisher->Publish(batch);
  }
  AwaitDepth("a", MakePrompt(2, 1), 1);
  AwaitDepth("b", MakePrompt(2, 1), 1);
  EXPECT_EQ(Match(MakePrompt(1, 4))["a"], 4);
  EXPECT_EQ(Match(MakePrompt(1, 4))["b"], 2);
}

TEST_F(KvEventFeedTest, OtherModelInTheTopicStartsThePublisherAnew) {
  TestPublisher publisher({.replay_port = -1});
  TestEngine engine;
  StartFeed();
  SetEndpoints({EndpointAt("a", 1, publisher.port(), 0)});
  publisher.AwaitSubscriber();
  publisher.Publish(engine.Store(MakePrompt(1, 4)));
  AwaitDepth("a", MakePrompt(1, 4), 4);
  publisher.set_topic("kv@127.0.0.1:1@other");
  TestEngine second;
  publisher.Publish(second.Store(MakePrompt(1, 3)));
  AwaitDepth("a", MakePrompt(1, 4), 3, "other");
  EXPECT_THAT(Match(MakePrompt(1, 4)), IsEmpty());
}

TEST_F(KvEventFeedTest, OnlySelectedEndpointsAreHeard) {
  TestPublisher chosen({});
  TestPublisher unlabelled({});
  TestPublisher elsewhere({});
  TestEngine engine;
  const auto batch = engine.Store(MakePrompt(1, 4));
  for (TestPublisher* publisher : {&chosen, &unlabelled, &elsewhere}) publisher->Publish(batch);
  KvFeedOptions options = Quick();
  options.precise.kv_events.pod_label_selector = "llm-d.ai/inference-serving=true";
  options.precise.kv_events.pod_namespace = "default";
  StartFeed(options);
  const sched::Labels serving = {{"llm-d.ai/inference-serving", "true"}};
  auto outside = EndpointAt("c", 3, elsewhere.port(), elsewhere.replay_port(), serving);
  outside.pod_namespace = "other";
  SetEndpoints({EndpointAt("a", 1, chosen.port(), chosen.replay_port(), serving),
                EndpointAt("b", 2, unlabelled.port(), unlabelled.replay_port()), outside});
  AwaitDepth("a", MakePrompt(1, 4), 4);
  Await("figures", [&] { return feed_->stats()->publishers.size() == 1; });
  EXPECT_EQ(Match(MakePrompt(1, 4)).size(), 1);
  EXPECT_EQ(unlabelled.replays_served() + elsewhere.replays_served(), 0);
}

TEST_F(KvEventFeedTest, EndpointsThatCannotBeHeardAreNamed) {
  StartFeed();
  auto wrong = EndpointAt("wrong", 1, 0, 0);
  wrong.labels["llmd.ai/kv-events-port"] = "70000";
  SetEndpoints({wrong, EndpointAt("one", 2, 1, 0), EndpointAt("two", 2, 1, 0)});
  Await("two problems", [&] { return feed_->stats()->problems.size() == 2; });
  const auto stats = feed_->stats();
  EXPECT_THAT(stats->problems,
              testing::Contains(testing::AllOf(testing::HasSubstr("default/wrong"),
                                               testing::HasSubstr("kv-events-port is \"70000\""))));
  EXPECT_THAT(stats->problems, testing::Contains(testing::HasSubstr("is also the address of")));
  // The one that waited is heard when the other leaves.
  const bool one_waits = stats->problems[0].starts_with("default/one");
  SetEndpoints({EndpointAt(one_waits ? "one" : "two", 2, 1, 0)});
  Await("no problem", [&] { return feed_->stats()->problems.empty(); });
}

TEST_F(KvEventFeedTest, WorkRunsOnTheIndexAndEndsWithTheFeed) {
  StartFeed();
  std::atomic<int> done = 0;
  ASSERT_TRUE(feed_->RunOnIndex([&](index::PrefixIndex& index) { done += index.stats().holders == 0; }));
  Await("work", [&] { return done == 1; });
  int accepted = 0;
  for (int i = 0; i < 10; ++i) accepted += feed_->RunOnIndex([&](index::PrefixIndex&) { ++done; });
  feed_.reset();
  EXPECT_EQ(done, 1 + accepted);
  SetEndpoints({EndpointAt("a", 1, 1, 0)});  // the pool lives on
}

TEST_F(KvEventFeedTest, RefusesWhatItCannotServe) {
  KvFeedOptions options = Quick();
  options.precise.kv_events.pod_label_selector = "a in b";
  EXPECT_THAT(std::string(KvEventFeed::Start(options, pool_, *index_).status().message()),
              testing::HasSubstr("podLabelSelector"));
  options = Quick();
  options.precise.kv_events.zmq_endpoint = "tcp://192.0.2.1:1";
  const absl::Status status = KvEventFeed::Start(options, pool_, *index_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("kvEventsConfig.zmqEndpoint"));
}

}  // namespace
}  // namespace llmd::host
