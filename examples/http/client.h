// An HTTP/1.1 client on Boost.Asio and Boost.Beast for the example hosts: coroutines, kept connections,
// streamed answers.
//
//   Client client(io.get_executor(), {});
//   std::unique_ptr<ClientResponse> response = co_await client.Send("127.0.0.1:8000", request);
//   while (std::optional<std::string> piece = co_await response->Read()) ...
//
// Errors are thrown as boost::system::system_error. Cancelling the awaiting coroutine cancels the operation;
// dropping a response before its end closes the connection, so the server sees the abort.
//
// Threads: a client and its responses belong to one executor (a strand, or a loop with one thread).
#ifndef EXAMPLES_HTTP_CLIENT_H_
#define EXAMPLES_HTTP_CLIENT_H_

#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/system/system_error.hpp>

#include "examples/http/message.h"

namespace llmd::http {

namespace asio = boost::asio;

struct ClientOptions {
  std::size_t max_idle_per_host = 1024;
  std::chrono::milliseconds connect_timeout{5000};
  std::chrono::milliseconds header_timeout{0};  // from the request to the answer's headers; 0: none
  std::chrono::milliseconds read_timeout{0};    // for each Read(); 0: none
  std::size_t max_header_bytes = 64 << 10;
};

// No connection could be made, so nothing of the request was sent.
class ConnectError : public boost::system::system_error {
 public:
  using system_error::system_error;
};

class ClientResponse {
 public:
  virtual ~ClientResponse() = default;
  virtual int status() const = 0;
  virtual const Headers& headers() const = 0;
  // What arrived next, without a value at the end.
  virtual asio::awaitable<std::optional<std::string>> Read() = 0;
  // The rest; throws (message_size) when it is longer than `limit`.
  virtual asio::awaitable<std::string> ReadAll(std::size_t limit) = 0;
};

class Client {
 public:
  Client(asio::any_io_executor executor, const ClientOptions& options);
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  // Returns when the answer's headers are there. Host and Content-Length are added. A kept connection that
  // turns out to be closed is replaced once.
  asio::awaitable<std::unique_ptr<ClientResponse>> Send(std::string host_port, Request request);

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace llmd::http

#endif  // EXAMPLES_HTTP_CLIENT_H_
