// Any payload: no crash, memory in proportion, every view inside the payload or the batch, and what was
// understood survives being written and read again.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string_view>
#include <vector>

#include "llmd/events/decoder.h"
#include "llmd/events/encoder.h"
#include "llmd/events/frames.h"
#include "llmd/events/topic.h"

namespace {

using namespace llmd::events;

void Require(bool condition) {
  if (!condition) std::abort();
}

// Reads every byte that the events point to, for the address sanitizer.
void Touch(std::span<const Event> events) {
  std::uint64_t sum = 0;
  const auto text = [&](std::string_view s) {
    for (const char c : s) sum += static_cast<unsigned char>(c);
  };
  for (const Event& event : events) {
    for (const auto hash : event.hashes) sum += hash;
    for (const auto bytes : event.hash_bytes) text(bytes);
    for (const auto token : event.tokens) sum += token;
    for (const auto token : event.bigram_tokens) sum += token;
    for (const auto keys : event.extra_keys) {
      for (const ExtraKey& key : keys) text(key.text);
    }
    for (const auto tokens : event.lookahead_tokens) {
      for (const auto token : tokens) sum += token;
    }
    for (const auto s : {event.parent_bytes, event.lora_name, event.cache_salt, event.session_id,
                         event.medium, event.tier, event.spec_kind, event.locality, event.ownership,
                         event.model_name, event.tenant_id, event.backend_id, event.object_key}) {
      text(s);
    }
  }
  asm volatile("" : : "r"(sum));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static EventBatch batch, again;
  const std::span<const std::byte> payload(reinterpret_cast<const std::byte*>(data), size);

  DecodeLimits limits;
  limits.max_decoded_bytes = 1 << 20;
  if (EventDecoder(limits).Decode(payload, batch).ok()) {
    Require(batch.first_error().ok() == (batch.skipped_events() == 0 && !batch.truncated()));
    Touch(batch.events());
    std::vector<std::byte> encoded;
    EncodeBatch(Schema::kMapWide, batch.timestamp(), batch.events(), batch.data_parallel_rank(), encoded);
    limits.max_decoded_bytes = 8 << 20;
    Require(EventDecoder(limits).Decode(encoded, again).ok());
    Require(again.first_error().ok());
    Require(again.events().size() == batch.events().size());
    Require(again.data_parallel_rank() == batch.data_parallel_rank());
    for (std::size_t i = 0; i < batch.events().size(); ++i) {
      const Event& a = batch.events()[i];
      const Event& b = again.events()[i];
      Require(a.kind == b.kind);
      if (a.kind == EventKind::kAllBlocksCleared) continue;
      Require(std::ranges::equal(a.hashes, b.hashes));
      Require(a.tier == b.tier);
      if (a.kind == EventKind::kBlockStored)
        Require(std::ranges::equal(a.tokens, b.tokens) && a.parent == b.parent);
    }
  }

  // Tight limits must hold too.
  const DecodeLimits tight{.max_events = 4,
                           .max_hashes = 2,
                           .max_tokens = 8,
                           .max_string_bytes = 16,
                           .max_extra_keys_per_block = 1,
                           .max_decoded_bytes = 256,
                           .max_nesting = 1};
  if (EventDecoder(tight).Decode(payload, batch).ok()) {
    Require(batch.events().size() <= 4);
    for (const Event& event : batch.events()) {
      Require(event.hashes.size() <= 2 && event.tokens.size() <= 8 && event.medium.size() <= 16);
    }
    Touch(batch.events());
  }

  // The same bytes as frames, cut at every eighth byte, and as a topic.
  std::vector<Frame> frames;
  for (std::size_t at = 0; at < size && frames.size() < 5; at += 8)
    frames.push_back(payload.subspan(at).first(std::min<std::size_t>(8, size - at)));
  (void)ParseLiveMessage(frames);
  (void)ParseReplayMessage(frames);
  (void)ParseReplayRequest(frames);
  const Topic topic = ParseTopic({reinterpret_cast<const char*>(data), size});
  Require(topic.pod.size() + topic.model.size() <= size);
  return 0;
}
