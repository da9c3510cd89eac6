// A simulated worker on a loop of its own, and a client for it.
#ifndef TESTS_HOSTS_SIM_WORKER_BED_H_
#define TESTS_HOSTS_SIM_WORKER_BED_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "examples/sim_worker/worker.h"
#include "tests/hosts/http_bed.h"

namespace llmd::sim {

using Json = nlohmann::json;

struct Reply {
  int status = 0;
  http::Headers headers;
  std::string body;

  Json json() const { return Json::parse(body, nullptr, false); }
  std::string header(std::string_view name) const {
    const std::string* value = http::FindHeader(headers, name);
    return value == nullptr ? "" : *value;
  }
};

// The events of a stream without "data: ".
inline std::vector<std::string> EventsOf(const std::string& body) {
  std::vector<std::string> events;
  for (std::size_t begin = 0; begin < body.size();) {
    const std::size_t end = body.find("\n\n", begin);
    if (end == std::string::npos || body.compare(begin, 6, "data: ") != 0) return {"not an event stream"};
    events.push_back(body.substr(begin + 6, end - begin - 6));
    begin = end + 2;
  }
  return events;
}

class WorkerBed {
 public:
  static WorkerOptions Quick() {
    WorkerOptions options;
    options.model = "m";
    options.engine.num_gpu_blocks = 512;
    options.engine.max_model_len = 4096;
    options.engine.mean_output_tokens = 0;
    options.engine.latency = {.prefill_us_per_token = 1, .decode_us_per_token = 200};
    return options;
  }

  explicit WorkerBed(const WorkerOptions& options = Quick(), int threads = 1) : loop_(threads) {
    auto worker = Worker::Create(loop_.io(), options);
    if (!worker.ok()) throw std::runtime_error(std::string(worker.status().message()));
    worker_ = *std::move(worker);
  }
  ~WorkerBed() {
    worker_->Stop();
    loop_.Join();
  }

  Reply Call(const std::string& method, const std::string& path, std::string body = "",
             http::Headers headers = {}) {
    return client_loop_.Run(
        Exchange(http::Request(method, path, std::move(headers), std::move(body)), worker_->name()));
  }
  Reply Post(const std::string& path, const Json& body, http::Headers headers = {}) {
    return Call("POST", path, body.dump(), std::move(headers));
  }
  Reply Get(const std::string& path) { return Call("GET", path); }

  // What the engine looks like between two steps.
  template <typename Function>
  auto Look(Function function) {
    std::promise<decltype(function(std::declval<const Engine&>()))> promise;
    auto future = promise.get_future();
    worker_->driver().Inspect([&](const Engine& engine) { promise.set_value(function(engine)); });
    return future.get();
  }
  std::size_t num_held() {
    return Look([](const Engine& engine) { return std::size_t{engine.pool().num_held()}; });
  }

  Worker& worker() { return *worker_; }
  http::Loop& client_loop() { return client_loop_; }

 private:
  static boost::asio::awaitable<Reply> Exchange(http::Request request, std::string target) {
    http::Client client(co_await boost::asio::this_coro::executor, http::ClientOptions());
    const std::unique_ptr<http::ClientResponse> response =
        co_await client.Send(std::move(target), std::move(request));
    Reply reply;
    reply.status = response->status();
    reply.headers = response->headers();
    reply.body = co_await response->ReadAll(std::size_t{256} << 20);
    co_return reply;
  }

  http::Loop loop_;
  http::Loop client_loop_;
  std::unique_ptr<Worker> worker_;
};

}  // namespace llmd::sim

#endif  // TESTS_HOSTS_SIM_WORKER_BED_H_
