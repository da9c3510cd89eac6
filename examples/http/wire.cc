#include "examples/http/wire.h"

#include <boost/asio/error.hpp>
#include <boost/system/system_error.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "llmd/base/strings.h"

namespace llmd::http {

bool EqualsIgnoreCase(std::string_view a, std::string_view b) {
  return absl::EqualsIgnoreCase(ToAbsl(a), ToAbsl(b));
}

bool HasToken(std::string_view list, std::string_view token) {
  while (!list.empty()) {
    const std::size_t comma = std::min(list.find(','), list.size());
    if (absl::EqualsIgnoreCase(absl::StripAsciiWhitespace(ToAbsl(list.substr(0, comma))), ToAbsl(token))) {
      return true;
    }
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
  return false;
}

std::optional<std::uint64_t> ParseLength(std::string_view text) {
  std::uint64_t length = 0;
  if (text.empty() || !std::all_of(text.begin(), text.end(), absl::ascii_isdigit)) return std::nullopt;
  if (!absl::SimpleAtoi(ToAbsl(text), &length)) return std::nullopt;
  return length;
}

Headers ToHeaders(const boost::beast::http::fields& fields) {
  Headers headers;
  for (const auto& field : fields) {
    headers.emplace_back(absl::AsciiStrToLower(ToAbsl(View(field.name_string()))),
                         std::string(View(field.value())));
  }
  return headers;
}

bool IsToken(std::string_view text) {
  constexpr std::string_view kMarks = "!#$%&'*+-.^_`|~";
  return !text.empty() && std::all_of(text.begin(), text.end(), [&](char c) {
    return absl::ascii_isalnum(c) || kMarks.find(c) != kMarks.npos;
  });
}

void AppendHeader(std::string& out, std::string_view name, std::string_view value) {
  const bool clean = std::none_of(value.begin(), value.end(),
                                  [](unsigned char c) { return (c < 0x20 && c != '\t') || c == 0x7f; });
  if (!IsToken(name) || !clean) {
    throw boost::system::system_error(boost::asio::error::invalid_argument,
                                      "header '" + std::string(name) + "' cannot be sent");
  }
  out.append(name).append(": ").append(value).append("\r\n");
}

}  // namespace llmd::http
