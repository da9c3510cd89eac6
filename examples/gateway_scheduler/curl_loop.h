// HTTP requests of the host: one thread, one libcurl multi handle, any number of requests at a time.
//
//   CurlLoop loop;
//   CurlLoop::Id id = loop.Fetch({.url = "http://10.0.0.7:8000/metrics"}, [](FetchResult& result) {
//     if (result.status.ok() && result.code == 200) Use(result.body);
//   });
//
// A request is done exactly once, on the loop's thread: with an answer (of any HTTP status), or with the
// error that there is none:
//   Unavailable         no connection, or the connection broke
//   DeadlineExceeded    the time was up
//   ResourceExhausted   the answer is longer than max_body_bytes; it is cut off while it arrives
//   Cancelled           Cancel(), or the loop ends
//   InvalidArgument     the URL or a file of the request is no good
// Connections are kept and used again. Redirects are not followed; proxies of the environment are ignored.
//
// Threads: any thread may call anything; callbacks run on the loop's thread and must be quick. They may start
// and cancel requests. The destructor cancels what is under way, runs those callbacks, and waits for the
// thread: it must not run on the loop's own thread.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_CURL_LOOP_H_
#define EXAMPLES_GATEWAY_SCHEDULER_CURL_LOOP_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "examples/http/message.h"

namespace llmd::host {

struct FetchTls {
  bool verify = true;
  std::string ca_file = {};  // PEM; empty: the system's
  std::string certificate_file = {}, key_file = {};
};

struct FetchRequest {
  std::string url = {};
  // Null: GET. Else POST of this text, which is not copied.
  std::shared_ptr<const std::string> body = nullptr;
  http::Headers headers = {};
  std::chrono::milliseconds timeout{1000};  // from start to end
  std::chrono::milliseconds connect_timeout{1000};
  std::size_t max_body_bytes = std::size_t{16} << 20;
  FetchTls tls = {};
};

struct FetchResult {
  absl::Status status = absl::OkStatus();  // whether there is an answer
  int code = 0;                            // HTTP status of the answer
  std::string body = {};                   // may be moved from; else its memory serves the next request
};

class CurlLoop {
 public:
  using Id = std::uint64_t;  // never 0
  using Done = std::function<void(FetchResult&)>;
  using Clock = std::chrono::steady_clock;

  struct Options {
    std::size_t max_idle_connections = 4096;
    std::chrono::seconds max_idle_age{60};
  };

  CurlLoop();
  explicit CurlLoop(const Options& options);
  ~CurlLoop();
  CurlLoop(const CurlLoop&) = delete;
  CurlLoop& operator=(const CurlLoop&) = delete;

  Id Fetch(FetchRequest request, Done done);
  // Ends the request with Cancelled, soon. Nothing happens when it is done already.
  void Cancel(Id id);
  // Runs `work` on the loop's thread, at once or not before `when`. Dropped when the loop ends before.
  void Post(std::function<void()> work);
  void At(Clock::time_point when, std::function<void()> work);

  bool OnLoopThread() const;
  // Connections opened so far, to see that they are used again.
  std::uint64_t connections() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_CURL_LOOP_H_
