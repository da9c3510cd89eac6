// Reading a request: the strict half of the server, for what comes in is anybody's.
#include <algorithm>
#include <array>
#include <utility>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/rfc7230.hpp>

#include "absl/strings/str_cat.h"
#include "examples/http/server_connection.h"
#include "examples/http/wire.h"
#include "llmd/base/strings.h"

namespace llmd::http {
namespace {

namespace beast_http = boost::beast::http;
using beast_http::error;

constexpr std::size_t kBodyBuffer = 64 << 10;
constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);

struct Verdict {
  int status = 0;  // 0: none
  std::string message = {};
};

// Of a request whose head could be parsed.
Verdict Judge(const beast_http::request_header<>& head, bool chunked) {
  const auto hosts = head.equal_range(beast_http::field::host);
  const auto host_count = std::distance(hosts.first, hosts.second);
  if (host_count > 1 || (host_count == 0 && head.version() >= 11)) {
    return {400, absl::StrCat("host: ", host_count, " headers, HTTP/1.1 wants one")};
  }
  if (const auto encoding = head.find(beast_http::field::transfer_encoding); encoding != head.end()) {
    if (!chunked || !EqualsIgnoreCase(View(encoding->value()), "chunked")) {
      return {501, absl::StrCat("transfer-encoding: '", ToAbsl(View(encoding->value())),
                                "', only chunked is known")};
    }
    // Proxies disagree about who is right, which is how requests are smuggled.
    if (head.find(beast_http::field::content_length) != head.end() || head.version() < 11) {
      return {400, "transfer-encoding: chunked with content-length or HTTP/1.0"};
    }
  }
  if (const auto expect = head.find(beast_http::field::expect); expect != head.end()) {
    if (!EqualsIgnoreCase(View(expect->value()), "100-continue")) {
      return {417, absl::StrCat("expect: '", ToAbsl(View(expect->value())), "', only 100-continue is known")};
    }
  }
  return {};
}

Verdict VerdictOf(const boost::system::error_code& failure, bool in_body, const ServerOptions& options) {
  if (failure == error::header_limit || (failure == error::buffer_overflow && !in_body)) {
    return {431, absl::StrCat("headers: more than ", options.max_header_bytes, " bytes")};
  }
  if (failure == error::body_limit) {
    return {413, absl::StrCat("body: more than ", options.max_body_bytes, " bytes")};
  }
  if (failure == error::bad_version) return {505, "version: only HTTP/1.0 and HTTP/1.1 are known"};
  if (failure.category() != beast_http::make_error_code(error::bad_method).category()) return {};
  if (failure == error::end_of_stream || failure == error::partial_message) return {};
  return {400, absl::StrCat("malformed request: ", failure.message())};
}

// A proxy's form of target is accepted, as every server must.
std::string PathOf(std::string_view target) {
  for (const std::string_view scheme : {"http://", "https://"}) {
    if (!EqualsIgnoreCase(target.substr(0, scheme.size()), scheme)) continue;
    const std::size_t end = target.find_first_of("/?", scheme.size());
    if (end == std::string_view::npos) return "/";
    return (target[end] == '?' ? "/" : "") + std::string(target.substr(end));
  }
  return std::string(target);
}

}  // namespace

asio::awaitable<bool> Connection::ReadRequest() {
  const ServerOptions& options = shared_->options;
  started_ = finished_ = head_only_ = http10_ = false;
  expired_ = false;
  SetDeadline(Clock::now() + options.idle_timeout);

  beast_http::request_parser<GrowingBody> parser;
  parser.header_limit(static_cast<std::uint32_t>(std::min<std::size_t>(options.max_header_bytes, 1u << 31)));
  parser.body_limit(options.max_body_bytes);
  boost::system::error_code failure;
  std::tie(failure, std::ignore) = co_await beast_http::async_read_header(socket_, buffer_, parser, kAwait);
  Verdict verdict;
  bool in_body = false;
  if (!failure) {
    const auto& head = parser.get();
    head_only_ = head.method() == beast_http::verb::head;
    http10_ = head.version() < 11;
    keep_ = parser.keep_alive();
    verdict = Judge(head, parser.chunked());
    request_ = Request();
    request_.peer = peer_;
    request_.method.assign(View(head.method_string()));
    request_.target = PathOf(View(head.target()));
    // Now, so that trailers do not pass for headers.
    request_.headers = ToHeaders(head);
    in_body = !parser.is_done();
    if (verdict.status == 0 && in_body) {
      if (!http10_ && FindHeader(request_.headers, "expect") != nullptr && buffer_.size() == 0) {
        const std::string_view go_on = "HTTP/1.1 100 Continue\r\n\r\n";
        const std::array<asio::const_buffer, 1> buffers = {asio::buffer(go_on.data(), go_on.size())};
        co_await WriteAll(buffers);
        SetDeadline(Clock::now() + options.idle_timeout);
      }
      if (parser.content_length_remaining().value_or(kBodyBuffer) >= kBodyBuffer) {
        buffer_.reserve(std::min(kBodyBuffer, buffer_.max_size()));
      }
      std::tie(failure, std::ignore) = co_await beast_http::async_read(socket_, buffer_, parser, kAwait);
    }
  }
  SetDeadline(Clock::time_point::max());
  if (failure) {
    verdict = VerdictOf(failure, in_body, options);
    if (expired_) {
      verdict = {408, absl::StrCat("not read within ", options.idle_timeout.count(), " s")};
    }
  }
  if (verdict.status != 0) {
    co_await AnswerError(verdict.status, verdict.message);
    co_return false;
  }
  if (failure) co_return false;
  request_.body = std::move(parser.get().body());
  co_return true;
}

}  // namespace llmd::http
