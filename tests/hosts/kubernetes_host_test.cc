// The whole host as it runs in a cluster: ready when there is a pool, and choosing among its pods.
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "envoy/service/ext_proc/v3/external_processor.grpc.pb.h"
#include "examples/gateway_scheduler/host.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "tests/hosts/fake_api_server.h"

namespace llmd::host {
namespace {

using envoy::service::ext_proc::v3::ExternalProcessor;
using envoy::service::ext_proc::v3::ProcessingRequest;
using envoy::service::ext_proc::v3::ProcessingResponse;
using llmd::testing::FakeApiServer;
using nlohmann::json;

constexpr char kPods[] = "/api/v1/namespaces/llm-d/pods";
constexpr char kPools[] = "/apis/inference.networking.k8s.io/v1/namespaces/llm-d/inferencepools";
constexpr char kRewrites[] = "/apis/llm-d.ai/v1alpha2/namespaces/llm-d/inferencemodelrewrites";

bool Eventually(const std::function<bool()>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

std::shared_ptr<grpc::Channel> ChannelTo(const std::string& ready_line, const std::string& name) {
  const std::size_t at = ready_line.find(name + "=") + name.size() + 1;
  const std::string port = ready_line.substr(at, ready_line.find(' ', at) - at);
  return grpc::CreateChannel("127.0.0.1:" + port, grpc::InsecureChannelCredentials());
}

// One request through ext_proc: header `name` of the answers, and the body as it goes on.
struct Answer {
  std::string endpoint = {};
  std::string body = {};
};
Answer Ask(grpc::Channel& channel, const std::string& body) {
  Answer answer;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  const auto stub =
      ExternalProcessor::NewStub(std::shared_ptr<grpc::Channel>(&channel, [](grpc::Channel*) {}));
  const auto stream = stub->Process(&context);
  ProcessingRequest headers;
  for (const auto& [key, value] : {std::pair(":method", "POST"), std::pair(":path", "/v1/completions"),
                                   std::pair("content-type", "application/json")}) {
    auto* header = headers.mutable_request_headers()->mutable_headers()->add_headers();
    header->set_key(key);
    header->set_raw_value(value);
  }
  ProcessingRequest content;
  content.mutable_request_body()->set_body(body);
  content.mutable_request_body()->set_end_of_stream(true);
  if (!stream->Write(headers) || !stream->Write(content)) return answer;
  for (ProcessingResponse response; stream->Read(&response);) {
    if (response.has_request_headers()) {
      for (const auto& option : response.request_headers().response().header_mutation().set_headers()) {
        if (option.header().key() == "x-gateway-destination-endpoint") {
          answer.endpoint = option.header().raw_value();
        }
      }
    } else if (response.has_request_body()) {
      const auto& piece = response.request_body().response().body_mutation().streamed_response();
      answer.body += piece.body();
      if (piece.end_of_stream()) break;
    } else {
      break;
    }
  }
  context.TryCancel();
  return answer;
}

TEST(KubernetesHostTest, ServesThePoolOfTheCluster) {
  FakeApiServer server;
  for (const char* collection : {kPods, kPools, kRewrites}) server.Install(collection);
  HostOptions options;
  options.bind_address = "127.0.0.1";
  options.grpc_port = 0;
  options.health_port = 0;
  options.secure_serving = false;
  options.threads = 1;
  options.pool_name = "llm-d";
  options.pool_namespace = "llm-d";
  options.kube_api_url = server.url();
  auto host = Host::Start(options);
  ASSERT_TRUE(host.ok()) << host.status();
  const auto health = grpc::health::v1::Health::NewStub(ChannelTo((*host)->ReadyLine(), "health"));
  const auto serving = [&] {
    grpc::ClientContext context;
    grpc::health::v1::HealthCheckResponse response;
    return health->Check(&context, {}, &response).ok() &&
           response.status() == grpc::health::v1::HealthCheckResponse::SERVING;
  };
  EXPECT_TRUE(Eventually([&] { return server.Watches(kPools) == 1; }));
  EXPECT_FALSE(serving());

  const json meta = {{"name", "llm-d"}, {"namespace", "llm-d"}};
  server.Apply(kPods, json::parse(R"({"metadata": {"name": "decode-0", "namespace": "llm-d",
      "labels": {"app": "vllm"}}, "status": {"podIP": "127.0.0.9", "conditions": [{"type": "Ready", "status": "True"}]}})"));
  server.Apply(kRewrites, json::parse(R"({"metadata": {"name": "r", "namespace": "llm-d"}, "spec": {
      "poolRef": {"name": "llm-d"}, "rules": [{"matches": [{"model": {"value": "base"}}],
      "targets": [{"modelRewrite": "base-tuned"}]}]}})"));
  server.Apply(
      kPools,
      {{"metadata", meta},
       {"spec",
        {{"selector", {{"matchLabels", {{"app", "vllm"}}}}}, {"targetPorts", {{{"number", 8000}}}}}}});
  EXPECT_TRUE(Eventually(serving));
  const auto channel = ChannelTo((*host)->ReadyLine(), "ext_proc");
  Answer answer;
  EXPECT_TRUE(Eventually([&] {
    answer = Ask(*channel, R"({"model": "base", "prompt": "hello"})");
    return !answer.endpoint.empty();
  }));
  EXPECT_EQ(answer.endpoint, "127.0.0.9:8000");
  EXPECT_NE(answer.body.find("base-tuned"), std::string::npos) << answer.body;

  server.Remove(kPools, "llm-d/llm-d");
  EXPECT_TRUE(Eventually([&] { return !serving(); }));
  EXPECT_EQ(Ask(*channel, R"({"model": "base", "prompt": "hello"})").endpoint, "");
}

}  // namespace
}  // namespace llmd::host
