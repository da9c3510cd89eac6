// One request on its way through the host: Envoy's messages in, answers out, and the decision in between.
//
//   auto session = Session::Create(gateway, worker, post, [&] { Pump(); });
//   session->Receive(std::move(message));   // then Pump(): while (session->Next(answer)) Write(answer);
//   ...
//   session->Close(reason);
//
// The gRPC server and the standalone proxy both drive it. A decision may wait for tokens or for room at the
// endpoints; `ready` is then called when there is something to send. Everything happens on the thread of
// `worker`, which `post` brings work to; a session keeps itself alive while it waits.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_SESSION_H_
#define EXAMPLES_GATEWAY_SCHEDULER_SESSION_H_

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "llmd/gateway/ext_proc_stream.h"

namespace llmd::host {

class Gateway;  // gateway.h: what all threads share
class Worker;   // worker.h: what one thread keeps for its decisions

class Session : public std::enable_shared_from_this<Session> {
 public:
  using Post = std::function<void(std::function<void()>)>;  // from any thread
  static std::shared_ptr<Session> Create(Gateway& gateway, Worker& worker, Post post,
                                         std::function<void()> ready);
  virtual ~Session() = default;

  virtual void Receive(gateway::ProcessingRequest&& message) = 0;
  virtual bool Next(gateway::ProcessingResponse& answer) = 0;
  // As ExtProcStream: nothing more is to be read or written.
  virtual bool finished() const = 0;
  virtual const absl::Status& status() const = 0;
  // Ends the stream with a status, so that the data plane's failure mode decides.
  virtual void Fail(absl::Status status) = 0;
  // `ready` is not called any more.
  virtual void Close(gateway::CloseReason reason) = 0;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_SESSION_H_
