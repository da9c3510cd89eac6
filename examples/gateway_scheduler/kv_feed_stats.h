// What the feed of KV events tells of itself: a plain value for the status page and the metrics.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_KV_FEED_STATS_H_
#define EXAMPLES_GATEWAY_SCHEDULER_KV_FEED_STATS_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "llmd/base/memory_usage.h"
#include "llmd/events/publisher_stream.h"
#include "llmd/index/prefix_index.h"
#include "llmd/ingest/kv_event_ingestor.h"

namespace llmd::host {

struct KvPublisherStats {
  std::string endpoint_id = {};  // "namespace/name"
  std::string host_port = {};
  std::string holder_name = {};  // host_port; "#i" follows for further publishers of the endpoint
  std::string address = {};      // of its event socket; empty: it connects to ours
  std::string model = {};
  bool connected = false;
  bool in_sync = false;  // connected, and nothing is missing as far as the stream can know
  bool replays = false;  // it has a replay socket
  absl::Time last_message = absl::InfinitePast();
  absl::Duration lag = absl::ZeroDuration();  // of the last live batch: received minus its timestamp
  std::uint64_t live_messages = 0;
  std::uint64_t replay_messages = 0;
  std::uint64_t malformed = 0;        // messages that are none
  std::uint64_t bad_batches = 0;      // payloads refused as a whole
  std::uint64_t skipped_events = 0;   // bad events within batches
  std::uint64_t unknown_parents = 0;  // batches with an event below a block that nobody announced
  std::uint64_t reconnections = 0;
  std::uint64_t model_changes = 0;
  std::size_t holders = 0;     // in the index: data-parallel ranks times tiers
  std::size_t held_bytes = 0;  // live batches that wait for a replay
  events::StreamCounters stream = {};
  std::string last_error = {};
};

struct KvFeedStats {
  absl::Time at = absl::InfinitePast();
  index::IndexStats index = {};
  MemoryUsage memory = {};
  ingest::IngestCounters ingest = {};
  std::vector<KvPublisherStats> publishers = {};  // by holder name
  std::vector<std::string> problems = {};         // endpoints that cannot be listened to, at most 100

  // Sums over publishers, those that left included.
  std::uint64_t live_messages = 0;
  std::uint64_t replay_messages = 0;
  std::uint64_t malformed = 0;
  std::uint64_t reconnections = 0;
  // Of the feed.
  std::uint64_t unknown_endpoints = 0;  // messages whose topic names none of the pool
  std::uint64_t storage_messages = 0;   // of storage tiers, which no endpoint holds
  std::uint64_t second_source = 0;      // messages of an endpoint that is listened to elsewhere
  std::uint64_t refused_publishers = 0;
  std::uint64_t socket_errors = 0;
  std::size_t subscribers = 0;  // sockets connected to a publisher, and publishers connected to ours
  std::size_t replays_running = 0;
  std::size_t replays_waiting = 0;
  std::size_t held_bytes = 0;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_KV_FEED_STATS_H_
