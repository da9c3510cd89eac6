#include "llmd/base/strings.h"

#include <algorithm>

namespace llmd {

std::string HexExcerpt(std::span<const std::byte> bytes, std::size_t max_bytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  const std::size_t shown = std::min(bytes.size(), max_bytes);
  std::string text;
  text.reserve(2 * shown + 3);
  for (std::size_t i = 0; i < shown; ++i) {
    const auto value = std::to_integer<unsigned>(bytes[i]);
    text += kDigits[value >> 4];
    text += kDigits[value & 15];
  }
  if (shown < bytes.size()) text += "...";
  return text;
}

}  // namespace llmd
