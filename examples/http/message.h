// HTTP messages as plain values, shared by server and client.
#ifndef EXAMPLES_HTTP_MESSAGE_H_
#define EXAMPLES_HTTP_MESSAGE_H_

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace llmd::http {

// In order, repeated names kept. Names of received messages are in lower case.
using Headers = std::vector<std::pair<std::string, std::string>>;

// Null when absent; the first of that (lower-case) name.
inline const std::string* FindHeader(const Headers& headers, std::string_view name) {
  for (const auto& [key, value] : headers) {
    if (key == name) return &value;
  }
  return nullptr;
}

// The one header that most messages need.
inline Headers ContentType(std::string_view type) {
  Headers headers;
  headers.emplace_back("content-type", type);
  return headers;
}

// No aggregate: GCC 12 destroys twice what braces make within a co_await expression. Lists of headers have
// to be made before it for the same reason.
struct Request {
  Request() = default;
  explicit Request(std::string its_method, std::string its_target = "/", Headers its_headers = Headers(),
                   std::string its_body = std::string())
      : method(std::move(its_method)),
        target(std::move(its_target)),
        headers(std::move(its_headers)),
        body(std::move(its_body)) {}

  std::string method = "GET";
  std::string target = "/";  // path and query
  Headers headers = {};
  std::string body = {};
  std::string peer = {};  // of a received one: the client's address

  std::string_view path() const { return std::string_view(target).substr(0, target.find('?')); }
  // Without the '?'.
  std::string_view query() const {
    const std::size_t mark = target.find('?');
    return mark == std::string::npos ? std::string_view() : std::string_view(target).substr(mark + 1);
  }
};

}  // namespace llmd::http

#endif  // EXAMPLES_HTTP_MESSAGE_H_
