#include "examples/http/server.h"

#include <utility>
#include <vector>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "examples/http/server_connection.h"

namespace llmd::http {
namespace {

using asio::ip::tcp;
using boost::system::error_code;
using Acceptor = asio::basic_socket_acceptor<tcp, Connection::Strand>;

// When the process has no descriptors left.
constexpr std::chrono::milliseconds kAcceptPause{20};

struct Listener {
  Listener(asio::io_context& context, std::shared_ptr<ServerShared> state)
      : io(context), acceptor(asio::make_strand(context)), shared(std::move(state)) {}

  asio::io_context& io;
  Acceptor acceptor;
  std::shared_ptr<ServerShared> shared;
};

asio::awaitable<void> Accept(std::shared_ptr<Listener> listener) {
  constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);
  asio::steady_timer pause(listener->acceptor.get_executor());
  while (listener->acceptor.is_open()) {
    auto [error, socket] = co_await listener->acceptor.async_accept(asio::make_strand(listener->io), kAwait);
    if (error == asio::error::operation_aborted) continue;
    if (error) {
      pause.expires_after(kAcceptPause);
      (void)co_await pause.async_wait(kAwait);
      continue;
    }
    if (const auto connection = Connection::Create(std::move(socket), listener->shared)) connection->Start();
  }
}

class ServerImpl final : public Server {
 public:
  explicit ServerImpl(std::shared_ptr<Listener> listener, std::uint16_t port)
      : listener_(std::move(listener)), port_(port) {}
  ~ServerImpl() override { Stop(); }

  std::uint16_t port() const override { return port_; }

  std::size_t connections() const override {
    const std::lock_guard lock(listener_->shared->mutex);
    return listener_->shared->connections.size();
  }

  void Drain() override {
    {
      const std::lock_guard lock(listener_->shared->mutex);
      listener_->shared->draining = true;
    }
    CloseAcceptor();
    for (const auto& connection : listener_->shared->All()) connection->Drain();
  }

  void Stop() override {
    {
      const std::lock_guard lock(listener_->shared->mutex);
      if (std::exchange(listener_->shared->stopping, true)) return;
    }
    CloseAcceptor();
    for (const auto& connection : listener_->shared->All()) connection->Stop();
  }

 private:
  void CloseAcceptor() {
    asio::post(listener_->acceptor.get_executor(), [listener = listener_] {
      error_code ignored;
      listener->acceptor.close(ignored);
    });
  }

  std::shared_ptr<Listener> listener_;
  std::uint16_t port_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Create(asio::io_context& io, const ServerOptions& options,
                                                       Handler handler) {
  error_code error;
  const auto address = asio::ip::make_address(options.address, error);
  if (error) {
    return absl::InvalidArgumentError(absl::StrCat("address '", options.address, "': no IP address"));
  }
  auto shared = std::make_shared<ServerShared>();
  shared->options = options;
  shared->handler = std::move(handler);
  auto listener = std::make_shared<Listener>(io, std::move(shared));
  Acceptor& acceptor = listener->acceptor;
  const tcp::endpoint endpoint(address, options.port);
  using ReusePort = asio::detail::socket_option::boolean<SOL_SOCKET, SO_REUSEPORT>;
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(asio::socket_base::reuse_address(true), error);
  if (!error && options.share_port) acceptor.set_option(ReusePort(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
  tcp::endpoint bound;
  if (!error) bound = acceptor.local_endpoint(error);
  if (error) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", options.address, ":", options.port, ": ", error.message()));
  }
  asio::co_spawn(
      acceptor.get_executor(), [listener] { return Accept(listener); }, asio::detached);
  return std::make_unique<ServerImpl>(std::move(listener), bound.port());
}

}  // namespace llmd::http
