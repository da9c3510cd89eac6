#include "examples/gateway_scheduler/ext_proc_call.h"

#include <string>
#include <utility>

#include "absl/time/clock.h"

namespace llmd::host {

void QueueMailbox::Post(std::function<void()> work) {
  const std::lock_guard lock(mutex_);
  if (closed_) return;
  work_.push_back(std::move(work));
  if (armed_) return;
  armed_ = true;
  alarm_.Set(&queue_, gpr_time_0(GPR_CLOCK_MONOTONIC), static_cast<Completed*>(this));
}

void QueueMailbox::Run(bool) {
  std::vector<std::function<void()>> work;
  {
    const std::lock_guard lock(mutex_);
    armed_ = false;
    work.swap(work_);
  }
  for (const std::function<void()>& each : work) each();
}

void QueueMailbox::Close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
}

ExtProcCall::ExtProcCall(ExtProcService& service, Gateway& gateway, ExtProcQueue& queue)
    : service_(service), gateway_(gateway), queue_(queue), stream_(&context_) {
  context_.AsyncNotifyWhenDone(static_cast<Completed*>(&done_));
  ++pending_;
  service_.RequestProcess(&context_, &stream_, queue_.queue.get(), queue_.queue.get(),
                          static_cast<Completed*>(&accepted_));
}

void ExtProcCall::OnAccepted(bool ok) {
  if (!ok) {  // the server shuts down; no other operation was begun
    delete this;
    return;
  }
  Accept(service_, gateway_, queue_);  // the next stream
  session_ = Session::Create(
      gateway_, *queue_.worker,
      [mailbox = queue_.mailbox](std::function<void()> work) { mailbox->Post(std::move(work)); },
      [this] { Pump(); });
  began_ = absl::Now();
  for (Observer* observer : gateway_.observers()) observer->OnStreamStarted();
  // The notification of the end takes the place of this operation in the count.
  ++pending_;
  stream_.Read(&in_, static_cast<Completed*>(&read_));
}

void ExtProcCall::OnRead(bool ok) {
  if (!ok) {
    ended_ = true;
    session_->Close(gateway::CloseReason::kEndOfStream);
  } else if (!finishing_) {
    if (grpc::SerializationTraits<gateway::ProcessingRequest>::Deserialize(&in_, &request_).ok()) {
      session_->Receive(std::move(request_));
    } else {
      session_->Fail(absl::InvalidArgumentError("a message is no ProcessingRequest"));
    }
    request_.Clear();
    if (!session_->finished()) {
      ++pending_;
      stream_.Read(&in_, static_cast<Completed*>(&read_));
    }
  }
  Pump();
  Release();
}

void ExtProcCall::Pump() {
  if (writing_ || finishing_) return;
  if (!broken_ && session_->Next(answer_)) {
    writing_ = true;
    ++pending_;
    // Without a buffer hint: a hinted write completes only when something else flushes the transport.
    out_.Clear();
    bool own = false;
    (void)grpc::SerializationTraits<gateway::ProcessingResponse>::Serialize(answer_, &out_, &own);
    stream_.Write(out_, static_cast<Completed*>(&written_));
    return;
  }
  if (!session_->finished() && !ended_) return;
  finishing_ = true;
  ++pending_;
  const absl::Status& status = session_->status();
  stream_.Finish(grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message())),
                 static_cast<Completed*>(&finished_));
}

void ExtProcCall::OnWritten(bool ok) {
  writing_ = false;
  if (!ok) {
    broken_ = true;
    session_->Close(gateway::CloseReason::kCancelled);
    ended_ = true;
  }
  Pump();
  Release();
}

void ExtProcCall::OnFinished(bool) { Release(); }

void ExtProcCall::OnDone(bool) {
  const bool cancelled = context_.IsCancelled();
  const std::string code = cancelled                 ? "Canceled"
                           : session_->status().ok() ? "OK"
                                                     : absl::StatusCodeToString(session_->status().code());
  for (Observer* observer : gateway_.observers()) observer->OnStreamEnded(code, absl::Now() - began_);
  if (cancelled) {
    broken_ = true;
    ended_ = true;
    session_->Close(gateway::CloseReason::kCancelled);
    Pump();
  }
  Release();
}

void ExtProcCall::Release() {
  if (--pending_ == 0) delete this;
}

}  // namespace llmd::host
