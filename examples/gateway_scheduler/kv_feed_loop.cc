#include "examples/gateway_scheduler/kv_feed_loop.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "llmd/events/topic.h"

namespace llmd::host {
namespace {

constexpr std::size_t kMaxProblems = 100;
constexpr absl::Duration kBusyTick = absl::Milliseconds(10);
constexpr absl::Duration kIdleTick = absl::Milliseconds(100);
// Holders of many publishers that appear together reach the pool together.
constexpr absl::Duration kFlushInterval = absl::Milliseconds(5);

}  // namespace

// The feed's socket to one publisher. Connection events come before the messages of their connection, so
// they are dealt with between receiving messages and looking at them.
class KvFeedLoop::Subscriber final : public PollSource {
 public:
  Subscriber(KvFeedLoop& loop, Endpoint& endpoint, std::unique_ptr<KvPublisher> publisher,
             const KvAddress& address)
      : loop_(loop),
        endpoint_(endpoint),
        publisher_(std::move(publisher)),
        address_(address.events),
        socket_(loop.context_, loop.settings_, loop.options_.precise.kv_events.topic_filter) {}
  ~Subscriber() override { Close(); }

  void Open() {
    socket_.Connect(address_);
    for (const int descriptor : socket_.descriptors()) {
      loop_.poller_.Watch(descriptor, this);
      watched_.push_back(descriptor);
    }
  }
  void Close() {
    for (const int descriptor : watched_) loop_.poller_.Forget(descriptor);
    watched_.clear();
  }

  bool OnReady(absl::Time now) override {
    const bool more = loop_.batch_.Fill(socket_);
    for (ConnectionEvent event; socket_.ReceiveEvent(event);) {
      last_event_ = now;
      loop_.OnConnectionEvent(now, event, *this);
    }
    for (const FramedMessage& framed : loop_.batch_.messages()) {
      if (const auto message = events::ParseLiveMessage(framed.frames()); message.ok()) {
        publisher_->OnLive(now, *message);
      } else {
        publisher_->OnMalformed(message.status());
      }
    }
    loop_.batch_.Release();
    loop_.TickSoonFor(*publisher_, now);
    return more;
  }

  void Tick(absl::Time now) {
    publisher_->Tick(now);
    if (publisher_->connected() || now - last_event_ < 2 * loop_.options_.max_reconnect_interval) return;
    last_event_ = now;
    try {
      socket_.Reconnect(address_);
    } catch (const zmq::error_t&) {
      ++loop_.sums_.socket_errors;
    }
  }

  Endpoint& endpoint() { return endpoint_; }
  KvPublisher& publisher() { return *publisher_; }
  const std::string& address() const { return address_; }

 private:
  KvFeedLoop& loop_;
  Endpoint& endpoint_;
  std::unique_ptr<KvPublisher> publisher_;
  const std::string address_;
  LiveSocket socket_;
  absl::Time last_event_ = absl::Now();
  std::vector<int> watched_;
};

// The socket that publishers connect to.
class KvFeedLoop::Listener final : public PollSource {
 public:
  Listener(KvFeedLoop& loop)
      : loop_(loop), socket_(loop.context_, loop.settings_, loop.options_.precise.kv_events.topic_filter) {}

  std::string Open(const std::string& address) {
    std::string bound = socket_.Bind(address);
    for (const int descriptor : socket_.descriptors()) loop_.poller_.Watch(descriptor, this);
    return bound;
  }

  bool OnReady(absl::Time now) override {
    const bool more = loop_.batch_.Fill(socket_);
    for (ConnectionEvent event; socket_.ReceiveEvent(event);) {
      if (event.kind == ConnectionEvent::Kind::kDown) loop_.OnVisitorGone(now, event.connection);
      if (event.kind == ConnectionEvent::Kind::kFailed) ++loop_.sums_.socket_errors;
    }
    for (const FramedMessage& framed : loop_.batch_.messages()) loop_.OnVisit(now, framed);
    loop_.batch_.Release();
    return more;
  }

