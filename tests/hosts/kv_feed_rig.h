// Engines for the tests of the KV event feed: real ZeroMQ publishers with replay sockets, a literal model of
// what each engine's cache holds, and the index asked through the pool's bindings.
#ifndef TESTS_HOSTS_KV_FEED_RIG_H_
#define TESTS_HOSTS_KV_FEED_RIG_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "examples/gateway_scheduler/kv_event_feed.h"
#include "examples/gateway_scheduler/pool_store.h"
#include "gtest/gtest.h"
#include "llmd/base/types.h"
#include "llmd/events/encoder.h"
#include "llmd/index/prefix_index.h"
#include "zmq.hpp"

namespace llmd::host {

inline constexpr std::uint32_t kBlock = 4;  // tokens
inline constexpr std::string_view kModel = "m";

using Tokens = std::vector<TokenId>;

// A prompt of so many blocks; the first `shared` of them are those of every prompt.
Tokens MakePrompt(std::uint32_t seed, std::size_t blocks, std::size_t shared = 0);

// PUB with a number per batch, and ROUTER that answers from a buffer. PUB and what is published belong to the
// test's thread, the ROUTER to one of its own.
class TestPublisher {
 public:
  struct Options {
    std::string topic = "kv@127.0.0.1:1@m";
    std::string connect = {};  // address of the feed's socket; empty: binds
    int port = 0;              // to bind; 0: any
    int replay_port = 0;       // to bind; 0: any; -1: none
    bool topic_in_replay = true;
    std::size_t buffer = 10000;
  };
  explicit TestPublisher(const Options& options);
  ~TestPublisher();

  int port() const { return port_; }
  int replay_port() const { return replay_port_; }
  // Until the feed's subscription has arrived.
  void AwaitSubscriber();

  // Numbered, kept for replay, and sent unless `lost`.
  void Publish(std::vector<std::byte> payload, bool lost = false);
  void SendRaw(const std::vector<std::string>& frames);
  void set_topic(std::string topic);
  // Replaces what the ROUTER answers; each reply is a list of frames after the identity.
  using Replies = std::function<std::vector<std::vector<std::string>>(std::uint64_t start)>;
  void set_replies(Replies replies);
  std::uint64_t next_seq() const { return next_seq_; }
  int replays_served() const { return replays_served_.load(); }

 private:
  void ServeReplays();
  std::vector<std::vector<std::string>> DefaultReplies(std::uint64_t start) const;

  Options options_;
  zmq::context_t context_;
  zmq::socket_t pub_;
  zmq::socket_t router_;
  int port_ = 0;
  int replay_port_ = 0;
  std::uint64_t next_seq_ = 0;
  mutable std::mutex mutex_;
  std::map<std::uint64_t, std::string> buffer_;
  Replies replies_;
  std::atomic<int> replays_served_ = 0;
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

// An engine's cache: the set of blocks it holds, and the batches that say so.
class TestEngine {
 public:
  explicit TestEngine(std::uint64_t hash_seed = 0) : hash_seed_(hash_seed) {}

  // The batch for caching the prompt's blocks that are not there yet.
  std::vector<std::byte> Store(const Tokens& prompt);
  // For evicting the prompt's blocks from `first` on.
  std::vector<std::byte> Remove(const Tokens& prompt, std::size_t first);
  std::vector<std::byte> Clear();

  // Leading blocks of the prompt that are held.
  std::uint32_t Depth(const Tokens& prompt) const;
  std::optional<std::uint32_t> rank = std::nullopt;  // written into batches
  std::string medium = "GPU";

 private:
  std::vector<std::uint64_t> Hashes(const Tokens& prompt) const;
  std::vector<std::byte> Encode(const events::Event& event) const;

  std::uint64_t hash_seed_;
  std::set<std::uint64_t> cached_;
};

class KvFeedTest : public testing::Test {
 protected:
  KvFeedTest();
  ~KvFeedTest() override;

  // Short intervals; the tests' own wishes on top.
  static KvFeedOptions Quick();
  void StartFeed(const KvFeedOptions& options = Quick());
  // An endpoint at 127.0.0.1:`port` whose publisher is at the given ports (0: none).
  static sched::EndpointMetadata EndpointAt(std::string_view name, int port, int events_port, int replay_port,
                                            sched::Labels labels = {});
  void SetEndpoints(const std::vector<sched::EndpointMetadata>& endpoints);

  // Depth per endpoint name, of the endpoints that have at least one block, as a decision would see it.
  std::map<std::string, std::uint32_t> Match(const Tokens& prompt, std::string_view model = kModel);
  // Waits until it holds; a failure when it does not within half a minute.
  static void Await(std::string_view what, const std::function<bool()>& holds);
  void AwaitDepth(std::string_view endpoint, const Tokens& prompt, std::uint32_t depth,
                  std::string_view model = kModel);
  // Null when there is none (yet).
  const KvPublisherStats* Find(const KvFeedStats& stats, std::string_view holder_name);
  void AwaitPublisher(std::string_view what, std::string_view holder_name,
                      const std::function<bool(const KvPublisherStats&)>& holds);

  PoolStore pool_;
  std::unique_ptr<index::PrefixIndex> index_;
  std::unique_ptr<KvEventFeed> feed_;
};

}  // namespace llmd::host

#endif  // TESTS_HOSTS_KV_FEED_RIG_H_
