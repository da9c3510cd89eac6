// The hot loop of decoding: a run of packed token ids.
#ifndef LLMD_SRC_EVENTS_TOKEN_RUN_H_
#define LLMD_SRC_EVENTS_TOKEN_RUN_H_

#include <array>
#include <cstdint>

#include "llmd/base/types.h"
#include "src/events/msgpack.h"

namespace llmd::events {

// How to take an unsigned integer out of the 8 bytes that begin with its head: shift left to drop the head,
// right to drop what follows. Ids mix widths at random, so looking the shifts up beats branching on the head.
struct TokenForm {
  std::uint8_t length = 0;  // bytes, head included; 0 for any other head
  std::uint8_t left = 0;
  std::uint8_t right = 0;
};

inline constexpr std::array<TokenForm, 256> kTokenForms = [] {
  std::array<TokenForm, 256> forms{};
  for (int c = 0; c < 0x80; ++c) forms[c] = {1, 0, 56};
  forms[0xcc] = {2, 8, 56};
  forms[0xcd] = {3, 8, 48};
  forms[0xce] = {5, 8, 32};
  return forms;
}();

// Decodes ids while they are unsigned, up to 32 bits wide and at least 8 bytes from the end. Returns how many
// of `count` it wrote to `tokens`; the reader stands behind them.
inline std::uint64_t DecodeTokenRun(msgpack::Reader& in, TokenId* tokens, std::uint64_t count) {
  const std::uint8_t* p = in.position();
  std::uint64_t done = 0;
  std::size_t left = in.left();
  while (done < count && left >= 8) {
    const TokenForm form = kTokenForms[*p];
    if (form.length == 0) break;
    tokens[done++] = static_cast<TokenId>((msgpack::LoadBig<std::uint64_t>(p) << form.left) >> form.right);
    p += form.length;
    left -= form.length;
  }
  in.set_position(p);
  return done;
}

}  // namespace llmd::events

#endif  // LLMD_SRC_EVENTS_TOKEN_RUN_H_
