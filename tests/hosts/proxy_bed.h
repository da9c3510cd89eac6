// The standalone proxy between a client and workers of the test's, with sessions that do as they are told.
#ifndef TESTS_HOSTS_PROXY_BED_H_
#define TESTS_HOSTS_PROXY_BED_H_

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/time/clock.h"
#include "envoy/service/ext_proc/v3/external_processor.pb.h"
#include "examples/gateway_scheduler/http_proxy.h"
#include "examples/gateway_scheduler/session.h"
#include "tests/hosts/http_bed.h"

namespace llmd::host {

namespace asio = boost::asio;
using http::Eventually;
using Json = nlohmann::json;

// What the sessions of a test do and have seen. Any thread.
struct Script {
  using Outcome = std::variant<gateway::RoutingResult, gateway::Refusal>;
  std::function<Outcome(const gateway::RequestFacts&)> decide;
  bool decide_later = false;  // from another thread
  gateway::ExtProcOptions options = {};

  std::mutex mutex;
  std::vector<gateway::CompletionCause> completions = {};
  std::vector<std::string> served = {};
  std::vector<std::uint64_t> cached_tokens = {};
  std::function<void()> evict = {};  // the last session's

  std::size_t completed() {
    const std::lock_guard lock(mutex);
    return completions.size();
  }
};

// The protocol of the library, with the test's decisions.
class ScriptedSession final : public Session {
 public:
  ScriptedSession(std::shared_ptr<Script> script, Post post, std::function<void()> ready)
      : script_(std::move(script)),
        post_(std::move(post)),
        ready_(std::move(ready)),
        stream_(script_->options, parser_, random_) {}
  ~ScriptedSession() override { Close(gateway::CloseReason::kCancelled); }

  void Receive(gateway::ProcessingRequest&& message) override {
    if (stream_.Receive(std::move(message), absl::Now()) == gateway::ExtProcEvent::kNeedsDecision) {
      const Script::Outcome outcome = script_->decide(stream_.facts());
      if (script_->decide_later) {
        std::thread([post = post_, weak = weak_from_this(), outcome] {
          post([weak, outcome] {
            if (const auto self = std::static_pointer_cast<ScriptedSession>(weak.lock())) {
              self->Decide(outcome);
              self->ready_();
            }
          });
        }).detach();
      } else {
        Decide(outcome);
      }
      const std::lock_guard lock(script_->mutex);
      script_->evict = [post = post_, weak = weak_from_this()] {
        post([weak] {
          if (const auto self = std::static_pointer_cast<ScriptedSession>(weak.lock())) {
            self->stream_.Evict(sched::DroppedReason::kEvictedPriority, absl::Now());
            self->Settle();
            self->ready_();
          }
        });
      };
    }
    Settle();
  }
  bool Next(gateway::ProcessingResponse& answer) override { return stream_.Next(answer); }
  bool finished() const override { return stream_.finished(); }
  const absl::Status& status() const override { return stream_.status(); }
  void Fail(absl::Status status) override {
    stream_.Fail(std::move(status), absl::Now());
    Settle();
  }
  void Close(gateway::CloseReason reason) override {
    stream_.Close(reason, absl::Now());
    Settle();
  }

 private:
  void Decide(const Script::Outcome& outcome) {
    if (const auto* result = std::get_if<gateway::RoutingResult>(&outcome)) {
      if (!stream_.Decide(*result, absl::Now()).ok()) std::abort();
    } else {
      (void)stream_.Refuse(std::get<gateway::Refusal>(outcome), absl::Now());
    }
  }
  void Settle() {
    const auto completion = stream_.TakeCompletion();
    if (!completion) return;
    const std::lock_guard lock(script_->mutex);
    script_->completions.push_back(completion->cause);
    script_->served.push_back(stream_.response().served_endpoint);
    script_->cached_tokens.push_back(stream_.response().usage.cached_tokens);
  }