 private:
  KvFeedLoop& loop_;
  LiveSocket socket_;
};

KvFeedLoop::KvFeedLoop(const KvFeedOptions& options, std::optional<LabelSelector> selector, PoolStore& pool,
                       index::PrefixIndex& index, HolderBindings& bindings)
    : options_(options),
      selector_(std::move(selector)),
      pool_(pool),
      index_(index),
      bindings_(bindings),
      settings_{.receive_hwm = options.receive_hwm,
                .max_message_bytes = options.max_message_bytes,
                .max_reconnect_interval = options.max_reconnect_interval},
      intake_(index, pool, bindings),
      replays_(context_, settings_, poller_, options.max_replays, options.replay_idle_timeout) {
  context_.set(zmq::ctxopt::max_sockets, 32768);
}

KvFeedLoop::~KvFeedLoop() = default;

std::string KvFeedLoop::Bind(const std::string& address) {
  auto listener = std::make_unique<Listener>(*this);
  std::string bound = listener->Open(address);
  listener_ = std::move(listener);
  return bound;
}

bool KvFeedLoop::Wanted(const sched::EndpointMetadata& endpoint) const {
  const std::string& wanted_namespace = options_.precise.kv_events.pod_namespace;
  return (wanted_namespace.empty() || endpoint.pod_namespace == wanted_namespace) &&
         (!selector_ || selector_->Matches(endpoint.labels));
}

KvFeedLoop::Endpoint KvFeedLoop::Describe(std::shared_ptr<const sched::EndpointIdentity> identity) const {
  Endpoint endpoint;
  const sched::EndpointMetadata& metadata = identity->metadata;
  auto addresses = KvAddressesOf(metadata, options_.precise.kv_events);
  const auto removal = KvRemovalOf(metadata);
  if (addresses.ok() && removal.ok()) {
    endpoint.addresses = *std::move(addresses);
    endpoint.gpu_removal = *removal;
  } else {
    endpoint.problem = std::string((addresses.ok() ? removal.status() : addresses.status()).message());
  }
  const auto label = metadata.labels.find(kKvModelLabel);
  endpoint.default_model = label == metadata.labels.end() ? options_.default_model : label->second;
  endpoint.identity = std::move(identity);
  return endpoint;
}

void KvFeedLoop::SetEndpoints(const EndpointIdentities& endpoints,
                              const absl::flat_hash_set<std::string>& left) {
  absl::flat_hash_map<std::string, Endpoint> wanted;
  for (const auto& identity : endpoints) {
    if (Wanted(identity->metadata)) wanted.emplace(identity->id, Describe(identity));
  }
  std::vector<std::unique_ptr<Endpoint>> leaving;
  absl::erase_if(endpoints_, [&](auto& entry) {
    auto& [id, endpoint] = entry;
    const auto it = wanted.find(id);
    const bool stays =
        it != wanted.end() && !left.contains(id) && endpoint->problem.empty() && it->second.problem.empty() &&
        it->second.identity->host_port == endpoint->identity->host_port &&
        it->second.addresses == endpoint->addresses && it->second.default_model == endpoint->default_model &&
        it->second.gpu_removal == endpoint->gpu_removal;
    if (stays) {
      endpoint->identity = std::move(it->second.identity);
      wanted.erase(it);
      return false;
    }
    leaving.push_back(std::move(endpoint));
    return true;
  });
  Leave(std::move(leaving));
  for (auto& [id, description] : wanted) Join(std::move(description));
}

void KvFeedLoop::Join(Endpoint description) {
  auto owned = std::make_unique<Endpoint>(std::move(description));
  Endpoint& endpoint = *owned;
  endpoints_.insert_or_assign(endpoint.identity->id, std::move(owned));
  const std::string& host_port = endpoint.identity->host_port;
  if (endpoint.problem.empty() && by_host_port_.contains(host_port)) {
    endpoint.problem = absl::StrCat(host_port, " is also the address of ",
                                    by_host_port_[host_port]->identity->id, ", which is listened to");
  }
  if (!endpoint.problem.empty()) return;
  by_host_port_[host_port] = &endpoint;
  by_address_[endpoint.identity->metadata.address].push_back(&endpoint);
  if (options_.precise.kv_events.discover_pods) Subscribe(endpoint);
}

std::unique_ptr<KvPublisher> KvFeedLoop::NewPublisher(const Endpoint& endpoint, std::string_view suffix,
                                                      const std::string& replay) const {
  KvPublisherOptions options{.endpoint_id = endpoint.identity->id,
                             .host_port = endpoint.identity->host_port,
                             .holder_name = absl::StrCat(endpoint.identity->host_port, ToAbsl(suffix)),
                             .replay = replay,
                             .default_model = endpoint.default_model,
                             .gpu_removal = endpoint.gpu_removal,
                             .stream = options_.stream,
                             .disconnect_grace = options_.disconnect_grace};
  options.stream.replay = !replay.empty();
  // Silence is noticed by the replay runner, which knows when a waiting request was really sent.
  options.stream.idle_timeout = options.stream.replay_deadline;
  auto& self = const_cast<KvFeedLoop&>(*this);
  return std::make_unique<KvPublisher>(options, self.intake_, self.replays_);
}

void KvFeedLoop::Subscribe(Endpoint& endpoint) {
  for (std::size_t i = 0; i < endpoint.addresses.size(); ++i) {
    if (endpoint.addresses[i].events.empty()) continue;
    if (num_publishers_ >= options_.max_publishers) {
      ++sums_.refused_publishers;
      endpoint.problem = absl::StrCat("max_publishers ", options_.max_publishers, " is reached");
      return;
    }
    try {
      auto subscriber = std::make_unique<Subscriber>(
          *this, endpoint,
          NewPublisher(endpoint, i == 0 ? "" : absl::StrCat("#", i), endpoint.addresses[i].replay),
          endpoint.addresses[i]);
      subscriber->Open();
      endpoint.subscribers.push_back(std::move(subscriber));
      ++num_publishers_;
    } catch (const std::exception& error) {
      ++sums_.socket_errors;
      endpoint.problem = absl::StrCat(endpoint.addresses[i].events, ": ", error.what());
    }
  }
}

void KvFeedLoop::Retire(const std::vector<KvPublisher*>& publishers) {
  for (KvPublisher* publisher : publishers) {
    replays_.Cancel(*publisher);
    const KvPublisherStats stats = publisher->stats();
    sums_.live_messages += stats.live_messages;
    sums_.replay_messages += stats.replay_messages;
    sums_.malformed += stats.malformed;
    sums_.reconnections += stats.reconnections;
  }
  num_publishers_ -= publishers.size();
  intake_.Retire(publishers);
}

void KvFeedLoop::Leave(std::vector<std::unique_ptr<Endpoint>> endpoints) {
  std::vector<KvPublisher*> publishers;
  for (const auto& endpoint : endpoints) {
    for (const auto& subscriber : endpoint->subscribers) {
      subscriber->Close();
      publishers.push_back(&subscriber->publisher());
    }
    for (const auto& [rank, visitor] : endpoint->visitors) publishers.push_back(visitor.publisher.get());
    const auto it = by_host_port_.find(endpoint->identity->host_port);
    if (it == by_host_port_.end() || it->second != endpoint.get()) continue;
    by_host_port_.erase(it);
    const auto neighbours = by_address_.find(endpoint->identity->metadata.address);
    std::erase(neighbours->second, endpoint.get());
    if (neighbours->second.empty()) by_address_.erase(neighbours);
  }
  Retire(publishers);
  for (const auto& endpoint : endpoints) {
    for (auto& subscriber : endpoint->subscribers) poller_.Dispose(std::move(subscriber));
  }
}

void KvFeedLoop::DropVisitors(Endpoint& endpoint) {
  if (endpoint.visitors.empty()) return;
  std::vector<KvPublisher*> publishers;
  for (const auto& [rank, visitor] : endpoint.visitors) publishers.push_back(visitor.publisher.get());
  Retire(publishers);
  endpoint.visitors.clear();
}

void KvFeedLoop::ResetSubscribers(Endpoint& endpoint) {
  std::vector<KvPublisher*> publishers;
  for (const auto& subscriber : endpoint.subscribers) {
    subscriber->publisher().Restart();
    publishers.push_back(&subscriber->publisher());
  }
  intake_.Retire(publishers);
}

void KvFeedLoop::OnConnectionEvent(absl::Time now, const ConnectionEvent& event, Subscriber& subscriber) {
  switch (event.kind) {
    case ConnectionEvent::Kind::kUp:
      DropVisitors(subscriber.endpoint());
      subscriber.publisher().OnConnected(now);
      break;
    case ConnectionEvent::Kind::kDown:
      subscriber.publisher().OnDisconnected(now);
      break;
    case ConnectionEvent::Kind::kFailed:
      ++sums_.socket_errors;
      break;
    case ConnectionEvent::Kind::kTrying:
      break;
  }
}

KvFeedLoop::Endpoint* KvFeedLoop::FindByPod(std::string_view pod, const Rank& rank) const {
  if (const auto it = by_host_port_.find(ToAbsl(pod)); it != by_host_port_.end()) return it->second;
  const auto it = by_address_.find(ToAbsl(pod));
  if (it == by_address_.end()) return nullptr;
  if (it->second.size() == 1) return it->second.front();
  // Servers behind one address: ranks of one engine.
  Endpoint* found = nullptr;
  for (Endpoint* endpoint : it->second) {
    if (!rank || endpoint->identity->metadata.rank != *rank) continue;
    if (found != nullptr) return nullptr;
    found = endpoint;
  }
  return found;
}

// The payload has been decoded. Publishers of one endpoint are told apart by rank, and where a damaged batch
// has lost its rank, by connection.
KvFeedLoop::Visitor* KvFeedLoop::VisitorOf(Endpoint& endpoint, const FramedMessage& message) {
  const events::EventBatch& batch = intake_.batch();
  if (!intake_.decode_status().ok() || (batch.truncated() && !batch.data_parallel_rank())) {
    for (auto& [rank, visitor] : endpoint.visitors) {
      if (visitor.connection == message.connection()) return &visitor;
    }
    return nullptr;
  }
  const Rank rank = batch.data_parallel_rank();
  if (const auto it = endpoint.visitors.find(rank); it != endpoint.visitors.end()) return &it->second;
  if (num_publishers_ >= options_.max_publishers || endpoint.visitors.size() >= kMaxKvPublishersPerEndpoint) {
    ++sums_.refused_publishers;
    return nullptr;
  }
  if (endpoint.visitors.empty()) ResetSubscribers(endpoint);
  const std::size_t place = endpoint.addresses.size() > 1 ? rank.value_or(0) : 0;
  const std::string replay = place < endpoint.addresses.size() ? endpoint.addresses[place].replay : "";
  Visitor& visitor = endpoint.visitors[rank];
  visitor.publisher = NewPublisher(endpoint, rank ? absl::StrCat("#", *rank) : "", replay);
  ++num_publishers_;
  return &visitor;
}

void KvFeedLoop::OnVisit(absl::Time now, const FramedMessage& message) {
  const auto live = events::ParseLiveMessage(message.frames());
  if (!live.ok()) {
    ++sums_.malformed;
    return;
  }
  const events::Topic topic = events::ParseTopic(live->topic);
  if (events::IsPseudoPod(topic.pod)) {
    ++sums_.storage_messages;
    return;
  }
  if (!by_host_port_.contains(ToAbsl(topic.pod)) && !by_address_.contains(ToAbsl(topic.pod))) {
    ++sums_.unknown_endpoints;
    return;
  }
  const bool decoded = intake_.DecodeAhead(live->payload);
  Endpoint* endpoint = FindByPod(topic.pod, decoded ? intake_.batch().data_parallel_rank() : Rank());
  if (endpoint == nullptr) {
    ++sums_.unknown_endpoints;
    return intake_.ForgetPayload();
  }
  const bool heard = std::any_of(endpoint->subscribers.begin(), endpoint->subscribers.end(),
                                 [](const auto& subscriber) { return subscriber->publisher().connected(); });
  Visitor* visitor = heard ? nullptr : VisitorOf(*endpoint, message);
  if (visitor != nullptr) {
    if (!visitor->publisher->connected() || visitor->connection != message.connection()) {
      visitor->connection = message.connection();
      visitor->publisher->OnConnected(now);
    }
    visitor->publisher->OnLive(now, *live);
    TickSoonFor(*visitor->publisher, now);
  } else if (heard) {
    ++sums_.second_source;
  } else if (!decoded) {
    ++sums_.malformed;
  }
  intake_.ForgetPayload();
}

void KvFeedLoop::OnVisitorGone(absl::Time now, int connection) {
  for (const auto& [id, endpoint] : endpoints_) {
    for (auto& [rank, visitor] : endpoint->visitors) {
      if (visitor.connection != connection) continue;
      visitor.connection = -1;
      visitor.publisher->OnDisconnected(now);
    }
  }
}

void KvFeedLoop::ForEachPublisher(
    absl::FunctionRef<void(KvPublisher&, const std::string& address)> visit) const {
  const std::string none;
  for (const auto& [id, endpoint] : endpoints_) {
    for (const auto& subscriber : endpoint->subscribers)
      visit(subscriber->publisher(), subscriber->address());
    for (const auto& [rank, visitor] : endpoint->visitors) visit(*visitor.publisher, none);
  }
}

void KvFeedLoop::TickSoonFor(const KvPublisher& publisher, absl::Time now) {
  if (publisher.busy()) next_tick_ = std::min(next_tick_, now + kBusyTick);
}

void KvFeedLoop::Tick(absl::Time now) {
  bool busy = replays_.running() > 0;
  for (const auto& [id, endpoint] : endpoints_) {
    for (const auto& subscriber : endpoint->subscribers) {
      subscriber->Tick(now);
      busy |= subscriber->publisher().busy();
    }
    for (const auto& [rank, visitor] : endpoint->visitors) {
      visitor.publisher->Tick(now);
      busy |= visitor.publisher->busy();
    }
  }
  next_tick_ = now + (busy ? kBusyTick : kIdleTick);
}

void KvFeedLoop::RunOnce() {
  const absl::Time before = absl::Now();
  absl::Time until = next_tick_;
  if (bindings_.pending()) until = std::min(until, next_flush_);
  poller_.Run(std::clamp(until - before, absl::ZeroDuration(), kIdleTick));
  const absl::Time now = absl::Now();
  if (now >= next_tick_) Tick(now);
  replays_.Tick(now);
  if (bindings_.pending() && now >= next_flush_) {
    bindings_.Flush(pool_);
    next_flush_ = now + kFlushInterval;
  }
}

KvFeedStats KvFeedLoop::stats() const {
  KvFeedStats stats = sums_;
  stats.at = absl::Now();
  stats.index = index_.stats();
  stats.memory = index_.memory_usage();
  stats.ingest = intake_.ingestor().counters();
  stats.socket_errors += replays_.socket_errors();
  stats.replays_running = replays_.running();
  stats.replays_waiting = replays_.waiting();
  ForEachPublisher([&](KvPublisher& publisher, const std::string& address) {
    KvPublisherStats& row = stats.publishers.emplace_back(publisher.stats());
    row.address = address;
    stats.live_messages += row.live_messages;
    stats.replay_messages += row.replay_messages;
    stats.malformed += row.malformed;
    stats.reconnections += row.reconnections;
    stats.held_bytes += row.held_bytes;
    stats.subscribers += row.connected;
  });
  std::sort(stats.publishers.begin(), stats.publishers.end(),
            [](const auto& a, const auto& b) { return a.holder_name < b.holder_name; });
  for (const auto& [id, endpoint] : endpoints_) {
    if (endpoint->problem.empty() || stats.problems.size() >= kMaxProblems) continue;
    stats.problems.push_back(absl::StrCat(id, ": ", endpoint->problem));
  }
  std::sort(stats.problems.begin(), stats.problems.end());
  return stats;
}

}  // namespace llmd::host
