#include "bench/gateway/ext_proc_load.h"

#include <algorithm>
#include <list>
#include <unordered_set>
#include <utility>

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include "bench/bench_util.h"
#include "envoy/service/ext_proc/v3/external_processor.pb.h"
#include "llmd/base/random.h"

namespace llmd::bench {
namespace {

using envoy::service::ext_proc::v3::ProcessingResponse;

constexpr char kMethod[] = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";
constexpr std::size_t kHoldRamp = 8;  // streams that are on their way at a time
// Arrivals nearer than this are waited for by polling: the queue's own timer counts in milliseconds.
constexpr std::int64_t kPollNs = 2'500'000;

bool Parse(grpc::ByteBuffer& buffer, ProcessingResponse& message) {
  grpc::ProtoBufferReader reader(&buffer);
  return reader.status().ok() && message.ParseFromZeroCopyStream(&reader);
}

std::chrono::system_clock::time_point After(std::int64_t ns) {
  return std::chrono::system_clock::now() + std::chrono::nanoseconds(std::max<std::int64_t>(ns, 0));
}

}  // namespace

struct ExtProcLoad::Impl {
  struct Call;
  enum Op { kStart, kRead, kWrite, kWritesDone, kFinish, kOps };
  struct Tag {
    Call* call = nullptr;
    Op op = kStart;
  };
  enum class Phase { kRequest, kResponse, kHeld, kEnd };

  struct Call {
    grpc::ClientContext context;
    std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream;
    Tag tags[kOps];
    WireRequest request;
    std::size_t next_message = 0;
    std::size_t answered_bytes = 0;
    int pending = 0;
    Phase phase = Phase::kRequest;
    bool hold = false, writing = false, destination_seen = false, headers_answered = false, refused = false;
    bool closing = false;  // nothing more will be written
    bool finishing = false, finished = false;
    std::int64_t last_sent_ns = 0;
    grpc::ByteBuffer answer;
    grpc::Status status;
    std::string error;
  };

  explicit Impl(const LoadOptions& options) : options(options), random(options.seed) {
    for (int i = 0; i < options.connections; ++i) {
      grpc::ChannelArguments arguments;
      arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
      arguments.SetMaxReceiveMessageSize(-1);
      channels.push_back(
          grpc::CreateCustomChannel(options.target, grpc::InsecureChannelCredentials(), arguments));
      stubs.push_back(std::make_unique<grpc::GenericStub>(channels.back()));
    }
  }

