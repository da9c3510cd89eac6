#include "llmd/gateway/session_id.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"

namespace llmd::gateway {
namespace {

bool IsControl(char c) {
  const auto byte = static_cast<unsigned char>(c);
  return (byte < 0x20 && byte != '\t') || byte == 0x7f;
}

// Whether HTTP allows the name for a header (RFC 9110 token). A cookie's may be anything a part can have.
bool ValidName(const SessionSource& source) {
  if (source.name.empty()) return false;
  if (source.kind == SessionSource::Kind::kCookie) {
    return source.name.find_first_of(";=") == std::string::npos && source.name.front() != ' ' &&
           std::none_of(source.name.begin(), source.name.end(),
                        [](char c) { return IsControl(c) || c == '\t'; });
  }
  return std::all_of(source.name.begin(), source.name.end(), [](char c) {
    return absl::ascii_isalnum(c) || std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos;
  });
}

// All values of a header, joined with ','; a view of the only one when it is given once.
std::string_view HeaderValue(std::span<const HeaderView> headers, std::string_view name,
                             std::string& scratch) {
  std::string_view value;
  int count = 0;
  for (const HeaderView& header : headers) {
    if (!absl::EqualsIgnoreCase(ToAbsl(header.name), ToAbsl(name))) continue;
    if (++count == 1) {
      value = header.value;
      continue;
    }
    if (count == 2) scratch.assign(value);
    scratch.push_back(',');
    scratch.append(header.value);
  }
  return count > 1 ? std::string_view(scratch) : value;
}

}  // namespace

std::string_view FindCookie(std::string_view cookie_header, std::string_view name) {
  while (!cookie_header.empty()) {
    const std::size_t end = std::min(cookie_header.find(';'), cookie_header.size());
    std::string_view part = cookie_header.substr(0, end);
    cookie_header.remove_prefix(std::min(end + 1, cookie_header.size()));
    part.remove_prefix(std::min(part.find_first_not_of(" \t\n\v\f\r"), part.size()));
    // The leftmost two neighbours of the pieces between '=' that are not empty.
    std::string_view before;
    for (std::size_t at = 0; at <= part.size();) {
      const std::size_t equals = std::min(part.find('=', at), part.size());
      const std::string_view piece = part.substr(at, equals - at);
      if (!before.empty() && !piece.empty()) {
        if (before == name) return piece;
        break;
      }
      before = piece;
      at = equals + 1;
    }
  }
  return {};
}

absl::StatusOr<SessionIdReader> SessionIdReader::Create(SessionIdOptions options) {
  if (options.max_bytes == 0) return absl::InvalidArgumentError("max_bytes is 0, expected at least 1");
  if (options.sources.size() > 16) {
    return absl::InvalidArgumentError(
        absl::StrCat("sources has ", options.sources.size(), " entries, expected at most 16"));
  }
  for (std::size_t i = 0; i < options.sources.size(); ++i) {
    SessionSource& source = options.sources[i];
    if (!ValidName(source)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "sources[", i, "].name is \"", absl::CHexEscape(source.name), "\", expected the name of a ",
          source.kind == SessionSource::Kind::kHeader ? "header" : "cookie"));
    }
    if (source.kind == SessionSource::Kind::kHeader) absl::AsciiStrToLower(&source.name);
    if (std::find(options.sources.begin(), options.sources.begin() + i, source) !=
        options.sources.begin() + i) {
      return absl::InvalidArgumentError(
          absl::StrCat("sources[", i, "].name is \"", source.name, "\" again, expected distinct sources"));
    }
  }
  return SessionIdReader(std::move(options));
}

SessionId SessionIdReader::Read(std::span<const HeaderView> headers, std::string& scratch) const {
  for (std::uint32_t i = 0; i < options_.sources.size(); ++i) {
    const SessionSource& source = options_.sources[i];
    std::string_view value;
    if (source.kind == SessionSource::Kind::kHeader) {
      value = HeaderValue(headers, source.name, scratch);
    } else {
      for (const HeaderView& header : headers) {
        if (!absl::EqualsIgnoreCase(ToAbsl(header.name), "cookie")) continue;
        value = FindCookie(header.value, source.name);
        if (!value.empty()) break;
      }
    }
    if (value.empty()) continue;
    if (value.size() > options_.max_bytes) return {SessionId::Result::kTooLong, i};
    if (std::any_of(value.begin(), value.end(), IsControl)) return {SessionId::Result::kControl, i};
    return {SessionId::Result::kFound, i, value};
  }
  return {};
}

}  // namespace llmd::gateway
