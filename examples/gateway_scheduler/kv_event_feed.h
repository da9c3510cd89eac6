// The exact prefix index, fed from the engines' KV events over ZeroMQ (spec: kv-events.md).
//
//   auto index = *index::PrefixIndex::Create({});
//   PoolStore pool;
//   auto feed = *KvEventFeed::Start({.precise = options}, pool, *index);
//   sched::ExactIndex(*index);          // what decisions match in
//   feed->stats()->publishers           // the status page
//
// Sockets. The feed subscribes to each endpoint of the pool (kv_addresses.h says where), and follows the pool
// as endpoints come and go; `discoverPods`, the label selector and the namespace say which. With
// `zmqEndpoint` it also binds a socket that engines connect to, and finds the endpoint by the topic
// kv@<address:port>@<model> or kv@<address>@<model>. An endpoint is heard by one way at a time: while its own
// socket is connected, what it sends to ours is counted and dropped. Publishers with a replay socket have
// their gaps filled (events/publisher_stream.h); without one a gap starts the publisher over.
//
// Holders. The feed binds the index's holders to endpoints in the pool, source kExactSource, in batches. An
// endpoint that left, or whose name, address or publisher changed, loses its holders; one whose other labels
// changed keeps them. A publisher that stays away for `disconnect_grace` is emptied.
//
// Threads. The feed has one thread, the only one that may write to the index while the feed lives;
// RunOnIndex() brings work to it. Start(), the destructor (which stops and joins) and all members: any
// thread, but the destructor must not run within a turn of the pool's store. Index and pool outlive the feed.
//
// Bounds. A publisher's queue is ZeroMQ's (receive_hwm messages, above which its kernel and its own queue
// fill and it drops: a gap, then a replay), max_message_bytes for a frame, stream.max_held_bytes while a
// replay runs, and max_replays replays at once. Each descriptor limit applies: a publisher takes about four.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_KV_EVENT_FEED_H_
#define EXAMPLES_GATEWAY_SCHEDULER_KV_EVENT_FEED_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "examples/gateway_scheduler/kv_feed_stats.h"
#include "examples/gateway_scheduler/pool_store.h"
#include "llmd/events/publisher_stream.h"
#include "llmd/index/prefix_index.h"
#include "llmd/sched/prefix.h"

namespace llmd::host {

struct KvFeedOptions {
  sched::PreciseOptions precise = {};  // kv_events; its `concurrency` does not matter: there is one thread
  // The model of publishers whose topic and endpoint labels name none; empty: they are filed under "".
  std::string default_model = {};
  // `replay` is set per publisher, idle_timeout by the feed's replay_idle_timeout.
  events::StreamOptions stream = {.mode = events::StreamOptions::Mode::kBestEffort,
                                  .max_held_bytes = 4u << 20};
  absl::Duration replay_idle_timeout = absl::Seconds(2);  // silence of a running replay
  absl::Duration disconnect_grace = absl::Seconds(30);
  absl::Duration stats_interval = absl::Seconds(1);
  absl::Duration max_reconnect_interval = absl::Seconds(5);
  int receive_hwm = 1000;
  std::int64_t max_message_bytes = 16 << 20;
  std::size_t max_replays = 8;
  std::size_t max_publishers = 8192;
};

class KvEventFeed {
 public:
  // InvalidArgument for a label selector that makes no sense, FailedPrecondition when zmqEndpoint cannot be
  // bound; the message names the parameter.
  static absl::StatusOr<std::unique_ptr<KvEventFeed>> Start(const KvFeedOptions& options, PoolStore& pool,
                                                            index::PrefixIndex& index);
  ~KvEventFeed();
  KvEventFeed(const KvEventFeed&) = delete;
  KvEventFeed& operator=(const KvEventFeed&) = delete;

  // As of the last stats_interval. Never null.
  std::shared_ptr<const KvFeedStats> stats() const;
  // Calls `work` on the feed's thread, soon. False, and `work` is dropped, when 64 wait already. What waits
  // when the feed is destroyed is still called.
  bool RunOnIndex(std::function<void(index::PrefixIndex&)> work);
  // zmqEndpoint with the port in use; empty when nothing is bound.
  const std::string& bound_endpoint() const;

 private:
  struct Impl;
  explicit KvEventFeed(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_KV_EVENT_FEED_H_
