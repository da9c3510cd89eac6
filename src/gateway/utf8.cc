#include "src/gateway/utf8.h"

namespace llmd::gateway {

std::size_t ValidUtf8Prefix(std::string_view text) {
  std::size_t i = 0;
  const auto at = [&](std::size_t k) { return k < text.size() ? static_cast<unsigned char>(text[k]) : 0u; };
  const auto follows = [&](std::size_t k) { return (at(k) & 0xC0u) == 0x80u; };
  while (i < text.size()) {
    const unsigned c = at(i);
    std::size_t length = 0;
    if (c < 0x80) {
      length = 1;
    } else if (c >= 0xC2 && c <= 0xDF && follows(i + 1)) {
      length = 2;
    } else if (c >= 0xE0 && c <= 0xEF && follows(i + 1) && follows(i + 2)) {
      const unsigned second = at(i + 1);
      if ((c != 0xE0 || second >= 0xA0) && (c != 0xED || second < 0xA0)) length = 3;
    } else if (c >= 0xF0 && c <= 0xF4 && follows(i + 1) && follows(i + 2) && follows(i + 3)) {
      const unsigned second = at(i + 1);
      if ((c != 0xF0 || second >= 0x90) && (c != 0xF4 || second < 0x90)) length = 4;
    }
    if (length == 0) return i;
    i += length;
  }
  return i;
}

}  // namespace llmd::gateway
