#include "examples/http/client.h"

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <deque>
#include <unordered_map>
#include <utility>
#include <vector>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/connect.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/buffer_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/system/system_error.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "examples/http/wire.h"

namespace llmd::http {
namespace {

namespace beast_http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;
using boost::system::system_error;
using Clock = std::chrono::steady_clock;
using Parser = beast_http::response_parser<beast_http::buffer_body>;

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);
constexpr std::size_t kReadBytes = 16 << 10;
constexpr std::chrono::seconds kMostIdle{90};
constexpr std::size_t kSweepEvery = 256;  // connections given back

struct Authority {
  std::string host;
  std::string port;
};

// host:port, [v6]:port.
Authority Split(const std::string& host_port) {
  const std::size_t colon = host_port.rfind(':');
  std::uint32_t port = 0;
  if (colon == std::string::npos || colon == 0 || !absl::SimpleAtoi(host_port.substr(colon + 1), &port) ||
      port == 0 || port > 65535) {
    throw system_error(asio::error::invalid_argument, "'" + host_port + "' is no host:port");
  }
  Authority authority{host_port.substr(0, colon), host_port.substr(colon + 1)};
  if (authority.host.front() == '[' && authority.host.back() == ']') {
    authority.host = authority.host.substr(1, authority.host.size() - 2);
  }
  return authority;
}

// Closes the socket when time is up.
class Deadline {
 public:
  Deadline(tcp::socket& socket, std::chrono::milliseconds after) : timer_(socket.get_executor()) {
    if (after.count() <= 0) return;
    timer_.expires_after(after);
    timer_.async_wait([&socket, passed = passed_](error_code error) {
      if (error || *passed == State::kOver) return;
      *passed = State::kPassed;
      error_code ignored;
      socket.close(ignored);  // cancelling alone would go on to the host's next address
    });
  }
  ~Deadline() { *passed_ = State::kOver; }
  bool passed() const { return *passed_ == State::kPassed; }

 private:
  enum class State : std::uint8_t { kRunning, kPassed, kOver };
  // A handler that is queued already outlives the timer.
  std::shared_ptr<State> passed_ = std::make_shared<State>(State::kRunning);
  asio::steady_timer timer_;
};

struct ClientConnection {
  explicit ClientConnection(const asio::any_io_executor& executor, std::size_t max_header_bytes)
      : socket(executor), buffer(max_header_bytes + 4 * kReadBytes) {
    buffer.reserve(kReadBytes);
  }
  // Whether a kept connection may be used: nothing has come since, in particular no end.
  bool usable() {
    char byte = 0;
    const ssize_t got = ::recv(socket.native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
  }

  tcp::socket socket;
  boost::beast::flat_buffer buffer;
  Clock::time_point idle_since;
};
using ConnectionPtr = std::unique_ptr<ClientConnection>;

class Pool {
 public:
  explicit Pool(std::size_t max_idle) : max_idle_(max_idle) {}

  ConnectionPtr Take(const std::string& host_port) {
    const auto found = idle_.find(host_port);
    if (found == idle_.end()) return nullptr;
    while (!found->second.empty()) {
      ConnectionPtr last = std::move(found->second.back());  // the least likely to have been closed
      found->second.pop_back();
      if (last->usable()) return last;
    }
    return nullptr;
  }

  void Give(const std::string& host_port, ConnectionPtr connection) {
    if (++given_ % kSweepEvery == 0) Sweep();
    std::deque<ConnectionPtr>& idle = idle_[host_port];
    if (idle.size() >= max_idle_) return;
    connection->idle_since = Clock::now();
    idle.push_back(std::move(connection));
  }

 private:
  void Sweep() {
    const Clock::time_point oldest = Clock::now() - kMostIdle;
    for (auto& [host, idle] : idle_) {
      while (!idle.empty() && idle.front()->idle_since < oldest) idle.pop_front();
    }
    std::erase_if(idle_, [](const auto& entry) { return entry.second.empty(); });
  }

