#include "examples/http/server_connection.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <utility>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/system/system_error.hpp>

#include "absl/strings/str_cat.h"
#include "examples/http/error.h"
#include "examples/http/wire.h"
#include "llmd/base/strings.h"

namespace llmd::http {
namespace {

using boost::system::error_code;
using boost::system::system_error;

constexpr std::size_t kFirstBuffer = 4 << 10;
// Of later requests, read while a handler runs. Beyond, the client's end is not seen before the answer's.
constexpr std::size_t kMostPipelined = 64 << 10;
constexpr std::size_t kWriteProgress = 64 << 10;
constexpr std::chrono::seconds kLingerTime{2};
constexpr std::size_t kLingerBytes = 16 << 20;

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);

bool HasNoBody(int status) { return status < 200 || status == 204 || status == 304; }

}  // namespace

std::vector<std::shared_ptr<Connection>> ServerShared::All() {
  std::vector<std::shared_ptr<Connection>> all;
  const std::lock_guard lock(mutex);
  all.reserve(connections.size());
  for (Connection* connection : connections) {
    if (auto strong = connection->weak_from_this().lock()) all.push_back(std::move(strong));
  }
  return all;
}

std::shared_ptr<Connection> Connection::Create(Socket socket, std::shared_ptr<ServerShared> shared) {
  std::shared_ptr<Connection> connection(new Connection(std::move(socket), shared));
  const std::lock_guard lock(shared->mutex);
  if (shared->draining || shared->stopping) return nullptr;
  if (shared->connections.size() >= shared->options.max_connections) return nullptr;
  shared->connections.insert(connection.get());
  return connection;
}

Connection::Connection(Socket socket, std::shared_ptr<ServerShared> shared)
    : socket_(std::move(socket)),
      shared_(std::move(shared)),
      buffer_(shared_->options.max_header_bytes + 2 * kMostPipelined),
      timer_(socket_.get_executor()),
      never_(socket_.get_executor(), Clock::time_point::max()) {}

Connection::~Connection() {
  const std::lock_guard lock(shared_->mutex);
  shared_->connections.erase(this);
}

void Connection::Start() {
  asio::co_spawn(
      socket_.get_executor(), [self = shared_from_this()] { return self->Run(); }, asio::detached);
}

void Connection::Drain() {
  asio::post(socket_.get_executor(), [self = shared_from_this()] {
    self->draining_ = true;
    error_code ignored;
    if (self->idle_) self->socket_.close(ignored);
  });
}

void Connection::Stop() {
  asio::post(socket_.get_executor(), [self = shared_from_this()] {
    self->stopping_ = true;
    error_code ignored;
    self->socket_.close(ignored);  // ends what is read, and so the handler
    self->cancel_handler_.emit(asio::cancellation_type::terminal);
  });
}

void Connection::SetDeadline(Clock::time_point deadline) {
  deadline_ = deadline;
  if (deadline_ < timer_at_) ArmTimer();
}

void Connection::ArmTimer() {
  timer_at_ = deadline_;
  timer_.expires_at(deadline_);
  timer_.async_wait([weak = weak_from_this()](error_code error) {
    const std::shared_ptr<Connection> self = weak.lock();
    if (error || self == nullptr) return;
    self->timer_at_ = Clock::time_point::max();
    if (self->deadline_ == Clock::time_point::max()) return;
    if (Clock::now() < self->deadline_) return self->ArmTimer();
    self->expired_ = true;
    error_code ignored;
    self->socket_.cancel(ignored);
  });
}

asio::awaitable<void> Connection::Run() {
  // The coroutine's argument is gone after its first suspension.
  const std::shared_ptr<Connection> self = shared_from_this();
  error_code ignored;
  socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
  try {
    if (const auto peer = socket_.remote_endpoint(ignored); !ignored) peer_ = peer.address().to_string();
    buffer_.reserve(std::min(kFirstBuffer, buffer_.max_size()));
    while (keep_ && !draining_ && !stopping_) {
      const bool begun = co_await WaitForRequest();
      if (!begun) break;
      const bool read = co_await ReadRequest();
      if (!read) break;
      co_await RunHandler();
      if (gone_ || broken_) break;
    }
    if (reject_ && !gone_ && !broken_ && !stopping_) co_await Linger();
  } catch (const std::exception&) {  // the connection's end, or no memory
  }
  deadline_ = Clock::time_point::max();
  timer_.cancel();
  socket_.close(ignored);
}

