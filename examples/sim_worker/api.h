// The HTTP surface of the simulated worker (spec: decode-worker.md 4).
//
// Threads: any number may run the io_context; an Api is shared by all connections. It must live until no
// handler runs any more.
#ifndef EXAMPLES_SIM_WORKER_API_H_
#define EXAMPLES_SIM_WORKER_API_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include <boost/asio/awaitable.hpp>

#include "examples/http/server.h"
#include "examples/sim_worker/answer.h"
#include "examples/sim_worker/api_request.h"
#include "examples/sim_worker/engine_driver.h"
#include "examples/sim_worker/faults.h"
#include "examples/sim_worker/metrics.h"
#include "examples/sim_worker/tokenizer.h"

namespace llmd::sim {

struct ApiOptions {
  ApiModel model = {};
  std::string role = "both";  // prefill ignores do_remote_prefill, decode ignores do_remote_decode
  std::uint32_t block_size = 16;
  std::uint32_t max_waiting = 0;  // more are refused with 429; 0: no limit
  bool echo = false;              // every answer tells of its request, as if x-sim-echo had been sent
  TransferIdentity transfer = {};
  std::string worker_name = {};  // x-sim-worker
  std::function<void()> on_crash = {};
};

class ApiServer {
 public:
  ApiServer(ApiOptions options, EngineDriver& driver, Metrics& metrics, Faults& faults);

  boost::asio::awaitable<void> Handle(http::Request request, http::Response& response);

  // Once the port is known, before the first request.
  void set_worker_name(std::string name) { options_.worker_name = std::move(name); }
  const Tokenizer& tokenizer() const { return tokenizer_; }

 private:
  using Task = boost::asio::awaitable<void>;
  // A request, where its answer goes, and the headers that every answer has.
  struct Call {
    const http::Request& request;
    http::Response& response;
    http::Headers headers;
  };

  http::Headers CommonHeaders(const http::Request& request) const;
  Task Dispatch(Call& call);
  // True when the request is answered, or was made to fail.
  boost::asio::awaitable<bool> Misbehave(Call& call, bool generates, Fault& fault);
  Task Generate(Call& call, Api api, const Fault& fault);
  Task Stream(Call& call, const ApiRequest& request, Answer& answer, class Submission& submission,
              bool disconnect);
  Task Render(Call& call, Api api);
  Task Tokenize(Call& call);
  Task Detokenize(Call& call);
  Task ResetPrefixCache(Call& call);
  Task FaultSwitch(Call& call);

  std::string ModelsJson() const;
  std::string StateJson() const;
  std::string NewId(const http::Request& request, const ApiRequest& parsed);

  static Task SendJson(Call& call, std::string body, int status = 200);
  static Task SendEmpty(Call& call, int status = 200);
  static Task SendError(Call& call, int status, std::string_view message, std::string_view type = {});
  static Task SendError(Call& call, const absl::Status& status);

  ApiOptions options_;
  EngineDriver& driver_;
  Metrics& metrics_;
  Faults& faults_;
  Tokenizer tokenizer_;
  std::int64_t created_;
  std::atomic<std::uint64_t> next_id_ = 0;
};

}  // namespace llmd::sim

#endif  // EXAMPLES_SIM_WORKER_API_H_
