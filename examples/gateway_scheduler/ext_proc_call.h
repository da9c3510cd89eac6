// One external-processing stream on a completion queue.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_EXT_PROC_CALL_H_
#define EXAMPLES_GATEWAY_SCHEDULER_EXT_PROC_CALL_H_

#include <grpcpp/alarm.h>
#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "envoy/service/ext_proc/v3/external_processor.grpc.pb.h"
#include "examples/gateway_scheduler/session.h"
#include "examples/gateway_scheduler/worker.h"

namespace llmd::host {

// Messages are bytes here, so that one that is no Protobuf can be told from the end of a stream.
using ExtProcService = envoy::service::ext_proc::v3::ExternalProcessor::WithRawMethod_Process<
    envoy::service::ext_proc::v3::ExternalProcessor::Service>;

// What a completion queue returns as a tag.
class Completed {
 public:
  virtual ~Completed() = default;
  virtual void Run(bool ok) = 0;
};

// Brings work from any thread to the thread of a queue. What comes after Close() is dropped.
class QueueMailbox final : public Completed {
 public:
  explicit QueueMailbox(grpc::ServerCompletionQueue& queue) : queue_(queue) {}
  void Post(std::function<void()> work);
  void Run(bool ok) override;
  void Close();

 private:
  grpc::ServerCompletionQueue& queue_;
  std::mutex mutex_;
  bool armed_ = false;
  bool closed_ = false;
  std::vector<std::function<void()>> work_;
  grpc::Alarm alarm_;
};

// A queue with its thread's worker.
struct ExtProcQueue {
  std::unique_ptr<grpc::ServerCompletionQueue> queue;
  std::shared_ptr<QueueMailbox> mailbox;
  std::unique_ptr<Worker> worker;
};

// Owns itself: from waiting for a stream until the last of its operations has completed.
class ExtProcCall {
 public:
  static void Accept(ExtProcService& service, Gateway& gateway, ExtProcQueue& queue) {
    new ExtProcCall(service, gateway, queue);
  }

 private:
  using Step = void (ExtProcCall::*)(bool ok);
  class Operation final : public Completed {
   public:
    Operation(ExtProcCall& call, Step step) : call_(call), step_(step) {}
    void Run(bool ok) override { (call_.*step_)(ok); }

   private:
    ExtProcCall& call_;
    const Step step_;
  };

  ExtProcCall(ExtProcService& service, Gateway& gateway, ExtProcQueue& queue);
  void OnAccepted(bool ok);
  void OnRead(bool ok);
  void OnWritten(bool ok);
  void OnFinished(bool ok);
  void OnDone(bool ok);
  void Pump();
  void Release();

  ExtProcService& service_;
  Gateway& gateway_;
  ExtProcQueue& queue_;
  grpc::ServerContext context_;
  grpc::ServerAsyncReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer> stream_;
  Operation accepted_{*this, &ExtProcCall::OnAccepted};
  Operation read_{*this, &ExtProcCall::OnRead};
  Operation written_{*this, &ExtProcCall::OnWritten};
  Operation finished_{*this, &ExtProcCall::OnFinished};
  Operation done_{*this, &ExtProcCall::OnDone};

  std::shared_ptr<Session> session_;
  grpc::ByteBuffer in_, out_;
  gateway::ProcessingRequest request_;
  gateway::ProcessingResponse answer_;
  bool writing_ = false;
  bool broken_ = false;  // nothing can be sent any more
  bool ended_ = false;   // nothing more will be read
  bool finishing_ = false;
  absl::Time began_ = absl::InfinitePast();
  int pending_ = 0;  // operations on the queue
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_EXT_PROC_CALL_H_
