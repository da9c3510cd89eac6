#include "examples/gateway_scheduler/metrics_endpoint.h"

#include <array>
#include <cstddef>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "llmd/base/strings.h"

namespace llmd::host {
namespace {

constexpr std::size_t kMaxTokenBytes = 16 << 10;

// Empty: there is none.
std::string ReadToken(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text(kMaxTokenBytes, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<std::size_t>(file.gcount()));
  absl::StripAsciiWhitespace(&text);
  return text;
}

// In a time that does not tell how much of the text is right.
bool Equal(std::string_view given, std::string_view wanted) {
  unsigned difference = given.size() == wanted.size() ? 0 : 1;
  for (std::size_t i = 0; i < given.size(); ++i) {
    difference |= static_cast<unsigned char>(given[i] ^ wanted[i % wanted.size()]);
  }
  return difference == 0;
}

bool Permitted(const http::Request& request, const std::string& token_file) {
  if (token_file.empty()) return true;
  const std::string token = ReadToken(token_file);
  const std::string* given = http::FindHeader(request.headers, "authorization");
  constexpr std::size_t kScheme = sizeof("Bearer ") - 1;
  return !token.empty() && given != nullptr && absl::StartsWithIgnoreCase(*given, "Bearer ") &&
         Equal(std::string_view(*given).substr(kScheme), token);
}

}  // namespace

http::Handler MetricsHandler(const Telemetry& telemetry, const MetricsEndpointOptions& options) {
  return
      [&telemetry, options](http::Request request, http::Response& response) -> http::asio::awaitable<void> {
        http::Headers headers = http::ContentType("text/plain; charset=utf-8");
        int status = 200;
        std::string body;
        if (request.path() != "/metrics") {
          status = 404;
          body = "not found: try /metrics\n";
        } else if (request.method != "GET" && request.method != "HEAD") {
          status = 405;
          headers.emplace_back("allow", "GET, HEAD");
          body = "use GET\n";
        } else if (!Permitted(request, options.token_file)) {
          status = 401;
          headers.emplace_back("www-authenticate", "Bearer");
          body = "a bearer token is needed\n";
        } else {
          headers = http::ContentType(Telemetry::kContentType);
          body = telemetry.Expose();
        }
        co_await response.Send(status, std::move(headers), std::move(body));
      };
}

}  // namespace llmd::host
