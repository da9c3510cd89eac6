// Links an installed llmd::gateway, which is there when its dependencies are.
#include <cstdio>

#include "envoy/service/ext_proc/v3/external_processor.pb.h"
#include "llmd/gateway/ext_proc_stream.h"

int main() {
  llmd::gateway::ExtProcOptions options;
  llmd::gateway::OpenAiParser parser;
  llmd::Random random(1);
  llmd::gateway::ExtProcStream stream(options, parser, random);
  llmd::gateway::ProcessingRequest message;
  message.mutable_request_headers()->set_end_of_stream(true);
  const auto event = stream.Receive(std::move(message), absl::UnixEpoch());
  const bool ok = event == llmd::gateway::ExtProcEvent::kNeedsDecision &&
                  stream.Decide({.destinations = {"10.0.0.1:8000"}}, absl::UnixEpoch()).ok();
  std::printf("gateway: %s\n", ok ? "ok" : "FAILED");
  return ok ? 0 : 1;
}