  ~Impl() {
    for (Call* call : live) call->context.TryCancel();
    while (!live.empty()) Wait(After(1'000'000'000));
    queue.Shutdown();
    void* tag = nullptr;
    bool ok = false;
    while (queue.Next(&tag, &ok)) {
    }
  }

  void Start(RequestSet& from, bool hold) {
    requests = &from;
    Call* call = new Call;
    live.insert(call);
    for (int op = 0; op < kOps; ++op) call->tags[op] = {call, static_cast<Op>(op)};
    from.Next(call->request);
    call->hold = hold;
    call->context.set_deadline(std::chrono::system_clock::now() + options.stream_timeout);
    call->stream = stubs[next_stub++ % stubs.size()]->PrepareCall(&call->context, kMethod, &queue);
    ++call->pending;
    call->stream->StartCall(&call->tags[kStart]);
  }

  void Read(Call* call) {
    ++call->pending;
    call->stream->Read(&call->answer, &call->tags[kRead]);
  }

  void WriteNext(Call* call) {
    if (call->writing || call->next_message == call->request.messages.size()) return;
    call->writing = true;
    ++call->pending;
    if (call->phase == Phase::kRequest && call->next_message + 1 == call->request.messages.size()) {
      call->last_sent_ns = NowNs();
    }
    call->stream->Write(call->request.messages[call->next_message++], &call->tags[kWrite]);
  }

  void Send(Call* call, const grpc::ByteBuffer& message) {
    call->request.messages.push_back(message);
    WriteNext(call);
  }

  // An answer may be here before the completion of the write that it answers.
  void CloseWhenWritten(Call* call) {
    if (!call->closing || call->writing) return;
    call->closing = false;
    ++call->pending;
    call->stream->WritesDone(&call->tags[kWritesDone]);
  }

  void Fail(Call* call, std::string why) {
    if (call->error.empty()) call->error = std::move(why);
    call->context.TryCancel();
  }

  void OnDecided(Call* call) {
    result.added_us.push_back(static_cast<double>(NowNs() - call->last_sent_ns) / 1000);
    if (!call->destination_seen) return Fail(call, "answered without a destination");
    if (call->answered_bytes != call->request.body_bytes)
      return Fail(call, "the body came back in another size");
    call->phase = Phase::kResponse;
    call->answered_bytes = 0;
    Send(call, requests->response_headers());
    if (!call->hold) Send(call, requests->response_body());
  }

  void OnAnswer(Call* call) {
    ProcessingResponse& message = scratch;
    if (!Parse(call->answer, message)) return Fail(call, "an answer that is no ProcessingResponse");
    switch (message.response_case()) {
      case ProcessingResponse::kRequestHeaders:
        if (call->phase != Phase::kRequest || call->headers_answered)
          return Fail(call, "headers answered twice");
        call->headers_answered = true;
        for (const auto& option : message.request_headers().response().header_mutation().set_headers()) {
          if (option.header().key() != "x-gateway-destination-endpoint") continue;
          call->destination_seen = true;
          result.destination =
              option.header().raw_value().empty() ? option.header().value() : option.header().raw_value();
        }
        return;
      case ProcessingResponse::kRequestBody: {
        const auto& piece = message.request_body().response().body_mutation().streamed_response();
        if (!call->headers_answered) return Fail(call, "a body answer before that to the headers");
        call->answered_bytes += piece.body().size();
        if (piece.end_of_stream()) OnDecided(call);
        return;
      }
      case ProcessingResponse::kResponseHeaders:
        if (call->hold) {
          call->phase = Phase::kHeld;
          held.push_back(call);
        }
        return;
      case ProcessingResponse::kResponseBody: {
        const auto& piece = message.response_body().response().body_mutation().streamed_response();
        call->answered_bytes += piece.body().size();
        if (!piece.end_of_stream()) return;
        if (call->answered_bytes != requests->response_body_bytes())
          return Fail(call, "the response came back in another size");
        call->phase = Phase::kEnd;
        call->closing = true;
        CloseWhenWritten(call);
        return;
      }
      case ProcessingResponse::kImmediateResponse:
        call->refused = true;
        call->phase = Phase::kEnd;
        call->error = std::to_string(message.immediate_response().status().code()) + " " +
                      message.immediate_response().body();
        return;
      default:
        return Fail(call, "an answer to nothing that was asked");
    }
  }

  void OnEvent(Call* call, Op op, bool ok) {
    --call->pending;
    switch (op) {
      case kStart:
        Read(call);
        if (ok) WriteNext(call);
        break;
      case kRead:
        if (ok) {
          OnAnswer(call);
          Read(call);
        } else if (!call->finishing) {
          call->finishing = true;
          ++call->pending;
          call->stream->Finish(&call->status, &call->tags[kFinish]);
        }
        break;
      case kWrite:
        call->writing = false;
        if (ok) WriteNext(call);
        if (ok) CloseWhenWritten(call);
        break;
      case kWritesDone:
        break;
      case kFinish:
        call->finished = true;
        break;
      case kOps:
        break;
    }
    if (call->finished && call->pending == 0) End(call);
  }

  void End(Call* call) {
    if (call->error.empty() && !call->status.ok()) {
      call->error =
          "gRPC status " + std::to_string(call->status.error_code()) + ": " + call->status.error_message();
    }
    if (call->error.empty() && call->phase != Phase::kEnd) call->error = "the server ended the stream early";
    if (call->error.empty()) {
      ++result.decided;
    } else {
      ++(call->refused ? result.refused : result.failed);
      if (result.first_error.empty()) result.first_error = call->error;
    }
    if (call->hold) std::erase(held, call);
    live.erase(call);
    delete call;
  }

  bool Wait(std::chrono::system_clock::time_point deadline) {
    void* tag = nullptr;
    bool ok = false;
    if (queue.AsyncNext(&tag, &ok, deadline) != grpc::CompletionQueue::GOT_EVENT) return false;
    const Tag& which = *static_cast<Tag*>(tag);
    OnEvent(which.call, which.op, ok);
    return true;
  }

  // Everything but what is held comes to its end: by itself, or by its deadline.
  void Drain() {
    while (live.size() > held.size()) Wait(After(1'000'000'000));
  }

  LoadResult Take() { return std::exchange(result, LoadResult()); }

  LoadOptions options;
  Random random;
  grpc::CompletionQueue queue;
  std::vector<std::shared_ptr<grpc::Channel>> channels;
  std::vector<std::unique_ptr<grpc::GenericStub>> stubs;
  std::size_t next_stub = 0;
  RequestSet* requests = nullptr;
  ProcessingResponse scratch;
  std::unordered_set<Call*> live;
  std::vector<Call*> held;
  LoadResult result;
};

ExtProcLoad::ExtProcLoad(const LoadOptions& options) : impl_(std::make_unique<Impl>(options)) {}
ExtProcLoad::~ExtProcLoad() = default;

bool ExtProcLoad::Connect(std::chrono::milliseconds timeout) {
  const auto deadline = std::chrono::system_clock::now() + timeout;
  return std::all_of(impl_->channels.begin(), impl_->channels.end(),
                     [&](const auto& channel) { return channel->WaitForConnected(deadline); });
}

LoadResult ExtProcLoad::RunClosed(RequestSet& requests, std::size_t streams,
                                  std::chrono::duration<double> duration, std::uint64_t limit) {
  const std::int64_t start = NowNs();
  const std::int64_t end = start + static_cast<std::int64_t>(duration.count() * 1e9);
  std::uint64_t started = 0;
  for (std::int64_t now = start; now < end && (limit == 0 || started < limit); now = NowNs()) {
    // A server that fails every stream at once must not be hammered for the whole time.
    if (impl_->result.failed > 1000 && impl_->result.decided == 0) break;
    if (impl_->live.size() - impl_->held.size() < streams) {
      impl_->Start(requests, false);
      ++started;
    } else {
      impl_->Wait(After(end - now));
    }
  }
  impl_->Drain();
  impl_->result.seconds = static_cast<double>(NowNs() - start) / 1e9;  // until the last answer
  return impl_->Take();
}

LoadResult ExtProcLoad::RunOpen(RequestSet& requests, double per_second,
                                std::chrono::duration<double> duration) {
  const std::int64_t start = NowNs();
  const double mean_ns = 1e9 / per_second;
  const std::int64_t end = start + static_cast<std::int64_t>(duration.count() * 1e9);
  double due = static_cast<double>(start) + impl_->random.Exponential(mean_ns);
  while (true) {
    std::int64_t now = NowNs();
    while (due < static_cast<double>(end) && static_cast<double>(now) >= due) {
      if (impl_->live.size() - impl_->held.size() >= impl_->options.max_open_streams) {
        ++impl_->result.shed;
      } else {
        impl_->result.late_us.push_back((static_cast<double>(now) - due) / 1000);
        impl_->Start(requests, false);
        now = NowNs();
      }
      due += impl_->random.Exponential(mean_ns);
    }
    if (due >= static_cast<double>(end)) break;
    const std::int64_t left = static_cast<std::int64_t>(due) - now;
    impl_->Wait(After(left > kPollNs ? left - kPollNs : 0));
  }
  impl_->result.seconds = static_cast<double>(end - start) / 1e9;
  impl_->Drain();
  return impl_->Take();
}

LoadResult ExtProcLoad::Hold(RequestSet& requests, std::size_t streams) {
  const std::int64_t start = NowNs();
  std::size_t started = 0;
  while (started < streams && impl_->result.failed + impl_->result.refused == 0) {
    if (impl_->live.size() - impl_->held.size() < kHoldRamp) {
      impl_->Start(requests, true);
      ++started;
    } else {
      impl_->Wait(After(1'000'000'000));
    }
  }
  impl_->Drain();
  impl_->result.decided += impl_->held.size();
  impl_->result.seconds = static_cast<double>(NowNs() - start) / 1e9;
  return impl_->Take();
}

LoadResult ExtProcLoad::Release(RequestSet& requests) {
  impl_->requests = &requests;
  for (Impl::Call* call : impl_->held) {
    call->phase = Impl::Phase::kResponse;
    call->hold = false;
    impl_->Send(call, requests.response_body());
  }
  impl_->held.clear();
  impl_->Drain();
  return impl_->Take();
}

}  // namespace llmd::bench
