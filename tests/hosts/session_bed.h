// A gateway with its sessions and no sockets: messages in, answers out, on one thread of the test's.
#ifndef TESTS_HOSTS_SESSION_BED_H_
#define TESTS_HOSTS_SESSION_BED_H_

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "envoy/service/ext_proc/v3/external_processor.pb.h"
#include "examples/gateway_scheduler/gateway.h"
#include "examples/gateway_scheduler/session.h"
#include "examples/gateway_scheduler/worker.h"

namespace llmd::host {

sched::EndpointMetadata MakeEndpoint(std::string name, std::uint16_t port, sched::Labels labels = {});

// The work of one thread, as a completion queue would hand it out.
class Mailbox {
 public:
  void Post(std::function<void()> work);
  // Does what is there, waiting at most a little for the first; false when there was nothing.
  bool RunSome(absl::Duration patience);

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> work_;
};

// One request and what was answered so far.
class Exchange {
 public:
  Exchange(Gateway& gateway, Worker& worker, std::shared_ptr<Mailbox> mailbox);

  void Headers(std::string_view path, const std::vector<std::pair<std::string, std::string>>& more = {},
               bool end = false);
  void Body(std::string_view body, bool end = true);
  void ResponseHeaders(int status = 200, std::string_view type = "application/json");
  void ResponseBody(std::string_view body, bool end);
  void Close(gateway::CloseReason reason) { session_->Close(reason); }

  const std::vector<gateway::ProcessingResponse>& answers() const { return answers_; }
  // Of the answer to the request headers; empty without one.
  std::string SetHeader(std::string_view name) const;
  std::string destination() const { return SetHeader("x-gateway-destination-endpoint"); }
  // HTTP status of a refusal, 0: none.
  int refused_with() const;
  std::string refusal_reason() const;
  Session& session() { return *session_; }

 private:
  void Send(gateway::ProcessingRequest message);
  void Pump();
  std::vector<gateway::ProcessingResponse> answers_;
  bool first_ = true;
  std::shared_ptr<Session> session_;
};

std::string ChatBody(std::string_view text, std::string_view model = "m");

}  // namespace llmd::host

#endif  // TESTS_HOSTS_SESSION_BED_H_
