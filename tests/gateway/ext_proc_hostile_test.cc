// Sequences that no data plane should send: each is refused with a status or ignored, and the end is told
// once.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "tests/gateway/ext_proc_bed.h"

namespace llmd::gateway {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr std::string_view kBody = R"({"model":"m","prompt":"p"})";

void ExpectFailed(ExtProcBed& bed, absl::StatusCode code, std::string_view text) {
  EXPECT_TRUE(bed.stream.finished());
  EXPECT_EQ(bed.stream.status().code(), code);
  EXPECT_THAT(std::string(bed.stream.status().message()), HasSubstr(std::string(text)));
  EXPECT_THAT(bed.Texts(), IsEmpty());
  const std::optional<Completion> completion = bed.stream.TakeCompletion();
  ASSERT_TRUE(completion);
  EXPECT_EQ(completion->cause, CompletionCause::kError);
  EXPECT_FALSE(bed.stream.TakeCompletion());
}

TEST(Hostile, MessagesOutOfOrder) {
  const auto fails = [](std::vector<std::string> messages, std::string_view text) {
    ExtProcBed bed;
    for (std::size_t i = 0; i + 1 < messages.size(); ++i) {
      ASSERT_NE(bed.Receive(messages[i]), ExtProcEvent::kFailed) << messages[i];
    }
    EXPECT_EQ(bed.Receive(messages.back()), ExtProcEvent::kFailed) << messages.back();
    ExpectFailed(bed, absl::StatusCode::kInvalidArgument, text);
  };
  const std::string headers =
      absl::StrCat("request_headers { headers { ", Header(":path", "/v1/completions"), " } }");
  const std::string body = absl::StrCat("request_body { body: '", ToAbsl(kBody), "' end_of_stream: true }");
  fails({"request_body { body: 'x' }"}, "request_body before request_headers");
  fails({"request_trailers { }"}, "request_trailers before request_headers");
  fails({"response_body { }"}, "response_body before any headers");
  fails({"response_trailers { }"}, "response_trailers before any headers");
  fails({""}, "without headers, body or trailers");
  fails({headers, headers}, "request_headers came twice");
  fails({headers, body, headers}, "request_headers came twice");
  fails({headers, body, "response_body { }"}, "response_body before the request was answered");
  fails({headers, body, "response_trailers { }"}, "response_trailers before the request was answered");
  fails({"response_headers { }", headers}, "request_headers after response_headers");
  fails({headers, "response_headers { }", "response_headers { }"}, "response_headers came twice");
}

TEST(Hostile, ResponseHeadersAfterTheBody) {
  ExtProcBed bed;
  bed.Headers("/v1/models", "", kFullDuplexConfig, "GET", true);
  bed.Route();
  bed.ResponseBody("x", false);
  EXPECT_EQ(bed.ResponseHeaders(), ExtProcEvent::kFailed);
  ExpectFailed(bed, absl::StatusCode::kInvalidArgument, "response_headers after response_body");
}

TEST(Hostile, BodyModesThatDoNotExist) {
  ExtProcBed request;
  EXPECT_EQ(request.Headers("/x", "", "protocol_config { request_body_mode: 17 }"), ExtProcEvent::kFailed);
  ExpectFailed(request, absl::StatusCode::kInvalidArgument, "protocol_config.request_body_mode=17");
  ExtProcBed response;
  EXPECT_EQ(response.Headers("/x", "", "protocol_config { response_body_mode: 9 }"), ExtProcEvent::kFailed);
  ExpectFailed(response, absl::StatusCode::kInvalidArgument, "protocol_config.response_body_mode=9");
  ExtProcBed grpc;
  EXPECT_EQ(grpc.Headers("/x", "", "protocol_config { request_body_mode: GRPC }"), ExtProcEvent::kFailed);
  ExpectFailed(grpc, absl::StatusCode::kUnimplemented, "GRPC");
}

TEST(Hostile, BodiesThatWereNotAnnounced) {
  ExtProcBed bed;
  bed.Headers("/v1/completions", "", "protocol_config { request_body_mode: NONE response_body_mode: NONE }");
  EXPECT_EQ(bed.Body("x", true), ExtProcEvent::kFailed);
  ExpectFailed(bed, absl::StatusCode::kInvalidArgument, "request_body_mode is NONE");

  ExtProcBed response;
  response.Headers("/v1/completions", "",
                   "protocol_config { request_body_mode: NONE response_body_mode: NONE }");
  response.Route();
  response.ResponseHeaders();
  EXPECT_EQ(response.ResponseBody("x", true), ExtProcEvent::kFailed);
  ExpectFailed(response, absl::StatusCode::kInvalidArgument, "response_body_mode is NONE");

  ExtProcBed bodyless;
  bodyless.Headers("/v1/models", "", kFullDuplexConfig, "GET", true);
  EXPECT_EQ(bodyless.Body("x", true), ExtProcEvent::kNone);
  EXPECT_TRUE(bodyless.stream.facts().bodyless);
  EXPECT_EQ(bodyless.stream.ignored_messages(), 1u);
}

// Another filter answers the client while we still think.
TEST(Hostile, AResponseBeforeTheDecision) {
  ExtProcBed bed;
  bed.Headers("/v1/completions");
  EXPECT_EQ(bed.Body(kBody, true), ExtProcEvent::kNeedsDecision);
  EXPECT_EQ(bed.ResponseHeaders(), ExtProcEvent::kResponseHeaders);
  EXPECT_FALSE(bed.stream.needs_decision());
  EXPECT_EQ(bed.stream.Decide({.destinations = {"a:1"}}, bed.now).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(bed.Body("late", true), ExtProcEvent::kNone);
  EXPECT_EQ(bed.ResponseBody("no", true), ExtProcEvent::kResponseEnd);
  const std::vector<ProcessingResponse> answers = bed.Answers();
  ASSERT_EQ(answers.size(), 2u);
  EXPECT_TRUE(answers[0].has_response_headers());
  EXPECT_TRUE(answers[1].has_response_body());
  EXPECT_FALSE(bed.stream.TakeCompletion()->routed);
}

// A data plane that does not send request headers to us at all.
TEST(Hostile, OnlyAResponse) {
  ExtProcBed bed;
  EXPECT_EQ(bed.ResponseHeaders(), ExtProcEvent::kResponseHeaders);
  EXPECT_EQ(bed.ResponseBody("x", true), ExtProcEvent::kResponseEnd);
  EXPECT_EQ(bed.Answers().size(), 2u);
}

TEST(Hostile, BytesThatAreNoMessage) {
  ExtProcBed bed;
  EXPECT_EQ(bed.stream.ReceiveBytes("\x12\xff garbage", bed.now), ExtProcEvent::kFailed);
  ExpectFailed(bed, absl::StatusCode::kInvalidArgument, "no ProcessingRequest");
  EXPECT_EQ(bed.stream.ReceiveBytes("\x12\xff garbage", bed.now), ExtProcEvent::kNone);
}

TEST(Hostile, UnknownFieldsAreIgnored) {
  ProcessingRequest message;
  message.mutable_request_headers()->set_end_of_stream(true);
  std::string bytes = message.SerializeAsString();
  bytes += "\xfa\x07\x03xyz";  // field 127
  ExtProcBed bed;
  EXPECT_EQ(bed.stream.ReceiveBytes(bytes, bed.now), ExtProcEvent::kNeedsDecision);
  EXPECT_TRUE(bed.stream.Decide({.destinations = {"a:1"}}, bed.now).ok());
  std::string answer;
  EXPECT_TRUE(bed.stream.NextBytes(answer));
  ProcessingResponse parsed;
  EXPECT_TRUE(parsed.ParseFromString(answer));
  EXPECT_TRUE(parsed.has_request_headers());
  EXPECT_FALSE(bed.stream.NextBytes(answer));
}

TEST(Hostile, HeadersOfAResponseAreBounded) {
  ExtProcBed bed({.max_headers = 10, .max_header_bytes = 1000});
  bed.Headers("/v1/models", "", kFullDuplexConfig, "GET", true);
  bed.Route();
  std::string many;
  for (int i = 0; i < 100; ++i) many += Header(absl::StrCat("h", i), "v");
  bed.ResponseHeaders(many);
  EXPECT_EQ(bed.stream.response().headers.fields().size(), 10u);
}

// Any order of any messages: no crash, at most one completion, answers in the protocol's order.
TEST(Hostile, RandomSequences) {
  constexpr std::string_view kModes[] = {"NONE", "STREAMED", "BUFFERED", "BUFFERED_PARTIAL",
                                         "FULL_DUPLEX_STREAMED"};
  Random random(11);
  for (int round = 0; round < 20'000; ++round) {
    ExtProcBed bed({.max_body_bytes = 200, .max_response_body_bytes = 50});
    const std::string config =
        absl::StrCat("protocol_config { request_body_mode: ", ToAbsl(kModes[random.Below(5)]),
                     " response_body_mode: ", ToAbsl(kModes[random.Below(5)]),
                     " send_body_without_waiting_for_header_response: ", random.Below(2), " }");
    int completions = 0;
    int request_stage = 0, response_stage = 0;  // 1 headers, 2 body, 3 trailers, 4 immediate
    for (int step = 0; step < 12; ++step) {
      const bool end = random.Below(2) == 0;
      switch (random.Below(step == 0 ? 3 : 10)) {
        case 0:
        case 1:
          bed.Headers(random.Below(2) ? "/v1/completions" : "/other", "", step == 0 ? config : "", "POST",
                      random.Below(4) == 0);
          break;
        case 2:
          bed.Body(random.Below(2) ? kBody : "x", end);
          break;
        case 3:
          bed.Receive("request_trailers { }");
          break;
        case 4:
          bed.ResponseHeaders(random.Below(2) ? Header("content-type", "text/event-stream") : "",
                              random.Below(4) == 0);
          break;
        case 5:
          bed.ResponseBody("data: {\"usage\":{}}\n", end);
          break;
        case 6:
          bed.Receive("response_trailers { }");
          break;
        case 7:
          if (random.Below(2)) {
            (void)bed.stream.Decide({.destinations = {"a:1"}, .model = random.Below(2) ? "m" : "t"}, bed.now);
          } else {
            (void)bed.stream.Decide({.destinations = {"a:1"}}, bed.now);
          }
          break;
        case 8:
          if (random.Below(4) == 0) (void)bed.stream.Refuse({.http_status = 429}, bed.now);
          break;
        case 9:
          if (random.Below(8) == 0) bed.stream.Evict(sched::DroppedReason::kEvicted, bed.now);
          if (random.Below(8) == 0) bed.stream.Close(CloseReason::kCancelled, bed.now);
          break;
      }
      for (const ProcessingResponse& answer : bed.Answers()) {
        ASSERT_NE(request_stage, 4) << "an answer after an immediate one";
        const bool request =
            answer.has_request_headers() || answer.has_request_body() || answer.has_request_trailers();
        int stage = answer.has_request_headers() || answer.has_response_headers() ? 1
                    : answer.has_request_body() || answer.has_response_body()     ? 2
                                                                                  : 3;
        if (answer.has_immediate_response()) {
          request_stage = 4;
          continue;
        }
        int& at = request ? request_stage : response_stage;
        ASSERT_GE(stage, at) << config << " step " << step << " " << answer.ShortDebugString();
        ASSERT_TRUE(stage != 1 || at == 0) << "headers answered twice";
        at = stage;
      }
      if (bed.stream.TakeCompletion()) ++completions;
      ASSERT_LT(bed.stream.held_bytes(), 2000u);
    }
    bed.stream.Close(CloseReason::kEndOfStream, bed.now);
    if (bed.stream.TakeCompletion()) ++completions;
    ASSERT_EQ(completions, 1);
  }
}

}  // namespace
}  // namespace llmd::gateway
