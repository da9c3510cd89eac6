// The session of a request, read from its headers.
//
// Where a mesh keeps sessions on their pods by a header, a filter before the router often writes that header
// from whatever the client sends. A picker that runs before that filter sees the client's own headers, so it
// must find the session as the filter will (spec: gateway.md 4.2): by default the header x-session-id, the
// header session-id, the cookie session-id, then the cookie session_id, the first that has a value.
//
// Cookies are read with the filter's rules and not with those of RFC 6265: parts are split at ';' whatever
// the quotes, blanks before a part are dropped, and of a part's pieces between '=' the first two neighbours
// that are both not empty are name and value. So a value ends at a second '=', an empty value is none, blanks
// after the value belong to it, quotes stay, and an '=' before the name does not matter. A header given twice
// reads as its values joined with ','; cookie headers continue one another.
//
// What was found is untrusted. It may become a header, a log field or a key in memory: a session longer than
// max_bytes, or with a control character other than tab (which HTTP does not allow in a header's value), is
// refused, and no later source is asked.
//
// Nothing is allocated once the scratch buffer has grown. A reader is immutable and may be shared by threads.
#ifndef LLMD_GATEWAY_SESSION_ID_H_
#define LLMD_GATEWAY_SESSION_ID_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace llmd::gateway {

struct HeaderView {
  std::string_view name;  // in any case
  std::string_view value;
};

struct SessionSource {
  enum class Kind : std::uint8_t { kHeader, kCookie };
  Kind kind = Kind::kHeader;
  std::string name = {};  // of a header: in any case; of a cookie: exact
  friend bool operator==(const SessionSource&, const SessionSource&) = default;
};

struct SessionIdOptions {
  std::vector<SessionSource> sources = {{SessionSource::Kind::kHeader, "x-session-id"},
                                        {SessionSource::Kind::kHeader, "session-id"},
                                        {SessionSource::Kind::kCookie, "session-id"},
                                        {SessionSource::Kind::kCookie, "session_id"}};
  std::size_t max_bytes = 1024;
};

struct SessionId {
  enum class Result : std::uint8_t {
    kAbsent,
    kFound,
    kTooLong,  // refused
    kControl,  // refused: a control character
  };
  Result result = Result::kAbsent;
  std::uint32_t source = 0;     // index into the options' sources, unless absent
  std::string_view value = {};  // when found; of a header, a cookie or the scratch buffer
  bool found() const { return result == Result::kFound; }
};

// The first cookie of that name; empty when there is none.
std::string_view FindCookie(std::string_view cookie_header, std::string_view name);

class SessionIdReader {
 public:
  // InvalidArgument for more than 16 sources, a name that is empty, that no header or cookie can have, or
  // that is given twice, and for max_bytes 0.
  static absl::StatusOr<SessionIdReader> Create(SessionIdOptions options = {});

  // `scratch` is for headers given more than once, and must outlive the result.
  SessionId Read(std::span<const HeaderView> headers, std::string& scratch) const;

  const SessionIdOptions& options() const { return options_; }

 private:
  explicit SessionIdReader(SessionIdOptions options) : options_(std::move(options)) {}

  SessionIdOptions options_;  // names of headers in lower case
};

}  // namespace llmd::gateway

#endif  // LLMD_GATEWAY_SESSION_ID_H_
