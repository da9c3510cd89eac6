#include "tests/hosts/kv_feed_rig.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "examples/gateway_scheduler/kv_addresses.h"
#include "llmd/base/strings.h"
#include "llmd/events/frames.h"
#include "llmd/ingest/kv_event_ingestor.h"

// For the thread sanitizer, which does not see how ZeroMQ's queues synchronise in a library that it did not
// compile. Asked by its runtime, by nobody in other builds.
extern "C" const char* __tsan_default_suppressions() { return "called_from_lib:libzmq.so\nrace:libzmq.so\n"; }

namespace llmd::host {
namespace {

constexpr int kLingerMs = 200;

std::string Bytes(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::string Seq(std::uint64_t seq) { return Bytes(events::EncodeSeq(seq)); }

int PortOf(zmq::socket_t& socket) {
  const std::string address = socket.get(zmq::sockopt::last_endpoint);
  return std::stoi(address.substr(address.rfind(':') + 1));
}

void SendAll(zmq::socket_t& socket, const std::vector<std::string>& frames) {
  for (std::size_t i = 0; i < frames.size(); ++i) {
    socket.send(zmq::buffer(frames[i]),
                i + 1 < frames.size() ? zmq::send_flags::sndmore : zmq::send_flags::none);
  }
}

std::uint64_t Mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

}  // namespace

Tokens MakePrompt(std::uint32_t seed, std::size_t blocks, std::size_t shared) {
  Tokens tokens(blocks * kBlock);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = static_cast<TokenId>(i < shared * kBlock ? i : 1000 * (seed + 1) + i);
  }
  return tokens;
}

TestPublisher::TestPublisher(const Options& options)
    : options_(options), pub_(context_, zmq::socket_type::xpub), router_(context_, zmq::socket_type::router) {
  // Not 0: a socket that is closed in the middle of a message while its peer goes trips an assertion of
  // ZeroMQ 4.3.4.
  pub_.set(zmq::sockopt::linger, kLingerMs);
  pub_.set(zmq::sockopt::xpub_verbose, true);
  pub_.set(zmq::sockopt::sndhwm, 100000);
  router_.set(zmq::sockopt::linger, kLingerMs);
  router_.set(zmq::sockopt::sndhwm, 0);
  const auto bind = [](zmq::socket_t& socket, int port) {
    socket.bind(port == 0 ? "tcp://127.0.0.1:*" : absl::StrCat("tcp://127.0.0.1:", port));
    return PortOf(socket);
  };
  if (options.connect.empty()) {
    port_ = bind(pub_, options.port);
  } else {
    pub_.connect(options.connect);
  }
  if (options.replay_port < 0) return;
  replay_port_ = bind(router_, options.replay_port);
  thread_ = std::thread([this] { ServeReplays(); });
}

TestPublisher::~TestPublisher() {
  stop_ = true;
  if (thread_.joinable()) thread_.join();
}

void TestPublisher::AwaitSubscriber() {
  pub_.set(zmq::sockopt::rcvtimeo, 20000);
  for (zmq::message_t message;;) {
    ASSERT_TRUE(pub_.recv(message)) << "nobody subscribed";
    if (message.size() > 0 && *message.data<char>() == 1) return;  // else somebody left
  }
}

void TestPublisher::Publish(std::vector<std::byte> payload, bool lost) {
  const std::uint64_t seq = next_seq_++;
  std::string topic;
  {
    const std::lock_guard lock(mutex_);
    buffer_[seq] = Bytes(payload);
    while (buffer_.size() > options_.buffer) buffer_.erase(buffer_.begin());
    topic = options_.topic;
  }
  if (!lost) SendRaw({topic, Seq(seq), Bytes(payload)});
}

void TestPublisher::SendRaw(const std::vector<std::string>& frames) { SendAll(pub_, frames); }

void TestPublisher::set_topic(std::string topic) {
  const std::lock_guard lock(mutex_);
  options_.topic = std::move(topic);
}

void TestPublisher::set_replies(Replies replies) {
  const std::lock_guard lock(mutex_);
  replies_ = std::move(replies);
}

std::vector<std::vector<std::string>> TestPublisher::DefaultReplies(std::uint64_t start) const {
  std::vector<std::vector<std::string>> replies;
  const auto add = [&](const std::string& topic, const std::string& seq, const std::string& payload) {
    if (options_.topic_in_replay) {
      replies.push_back({"", topic, seq, payload});
    } else {
      replies.push_back({"", seq, payload});
    }
  };
  for (auto it = buffer_.lower_bound(start); it != buffer_.end(); ++it) {
    add(options_.topic, Seq(it->first), it->second);
  }
  add("", Seq(events::kEndSeq), "");
  return replies;
}

void TestPublisher::ServeReplays() {
  while (!stop_) {
    zmq::pollitem_t item = {router_.handle(), 0, ZMQ_POLLIN, 0};
    zmq::poll(&item, 1, std::chrono::milliseconds(5));
    std::vector<std::string> request;
    for (zmq::message_t part; router_.recv(part, zmq::recv_flags::dontwait);) {
      request.push_back(part.to_string());
      if (!part.more()) break;
    }
    if (request.size() != 3 || request[2].size() != 8) continue;
    std::uint64_t start = 0;
    for (const char c : request[2]) start = (start << 8) | static_cast<unsigned char>(c);
    std::vector<std::vector<std::string>> replies;
    {
      const std::lock_guard lock(mutex_);
      replies = replies_ ? replies_(start) : DefaultReplies(start);
    }
    for (std::vector<std::string>& reply : replies) {
      reply.insert(reply.begin(), request[0]);
      SendAll(router_, reply);
    }
    ++replays_served_;
  }
}

std::vector<std::uint64_t> TestEngine::Hashes(const Tokens& prompt) const {
  std::vector<std::uint64_t> hashes;
  std::uint64_t hash = Mix(hash_seed_ + 1);
  for (std::size_t i = 0; i < prompt.size(); ++i) {
    hash = Mix(hash * 31 + prompt[i] + 1);
    if ((i + 1) % kBlock == 0) hashes.push_back(hash);
  }
  return hashes;
}

std::vector<std::byte> TestEngine::Encode(const events::Event& event) const {
  std::vector<std::byte> payload;
  events::EncodeBatch(events::Schema::kMap, absl::ToUnixMillis(absl::Now()) / 1000.0, {&event, 1}, rank,
                      payload);
  return payload;
}

std::vector<std::byte> TestEngine::Store(const Tokens& prompt) {
  const std::vector<std::uint64_t> hashes = Hashes(prompt);
  std::size_t first = 0;
  while (first < hashes.size() && cached_.contains(hashes[first])) ++first;
  events::Event event;
  event.kind = events::EventKind::kBlockStored;
  event.hashes = std::span(hashes).subspan(first);
  if (first > 0) event.parent = hashes[first - 1];
  event.tokens = TokenSpan(prompt).subspan(first * kBlock);
  event.block_size = kBlock;
  event.medium = medium;
  cached_.insert(hashes.begin(), hashes.end());
  return Encode(event);
}

std::vector<std::byte> TestEngine::Remove(const Tokens& prompt, std::size_t first) {
  const std::vector<std::uint64_t> hashes = Hashes(prompt);
  events::Event event;
  event.kind = events::EventKind::kBlockRemoved;
  event.hashes = std::span(hashes).subspan(first);
  event.medium = medium;
  for (const std::uint64_t hash : event.hashes) cached_.erase(hash);
  return Encode(event);
}

std::vector<std::byte> TestEngine::Clear() {
  cached_.clear();
  return Encode(events::Event());
}

std::uint32_t TestEngine::Depth(const Tokens& prompt) const {
  std::uint32_t depth = 0;
  for (const std::uint64_t hash : Hashes(prompt)) {
    if (!cached_.contains(hash)) break;
    ++depth;
  }
  return depth;
}

KvFeedTest::KvFeedTest() : index_(*index::PrefixIndex::Create({.max_bytes = 64 << 20, .max_holders = 256})) {}

KvFeedTest::~KvFeedTest() { feed_.reset(); }

KvFeedOptions KvFeedTest::Quick() {
  KvFeedOptions options;
  options.precise.kv_events.replay_socket_port = 0;
  options.stats_interval = absl::Milliseconds(10);
  options.max_reconnect_interval = absl::Milliseconds(200);
  options.replay_idle_timeout = absl::Milliseconds(500);
  options.stream.retry_backoff = absl::Milliseconds(10);
  options.stream.cooldown = absl::Milliseconds(300);
  return options;
}

void KvFeedTest::StartFeed(const KvFeedOptions& options) {
  auto feed = KvEventFeed::Start(options, pool_, *index_);
  ASSERT_TRUE(feed.ok()) << feed.status();
  feed_ = *std::move(feed);
}

sched::EndpointMetadata KvFeedTest::EndpointAt(std::string_view name, int port, int events_port,
                                               int replay_port, sched::Labels labels) {
  labels[std::string(kKvEventsPortLabel)] = std::to_string(events_port);
  labels[std::string(kKvReplayPortLabel)] = std::to_string(replay_port);
  return {.name = std::string(name),
          .address = "127.0.0.1",
          .port = static_cast<std::uint16_t>(port),
          .labels = std::move(labels)};
}

void KvFeedTest::SetEndpoints(const std::vector<sched::EndpointMetadata>& endpoints) {
  const absl::Status status = pool_.SetEndpoints(endpoints);
  ASSERT_TRUE(status.ok()) << status;
  if (feed_ == nullptr) return;
  // The feed hears of the pool in its own time, but in order.
  std::atomic<bool> heard = false;
  ASSERT_TRUE(feed_->RunOnIndex([&](index::PrefixIndex&) { heard = true; }));
  Await("the feed's attention", [&] { return heard.load(); });
}

std::map<std::string, std::uint32_t> KvFeedTest::Match(const Tokens& prompt, std::string_view model) {
  std::vector<BlockKey> chain;
  ingest::ContentKeys({.tokens = prompt, .block_size = kBlock}, chain);
  index::PrefixIndex::Reader reader(*index_);
  index::MatchResult result;
  reader.Match(ingest::RequestNamespace(model, "", kBlock), chain, result);
  const PoolStore::Snapshot pool = pool_.snapshot();
  const sched::HolderTable& table = pool->holders(sched::kExactSource);
  std::map<std::string, std::uint32_t> depths;
  for (const index::HolderDepth& row : result) {
    if (row.slot >= table.by_slot.size()) continue;
    const auto position = pool->Find(table.by_slot[row.slot].endpoint);
    if (!position) continue;
    std::uint32_t& depth = depths[(*pool)[*position].metadata().name];
    depth = std::max(depth, row.depth);
  }
  return depths;
}

void KvFeedTest::Await(std::string_view what, const std::function<bool()>& holds) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (!holds()) {
    ASSERT_LT(std::chrono::steady_clock::now(), end) << "waited in vain for: " << what;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

void KvFeedTest::AwaitDepth(std::string_view endpoint, const Tokens& prompt, std::uint32_t depth,
                            std::string_view model) {
  Await(absl::StrCat(ToAbsl(endpoint), " holds ", depth, " blocks"), [&] {
    const auto depths = Match(prompt, model);
    const auto it = depths.find(std::string(endpoint));
    return (it == depths.end() ? 0 : it->second) == depth;
  });
}

const KvPublisherStats* KvFeedTest::Find(const KvFeedStats& stats, std::string_view holder_name) {
  const auto it = std::find_if(stats.publishers.begin(), stats.publishers.end(),
                               [&](const KvPublisherStats& row) { return row.holder_name == holder_name; });
  return it == stats.publishers.end() ? nullptr : &*it;
}

void KvFeedTest::AwaitPublisher(std::string_view what, std::string_view holder_name,
                                const std::function<bool(const KvPublisherStats&)>& holds) {
  Await(what, [&] {
    const auto stats = feed_->stats();
    const KvPublisherStats* row = Find(*stats, holder_name);
    return row != nullptr && holds(*row);
  });
}

}  // namespace llmd::host
