#include "examples/gateway_scheduler/http_proxy.h"

#include <algorithm>
#include <mutex>
#include <thread>
#include <utility>

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>

#include "examples/gateway_scheduler/gateway.h"
#include "examples/gateway_scheduler/proxy_exchange.h"
#include "examples/gateway_scheduler/worker.h"
#include "examples/http/client.h"
#include "examples/http/error.h"
#include "examples/http/server.h"

namespace llmd::host {
namespace {

namespace asio = boost::asio;

constexpr std::chrono::seconds kMostStopping{5};

// Work from other threads, which may come when the loop is gone.
struct Mailbox {
  std::mutex mutex;
  asio::io_context* io = nullptr;  // null: gone

  void Post(std::function<void()> work) {
    const std::lock_guard lock(mutex);
    if (io != nullptr) asio::post(*io, std::move(work));
  }
};

}  // namespace

struct HttpProxy::Shared {
  HttpProxyOptions options;
  NewSession new_session;
  std::function<bool()> has_endpoints;
  std::vector<std::unique_ptr<Worker>> workers;
};

struct HttpProxy::Loop {
  Loop(std::shared_ptr<Shared> its_shared, int its_index)
      : shared(std::move(its_shared)), index(its_index), client(io.get_executor(), ClientOptionsOf(*shared)) {
    mailbox->io = &io;
  }

  ~Loop() {
    Stop();
    // Requests are cancelled, not just dropped: their sessions are told.
    const auto end = std::chrono::steady_clock::now() + kMostStopping;
    while (thread.joinable() && server != nullptr && server->connections() > 0 &&
           std::chrono::steady_clock::now() < end) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    io.stop();
    if (thread.joinable()) thread.join();
    server.reset();
    const std::lock_guard lock(mailbox->mutex);
    mailbox->io = nullptr;
  }

  static http::ClientOptions ClientOptionsOf(const Shared& shared) {
    return {.connect_timeout = shared.options.connect_timeout,
            .header_timeout = shared.options.response_timeout,
            .read_timeout = shared.options.response_timeout,
            .max_header_bytes = shared.options.max_header_bytes};
  }

  void Stop() {
    if (server != nullptr) server->Stop();
  }

  asio::awaitable<void> Handle(http::Request request, http::Response& response) {
    if (request.path() == "/health" && (request.method == "GET" || request.method == "HEAD")) {
      const int status = shared->has_endpoints() ? 200 : 503;
      std::string body = "{\"status\":\"ok\"}";
      if (status == 503) body = http::ErrorBody(503, "no endpoint is known");
      co_await response.Send(status, http::ContentType("application/json"), std::move(body));
      co_return;
    }
    ProxyExchange exchange(shared->options, client, std::move(request), response);
    auto new_session = [this](std::function<void()> ready) {
      return shared->new_session(
          index, [box = mailbox](std::function<void()> work) { box->Post(std::move(work)); },
          std::move(ready));
    };
    co_await exchange.Run(new_session);
  }

  std::shared_ptr<Shared> shared;
  int index;
  std::shared_ptr<Mailbox> mailbox = std::make_shared<Mailbox>();
  asio::io_context io{1};
  http::Client client;
  std::unique_ptr<http::Server> server;
  std::thread thread;
};

HttpProxy::HttpProxy() = default;

absl::StatusOr<std::unique_ptr<HttpProxy>> HttpProxy::Create(const HttpProxyOptions& options,
                                                             Gateway& gateway) {
  std::vector<std::unique_ptr<Worker>> workers;
  Random seeds(gateway.NextId() +
               static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count()));
  for (int i = 0; i < std::max(1, options.threads); ++i) {
    workers.push_back(std::make_unique<Worker>(gateway, seeds.Next()));
  }
  std::vector<Worker*> raw;
  for (const auto& worker : workers) raw.push_back(worker.get());
  auto proxy = Create(
      options,
      [&gateway, raw](int thread, Session::Post post, std::function<void()> ready) {
        return Session::Create(gateway, *raw[static_cast<std::size_t>(thread)], std::move(post),
                               std::move(ready));
      },
      [&gateway] { return gateway.pool().snapshot()->size() > 0; });
  if (proxy.ok()) (*proxy)->shared_->workers = std::move(workers);
  return proxy;
}

absl::StatusOr<std::unique_ptr<HttpProxy>> HttpProxy::Create(const HttpProxyOptions& options,
                                                             NewSession new_session,
                                                             std::function<bool()> has_endpoints) {
  std::unique_ptr<HttpProxy> proxy(new HttpProxy());
  proxy->shared_ = std::make_shared<Shared>();
  proxy->shared_->options = options;
  proxy->shared_->new_session = std::move(new_session);
  proxy->shared_->has_endpoints = std::move(has_endpoints);
  const int threads = std::max(1, options.threads);
  http::ServerOptions server_options{.address = options.address,
                                     .port = options.port,
                                     .max_header_bytes = options.max_header_bytes,
                                     .max_body_bytes = options.max_body_bytes,
                                     .max_connections = options.max_connections,
                                     .share_port = threads > 1};
  for (int i = 0; i < threads; ++i) {
    proxy->loops_.push_back(std::make_unique<Loop>(proxy->shared_, i));
    Loop& loop = *proxy->loops_.back();
    auto server = http::Server::Create(loop.io, server_options,
                                       [&loop](http::Request request, http::Response& response) {
                                         return loop.Handle(std::move(request), response);
                                       });
    if (!server.ok()) return server.status();
    loop.server = *std::move(server);
    server_options.port = loop.server->port();
  }
  // Only now: before, a failure would have left a port half served.
  for (const auto& loop : proxy->loops_) {
    loop->thread = std::thread([&io = loop->io] {
      const auto work = asio::make_work_guard(io);
      io.run();
    });
  }
  return proxy;
}

HttpProxy::~HttpProxy() {
  Stop();
  loops_.clear();  // before the workers
}

std::uint16_t HttpProxy::port() const { return loops_.front()->server->port(); }

std::size_t HttpProxy::connections() const {
  std::size_t count = 0;
  for (const auto& loop : loops_) count += loop->server->connections();
  return count;
}

void HttpProxy::Drain() {
  for (const auto& loop : loops_) loop->server->Drain();
}

void HttpProxy::Stop() {
  for (const auto& loop : loops_) loop->Stop();
}

}  // namespace llmd::host
