// The host of docs/gateway-protocol.md, run against a data plane of two queues.
#include <gtest/gtest.h>

#include <deque>
#include <string>

#include "envoy/service/ext_proc/v3/external_processor.pb.h"
#include "llmd/gateway/ext_proc_stream.h"

namespace llmd::gateway {
namespace {

// What a host has: a gRPC stream, a clock, an endpoint pool, counters.
std::deque<std::string> incoming;
std::vector<std::string> outgoing;
std::vector<std::string> ready;
CompletionCause cause;

bool Read(std::string& message) {
  if (incoming.empty()) return false;
  message = std::move(incoming.front());
  incoming.pop_front();
  return true;
}
void Write(const std::string& message) { outgoing.push_back(message); }
absl::Time Now() { return absl::UnixEpoch(); }
std::vector<std::string> Schedule(const RequestFacts&) { return ready; }
void Account(const RequestFacts&, const ResponseFacts&, const Completion& completion) {
  cause = completion.cause;
}

// One gRPC stream, which ends with the status returned.
absl::Status Serve(const ExtProcOptions& options, OpenAiParser& parser, Random& random) {
  ExtProcStream stream(options, parser, random);
  std::string message, answer;
  while (!stream.finished() && Read(message)) {
    if (stream.ReceiveBytes(message, Now()) == ExtProcEvent::kNeedsDecision) {
      const RequestFacts& request = stream.facts();
      const std::vector<std::string> endpoints =
          Schedule(request);  // by request.openai, .headers, .subset ...
      absl::Status decided =
          absl::UnavailableError("failed to find endpoint candidates for serving the request");
      if (!endpoints.empty()) decided = stream.Decide({.destinations = endpoints}, Now());
      if (!decided.ok()) {
        Refusal refusal = RefusalOf(decided);
        if (endpoints.empty()) refusal.reason = sched::DroppedReason::kNoEndpoints;
        (void)stream.Refuse(refusal, Now());
      }
    }
    while (stream.NextBytes(answer)) Write(answer);
  }
  stream.Close(CloseReason::kEndOfStream, Now());
  if (const auto completion = stream.TakeCompletion())
    Account(stream.facts(), stream.response(), *completion);
  return stream.status();
}

TEST(ProtocolDocument, TheHostServesAndRefuses) {
  ExtProcOptions options;
  OpenAiParser parser;
  Random random(1);
  ProcessingRequest headers, response;
  headers.mutable_request_headers()->set_end_of_stream(true);
  response.mutable_response_headers()->set_end_of_stream(true);

  incoming = {headers.SerializeAsString(), response.SerializeAsString()};
  ready = {"10.0.0.1:8000"};
  EXPECT_TRUE(Serve(options, parser, random).ok());
  ASSERT_EQ(outgoing.size(), 2u);
  EXPECT_EQ(cause, CompletionCause::kNatural);

  incoming = {headers.SerializeAsString()};
  ready = {};
  outgoing = {};
  EXPECT_TRUE(Serve(options, parser, random).ok());
  ASSERT_EQ(outgoing.size(), 1u);
  ProcessingResponse answer;
  ASSERT_TRUE(answer.ParseFromString(outgoing[0]));
  EXPECT_EQ(answer.immediate_response().status().code(), 503);
  EXPECT_EQ(cause, CompletionCause::kError);
}

}  // namespace
}  // namespace llmd::gateway
