#include "examples/gateway_scheduler/safe_text.h"

#include <cstdint>

namespace llmd::host {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

struct Character {
  std::uint32_t code = 0;
  std::size_t bytes = 0;  // 0: not UTF-8
};

Character First(std::string_view text) {
  const auto at = [&](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
  const std::uint8_t lead = at(0);
  if (lead < 0x80) return {lead, 1};
  const std::size_t bytes = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() < bytes) return {};
  std::uint32_t code = lead & (0x7Fu >> bytes);
  for (std::size_t i = 1; i < bytes; ++i) {
    if ((at(i) & 0xC0) != 0x80) return {};
    code = code << 6 | (at(i) & 0x3Fu);
  }
  const bool overlong = (bytes == 3 && code < 0x800) || (bytes == 4 && code < 0x10000);
  if (overlong || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) return {};
  return {code, bytes};
}

// Controls, line separators and the marks that reorder what is shown.
bool Unprintable(std::uint32_t code) {
  return code < 0x20 || (code >= 0x7F && code < 0xA0) || code == 0x200E || code == 0x200F ||
         (code >= 0x2028 && code <= 0x202E) || (code >= 0x2066 && code <= 0x2069) || code == 0xFEFF;
}

}  // namespace

bool IsSafeText(std::string_view text, std::size_t max_bytes) {
  if (text.size() > max_bytes) return false;
  while (!text.empty()) {
    const Character c = First(text);
    if (c.bytes == 0 || Unprintable(c.code)) return false;
    text.remove_prefix(c.bytes);
  }
  return true;
}

std::string SafeText(std::string_view text, std::size_t max_bytes) {
  std::string out;
  while (!text.empty()) {
    const Character c = First(text);
    const bool keep = c.bytes != 0 && !Unprintable(c.code);
    const std::string_view piece = keep ? text.substr(0, c.bytes) : kReplacement;
    if (out.size() + piece.size() > max_bytes) return out.append("...");
    out.append(piece);
    text.remove_prefix(c.bytes == 0 ? 1 : c.bytes);
  }
  return out;
}

void AppendQuoted(std::string_view text, std::string& out, std::size_t max_bytes) {
  constexpr char kHex[] = "0123456789abcdef";
  out.push_back('"');
  const std::size_t begin = out.size();
  while (!text.empty()) {
    if (out.size() - begin >= max_bytes) {
      out.append("...");
      break;
    }
    const Character c = First(text);
    if (c.bytes == 0) {
      out.append(kReplacement);
    } else if (c.code == '"' || c.code == '\\') {
      out.push_back('\\');
      out.push_back(static_cast<char>(c.code));
    } else if (c.code == '\n') {
      out.append("\\n");
    } else if (Unprintable(c.code)) {
      out.append("\\u");
      for (const int shift : {12, 8, 4, 0}) out.push_back(kHex[c.code >> shift & 0xF]);
    } else {
      out.append(text.substr(0, c.bytes));
    }
    text.remove_prefix(c.bytes == 0 ? 1 : c.bytes);
  }
  out.push_back('"');
}

}  // namespace llmd::host