  std::size_t max_idle_;
  std::size_t given_ = 0;
  std::unordered_map<std::string, std::deque<ConnectionPtr>> idle_;
};

class ResponseImpl final : public ClientResponse {
 public:
  ResponseImpl(ConnectionPtr connection, std::unique_ptr<Parser> parser, std::shared_ptr<Pool> pool,
               std::string host_port, bool reusable, std::chrono::milliseconds read_timeout)
      : connection_(std::move(connection)),
        parser_(std::move(parser)),
        pool_(std::move(pool)),
        host_port_(std::move(host_port)),
        reusable_(reusable),
        read_timeout_(read_timeout),
        status_(static_cast<int>(parser_->get().result_int())),
        headers_(ToHeaders(parser_->get())) {
    if (parser_->is_done()) End();
  }

  int status() const override { return status_; }
  const Headers& headers() const override { return headers_; }

  asio::awaitable<std::optional<std::string>> Read() override {
    std::optional<std::string> piece;
    if (connection_ == nullptr) {
      if (broken_) throw system_error(asio::error::not_connected, "the answer was broken off");
      co_return piece;
    }
    const ConnectionPtr::pointer connection = connection_.get();
    std::array<char, kReadBytes> place;
    auto& body = parser_->get().body();
    const Deadline deadline(connection->socket, read_timeout_);
    for (;;) {
      body.data = place.data();
      body.size = place.size();
      body.more = true;
      // Before each operation: when it is cancelled, or this coroutine destroyed, nothing is kept.
      broken_ = true;
      auto [error, bytes] =
          co_await beast_http::async_read_some(connection->socket, connection->buffer, *parser_, kAwait);
      if (error == beast_http::error::need_buffer) error = {};
      if (error) {
        if (deadline.passed()) error = asio::error::timed_out;
        connection_.reset();
        throw system_error(error, "reading an answer");
      }
      broken_ = false;
      const std::size_t got = place.size() - body.size;
      const bool done = parser_->is_done();
      if (got > 0) piece.emplace(place.data(), got);
      if (done) End();
      if (got > 0 || done) co_return piece;
    }
  }

  asio::awaitable<std::string> ReadAll(std::size_t limit) override {
    std::string all;
    for (;;) {
      const std::optional<std::string> piece = co_await Read();
      if (!piece) co_return all;
      if (all.size() + piece->size() > limit) {
        connection_.reset();
        broken_ = true;
        throw system_error(asio::error::message_size,
                           absl::StrCat("the answer has more than ", limit, " bytes"));
      }
      all += *piece;
    }
  }

 private:
  void End() {
    ConnectionPtr connection = std::move(connection_);
    // What comes unasked belongs to no answer.
    if (reusable_ && parser_->keep_alive() && !parser_->need_eof() && connection->buffer.size() == 0) {
      pool_->Give(host_port_, std::move(connection));
    }
  }

  ConnectionPtr connection_;
  std::unique_ptr<Parser> parser_;
  std::shared_ptr<Pool> pool_;
  std::string host_port_;
  bool reusable_;
  std::chrono::milliseconds read_timeout_;
  int status_;
  Headers headers_;
  bool broken_ = false;
};

std::string Head(const std::string& host_port, const Request& request) {
  if (!IsToken(request.method) || request.target.empty() ||
      std::any_of(request.target.begin(), request.target.end(),
                  [](unsigned char c) { return c <= 0x20 || c == 0x7f; })) {
    throw system_error(asio::error::invalid_argument, "method or target cannot be sent");
  }
  std::string head = absl::StrCat(request.method, " ", request.target, " HTTP/1.1\r\n");
  bool has_host = false;
  for (const auto& [name, value] : request.headers) {
    if (EqualsIgnoreCase(name, "content-length") || EqualsIgnoreCase(name, "transfer-encoding")) continue;
    has_host = has_host || EqualsIgnoreCase(name, "host");
    AppendHeader(head, name, value);
  }
  if (!has_host) AppendHeader(head, "host", host_port);
  if (!request.body.empty() || request.method == "POST" || request.method == "PUT" ||
      request.method == "PATCH") {
    absl::StrAppend(&head, "content-length: ", request.body.size(), "\r\n");
  }
  head += "\r\n";
  return head;
}

}  // namespace

struct Client::Impl {
  asio::any_io_executor executor;
  ClientOptions options;
  std::shared_ptr<Pool> pool;

