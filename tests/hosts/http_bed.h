// Servers and sockets of the HTTP tests: loops on threads of their own, everything on loopback.
#ifndef TESTS_HOSTS_HTTP_BED_H_
#define TESTS_HOSTS_HTTP_BED_H_

#include <chrono>
#include <exception>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/use_future.hpp>
#include <boost/asio/write.hpp>

#include "examples/http/client.h"
#include "examples/http/server.h"

namespace llmd::http {

inline constexpr std::chrono::seconds kPatience{30};

// Waits for what happens elsewhere.
inline bool Eventually(const std::function<bool()>& condition) {
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

// An event loop on threads of its own.
class Loop {
 public:
  explicit Loop(int threads = 1) : io_(threads), work_(io_.get_executor()) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { io_.run(); });
  }
  ~Loop() { Join(); }
  void Join() {
    io_.stop();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }
  asio::io_context& io() { return io_; }

  // Runs a coroutine and waits for what it returns.
  template <class T>
  T Run(asio::awaitable<T> task) {
    auto future = asio::co_spawn(io_, std::move(task), asio::use_future);
    if (future.wait_for(kPatience) != std::future_status::ready) throw std::runtime_error("the test hangs");
    return future.get();
  }

 private:
  asio::io_context io_;
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  std::vector<std::thread> threads_;
};

// A server on a loop of its own.
class ServerBed {
 public:
  explicit ServerBed(Handler handler, ServerOptions options = {}, int threads = 1) : loop_(threads) {
    auto server = Server::Create(loop_.io(), options, std::move(handler));
    if (!server.ok()) throw std::runtime_error(std::string(server.status().message()));
    server_ = *std::move(server);
  }
  ~ServerBed() {
    server_->Stop();
    loop_.Join();
  }
  Server& server() { return *server_; }
  Loop& loop() { return loop_; }
  std::string host_port() const { return "127.0.0.1:" + std::to_string(server_->port()); }

 private:
  Loop loop_;
  std::unique_ptr<Server> server_;
};

// A client that may send anything.
class RawClient {
 public:
  explicit RawClient(std::uint16_t port) : socket_(io_) {
    socket_.connect({asio::ip::make_address("127.0.0.1"), port});
    timeval patience{.tv_sec = kPatience.count(), .tv_usec = 0};
    setsockopt(socket_.native_handle(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(socket_.native_handle(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
  }
  // False when the server does not take it any more.
  bool Send(std::string_view text) {
    while (!text.empty()) {
      const ssize_t sent = ::send(socket_.native_handle(), text.data(), text.size(), MSG_NOSIGNAL);
      if (sent <= 0) return false;
      text.remove_prefix(static_cast<std::size_t>(sent));
    }
    return true;
  }
  // Until `end` has come, or the connection's end.
  std::string ReadUntil(std::string_view end) {
    std::string text;
    char byte = 0;
    while (text.find(end) == text.npos && ::recv(socket_.native_handle(), &byte, 1, 0) == 1) text += byte;
    return text;
  }
  std::string ReadToEnd() { return ReadUntil("\xff never \xff"); }
  void Close() { socket_.close(); }
  asio::ip::tcp::socket& socket() { return socket_; }

 private:
  asio::io_context io_;
  asio::ip::tcp::socket socket_;
};

}  // namespace llmd::http

#endif  // TESTS_HOSTS_HTTP_BED_H_
