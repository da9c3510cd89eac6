// What happens on the thread of the KV event feed: sockets, publishers, replays, and the endpoints they
// belong to. KvEventFeed gives it its thread and brings it the pool's changes.
//
// Threads: one at a time.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_KV_FEED_LOOP_H_
#define EXAMPLES_GATEWAY_SCHEDULER_KV_FEED_LOOP_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"
#include "examples/gateway_scheduler/kv_addresses.h"
#include "examples/gateway_scheduler/kv_event_feed.h"
#include "examples/gateway_scheduler/kv_publisher.h"
#include "examples/gateway_scheduler/kv_replay_runner.h"
#include "examples/gateway_scheduler/kv_sockets.h"
#include "examples/gateway_scheduler/label_selector.h"

namespace llmd::host {

using EndpointIdentities = std::vector<std::shared_ptr<const sched::EndpointIdentity>>;

class KvFeedLoop {
 public:
  KvFeedLoop(const KvFeedOptions& options, std::optional<LabelSelector> selector, PoolStore& pool,
             index::PrefixIndex& index, HolderBindings& bindings);
  ~KvFeedLoop();

  // Throws std::exception.
  std::string Bind(const std::string& address);
  SocketPoller& poller() { return poller_; }

  // The pool has these endpoints now; those in `left` (ids) were gone in between.
  void SetEndpoints(const EndpointIdentities& endpoints, const absl::flat_hash_set<std::string>& left);
  // One round: waits a little for messages and connection events, deals with them and with what is due.
  void RunOnce();
  KvFeedStats stats() const;

 private:
  class Subscriber;
  class Listener;
  // A publisher that connects to our socket.
  struct Visitor {
    std::unique_ptr<KvPublisher> publisher;
    int connection = -1;
  };
  using Rank = std::optional<std::uint32_t>;
  struct Endpoint {
    std::shared_ptr<const sched::EndpointIdentity> identity;
    std::vector<KvAddress> addresses;
    std::string default_model;
    index::RemovalPolicy gpu_removal = index::RemovalPolicy::kSet;
    std::vector<std::unique_ptr<Subscriber>> subscribers;
    std::map<Rank, Visitor> visitors;
    std::string problem;
  };

  bool Wanted(const sched::EndpointMetadata& endpoint) const;
  // An endpoint as its identity says, without sockets.
  Endpoint Describe(std::shared_ptr<const sched::EndpointIdentity> identity) const;
  void Join(Endpoint description);
  void Leave(std::vector<std::unique_ptr<Endpoint>> endpoints);
  std::unique_ptr<KvPublisher> NewPublisher(const Endpoint& endpoint, std::string_view suffix,
                                            const std::string& replay) const;
  void Subscribe(Endpoint& endpoint);
  // The ways to hear an endpoint exclude one another.
  void DropVisitors(Endpoint& endpoint);
  void ResetSubscribers(Endpoint& endpoint);
  void OnConnectionEvent(absl::Time now, const ConnectionEvent& event, Subscriber& subscriber);
  void OnVisit(absl::Time now, const FramedMessage& message);
  void OnVisitorGone(absl::Time now, int connection);
  Endpoint* FindByPod(std::string_view pod, const Rank& rank) const;
  Visitor* VisitorOf(Endpoint& endpoint, const FramedMessage& message);
  // The publishers leave index and pool, their figures stay in the sums.
  void Retire(const std::vector<KvPublisher*>& publishers);
  void TickSoonFor(const KvPublisher& publisher, absl::Time now);
  void Tick(absl::Time now);
  // `address` of the publisher's events; empty: it connects to us.
  void ForEachPublisher(absl::FunctionRef<void(KvPublisher&, const std::string& address)> visit) const;

  const KvFeedOptions options_;
  const std::optional<LabelSelector> selector_;  // absent: all
  PoolStore& pool_;
  index::PrefixIndex& index_;
  HolderBindings& bindings_;
  zmq::context_t context_;
  const SocketSettings settings_;
  SocketPoller poller_;
  KvIntake intake_;
  KvReplayRunner replays_;
  std::unique_ptr<Listener> listener_;
  MessageBatch batch_;  // scratch

  absl::flat_hash_map<std::string, std::unique_ptr<Endpoint>> endpoints_;  // by id
  absl::flat_hash_map<std::string, Endpoint*> by_host_port_;
  absl::flat_hash_map<std::string, std::vector<Endpoint*>> by_address_;
  std::size_t num_publishers_ = 0;
  absl::Time next_tick_ = absl::InfinitePast();
  absl::Time next_flush_ = absl::InfinitePast();
  KvFeedStats sums_;  // of the feed, and of publishers that left
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_KV_FEED_LOOP_H_
