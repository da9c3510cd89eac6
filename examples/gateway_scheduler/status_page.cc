#include "examples/gateway_scheduler/status_page.h"

#include <atomic>
#include <mutex>
#include <random>
#include <string_view>
#include <utility>

#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "examples/gateway_scheduler/status_page_html.h"
#include "llmd/base/strings.h"

namespace llmd::host {
namespace {

namespace asio = http::asio;

using Text = std::shared_ptr<const std::string>;

http::Headers SafeHeaders(const std::string& content_type) {
  http::Headers headers = http::ContentType(content_type);
  headers.emplace_back("cache-control", "no-store");
  headers.emplace_back("x-content-type-options", "nosniff");
  headers.emplace_back("referrer-policy", "no-referrer");
  headers.emplace_back("cross-origin-resource-policy", "same-origin");
  return headers;
}

// Shared by all handlers, which may outlive the page object.
class Site {
 public:
  Site(const StatusPageOptions& options, std::function<HostState()> collect, const DecisionHistory* history)
      : options_(options), collect_(std::move(collect)), history_(history) {}

  std::size_t streams() const { return streams_.load(std::memory_order_relaxed); }

  asio::awaitable<void> Handle(http::Request request, http::Response& response) {
    const std::string path(request.path());
    if (request.method != "GET" && request.method != "HEAD") {
      http::Headers headers = SafeHeaders("text/plain; charset=utf-8");
      headers.emplace_back("allow", "GET, HEAD");
      co_await response.Send(405, std::move(headers), "use GET\n");
    } else if (path == "/") {
      co_await Page(response);
    } else if (path == "/events" && request.method == "GET") {
      co_await Events(response);
    } else if (path == "/healthz") {
      co_await response.Send(200, SafeHeaders("text/plain; charset=utf-8"), "ok\n");
    } else if (path == "/api/state") {
      const Text text = Snapshot().state;
      co_await response.Send(200, SafeHeaders("application/json"), *text);
    } else if (path == "/api/configuration") {
      const Text text = Snapshot().configuration;
      co_await response.Send(200, SafeHeaders("application/json"), *text);
    } else if (path.starts_with("/api/decisions/")) {
      co_await Decision(path.substr(sizeof("/api/decisions/") - 1), response);
    } else {
      co_await response.Send(404, SafeHeaders("text/plain; charset=utf-8"), "not found\n");
    }
  }

 private:
  struct Snapshots {
    Text state, configuration;
  };

  asio::awaitable<void> Page(http::Response& response) {
    std::random_device random;
    std::string nonce;
    for (int i = 0; i < 4; ++i) absl::StrAppend(&nonce, absl::Hex(random(), absl::kZeroPad8));
    http::Headers headers = SafeHeaders("text/html; charset=utf-8");
    headers.emplace_back("content-security-policy",
                         absl::StrCat("default-src 'none'; script-src 'nonce-", nonce, "'; style-src 'nonce-",
                                      nonce, "'; connect-src 'self'; img-src data:; base-uri 'none'; ",
                                      "form-action 'none'; frame-ancestors 'none'"));
    std::string page = absl::StrReplaceAll(ToAbsl(kStatusPageHtml), {{"{{nonce}}", nonce}});
    co_await response.Send(200, std::move(headers), std::move(page));
  }

  asio::awaitable<void> Decision(std::string number, http::Response& response) {
    std::uint64_t sequence = 0;
    DecisionHistory::Entry entry;
    if (history_ != nullptr && absl::SimpleAtoi(number, &sequence)) entry = history_->Find(sequence);
    if (entry == nullptr) {
      co_await response.Send(404, SafeHeaders("application/json"),
                             "{\"error\":\"the decision is not kept any more\"}");
    } else {
      co_await response.Send(200, SafeHeaders("application/json"), DetailJson(*entry));
    }
  }

  asio::awaitable<void> Events(http::Response& response) {
    struct Seat {
      explicit Seat(std::atomic<std::size_t>& taken) : taken(taken), number(taken.fetch_add(1) + 1) {}
      ~Seat() { taken.fetch_sub(1); }
      std::atomic<std::size_t>& taken;
      std::size_t number;
    };
    const Seat seat(streams_);
    if (seat.number > options_.max_streams) {
      http::Headers headers = SafeHeaders("text/plain; charset=utf-8");
      headers.emplace_back("retry-after", "5");
      co_await response.Send(503, std::move(headers), "too many pages are open\n");
      co_return;
    }
    http::Headers headers = SafeHeaders("text/event-stream");
    headers.emplace_back("x-accel-buffering", "no");
    co_await response.Start(200, std::move(headers));
    co_await response.Write("retry: 2000\n\n");
    asio::steady_timer timer(co_await asio::this_coro::executor);
    for (;;) {
      const Text state = Snapshot().state;
      const std::string event = absl::StrCat("event: state\ndata: ", *state, "\n\n");
      co_await response.Write(event);  // waits for a slow client, who then gets the newest
      timer.expires_after(options_.interval);
      co_await timer.async_wait(asio::use_awaitable);
    }
  }

  // Made by the first who asks in an interval.
  Snapshots Snapshot() {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto now = std::chrono::steady_clock::now();
    // Clients' timers are not in step: a snapshot serves all who come within most of an interval.
    if (current_.state == nullptr || now - made_ >= options_.interval * 9 / 10) {
      const HostState state = collect_();
      std::string json = ToJson(state);
      json.pop_back();  // the closing brace
      absl::StrAppend(&json, ",\"decisions_seen\":", history_ != nullptr ? history_->seen() : 0,
                      ",\"decisions\":[");
      if (history_ != nullptr) {
        const char* comma = "";
        for (const DecisionHistory::Entry& entry : history_->Recent()) {
          absl::StrAppend(&json, comma, SummaryJson(*entry));
          comma = ",";
        }
      }
      json.append("]}");
      current_ = {std::make_shared<const std::string>(std::move(json)),
                  std::make_shared<const std::string>(ConfigurationJson(state))};
      made_ = now;
    }
    return current_;
  }

  const StatusPageOptions options_;
  const std::function<HostState()> collect_;
  const DecisionHistory* const history_;
  std::atomic<std::size_t> streams_ = 0;
  std::mutex mutex_;
  Snapshots current_;
  std::chrono::steady_clock::time_point made_;
};

class StatusPageImpl final : public StatusPage {
 public:
  StatusPageImpl(std::shared_ptr<Site> site, std::unique_ptr<http::Server> server)
      : site_(std::move(site)), server_(std::move(server)) {}
  ~StatusPageImpl() override { Stop(); }

  std::uint16_t port() const override { return server_->port(); }
  std::size_t streams() const override { return site_->streams(); }
  void Stop() override { server_->Stop(); }

 private:
  std::shared_ptr<Site> site_;
  std::unique_ptr<http::Server> server_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<StatusPage>> StatusPage::Create(asio::io_context& io,
                                                               const StatusPageOptions& options,
                                                               std::function<HostState()> collect,
                                                               const DecisionHistory* history) {
  auto site = std::make_shared<Site>(options, std::move(collect), history);
  http::ServerOptions server{.address = options.address, .port = options.port};
  server.max_body_bytes = 64 << 10;
  server.max_connections = 256;
  server.idle_timeout = std::chrono::seconds(30);
  auto made = http::Server::Create(
      io, server, [site](http::Request request, http::Response& response) -> asio::awaitable<void> {
        co_await site->Handle(std::move(request), response);
      });
  if (!made.ok()) return made.status();
  return std::make_unique<StatusPageImpl>(std::move(site), *std::move(made));
}

}  // namespace llmd::host
