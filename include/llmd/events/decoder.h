// Decoder of KV-event batches: MessagePack payload in, events out.
//
// Accepts, per event, the positional arrays of every vLLM generation, tagged maps, SGLang's variants (signed
// hashes, a map in the place of the LoRA name), events packed once more into a byte string, and Mooncake's
// `event_type` maps. Widths, key order, unknown keys, and extra trailing elements do not matter.
//
// One bad event does not cost its batch: it is skipped and counted, and the first one is explained
// (EventBatch::first_error). Only a payload whose batch header makes no sense is refused as a whole. Hostile
// input costs time linear in its length and memory in proportion to it, is never followed by recursion, and
// is held to DecodeLimits.
//
// Threads: const after construction; one decoder may serve many threads, each with its own EventBatch.
#ifndef LLMD_EVENTS_DECODER_H_
#define LLMD_EVENTS_DECODER_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "llmd/events/event.h"

namespace llmd::events {

// The first two refuse the batch, the others skip an event. The defaults are far above what engines send.
struct DecodeLimits {
  std::size_t max_payload_bytes = 16u << 20;
  std::uint32_t max_events = 1u << 20;         // per batch
  std::uint32_t max_hashes = 1u << 20;         // per event
  std::uint32_t max_tokens = 16u << 20;        // per event
  std::uint32_t max_string_bytes = 64u << 10;  // any string or byte string that is kept
  std::uint32_t max_extra_keys_per_block = 1024;
  std::size_t max_decoded_bytes = 64u << 20;  // arrays of all events of a batch, as decoded
  std::uint32_t max_nesting = 16;  // containers inside one value that is not interpreted; at most 64
};

struct DecodeOptions {
  DecodeLimits limits;
  // Some publishers write 0 for "no parent", and no hash is 0 by any realistic chance: take it for the root.
  bool zero_parent_is_root = true;
};

class EventDecoder {
 public:
  EventDecoder() = default;
  explicit EventDecoder(const DecodeLimits& limits) : options_{.limits = limits} {}
  explicit EventDecoder(const DecodeOptions& options) : options_(options) {}

  // Replaces the contents of `batch`, whose events then point into `payload`.
  // OK: events() may be applied; look at skipped_events() and truncated() for what is missing.
  // InvalidArgument: not a batch (names the field). ResourceExhausted: a batch limit is exceeded (names
  // field, value and limit). `batch` is empty then.
  absl::Status Decode(std::span<const std::byte> payload, EventBatch& batch) const;

  const DecodeOptions& options() const { return options_; }

 private:
  DecodeOptions options_;
};

}  // namespace llmd::events

#endif  // LLMD_EVENTS_DECODER_H_
