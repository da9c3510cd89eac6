// One request on its way through the standalone proxy. On the loop's thread.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_PROXY_EXCHANGE_H_
#define EXAMPLES_GATEWAY_SCHEDULER_PROXY_EXCHANGE_H_

#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/steady_timer.hpp>

#include "examples/gateway_scheduler/http_proxy.h"
#include "examples/gateway_scheduler/pd_messages.h"
#include "examples/gateway_scheduler/proxy_messages.h"
#include "examples/gateway_scheduler/session.h"
#include "examples/http/client.h"
#include "examples/http/server.h"

namespace llmd::host {

class ProxyExchange {
 public:
  using NewSession = std::function<std::shared_ptr<Session>(std::function<void()> ready)>;

  // All must outlive it.
  ProxyExchange(const HttpProxyOptions& options, http::Client& client, http::Request request,
                http::Response& response)
      : options_(options),
        client_(client),
        request_(std::move(request)),
        response_(response),
        head_only_(request_.method == "HEAD") {}
  // Tells the session how it ended.
  ~ProxyExchange();
  ProxyExchange(const ProxyExchange&) = delete;
  ProxyExchange& operator=(const ProxyExchange&) = delete;

  boost::asio::awaitable<void> Run(NewSession new_session);

 private:
  template <typename T>
  using awaitable = boost::asio::awaitable<T>;

  // A response, before the session has seen it: an upstream's, or one of our own.
  struct Reply {
    int status = 0;
    http::Headers headers = {};
    std::unique_ptr<http::ClientResponse> upstream = {};  // null: `body` is all
    std::string body = {};
    std::string served = {};  // ip:port
    bool credited = true;     // the session is told who served
    std::optional<CachedTokensRewriter> rewriter = {};
  };
  static Reply OwnReply(int status, std::string_view message);

  // Until the session has decided; false: the request was answered instead.
  awaitable<bool> Decide();
  void TakeRequestAnswer(const gateway::ProcessingResponse& answer);
  awaitable<void> SendImmediate(const gateway::ProcessingResponse& answer);

  // Runs Serve() unless the session puts an end to it.
  awaitable<void> ServeUntilEvicted();
  awaitable<std::exception_ptr> Serve();
  awaitable<void> WaitForEviction();
  awaitable<Reply> Ask();
  // The next destination is for when the last one could not be connected to.
  awaitable<Reply> AskDestinations(http::Request request);
  // The prefill leg: what the decode leg needs, or the reply that takes its place.
  struct PrefillOutcome {
    PrefillResult result = {};
    std::optional<Reply> failure = {};
  };
  awaitable<PrefillOutcome> Prefill(std::string target, std::string body);
  awaitable<Reply> AskOnce(std::string host_port, http::Request request);

  awaitable<void> Relay(Reply reply);
  // Takes the session's answers to what was received last: into headers_ and out_.
  void Collect();
  awaitable<void> Deliver(bool end);

  const HttpProxyOptions& options_;
  http::Client& client_;
  http::Request request_;
  http::Response& response_;
  const bool head_only_;
  std::shared_ptr<Session> session_;
  std::optional<boost::asio::steady_timer> ready_;  // cancelled when the session has something to say
  bool natural_ = false;

  // The request's phase
  bool decided_ = false;
  std::vector<std::string> destinations_;
  std::string prefill_header_;

  // The response's phase
  int status_ = 0;
  http::Headers headers_;
  std::string out_;  // of the body, ready to be sent
  bool head_sent_ = false;
  bool head_ready_ = false;
  bool ended_ = false;
  bool bypass_ = false;  // the session wants to see no more
  bool event_stream_ = false;
  std::optional<gateway::ProcessingResponse> immediate_;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_PROXY_EXCHANGE_H_
