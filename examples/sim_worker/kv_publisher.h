// KV events over ZeroMQ as vLLM publishes them (spec: kv-events.md 4 and 5): a PUB socket with three frames
// [topic, sequence, payload], and a ROUTER socket that replays the last batches.
//
// Sequence numbers start at 0 with the publisher. Publish() may be called by one thread at a time; replays
// are answered by a thread of the publisher's own, which never holds up Publish() for longer than a copy of
// pointers.
#ifndef EXAMPLES_SIM_WORKER_KV_PUBLISHER_H_
#define EXAMPLES_SIM_WORKER_KV_PUBLISHER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace llmd::sim {

struct KvPublisherOptions {
  // A ZeroMQ endpoint: bound when it contains '*' or "::" or is ipc:// or inproc://, or when `bind`; else
  // connected to.
  std::string endpoint = "tcp://127.0.0.1:*";
  bool bind = true;
  std::string replay_endpoint = {};  // always bound; empty: none
  std::string topic = {};
  std::size_t buffer_steps = 10'000;                  // batches kept for replay
  std::size_t buffer_bytes = std::size_t{256} << 20;  // bytes of them
  int hwm = 100'000;                                  // messages queued for a subscriber
  // Replies carry the topic: [topic, seq, payload], as vLLM does since 0.26; else [seq, payload].
  bool replay_topic = true;
};

class KvPublisher {
 public:
  // Unavailable names the endpoint.
  static absl::StatusOr<std::unique_ptr<KvPublisher>> Create(const KvPublisherOptions& options);
  ~KvPublisher();
  KvPublisher(const KvPublisher&) = delete;
  KvPublisher& operator=(const KvPublisher&) = delete;

  // Sends the batch under the next sequence number. Never waits for subscribers.
  void Publish(const std::vector<std::byte>& payload);
  void set_topic(std::string topic);

  // 0 when not bound to a TCP port.
  std::uint16_t port() const;
  std::uint16_t replay_port() const;
  std::uint64_t next_seq() const;

 private:
  struct Impl;
  explicit KvPublisher(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace llmd::sim

#endif  // EXAMPLES_SIM_WORKER_KV_PUBLISHER_H_
