// The standalone mode: an HTTP/1.1 reverse proxy that asks the scheduler itself, for development and for
// hosts without Envoy. It is a data plane like Envoy: a Session decides about each request and sees its
// response, by the same messages.
//
//   auto proxy = HttpProxy::Create({.port = 8080, .threads = 2}, gateway);
//   ...
//   (*proxy)->Drain();  // then until connections() is 0
//
// Responses stream as they come, as fast as the client reads; when the client leaves, the worker's connection
// is closed. A destination that cannot be connected to is followed by the next one of the decision's list.
// Errors of the proxy's own have the engines' JSON form (spec: gateway.md 5.7): 503 when no destination takes
// a connection, 502 when one breaks off, 504 when one does not answer in time; refusals of the scheduler have
// its text, as behind Envoy. `GET /health` is the proxy's: 200 while an endpoint is known. Responses name
// the endpoint in x-upstream-host.
//
// With `pd`, a decision with a prefill endpoint is carried out here, as the sidecar of the decode worker
// would (NIXL v2, spec: gateway.md 5.3): prefill leg, decode leg, cached_tokens of the prefiller. Otherwise
// x-prefiller-host-port goes on to the worker.
//
// Limits; where one matters, Envoy is the way:
// - Plain HTTP/1.1 on both sides: no TLS, no HTTP/2, no gRPC, no upgrades (WebSocket), no CONNECT.
// - A request is read whole before it is sent on, up to max_body_bytes (413), and is held twice meanwhile.
// - A response that is no event stream is held until its end, up to max_response_body_bytes of the gateway's
//   options; trailers are dropped.
// - The next destination is tried only when no connection could be made: never after a request was sent, but
//   that one goes again over a new connection when a kept one turns out to have been closed.
// - No outlier detection, no rate limits, no load shedding but the scheduler's; no access log but the host's.
// - P/D: only NIXL v2; encode stage and peers for cached prefixes (x-encoder-hosts-ports,
//   x-kv-cache-source-host-port) are dropped; the body of a disaggregated request is written anew.
//
// Threads: `threads` loops, each with a server on the shared port, a client and a worker. Create(), Drain(),
// Stop() and the destructor by the owner; the rest by any thread.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_HTTP_PROXY_H_
#define EXAMPLES_GATEWAY_SCHEDULER_HTTP_PROXY_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "examples/gateway_scheduler/session.h"

namespace llmd::host {

struct HttpProxyOptions {
  std::string address = "127.0.0.1";
  std::uint16_t port = 0;  // 0: any
  int threads = 1;
  std::size_t max_header_bytes = std::size_t{256} << 10;
  std::size_t max_body_bytes = std::size_t{64} << 20;
  std::size_t max_connections = 4096;  // of each thread
  std::chrono::milliseconds connect_timeout{2000};
  std::chrono::milliseconds response_timeout{300000};  // to the response's headers, and between its pieces

  bool pd = false;
  int prefill_retries = 0;  // after 502, 503 and 504
  std::chrono::milliseconds prefill_backoff{100};
};

class HttpProxy {
 public:
  // Makes the session of a request; `thread` < threads is where it lives.
  using NewSession =
      std::function<std::shared_ptr<Session>(int thread, Session::Post, std::function<void()>)>;

  // Listens at once. Unavailable: the port is taken.
  static absl::StatusOr<std::unique_ptr<HttpProxy>> Create(const HttpProxyOptions& options, Gateway& gateway);
  static absl::StatusOr<std::unique_ptr<HttpProxy>> Create(const HttpProxyOptions& options,
                                                           NewSession new_session,
                                                           std::function<bool()> has_endpoints);
  ~HttpProxy();  // as Stop(), and waits for the threads

  std::uint16_t port() const;
  std::size_t connections() const;
  // No new connections; those that are there end with their response.
  void Drain();
  // Cancels what is under way.
  void Stop();

 private:
  struct Loop;
  struct Shared;
  HttpProxy();

  std::shared_ptr<Shared> shared_;
  std::vector<std::unique_ptr<Loop>> loops_;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_HTTP_PROXY_H_
