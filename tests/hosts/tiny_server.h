// A server of a few lines for tests: one thread a connection, whatever bytes the test wants.
#ifndef TESTS_HOSTS_TINY_SERVER_H_
#define TESTS_HOSTS_TINY_SERVER_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "examples/http/message.h"

namespace llmd::host {

class TinyServer {
 public:
  // One answer on its way.
  class Reply {
   public:
    // False when the client is gone.
    bool Raw(std::string_view bytes);
    bool Send(int status, std::string_view body);
    // Returns when the client is gone or the server ends.
    void Hang();
    void Close() { close_ = true; }

   private:
    friend class TinyServer;
    Reply(int fd, const TinyServer& server) : fd_(fd), server_(server) {}
    int fd_;
    const TinyServer& server_;
    bool close_ = false;
  };
  // Called on the threads of connections.
  using Handler = std::function<void(const http::Request&, Reply&)>;

  explicit TinyServer(Handler handler);
  ~TinyServer();

  std::uint16_t port() const { return port_; }
  std::string url(std::string_view path = "/") const;
  int connections() const { return connections_; }
  int requests() const { return requests_; }

 private:
  void Accept();
  void Serve(int fd);

  Handler handler_;
  int listener_ = -1;
  std::uint16_t port_ = 0;
  std::atomic<bool> stopping_ = false;
  std::atomic<int> connections_ = 0;
  std::atomic<int> requests_ = 0;
  std::mutex mutex_;
  std::vector<int> open_;
  std::vector<std::thread> threads_;
  std::thread acceptor_;
};

}  // namespace llmd::host

#endif  // TESTS_HOSTS_TINY_SERVER_H_
