// Many engines that cache and evict while messages get lost, processes restart, endpoints join and leave, and
// decisions are taken: in the end the index holds what the engines' caches hold.
#include <array>
#include <atomic>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/hosts/kv_feed_rig.h"

namespace llmd::host {
namespace {

constexpr int kEngines = 6;
constexpr std::uint32_t kPrompts = 40;

struct Server {
  std::unique_ptr<TestPublisher> publisher;
  std::unique_ptr<TestEngine> engine;
  bool member = false;
  int version = 0;
};

class KvEventFeedLoadTest : public KvFeedTest {
 protected:
  // As the servers are now. Every second prompt shares its first blocks with all others.
  static Tokens Prompt(std::uint32_t i) { return MakePrompt(i, 6 + i % 5, i % 2 == 0 ? 3 : 0); }

  void Restart(Server& server, std::uint64_t seed) {
    const int port = server.publisher ? server.publisher->port() : 0;
    const int replay_port = server.publisher ? server.publisher->replay_port() : 0;
    server.publisher.reset();
    server.publisher =
        std::make_unique<TestPublisher>(TestPublisher::Options{.port = port, .replay_port = replay_port});
    server.engine = std::make_unique<TestEngine>(seed);
  }
  void PublishPool(std::array<Server, kEngines>& servers) {
    std::vector<sched::EndpointMetadata> endpoints;
    for (int i = 0; i < kEngines; ++i) {
      if (!servers[i].member) continue;
      endpoints.push_back(EndpointAt(absl::StrCat("e", i), i + 1, servers[i].publisher->port(),
                                     servers[i].publisher->replay_port(),
                                     {{"version", absl::StrCat(servers[i].version)}}));
    }
    SetEndpoints(endpoints);
  }
};

TEST_F(KvEventFeedLoadTest, IndexEqualsTheEnginesAfterEverythingThatHappens) {
  std::mt19937 random(7);
  std::array<Server, kEngines> servers;
  KvFeedOptions options = Quick();
  options.max_replays = 2;
  // What gave up a replay, since the server restarted meanwhile, would go on with a hole.
  options.stream.mode = events::StreamOptions::Mode::kStrict;
  for (int i = 0; i < kEngines; ++i) {
    Restart(servers[i], 0);
    servers[i].member = i < 4;
  }
  PublishPool(servers);
  StartFeed(options);

  // Decisions meanwhile.
  std::atomic<bool> stop = false;
  std::vector<std::thread> readers;
  for (int t = 0; t < 2; ++t) {
    readers.emplace_back([&, t] {
      for (std::uint32_t i = t; !stop; ++i) {
        const Tokens prompt = Prompt(i % kPrompts);
        for (const auto& [name, depth] : Match(prompt)) ASSERT_LE(depth, prompt.size() / kBlock) << name;
        std::this_thread::yield();
      }
    });
  }

  for (int step = 0; step < 4000; ++step) {
    Server& server = servers[random() % kEngines];
    const Tokens prompt = Prompt(random() % kPrompts);
    const bool lost = random() % 10 == 0;
    switch (const auto dice = random() % 1000; dice) {
      case 0 ... 699:
        server.publisher->Publish(server.engine->Store(prompt), lost);
        break;
      case 700 ... 984:
        server.publisher->Publish(server.engine->Remove(prompt, random() % (prompt.size() / kBlock)), lost);
        break;
      case 985 ... 987:
        server.publisher->Publish(server.engine->Clear(), lost);
        break;
      case 988 ... 991:
        Restart(server, step);
        break;
      case 992 ... 995:
        server.member = !server.member;
        PublishPool(servers);
        break;
      default:
        ++server.version;
        PublishPool(servers);
        break;
    }
    if (step % 16 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  for (Server& server : servers) server.member = true;
  PublishPool(servers);

  // A batch that arrives tells the feed of what was lost before.
  for (int i = 0; i < kEngines; ++i) {
    const Tokens last = MakePrompt(1000 + i, 2);
    servers[i].publisher->Publish(servers[i].engine->Store(last));
    AwaitPublisher("all is caught up", absl::StrCat("127.0.0.1:", i + 1), [&](const KvPublisherStats& row) {
      return row.in_sync && Match(last).contains(absl::StrCat("e", i));
    });
  }
  stop = true;
  for (std::thread& reader : readers) reader.join();
  for (std::uint32_t p = 0; p < kPrompts; ++p) {
    auto depths = Match(Prompt(p));
    for (int i = 0; i < kEngines; ++i) {
      EXPECT_EQ(depths[absl::StrCat("e", i)], servers[i].engine->Depth(Prompt(p)))
          << "e" << i << " prompt " << p;
    }
  }
  EXPECT_EQ(feed_->stats()->index.holders, kEngines);
}

TEST_F(KvEventFeedLoadTest, EndsCleanlyInTheMiddleOfEverything) {
  for (int round = 0; round < 10; ++round) {
    TestPublisher publisher({});
    TestEngine engine;
    KvFeedOptions options = Quick();
    options.precise.kv_events.zmq_endpoint = "tcp://127.0.0.1:*";
    StartFeed(options);
    SetEndpoints(
        {EndpointAt("a", 1, publisher.port(), publisher.replay_port()), EndpointAt("nobody", 2, 1, 1)});
    TestPublisher visitor(
        {.topic = "kv@127.0.0.1:2@m", .connect = feed_->bound_endpoint(), .replay_port = -1});
    for (std::uint32_t i = 0; i < 30u * round; ++i) {
      publisher.Publish(engine.Store(MakePrompt(i, 2)), i % 5 == 0);
      visitor.Publish(engine.Store(MakePrompt(1000 + i, 2)), i % 5 == 0);
    }
    std::thread changes([&] {
      for (int i = 0; i < 20; ++i) {
        (void)pool_.SetEndpoints(std::vector{EndpointAt(i % 2 == 0 ? "a" : "b", 1, publisher.port(), 0)});
      }
    });
    feed_.reset();
    changes.join();
  }
}

}  // namespace
}  // namespace llmd::host
