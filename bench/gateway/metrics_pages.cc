#include "bench/gateway/metrics_pages.h"

#include <thread>
#include <utility>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>

#include "bench/gateway/vllm_page.h"
#include "examples/http/server.h"

namespace llmd::bench {

struct MetricsPages::Impl {
  boost::asio::io_context io{1};
  std::unique_ptr<http::Server> server;
  std::thread thread;
};

std::unique_ptr<MetricsPages> MetricsPages::Start(std::string& error) {
  auto impl = std::make_unique<Impl>();
  auto server = http::Server::Create(
      impl->io, {.address = "0.0.0.0"},
      [page = VllmPage()](http::Request, http::Response& response) -> boost::asio::awaitable<void> {
        http::Headers headers;
        headers.emplace_back("content-type", "text/plain; version=0.0.4");
        co_await response.Send(200, std::move(headers), page);
      });
  if (!server.ok()) {
    error = "metrics pages: " + std::string(server.status().message());
    return nullptr;
  }
  impl->server = *std::move(server);
  impl->thread = std::thread([raw = impl.get()] {
    const auto work = boost::asio::make_work_guard(raw->io);
    raw->io.run();
  });
  return std::unique_ptr<MetricsPages>(new MetricsPages(std::move(impl)));
}

MetricsPages::MetricsPages(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

MetricsPages::~MetricsPages() {
  impl_->io.stop();
  impl_->thread.join();
}

int MetricsPages::port() const { return impl_->server->port(); }

}  // namespace llmd::bench
