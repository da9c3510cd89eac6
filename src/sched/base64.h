// Standard base64 into a buffer of the caller, so that decisions do not allocate. Private to the component.
#ifndef SRC_SCHED_BASE64_H_
#define SRC_SCHED_BASE64_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace llmd::sched {

// The decoded bytes, in `buffer`; nothing for malformed text or when they do not fit.
inline std::optional<std::string_view> DecodeBase64(std::string_view text, std::span<char> buffer) {
  if (text.size() % 4 != 0 || text.size() / 4 * 3 > buffer.size()) return std::nullopt;
  std::size_t padding = 0;
  while (padding < 2 && padding < text.size() && text[text.size() - 1 - padding] == '=') ++padding;
  std::size_t size = 0;
  std::uint32_t bits = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    std::uint32_t value = 0;
    if (c >= 'A' && c <= 'Z') {
      value = static_cast<std::uint32_t>(c - 'A');
    } else if (c >= 'a' && c <= 'z') {
      value = static_cast<std::uint32_t>(c - 'a' + 26);
    } else if (c >= '0' && c <= '9') {
      value = static_cast<std::uint32_t>(c - '0' + 52);
    } else if (c == '+') {
      value = 62;
    } else if (c == '/') {
      value = 63;
    } else if (i < text.size() - padding) {
      return std::nullopt;
    }
    bits = bits << 6 | value;
    if (i % 4 != 3) continue;
    buffer[size++] = static_cast<char>(bits >> 16 & 0xFF);
    buffer[size++] = static_cast<char>(bits >> 8 & 0xFF);
    buffer[size++] = static_cast<char>(bits & 0xFF);
    bits = 0;
  }
  return std::string_view(buffer.data(), size - padding);
}

}  // namespace llmd::sched

#endif  // SRC_SCHED_BASE64_H_
