// Bridges between the standard library's string types, used in our interfaces, and Abseil's.
#ifndef LLMD_BASE_STRINGS_H_
#define LLMD_BASE_STRINGS_H_

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "absl/strings/string_view.h"

namespace llmd {

// Abseil as packaged by distributions has its own string_view type; this converts without copying.
inline absl::string_view ToAbsl(std::string_view text) { return {text.data(), text.size()}; }

// Lower-case hexadecimal of `bytes`; at most `max_bytes` of them, then "...".
std::string HexExcerpt(std::span<const std::byte> bytes, std::size_t max_bytes = 32);

// The bytes of `text`, not copied.
inline std::span<const std::byte> AsBytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

}  // namespace llmd

#endif  // LLMD_BASE_STRINGS_H_