asio::awaitable<bool> Connection::WaitForRequest() {
  if (buffer_.size() > 0) co_return true;
  SetDeadline(Clock::now() + shared_->options.idle_timeout);
  idle_ = true;
  const auto [error, bytes] = co_await socket_.async_read_some(buffer_.prepare(kFirstBuffer / 2), kAwait);
  idle_ = false;
  if (error) co_return false;
  buffer_.commit(bytes);
  co_return true;
}

asio::awaitable<void> Connection::RunHandler() {
  done_ = false;
  error_ = nullptr;
  // The watch is this coroutine, the handler one beside it, for it is the one that may be cancelled.
  asio::co_spawn(socket_.get_executor(), CallHandler(),
                 asio::bind_cancellation_slot(cancel_handler_.slot(),
                                              [self = shared_from_this()](const std::exception_ptr& error) {
                                                self->done_ = true;
                                                self->error_ = error;
                                                self->cancel_watch_.emit(asio::cancellation_type::all);
                                              }));
  co_await Watch();
  SetDeadline(Clock::time_point::max());
  if (gone_ || broken_ || stopping_) co_return;
  if (started_) {
    if (!finished_) Abort();  // a head without an end
    co_return;
  }
  std::string message = "the handler gave no answer";
  if (error_ != nullptr) {
    try {
      std::rethrow_exception(std::exchange(error_, nullptr));
    } catch (const std::exception& failure) {
      message = failure.what();
    } catch (...) {
      message = "unknown failure";
    }
  }
  co_await AnswerError(500, message);
  reject_ = false;
}

asio::awaitable<void> Connection::CallHandler() { co_await shared_->handler(std::move(request_), *this); }

asio::awaitable<void> Connection::Watch() {
  while (!done_) {
    if (gone_ || broken_ || buffer_.size() >= kMostPipelined) {
      (void)co_await never_.async_wait(asio::bind_cancellation_slot(cancel_watch_.slot(), kAwait));
      continue;
    }
    const auto [error, bytes] = co_await socket_.async_read_some(
        buffer_.prepare(512), asio::bind_cancellation_slot(cancel_watch_.slot(), kAwait));
    buffer_.commit(bytes);
    if (!error || done_) continue;
    if (!broken_) {
      gone_ = true;
      cancel_handler_.emit(asio::cancellation_type::terminal);
    }
  }
}

std::string Connection::Head(int status, const Headers& headers, std::optional<std::uint64_t> body_bytes) {
  const auto code = boost::beast::http::int_to_status(static_cast<unsigned>(status));
  std::string head =
      absl::StrCat("HTTP/1.1 ", status, " ", ToAbsl(View(boost::beast::http::obsolete_reason(code))), "\r\n");
  std::optional<std::uint64_t> announced;
  for (const auto& [name, value] : headers) {
    if (EqualsIgnoreCase(name, "connection")) {
      if (HasToken(value, "close")) keep_ = false;
    } else if (EqualsIgnoreCase(name, "content-length")) {
      announced = ParseLength(value);
      if (!announced) {
        throw system_error(asio::error::invalid_argument, "content-length '" + value + "' is no number");
      }
    } else if (!EqualsIgnoreCase(name, "transfer-encoding") && !EqualsIgnoreCase(name, "keep-alive")) {
      AppendHeader(head, name, value);
    }
  }
  // The length of the body that a GET would get is the handler's to say.
  if (body_bytes && !(head_only_ && announced)) announced = body_bytes;
  if (HasNoBody(status)) {
    framing_ = Framing::kNone;
    if (announced && status == 304) absl::StrAppend(&head, "content-length: ", *announced, "\r\n");
  } else if (announced) {
    framing_ = Framing::kLength;
    remaining_ = *announced;
    absl::StrAppend(&head, "content-length: ", *announced, "\r\n");
  } else if (http10_) {
    framing_ = Framing::kUntilClose;
    keep_ = false;
  } else {
    framing_ = Framing::kChunked;
    head += "transfer-encoding: chunked\r\n";
  }
  if (head_only_) framing_ = Framing::kNone;
  if (draining_) keep_ = false;
  if (!keep_) {
    head += "connection: close\r\n";
  } else if (http10_) {
    head += "connection: keep-alive\r\n";
  }
  head += "\r\n";
  return head;
}

