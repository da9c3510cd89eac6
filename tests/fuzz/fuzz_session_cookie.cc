// Any headers: the session is a part of what came in, without control characters, and the cookie's value is
// what a literal reading of the filter's pattern gives.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "llmd/gateway/session_id.h"

namespace {

using namespace llmd::gateway;

void Require(bool condition) {
  if (!condition) std::abort();
}

// The match of ([^=]+)=([^=]+): at each start in turn, the longest run without '=', then '=', then such a
// run.
bool Match(std::string_view part, std::string& name, std::string& value) {
  for (std::size_t start = 0; start < part.size(); ++start) {
    std::size_t end = start;
    while (end < part.size() && part[end] != '=') ++end;
    if (end == start || end == part.size()) continue;
    std::size_t last = end + 1;
    while (last < part.size() && part[last] != '=') ++last;
    if (last == end + 1) continue;
    name = part.substr(start, end - start);
    value = part.substr(end + 1, last - end - 1);
    return true;
  }
  return false;
}

std::string Reference(std::string_view cookies, std::string_view wanted) {
  std::string part;
  for (std::size_t i = 0; i <= cookies.size(); ++i) {
    if (i < cookies.size() && cookies[i] != ';') {
      part += cookies[i];
      continue;
    }
    std::size_t blanks = 0;
    while (blanks < part.size() &&
           std::string_view(" \t\n\v\f\r").find(part[blanks]) != std::string_view::npos)
      ++blanks;
    std::string name, value;
    if (Match(std::string_view(part).substr(blanks), name, value) && name == wanted) return value;
    part.clear();
  }
  return "";
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const SessionIdReader reader = *SessionIdReader::Create({.max_bytes = 64});
  static std::string scratch;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  // The reference is quadratic.
  if (size <= 4096) {
    for (const char* name : {"session-id", "a", "session_id"})
      Require(FindCookie(text, name) == Reference(text, name));
  }
  // Lines are headers; the first character says which.
  static constexpr std::string_view kNames[] = {"x-session-id", "Session-Id", "cookie", "COOKIE", "other"};
  std::vector<HeaderView> headers;
  for (std::size_t at = 0; at < size;) {
    const std::size_t end = std::min(text.find('\n', at), size);
    const std::string_view line = text.substr(at, end - at);
    at = end + 1;
    if (!line.empty()) headers.push_back({kNames[static_cast<unsigned char>(line[0]) % 5], line.substr(1)});
  }
  headers.push_back({"cookie", text});
  const SessionId id = reader.Read(headers, scratch);
  Require(id.found() == !id.value.empty());
  if (!id.found()) return 0;
  Require(id.value.size() <= 64 && id.source < 4);
  for (const char c : id.value) Require(c == '\t' || (static_cast<unsigned char>(c) >= 0x20 && c != 0x7f));
  return 0;
}
