// A small HTTP/1.1 server on Boost.Asio and Boost.Beast for the example hosts: coroutines, streaming answers.
//
//   asio::io_context io;
//   auto server = *Server::Create(io, {.port = 8000}, [](Request request, Response& response) ->
//   asio::awaitable<void> {
//     co_await response.Start(200, ContentType("text/event-stream"));
//     for (...) co_await response.Write("data: ...\n\n");   // waits while the client does not read
//     co_await response.Finish();
//   });
//   io.run();
//
// The body is read whole (up to max_body_bytes) before the handler starts. When the client goes away, the
// handler is cancelled: the operation that it awaits throws boost::system::system_error (operation_aborted),
// so what it holds is released by destructors. A handler that throws, or returns without an answer, yields a
// 500.
//
// Threads: each connection lives on a strand of `io`, which any number of threads may run.
#ifndef EXAMPLES_HTTP_SERVER_H_
#define EXAMPLES_HTTP_SERVER_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>

#include "absl/status/statusor.h"
#include "examples/http/message.h"

namespace llmd::http {

namespace asio = boost::asio;

class Response {
 public:
  // Everything at once, with content-length.
  virtual asio::awaitable<void> Send(int status, Headers headers, std::string body) = 0;
  // Piece by piece (chunked). Write() of nothing does nothing.
  virtual asio::awaitable<void> Start(int status, Headers headers) = 0;
  virtual asio::awaitable<void> Write(std::string_view piece) = 0;
  virtual asio::awaitable<void> Finish() = 0;
  // Breaks the connection off, so that the client sees an incomplete answer.
  virtual void Abort() = 0;
  virtual bool started() const = 0;  // by Send() or Start()

 protected:
  ~Response() = default;
};

using Handler = std::function<asio::awaitable<void>(Request request, Response& response)>;

struct ServerOptions {
  std::string address = "127.0.0.1";
  std::uint16_t port = 0;                              // 0: any
  std::size_t max_header_bytes = 64 << 10;             // 431
  std::size_t max_body_bytes = std::size_t{64} << 20;  // 413
  std::size_t max_connections = 4096;                  // beyond, connections are closed at once
  std::chrono::seconds idle_timeout{300};  // between requests, for a request to be read (408), for a client
                                           // to take any of an answer
  bool share_port = false;  // with servers of other loops (SO_REUSEPORT), of which the kernel picks one
};

class Server {
 public:
  // Listens at once; Unavailable names address and port.
  static absl::StatusOr<std::unique_ptr<Server>> Create(asio::io_context& io, const ServerOptions& options,
                                                        Handler handler);
  virtual ~Server() = default;  // as Stop()
  virtual std::uint16_t port() const = 0;
  virtual std::size_t connections() const = 0;
  // Accepts nothing more; idle connections are closed, busy ones after their answer.
  virtual void Drain() = 0;
  // Cancels every handler.
  virtual void Stop() = 0;
};

}  // namespace llmd::http

#endif  // EXAMPLES_HTTP_SERVER_H_