  std::shared_ptr<Script> script_;
  Post post_;
  std::function<void()> ready_;
  gateway::OpenAiParser parser_;
  Random random_{1};
  gateway::ExtProcStream stream_;
};

struct Answer {
  int status = 0;
  http::Headers headers = {};
  std::string body = {};

  std::string Header(std::string_view name) const {
    const std::string* value = http::FindHeader(headers, name);
    return value == nullptr ? std::string() : *value;
  }
};

// Workers, the proxy in front of them, and a client.
class ProxyBed {
 public:
  explicit ProxyBed(HttpProxyOptions options = {}) : client_(loop_.io().get_executor(), {}) {
    script = std::make_shared<Script>();
    auto made = HttpProxy::Create(
        options,
        [script = script](int, Session::Post post, std::function<void()> ready) {
          return std::make_shared<ScriptedSession>(script, std::move(post), std::move(ready));
        },
        [this] { return has_endpoints.load(); });
    if (!made.ok()) throw std::runtime_error(std::string(made.status().message()));
    proxy_ = *std::move(made);
  }

  // Every request goes there.
  void RouteTo(std::vector<std::string> destinations, std::string prefill = {}) {
    script->decide = [destinations, prefill](const gateway::RequestFacts&) {
      gateway::RoutingResult result{.destinations = destinations};
      if (!prefill.empty()) result.set_headers.push_back({.name = "x-prefiller-host-port", .value = prefill});
      return result;
    };
  }

  Answer Ask(http::Request request) {
    return loop_.Run(
        [](http::Client& client, std::string to, http::Request request) -> asio::awaitable<Answer> {
          const auto response = co_await client.Send(to, std::move(request));
          Answer answer;
          answer.status = response->status();
          answer.headers = response->headers();
          answer.body = co_await response->ReadAll(std::size_t{64} << 20);
          co_return answer;
        }(client_, host_port(), std::move(request)));
  }
  std::unique_ptr<http::ClientResponse> Begin(http::Request request) {
    return loop_.Run(client_.Send(host_port(), std::move(request)));
  }
  std::string host_port() const { return "127.0.0.1:" + std::to_string(proxy_->port()); }
  HttpProxy& proxy() { return *proxy_; }
  http::Loop& loop() { return loop_; }

  std::shared_ptr<Script> script;
  std::atomic<bool> has_endpoints = true;

 private:
  http::Loop loop_;
  http::Client client_;
  std::unique_ptr<HttpProxy> proxy_;
};

// A worker that keeps what it was asked. Any thread.
class TestWorker {
 public:
  using Reply = std::function<asio::awaitable<void>(http::Request, http::Response&)>;
  explicit TestWorker(Reply reply)
      : bed_([this, reply](http::Request request, http::Response& response) -> asio::awaitable<void> {
          {
            const std::lock_guard lock(mutex_);
            requests_.push_back(request);
          }
          co_await reply(std::move(request), response);
        }) {}
  std::string host_port() const { return bed_.host_port(); }
  std::vector<http::Request> requests() {
    const std::lock_guard lock(mutex_);
    return requests_;
  }
  http::Server& server() { return bed_.server(); }

 private:
  std::mutex mutex_;
  std::vector<http::Request> requests_;
  http::ServerBed bed_;
};

// Always the same answer.
inline TestWorker::Reply Says(int status, std::string body, std::string type = "application/json") {
  return [=](http::Request, http::Response& response) -> asio::awaitable<void> {
    co_await response.Send(status, http::ContentType(type), body);
  };
}

inline asio::awaitable<void> Sleep(std::chrono::milliseconds time) {
  asio::steady_timer timer(co_await asio::this_coro::executor, time);
  co_await timer.async_wait(asio::use_awaitable);
}

// Notes when it is destroyed: what a handler holds.
struct Held {
  std::atomic<int>& released;
  ~Held() { ++released; }
};

inline http::Request Post(std::string path, std::string body, http::Headers headers = {}) {
  headers.emplace_back("content-type", "application/json");
  return http::Request("POST", std::move(path), std::move(headers), std::move(body));
}

}  // namespace llmd::host

#endif  // TESTS_HOSTS_PROXY_BED_H_
