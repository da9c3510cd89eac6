// From the engine to the coroutine that answers: what one HTTP request's choices produced.
//
// The engine's strand puts, the answer's coroutine waits and takes everything there is at once, so a slow
// reader costs memory for its own tokens and nobody else's time.
#ifndef EXAMPLES_SIM_WORKER_TOKEN_QUEUE_H_
#define EXAMPLES_SIM_WORKER_TOKEN_QUEUE_H_

#include <mutex>
#include <utility>
#include <vector>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/experimental/concurrent_channel.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "examples/sim_worker/engine.h"

namespace llmd::sim {

class TokenQueue : public OutputSink {
 public:
  explicit TokenQueue(boost::asio::any_io_executor executor) : wake_(std::move(executor), 1) {}

  void OnOutput(Output output) override {
    bool first = false;
    {
      const std::scoped_lock lock(mutex_);
      first = outputs_.empty();
      outputs_.push_back(std::move(output));
    }
    if (first) wake_.try_send(boost::system::error_code());
  }

  // Replaces `out` by what has come; waits for the first of it. Cancellation throws.
  boost::asio::awaitable<void> Take(std::vector<Output>& out) {
    out.clear();
    while (true) {
      {
        const std::scoped_lock lock(mutex_);
        if (!outputs_.empty()) {
          out.swap(outputs_);
          co_return;
        }
      }
      co_await wake_.async_receive(boost::asio::use_awaitable);
    }
  }

 private:
  std::mutex mutex_;
  std::vector<Output> outputs_;
  boost::asio::experimental::concurrent_channel<void(boost::system::error_code)> wake_;
};

}  // namespace llmd::sim

#endif  // EXAMPLES_SIM_WORKER_TOKEN_QUEUE_H_
