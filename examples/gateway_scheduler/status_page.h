// The status page: the host's state in a browser, live.
//
//   auto page = *StatusPage::Create(io, {.port = 9080}, [&] { return Collect(); }, &history);
//
//   /                  the page, one document without outside resources
//   /events            server-sent events: "state", one snapshot a second (bounded number of clients)
//   /api/state         the same snapshot once
//   /api/decisions/N   a decision with its explanation
//   /api/configuration the configuration in force, with warnings
//   /healthz           ok
//
// A client that does not read fast enough gets the newest snapshot when it does, not all that it has missed;
// one that reads nothing for as long as the server's idle timeout is let go.
//
// Threads: `collect` is called by the threads of `io`, one at a time, at most once for each interval.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_STATUS_PAGE_H_
#define EXAMPLES_GATEWAY_SCHEDULER_STATUS_PAGE_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "examples/gateway_scheduler/decision_history.h"
#include "examples/gateway_scheduler/host_state.h"
#include "examples/http/server.h"

namespace llmd::host {

struct StatusPageOptions {
  std::string address = "127.0.0.1";
  std::uint16_t port = 0;
  std::size_t max_streams = 32;  // of /events; further ones are asked to come back (503)
  std::chrono::milliseconds interval{1000};
};

class StatusPage {
 public:
  // `history` may be null; both must live until the threads of `io` have ended. Unavailable when the port is
  // taken.
  static absl::StatusOr<std::unique_ptr<StatusPage>> Create(http::asio::io_context& io,
                                                            const StatusPageOptions& options,
                                                            std::function<HostState()> collect,
                                                            const DecisionHistory* history);
  virtual ~StatusPage() = default;  // as Stop()
  virtual std::uint16_t port() const = 0;
  virtual std::size_t streams() const = 0;
  virtual void Stop() = 0;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_STATUS_PAGE_H_
