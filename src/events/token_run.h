// The hot loop of decoding: a run of packed token ids.
#ifndef LLMD_SRC_EVENTS_TOKEN_RUN_H_
#define LLMD_SRC_EVENTS_TOKEN_RUN_H_

#include <array>
#include <cstdint>

#include "llmd/base/types.h"
#include "src/events/msgpack.h"

namespace llmd::events {

// Bytes of a packed unsigned integer of up to 32 bits, by its first byte; 0 for anything else. Ids mix widths
// at random, so a look-up beats branching: what bounds the loop is how soon it knows where the next id
// begins.
inline constexpr std::array<std::uint8_t, 256> kTokenLength = [] {
  std::array<std::uint8_t, 256> lengths{};
  for (int c = 0; c < 0x80; ++c) lengths[c] = 1;
  lengths[0xcc] = 2;
  lengths[0xcd] = 3;
  lengths[0xce] = 5;
  return lengths;
}();

// Decodes ids while they are of that kind and at least 8 bytes from the end. Returns how many of `count` it
// wrote to `tokens`; the reader stands behind them.
inline std::uint64_t DecodeTokenRun(msgpack::Reader& in, TokenId* tokens, std::uint64_t count) {
  const std::uint8_t* p = in.position();
  const std::uint8_t* const end = p + in.left();
  std::uint64_t done = 0;
  while (done < count && end - p >= 8) {
    const std::uint32_t head = *p;
    const std::uint32_t length = kTokenLength[head];
    if (length == 0) break;
    // The 4 bytes behind the head, less those that are not the id's. (Length 1 shifts by 32: masked, not
    // used.)
    const std::uint32_t wide = msgpack::LoadBig<std::uint32_t>(p + 1) >> ((40 - 8 * length) & 31);
    tokens[done++] = head < 0x80 ? head : wide;
    p += length;
  }
  in.set_position(p);
  return done;
}

}  // namespace llmd::events

#endif  // LLMD_SRC_EVENTS_TOKEN_RUN_H_
