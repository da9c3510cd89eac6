// The literal decoder that the real one is compared with: builds the whole MessagePack tree, then reads
// events from it field by field. Ignores sizes and limits, except the nesting of uninterpreted extra keys.
#ifndef TESTS_EVENTS_REFERENCE_DECODER_H_
#define TESTS_EVENTS_REFERENCE_DECODER_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "nlohmann/json.hpp"

namespace llmd::events {

struct ReferenceBatch {
  bool usable = false;                              // the decoder would return OK
  nlohmann::json events = nlohmann::json::array();  // as ToJson(Event) writes them
  nlohmann::json rank;
  double timestamp = 0;
  std::uint64_t skipped = 0;
  bool truncated = false;
};

ReferenceBatch ReferenceDecode(std::span<const std::byte> payload);

}  // namespace llmd::events

#endif  // TESTS_EVENTS_REFERENCE_DECODER_H_
