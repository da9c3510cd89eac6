// One connection of the server: requests are read one after the other; while a handler runs, the socket is
// watched for the end of the client. Everything happens on the strand of the socket, unless it says so.
#ifndef EXAMPLES_HTTP_SERVER_CONNECTION_H_
#define EXAMPLES_HTTP_SERVER_CONNECTION_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include <boost/asio/basic_stream_socket.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/beast/core/flat_buffer.hpp>

#include "examples/http/server.h"

namespace llmd::http {

class Connection;

// What the connections of one server have in common. Any thread.
struct ServerShared {
  ServerOptions options;
  Handler handler;
  std::mutex mutex;
  std::unordered_set<Connection*> connections;
  bool draining = false;
  bool stopping = false;

  std::vector<std::shared_ptr<Connection>> All();
};

class Connection final : public Response, public std::enable_shared_from_this<Connection> {
 public:
  using Strand = asio::strand<asio::io_context::executor_type>;
  using Socket = asio::basic_stream_socket<asio::ip::tcp, Strand>;

  // Null when the server takes no more.
  static std::shared_ptr<Connection> Create(Socket socket, std::shared_ptr<ServerShared> shared);
  ~Connection();

  // Any thread.
  void Start();
  void Drain();
  void Stop();

  asio::awaitable<void> Send(int status, Headers headers, std::string body) override;
  asio::awaitable<void> Start(int status, Headers headers) override;
  asio::awaitable<void> Write(std::string_view piece) override;
  asio::awaitable<void> Finish() override;
  void Abort() override;
  bool started() const override { return started_; }

 private:
  using Clock = std::chrono::steady_clock;
  enum class Framing : std::uint8_t { kNone, kLength, kChunked, kUntilClose };

  Connection(Socket socket, std::shared_ptr<ServerShared> shared);

  asio::awaitable<void> Run();
  asio::awaitable<bool> WaitForRequest();
  asio::awaitable<bool> ReadRequest();
  asio::awaitable<void> RunHandler();
  asio::awaitable<void> CallHandler();
  asio::awaitable<void> Watch();
  asio::awaitable<void> AnswerError(int status, std::string_view message);
  asio::awaitable<void> Linger();
  asio::awaitable<void> WriteAll(std::span<const asio::const_buffer> buffers);
  std::string Head(int status, const Headers& headers, std::optional<std::uint64_t> body_bytes);
  void ExpectWritable() const;

  // One timer for all waiting: a later deadline costs an assignment.
  void SetDeadline(Clock::time_point deadline);
  void ArmTimer();

  Socket socket_;
  std::shared_ptr<ServerShared> shared_;
  boost::beast::flat_buffer buffer_;
  asio::steady_timer timer_;
  asio::steady_timer never_;  // waits for the end of a handler when nothing may be read
  Clock::time_point deadline_ = Clock::time_point::max();
  Clock::time_point timer_at_ = Clock::time_point::max();  // max: not armed
  bool expired_ = false;

  bool idle_ = false;    // between requests
  bool reject_ = false;  // nothing more is to be read after this answer
  bool draining_ = false;
  bool stopping_ = false;
  bool gone_ = false;    // the client is
  bool broken_ = false;  // an answer was begun and cannot be ended
  bool keep_ = true;

  std::string peer_;
  Request request_;
  bool head_only_ = false;
  bool http10_ = false;
  bool started_ = false;
  bool finished_ = false;
  Framing framing_ = Framing::kNone;
  std::uint64_t remaining_ = 0;

  bool done_ = false;  // the handler is
  std::exception_ptr error_;
  asio::cancellation_signal cancel_handler_;
  asio::cancellation_signal cancel_watch_;
};

}  // namespace llmd::http

#endif  // EXAMPLES_HTTP_SERVER_CONNECTION_H_
