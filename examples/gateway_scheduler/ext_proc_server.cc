#include "examples/gateway_scheduler/ext_proc_server.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "examples/gateway_scheduler/ext_proc_call.h"
#include "grpc/health/v1/health.grpc.pb.h"

namespace llmd::host {
namespace {

namespace health = grpc::health::v1;

constexpr char kExtProcService[] = "envoy.service.ext_proc.v3.ExternalProcessor";
constexpr int kWaitingCallsPerQueue = 32;

// (spec: gateway.md 2.9) Without leader election a name that is not known is answered as readiness.
class HealthService final : public health::Health::Service {
 public:
  explicit HealthService(std::function<bool()> ready) : ready_(std::move(ready)) {}

  grpc::Status Check(grpc::ServerContext*, const health::HealthCheckRequest* request,
                     health::HealthCheckResponse* response) override {
    response->set_status(StatusOf(request->service()));
    return grpc::Status::OK;
  }
  grpc::Status List(grpc::ServerContext*, const health::HealthListRequest*,
                    health::HealthListResponse* response) override {
    for (const char* service : {"", "liveness", "readiness", kExtProcService}) {
      (*response->mutable_statuses())[service].set_status(StatusOf(service));
    }
    return grpc::Status::OK;
  }

 private:
  health::HealthCheckResponse::ServingStatus StatusOf(const std::string& service) const {
    if (service == "liveness" || ready_()) return health::HealthCheckResponse::SERVING;
    return health::HealthCheckResponse::NOT_SERVING;
  }
  const std::function<bool()> ready_;
};

class Server final : public ExtProcServer {
 public:
  Server(const ExtProcServerOptions& options, Gateway& gateway, std::function<bool()> ready)
      : options_(options), gateway_(gateway), health_(std::move(ready)) {}
  ~Server() override { Shutdown(absl::ZeroDuration()); }

  absl::Status Listen() {
    grpc::ServerBuilder builder;
    const auto credentials =
        options_.credentials != nullptr ? options_.credentials : grpc::InsecureServerCredentials();
    const std::string address = absl::StrCat(options_.address, ":", options_.port);
    builder.AddListeningPort(address, credentials, &port_);
    // A port that is taken is an error, not a share of somebody else's connections.
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.SetMaxReceiveMessageSize(options_.max_receive_bytes > 0 ? options_.max_receive_bytes : 4 << 20);
    builder.SetMaxSendMessageSize(options_.max_send_bytes > 0 ? options_.max_send_bytes : -1);
    builder.RegisterService(&service_);
    if (options_.health_on_both) builder.RegisterService(&health_);
    for (int i = 0; i < std::max(options_.threads, 1); ++i) {
      ExtProcQueue queue;
      queue.queue = builder.AddCompletionQueue();
      queue.mailbox = std::make_shared<QueueMailbox>(*queue.queue);
      queue.worker = std::make_unique<Worker>(gateway_, options_.seed + i);
      queues_.push_back(std::move(queue));
    }
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port_ == 0) {
      return absl::UnavailableError(absl::StrCat("cannot listen on ", address, " (--grpc-port)"));
    }
    for (ExtProcQueue& queue : queues_) {
      for (int i = 0; i < kWaitingCallsPerQueue; ++i) ExtProcCall::Accept(service_, gateway_, queue);
      threads_.emplace_back([&queue] { Serve(*queue.queue); });
    }

    grpc::ServerBuilder health_builder;
    const std::string health_address = absl::StrCat(options_.address, ":", options_.health_port);
    health_builder.AddListeningPort(health_address, grpc::InsecureServerCredentials(), &health_port_);
    health_builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    health_builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
    health_builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 2);
    health_builder.RegisterService(&health_);
    health_server_ = health_builder.BuildAndStart();
    if (health_server_ == nullptr || health_port_ == 0) {
      return absl::UnavailableError(
          absl::StrCat("cannot listen on ", health_address, " (--grpc-health-port)"));
    }
    return absl::OkStatus();
  }

  int port() const override { return port_; }
  int health_port() const override { return health_port_; }

  void Shutdown(absl::Duration patience) override {
    if (server_ != nullptr) {
      server_->Shutdown(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(patience));
      for (ExtProcQueue& queue : queues_) {
        queue.mailbox->Close();
        queue.queue->Shutdown();
      }
      for (std::thread& thread : threads_) thread.join();
      threads_.clear();
      server_.reset();
    }
    if (health_server_ != nullptr) {
      health_server_->Shutdown(std::chrono::system_clock::now());
      health_server_.reset();
    }
  }

 private:
  static void Serve(grpc::ServerCompletionQueue& queue) {
    void* tag = nullptr;
    bool ok = false;
    while (queue.Next(&tag, &ok)) static_cast<Completed*>(tag)->Run(ok);
  }

  const ExtProcServerOptions options_;
  Gateway& gateway_;
  ExtProcService service_;
  HealthService health_;
  std::vector<ExtProcQueue> queues_;
  std::vector<std::thread> threads_;
  std::unique_ptr<grpc::Server> server_, health_server_;
  int port_ = 0, health_port_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ExtProcServer>> ExtProcServer::Start(const ExtProcServerOptions& options,
                                                                    Gateway& gateway,
                                                                    std::function<bool()> ready) {
  auto server = std::make_unique<Server>(options, gateway, std::move(ready));
  if (absl::Status s = server->Listen(); !s.ok()) return s;
  return server;
}

}  // namespace llmd::host
