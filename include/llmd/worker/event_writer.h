// Turns a block pool's events into the batches that an engine publishes.
//
//   EventWriter writer({.schema = events::Schema::kMap});
//   pool.TakeEvents(events);                       // once per scheduler step, after its output was processed
//   if (!events.empty()) writer.Encode(events, timestamp_s, payload);
//
// Convert() gives the events themselves, for a router in the same process. Results point into the BlockEvents
// and into the writer: they are valid until either changes. Nothing allocates after warm-up. Not thread safe.
#ifndef LLMD_WORKER_EVENT_WRITER_H_
#define LLMD_WORKER_EVENT_WRITER_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "llmd/events/encoder.h"
#include "llmd/events/event.h"
#include "llmd/worker/block_events.h"

namespace llmd::worker {

struct EventWriterOptions {
  events::Schema schema = events::Schema::kMap;
  bool full_digests = false;  // hashes as byte strings instead of the digest's low 64 bits
  std::optional<std::uint32_t> data_parallel_rank = 0;
  std::string medium = "GPU";
};

class EventWriter {
 public:
  explicit EventWriter(EventWriterOptions options = {}) : options_(std::move(options)) {}

  // One event for each of `source`, in order: group_idx is the group id, kv_cache_spec_kind "full_attention".
  std::span<const events::Event> Convert(const BlockEvents& source);

  // Replaces `payload` by the MessagePack batch. `timestamp`: seconds since the epoch.
  void Encode(const BlockEvents& source, double timestamp, std::vector<std::byte>& payload) {
    events::EncodeBatch(options_.schema, timestamp, Convert(source), options_.data_parallel_rank, payload);
  }

 private:
  EventWriterOptions options_;
  // What the converted events point to.
  std::vector<events::Event> events_;
  std::vector<std::uint64_t> hashes_;
  std::vector<std::string_view> hash_bytes_;
  std::vector<events::ExtraKey> keys_;
  std::vector<std::span<const events::ExtraKey>> keys_of_block_;
};

}  // namespace llmd::worker

#endif  // LLMD_WORKER_EVENT_WRITER_H_
