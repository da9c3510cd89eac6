#include "bench/gateway/null_ext_proc_server.h"

#include <algorithm>
#include <deque>
#include <mutex>
#include <string_view>
#include <thread>
#include <unordered_set>
#include <utility>

#include <grpcpp/grpcpp.h>

#include "envoy/service/ext_proc/v3/external_processor.grpc.pb.h"

namespace llmd::bench {
namespace {

using envoy::service::ext_proc::v3::ExternalProcessor;
using envoy::service::ext_proc::v3::ProcessingRequest;
using envoy::service::ext_proc::v3::ProcessingResponse;

constexpr std::size_t kChunkBytes = 62'000;
constexpr std::string_view kDestinationKey = "x-gateway-destination-endpoint";

}  // namespace

struct NullExtProcServer::Impl {
  struct Stream;
  enum Op { kStart, kRead, kWrite, kFinish, kOps };
  struct Tag {
    Stream* stream = nullptr;
    Op op = kStart;
  };
  struct Stream {
    grpc::ServerContext context;
    grpc::ServerAsyncReaderWriter<ProcessingResponse, ProcessingRequest> io{&context};
    Tag tags[kOps];
    ProcessingRequest message;
    std::string body;
    std::deque<ProcessingResponse> answers;
    int pending = 0;
    bool writing = false, ended = false, finishing = false;
  };

  // Each begins an operation, which the queue does not take any more while it shuts down.
  void Accept() {
    if (stopping) return;
    auto* stream = new Stream;
    streams.insert(stream);
    for (int op = 0; op < kOps; ++op) stream->tags[op] = {stream, static_cast<Op>(op)};
    ++stream->pending;
    service.RequestProcess(&stream->context, &stream->io, queue.get(), queue.get(), &stream->tags[kStart]);
  }

  void Read(Stream* stream) {
    if (stopping) return;
    ++stream->pending;
    stream->io.Read(&stream->message, &stream->tags[kRead]);
  }

  void Write(Stream* stream) {
    if (stopping || stream->writing || stream->finishing) return;
    if (!stream->answers.empty()) {
      stream->writing = true;
      ++stream->pending;
      stream->io.Write(stream->answers.front(), &stream->tags[kWrite]);
    } else if (stream->ended) {
      stream->finishing = true;
      ++stream->pending;
      stream->io.Finish(grpc::Status::OK, &stream->tags[kFinish]);
    }
  }

  void Route(Stream* stream) {
    if (options.refuse_with != 0) {
      auto* refusal = stream->answers.emplace_back().mutable_immediate_response();
      refusal->mutable_status()->set_code(static_cast<envoy::type::v3::StatusCode>(options.refuse_with));
      refusal->set_body("inference error: refused");
      stream->ended = true;
      return;
    }
    ProcessingResponse& headers = stream->answers.emplace_back();
    auto* response = headers.mutable_request_headers()->mutable_response();
    response->set_clear_route_cache(true);
    auto* header = response->mutable_header_mutation()->add_set_headers()->mutable_header();
    header->set_key(std::string(kDestinationKey));
    header->set_raw_value(options.destination);
    (*(*headers.mutable_dynamic_metadata()->mutable_fields())["envoy.lb"]
          .mutable_struct_value()
          ->mutable_fields())[std::string(kDestinationKey)]
        .set_string_value(options.destination);
    for (std::size_t at = 0; at == 0 || at < stream->body.size(); at += kChunkBytes) {
      auto* piece = stream->answers.emplace_back()
                        .mutable_request_body()
                        ->mutable_response()
                        ->mutable_body_mutation()
                        ->mutable_streamed_response();
      piece->set_body(stream->body.substr(at, kChunkBytes));
      piece->set_end_of_stream(at + kChunkBytes >= stream->body.size());
    }
    std::string().swap(stream->body);
  }

  void OnMessage(Stream* stream) {
    ProcessingRequest& message = stream->message;
    switch (message.request_case()) {
      case ProcessingRequest::kRequestBody:
        if (stream->body.empty()) {
          stream->body = std::move(*message.mutable_request_body()->mutable_body());
        } else {
          stream->body += message.request_body().body();
        }
        if (message.request_body().end_of_stream()) Route(stream);
        break;
      case ProcessingRequest::kResponseHeaders:
        stream->answers.emplace_back().mutable_response_headers();
        break;
      case ProcessingRequest::kResponseBody: {
        auto* piece = stream->answers.emplace_back()
                          .mutable_response_body()
                          ->mutable_response()
                          ->mutable_body_mutation()
                          ->mutable_streamed_response();
        *piece->mutable_body() = std::move(*message.mutable_response_body()->mutable_body());
        piece->set_end_of_stream(message.response_body().end_of_stream());
        stream->ended = message.response_body().end_of_stream();
        break;
      }
      default:
        break;
    }
  }

  void OnEvent(Stream* stream, Op op, bool ok) {
    --stream->pending;
    switch (op) {
      case kStart:
        if (!ok) break;  // shutting down
        Accept();
        Read(stream);
        break;
      case kRead:
        if (ok) {
          OnMessage(stream);
          Write(stream);
          if (!stream->ended) Read(stream);
        } else {
          stream->ended = true;
          Write(stream);
        }
        break;
      case kWrite:
        stream->writing = false;
        stream->answers.pop_front();
        if (!ok) stream->answers.clear();
        Write(stream);
        break;
      case kFinish:
      case kOps:
        break;
    }
    if (stream->pending == 0) {
      streams.erase(stream);
      delete stream;
    }
  }

  void Run() {
    void* tag = nullptr;
    bool ok = false;
    while (queue->Next(&tag, &ok)) {
      const Tag& which = *static_cast<Tag*>(tag);
      const std::lock_guard lock(mutex);
      OnEvent(which.stream, which.op, ok);
    }
  }

  Options options;
  ExternalProcessor::AsyncService service;
  std::unique_ptr<grpc::ServerCompletionQueue> queue;
  std::unique_ptr<grpc::Server> server;
  std::unordered_set<Stream*> streams;
  int port = 0;
  std::mutex mutex;  // for the end only: everything else is the thread's own
  bool stopping = false;
  std::thread thread;
};

std::unique_ptr<NullExtProcServer> NullExtProcServer::Start(const Options& options) {
  auto impl = std::make_unique<Impl>();
  impl->options = options;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &impl->port);
  builder.RegisterService(&impl->service);
  impl->queue = builder.AddCompletionQueue();
  impl->server = builder.BuildAndStart();
  if (!impl->server || impl->port == 0) return nullptr;
  impl->Accept();
  impl->thread = std::thread([raw = impl.get()] { raw->Run(); });
  return std::unique_ptr<NullExtProcServer>(new NullExtProcServer(std::move(impl)));
}

NullExtProcServer::NullExtProcServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

NullExtProcServer::~NullExtProcServer() {
  impl_->server->Shutdown(std::chrono::system_clock::now());
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->stopping = true;
    impl_->queue->Shutdown();
  }
  impl_->thread.join();
}

int NullExtProcServer::port() const { return impl_->port; }

}  // namespace llmd::bench
