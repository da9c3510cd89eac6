// The replays of a feed: a bounded number at once, each on a socket of its own, the others in a queue.
//
// A replay that falls silent, or whose socket fails, is reported to its publisher. A socket that is closed
// early stalls nobody: the publisher's ROUTER drops what is left. Threads: the feed's.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_KV_REPLAY_RUNNER_H_
#define EXAMPLES_GATEWAY_SCHEDULER_KV_REPLAY_RUNNER_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "examples/gateway_scheduler/kv_publisher.h"
#include "examples/gateway_scheduler/kv_sockets.h"

namespace llmd::host {

class KvReplayRunner final : public KvReplays {
 public:
  KvReplayRunner(zmq::context_t& context, const SocketSettings& settings, SocketPoller& poller,
                 std::size_t max_running, absl::Duration idle_timeout);
  ~KvReplayRunner() override;

  void Request(KvPublisher& publisher, std::uint64_t request, std::uint64_t start) override;
  // Also to be called before a publisher is destroyed.
  void Cancel(KvPublisher& publisher) override;

  void Tick(absl::Time now);
  std::size_t running() const { return running_.size(); }
  std::size_t waiting() const { return waiting_.size(); }
  std::uint64_t socket_errors() const { return socket_errors_; }

 private:
  class Replay;
  struct Waiting {
    KvPublisher* publisher;
    std::uint64_t request;
    std::uint64_t start;
  };

  void StartWaiting(absl::Time now);
  bool Stop(KvPublisher& publisher);

  zmq::context_t& context_;
  const SocketSettings& settings_;
  SocketPoller& poller_;
  const std::size_t max_running_;
  const absl::Duration idle_timeout_;
  absl::flat_hash_map<KvPublisher*, std::unique_ptr<Replay>> running_;
  std::deque<Waiting> waiting_;
  std::uint64_t socket_errors_ = 0;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_KV_REPLAY_RUNNER_H_