void Connection::ExpectWritable() const {
  if (broken_ || gone_) throw system_error(asio::error::operation_aborted, "the connection is gone");
  if (!started_ || finished_) throw system_error(asio::error::invalid_argument, "no answer is under way");
}

asio::awaitable<void> Connection::WriteAll(std::span<const asio::const_buffer> buffers) {
  const auto until = [this](const error_code& error, std::size_t) -> std::size_t {
    SetDeadline(Clock::now() + shared_->options.idle_timeout);
    return error ? 0 : kWriteProgress;
  };
  const auto [error, bytes] = co_await asio::async_write(socket_, buffers, until, kAwait);
  SetDeadline(Clock::time_point::max());
  if (error) {
    broken_ = true;
    throw system_error(error, "writing an answer");
  }
}

asio::awaitable<void> Connection::Send(int status, Headers headers, std::string body) {
  if (started_) throw system_error(asio::error::invalid_argument, "the answer was begun before");
  if (broken_ || gone_) throw system_error(asio::error::operation_aborted, "the connection is gone");
  const std::string head = Head(status, headers, body.size());
  started_ = true;
  const std::array<asio::const_buffer, 2> buffers = {
      asio::buffer(head), framing_ == Framing::kNone ? asio::const_buffer() : asio::buffer(body)};
  co_await WriteAll(buffers);
  finished_ = true;
}

asio::awaitable<void> Connection::Start(int status, Headers headers) {
  if (started_) throw system_error(asio::error::invalid_argument, "the answer was begun before");
  if (broken_ || gone_) throw system_error(asio::error::operation_aborted, "the connection is gone");
  const std::string head = Head(status, headers, std::nullopt);
  started_ = true;
  const std::array<asio::const_buffer, 1> buffers = {asio::buffer(head)};
  co_await WriteAll(buffers);
}

asio::awaitable<void> Connection::Write(std::string_view piece) {
  ExpectWritable();
  if (piece.empty() || framing_ == Framing::kNone) co_return;
  if (framing_ == Framing::kChunked) {
    std::array<char, 24> size;
    const int digits = std::snprintf(size.data(), size.size(), "%zx\r\n", piece.size());
    const std::array<asio::const_buffer, 3> buffers = {
        asio::buffer(size.data(), static_cast<std::size_t>(digits)), asio::buffer(piece.data(), piece.size()),
        asio::buffer("\r\n", 2)};
    co_await WriteAll(buffers);
    co_return;
  }
  if (framing_ == Framing::kLength) {
    if (piece.size() > remaining_) {
      throw system_error(asio::error::invalid_argument, "more body than content-length says");
    }
    remaining_ -= piece.size();
  }
  const std::array<asio::const_buffer, 1> buffers = {asio::buffer(piece.data(), piece.size())};
  co_await WriteAll(buffers);
}

asio::awaitable<void> Connection::Finish() {
  ExpectWritable();
  if (framing_ == Framing::kLength && remaining_ > 0) {
    Abort();
    throw system_error(asio::error::invalid_argument, "less body than content-length says");
  }
  if (framing_ == Framing::kChunked) {
    const std::array<asio::const_buffer, 1> buffers = {asio::buffer("0\r\n\r\n", 5)};
    co_await WriteAll(buffers);
  }
  finished_ = true;
}

void Connection::Abort() {
  if (finished_) return;
  error_code ignored;
  // Without a length or chunks only a reset tells the client that something is missing.
  if (framing_ == Framing::kUntilClose) socket_.set_option(asio::socket_base::linger(true, 0), ignored);
  broken_ = true;
  started_ = true;
  socket_.close(ignored);
}

asio::awaitable<void> Connection::AnswerError(int status, std::string_view message) {
  reject_ = true;
  keep_ = keep_ && status == 500;
  co_await Send(status, ContentType("application/json"), ErrorBody(status, message));
}

// A client that is still sending reads the answer only if its connection is not reset meanwhile.
asio::awaitable<void> Connection::Linger() {
  error_code ignored;
  socket_.shutdown(asio::socket_base::shutdown_send, ignored);
  SetDeadline(Clock::now() + kLingerTime);
  std::array<char, 4096> dropped;
  for (std::size_t total = 0; total < kLingerBytes && !stopping_ && !draining_;) {
    const auto [error, bytes] = co_await socket_.async_read_some(asio::buffer(dropped), kAwait);
    if (error) co_return;
    total += bytes;
  }
}

}  // namespace llmd::http