  asio::awaitable<ConnectionPtr> Connect(const std::string& host_port) {
    const Authority authority = Split(host_port);
    auto connection = std::make_unique<ClientConnection>(executor, options.max_header_bytes);
    error_code error;
    const Deadline deadline(connection->socket, options.connect_timeout);
    std::vector<tcp::endpoint> endpoints;
    const auto address = asio::ip::make_address(authority.host, error);
    const auto port = static_cast<std::uint16_t>(std::stoi(authority.port));
    if (!error) {
      endpoints.emplace_back(address, port);
    } else {
      tcp::resolver resolver(executor);
      const auto [failure, found] = co_await resolver.async_resolve(authority.host, authority.port, kAwait);
      if (failure) throw ConnectError(failure, "resolving " + authority.host);
      for (const auto& entry : found) endpoints.push_back(entry.endpoint());
    }
    if (deadline.passed()) throw ConnectError(asio::error::timed_out, "connecting to " + host_port);
    const auto [failure, chosen] = co_await asio::async_connect(connection->socket, endpoints, kAwait);
    if (failure) {
      throw ConnectError(deadline.passed() ? asio::error::timed_out : failure, "connecting to " + host_port);
    }
    connection->socket.set_option(tcp::no_delay(true), error);
    co_return connection;
  }

  // Null when the kept connection turned out to be closed: nothing was read.
  asio::awaitable<std::unique_ptr<ClientResponse>> Exchange(ConnectionPtr connection, bool kept,
                                                            const std::string& host_port,
                                                            const std::string& head, const Request& request) {
    const Deadline deadline(connection->socket, options.header_timeout);
    const std::array<asio::const_buffer, 2> buffers = {asio::buffer(head), asio::buffer(request.body)};
    const auto [write_error, written] = co_await asio::async_write(connection->socket, buffers, kAwait);
    // A server may answer, with a refusal, before it has read everything.
    const bool try_read = write_error != asio::error::operation_aborted;
    error_code error = write_error;
    while (try_read) {
      auto parser = std::make_unique<Parser>();
      parser->header_limit(
          static_cast<std::uint32_t>(std::min<std::size_t>(options.max_header_bytes, 1u << 31)));
      parser->body_limit(boost::none);
      if (request.method == "HEAD") parser->skip(true);
      std::size_t bytes = 0;
      std::tie(error, bytes) =
          co_await beast_http::async_read_header(connection->socket, connection->buffer, *parser, kAwait);
      if (error) {
        const bool nothing = !parser->got_some() && connection->buffer.size() == 0;
        const bool closed = error == beast_http::error::end_of_stream || error == asio::error::eof ||
                            error == asio::error::connection_reset || error == asio::error::broken_pipe ||
                            error == asio::error::connection_aborted;
        if (kept && nothing && closed) co_return nullptr;
        break;
      }
      const unsigned status = parser->get().result_int();
      if (status >= 100 && status < 200 && status != 101) {
        kept = false;  // something of the answer was read
        continue;
      }
      auto response = std::make_unique<ResponseImpl>(std::move(connection), std::move(parser), pool,
                                                     host_port, !write_error, options.read_timeout);
      co_return response;
    }
    if (deadline.passed()) error = asio::error::timed_out;
    throw system_error(error, "asking " + host_port);
  }
};

Client::Client(asio::any_io_executor executor, const ClientOptions& options)
    : impl_(std::make_shared<Impl>(
          Impl{std::move(executor), options, std::make_shared<Pool>(options.max_idle_per_host)})) {}

Client::~Client() = default;

asio::awaitable<std::unique_ptr<ClientResponse>> Client::Send(std::string host_port, Request request) {
  const std::shared_ptr<Impl> impl = impl_;  // the client may go meanwhile
  const std::string head = Head(host_port, request);
  std::unique_ptr<ClientResponse> response;
  if (ConnectionPtr kept = impl->pool->Take(host_port)) {
    response = co_await impl->Exchange(std::move(kept), true, host_port, head, request);
    if (response != nullptr) co_return response;
  }
  ConnectionPtr fresh = co_await impl->Connect(host_port);
  response = co_await impl->Exchange(std::move(fresh), false, host_port, head, request);
  co_return response;
}

}  // namespace llmd::http
