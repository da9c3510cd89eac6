// Encoder of KV-event batches, byte for byte what vLLM's publisher (msgspec) writes for the same events.
//
// Each generation of vLLM's schema is one `Schema`. In the positional generations every declared field is
// written, nil included; in the map generation fields at their default are left out. Fields that a schema
// does not have are dropped. Threads: a pure function.
#ifndef LLMD_EVENTS_ENCODER_H_
#define LLMD_EVENTS_ENCODER_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "llmd/events/event.h"

namespace llmd::events {

// Number of elements of a BlockStored array, tag included, and what the generation added.
enum class Schema : std::uint8_t {
  kArray6,  // vLLM 0.9: no medium. 0.9.0 had no data-parallel rank: without one the batch has 2 elements, not
            // 3
  kArray7,  // medium
  kArray8,  // lora_name
  kArray9,  // extra_keys
  kArray10,  // group_idx (stored and removed)
  kArray12,  // kv_cache_spec_kind, kv_cache_spec_sliding_window
  kMap,      // vLLM 0.24: tagged maps
  kMapWide,  // vLLM 0.33: lookahead_token_ids, and with it a 16-bit map header on BlockStored
};

// Replaces the contents of `payload`. A hash is written as an integer, or as a byte string where
// Event::hash_bytes has one. No allocation once `payload` is large enough.
void EncodeBatch(Schema schema, double timestamp, std::span<const Event> events,
                 std::optional<std::uint32_t> data_parallel_rank, std::vector<std::byte>& payload);

}  // namespace llmd::events

#endif  // LLMD_EVENTS_ENCODER_H_
