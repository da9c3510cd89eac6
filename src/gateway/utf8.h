// UTF-8 without surrogates and overlong forms.
#ifndef SRC_GATEWAY_UTF8_H_
#define SRC_GATEWAY_UTF8_H_

#include <cstddef>
#include <string_view>

namespace llmd::gateway {

// Offset of the first byte that is not UTF-8, or the size.
std::size_t ValidUtf8Prefix(std::string_view text);
inline bool IsUtf8(std::string_view text) { return ValidUtf8Prefix(text) == text.size(); }

}  // namespace llmd::gateway

#endif  // SRC_GATEWAY_UTF8_H_
