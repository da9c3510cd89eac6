// The response phase, message by message. (spec: gateway.md 2.3, 2.8, 6.5, case table 8.1)
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "tests/gateway/ext_proc_bed.h"

namespace llmd::gateway {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr std::string_view kBody = R"({"model":"m","prompt":"p"})";
constexpr std::string_view kSse = "text/event-stream; charset=utf-8";

std::string HeadersAnswer(std::string_view mutations = "") {
  return Text(absl::StrCat("response_headers { response { header_mutation { ",
                           Set("x-went-into-resp-headers", "true"), ToAbsl(mutations), " } } }"));
}

std::string StreamedAnswer(std::string_view body, bool end) {
  ProcessingResponse answer;
  auto& chunk = *answer.mutable_response_body()
                     ->mutable_response()
                     ->mutable_body_mutation()
                     ->mutable_streamed_response();
  chunk.set_body(std::string(body));
  chunk.set_end_of_stream(end);
  return Text(answer);
}

// A stream whose request has been answered.
struct Routed : ExtProcBed {
  explicit Routed(std::string_view mode = "FULL_DUPLEX_STREAMED", std::string model = "m",
                  ExtProcOptions o = {})
      : ExtProcBed(o) {
    const std::string config = absl::StrCat(
        "protocol_config { request_body_mode: FULL_DUPLEX_STREAMED response_body_mode: ", ToAbsl(mode), " }");
    Headers("/v1/completions", "", config);
    Body(kBody, true);
    Route({.model = model});
  }
  CompletionCause Cause() {
    const std::optional<Completion> completion = stream.TakeCompletion();
    EXPECT_TRUE(completion);
    EXPECT_FALSE(stream.TakeCompletion());
    return completion ? completion->cause : CompletionCause::kError;
  }
};

constexpr std::string_view kJson =
    R"({"id":"1","model":"m","choices":[],"usage":{"prompt_tokens":7,)"
    R"("completion_tokens":10,"total_tokens":17,"prompt_tokens_details":{"cached_tokens":4}}})";

TEST(PlainResponse, IsHeldUntilItsEnd) {
  Routed bed;
  EXPECT_EQ(bed.ResponseHeaders(Header("content-type", "application/json")), ExtProcEvent::kResponseHeaders);
  EXPECT_THAT(bed.Texts(), ElementsAre(HeadersAnswer()));
  EXPECT_EQ(bed.ResponseBody(kJson.substr(0, 50), false), ExtProcEvent::kResponseBody);
  EXPECT_THAT(bed.Texts(), IsEmpty());
  EXPECT_EQ(bed.ResponseBody(kJson.substr(50), true), ExtProcEvent::kResponseEnd);
  EXPECT_THAT(bed.Texts(), ElementsAre(StreamedAnswer(kJson, true)));
  EXPECT_TRUE(bed.stream.finished());
  const ResponseFacts& response = bed.stream.response();
  EXPECT_EQ(response.usage, (Usage{.prompt_tokens = 7,
                                   .completion_tokens = 10,
                                   .total_tokens = 17,
                                   .cached_tokens = 4,
                                   .known = true}));
  EXPECT_EQ(response.status, 200);
  EXPECT_FALSE(response.streaming);
  EXPECT_EQ(response.body_bytes, kJson.size());
  EXPECT_EQ(response.chunks, 2u);
  // Request headers at 1 ms, its body at 2, response headers at 3, body at 4 and 5.
  EXPECT_EQ(response.first_byte - bed.stream.facts().received, absl::Milliseconds(3));
  EXPECT_EQ(response.last_byte - bed.stream.facts().received, absl::Milliseconds(4));
  EXPECT_EQ(bed.Cause(), CompletionCause::kNatural);
}

TEST(PlainResponse, InvalidJsonPassesWithoutUsage) {
  Routed bed;
  bed.ResponseHeaders();
  bed.Answers();
  bed.ResponseBody("not \"usage\" json", false);
  EXPECT_EQ(bed.ResponseBody("", true), ExtProcEvent::kResponseEnd);
  EXPECT_THAT(bed.Texts(), ElementsAre(StreamedAnswer("not \"usage\" json", true)));
  EXPECT_FALSE(bed.stream.response().usage.known);
  EXPECT_EQ(bed.Cause(), CompletionCause::kNatural);
}

TEST(PlainResponse, AnEmptyBodyEndsWithOneEmptyChunk) {
  Routed bed;
  bed.ResponseHeaders();
  bed.ResponseBody("", true);
  EXPECT_THAT(bed.Texts(), ElementsAre(HeadersAnswer(), StreamedAnswer("", true)));
}

TEST(PlainResponse, WithoutABody) {
  Routed bed;
  EXPECT_EQ(bed.ResponseHeaders("", true), ExtProcEvent::kResponseEnd);
  EXPECT_THAT(bed.Texts(), ElementsAre(HeadersAnswer()));
  EXPECT_TRUE(bed.stream.finished());
  EXPECT_EQ(bed.Cause(), CompletionCause::kNatural);
}

TEST(PlainResponse, IsCutIntoChunks) {
  Routed bed;
  bed.ResponseHeaders();
  bed.Answers();
  const std::string body(150'000, 'x');
  bed.ResponseBody(body, true);
  const std::vector<ProcessingResponse> answers = bed.Answers();
  EXPECT_EQ(answers.size(), 3u);
  EXPECT_EQ(JoinBodies(answers, false), body);
}

TEST(PlainResponse, OverTheLimitPassesAsItComes) {
  Routed bed("FULL_DUPLEX_STREAMED", "target", {.max_response_body_bytes = 50});
  bed.ResponseHeaders();
  bed.Answers();
  bed.ResponseBody(std::string(40, 'x'), false);
  EXPECT_THAT(bed.Texts(), IsEmpty());
  bed.ResponseBody(R"(1234567890"model":"tar)", false);
  EXPECT_THAT(bed.Texts(), ElementsAre(StreamedAnswer(std::string(40, 'x') + "1234567890", false)));
  EXPECT_LT(bed.stream.held_bytes(), 100u);
  bed.ResponseBody(R"(get"},)", false);
  EXPECT_THAT(bed.Texts(), ElementsAre(StreamedAnswer(R"("model":"m"},)", false)));
  bed.ResponseBody("", true);
  EXPECT_THAT(bed.Texts(), ElementsAre(StreamedAnswer("", true)));
}

constexpr std::string_view kEvents[] = {
    "data: {\"model\":\"m\",\"choices\":[{\"text\":\"a\"}],\"usage\":null}\n\n",
    "data: {\"choices\":[{\"text\":\"b\"}]}\n\n",
    "data: "
    "{\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":10,\"total_tokens\":17}}\n\ndata: "
    "[DONE]\n\n",
};

TEST(EventStream, EachChunkIsAnsweredAtOnce) {
  Routed bed;
  bed.ResponseHeaders(Header("Content-Type", kSse));
  EXPECT_TRUE(bed.stream.response().streaming);
  EXPECT_THAT(bed.Texts(), ElementsAre(HeadersAnswer()));
  for (const std::string_view event : kEvents) {
    EXPECT_EQ(bed.ResponseBody(event, false), ExtProcEvent::kResponseBody);
    EXPECT_THAT(bed.Texts(), ElementsAre(StreamedAnswer(event, false)));
  }
  EXPECT_EQ(bed.ResponseBody("", true), ExtProcEvent::kResponseEnd);
  EXPECT_THAT(bed.Texts(), ElementsAre(StreamedAnswer("", true)));
  EXPECT_EQ(bed.stream.response().usage,
            (Usage{.prompt_tokens = 7, .completion_tokens = 10, .total_tokens = 17, .known = true}));
  EXPECT_EQ(bed.stream.response().chunks, 3u);
}

TEST(EventStream, UsageAndModelAreFoundHoweverItIsCut) {
  const std::string all = absl::StrCat(ToAbsl(kEvents[0]), ToAbsl(kEvents[1]), ToAbsl(kEvents[2]));
  std::string served = all;
  served.replace(served.find("\"m\""), 3, "\"the-target\"");
  for (std::size_t size = 1; size < served.size(); ++size) {
    Routed bed("FULL_DUPLEX_STREAMED", "the-target");
    bed.ResponseHeaders(Header("content-type", kSse));
    bed.Answers();
    for (std::size_t at = 0; at < served.size(); at += size)
      bed.ResponseBody(std::string_view(served).substr(at, size), false);
    bed.ResponseBody("", true);
    ASSERT_EQ(JoinBodies(bed.Answers(), false), all) << size;
    ASSERT_EQ(bed.stream.response().usage.completion_tokens, 10u) << size;
  }
}

TEST(EventStream, ChunksOfAnySizeStayWithinTheAnswersLimit) {
  Routed bed;
  bed.ResponseHeaders(Header("content-type", kSse));
  bed.Answers();
  const std::string body(70'000, 'x');
  bed.ResponseBody(body, true);
  const std::vector<ProcessingResponse> answers = bed.Answers();
  EXPECT_EQ(answers.size(), 2u);
  EXPECT_EQ(JoinBodies(answers, false), body);
}

TEST(ResponseTrailers, EndTheBodyWithoutEndOfStream) {
  Routed bed("FULL_DUPLEX_STREAMED", "target");
  bed.ResponseHeaders();
  bed.Answers();
  bed.ResponseBody(R"({"model": "target","usage":{"prompt_tokens":3}} "mod)", false);
  EXPECT_EQ(bed.Receive("response_trailers { trailers { } }"), ExtProcEvent::kResponseEnd);
  EXPECT_THAT(bed.Texts(),
              ElementsAre(StreamedAnswer(R"({"model": "m","usage":{"prompt_tokens":3}} "mod)", false),
                          Text("response_trailers { }")));
  EXPECT_TRUE(bed.stream.finished());

  Routed stream;
  stream.ResponseHeaders(Header("content-type", kSse));
  stream.ResponseBody("data: x\n\n", false);
  stream.Receive("response_trailers { }");
  EXPECT_THAT(stream.Texts(), ElementsAre(HeadersAnswer(), StreamedAnswer("data: x\n\n", false),
                                          Text("response_trailers { }")));
}

TEST(ModelName, IsRestoredAndTheLengthDropped) {
  Routed bed("FULL_DUPLEX_STREAMED", "target");
  bed.ResponseHeaders(Header("content-length", "30"));
  EXPECT_THAT(bed.Texts(), ElementsAre(HeadersAnswer("remove_headers: 'content-length'")));
  bed.ResponseBody(R"({"model":"target","x":"model: target"})", true);
  EXPECT_THAT(bed.Texts(), ElementsAre(StreamedAnswer(R"({"model":"m","x":"model: target"})", true)));
}

TEST(StreamedMode, OneAnswerForEachChunk) {
  Routed bed("STREAMED", "target");
  bed.ResponseHeaders(Header("content-type", kSse));
  bed.Answers();
  const std::string unchanged = Text("response_body { response { } }");
  bed.ResponseBody("data: {\"id\":1}\n\n", false);
  EXPECT_THAT(bed.Texts(), ElementsAre(unchanged));
  bed.ResponseBody("data: {\"model\":\"target\"}\n\n", false);
  EXPECT_THAT(bed.Texts(),
              ElementsAre(Text(
                  "response_body { response { body_mutation { body: 'data: {\"model\":\"m\"}\\n\\n' } } }")));
  bed.ResponseBody("", true);
  EXPECT_THAT(bed.Texts(), ElementsAre(unchanged));
  EXPECT_EQ(bed.Cause(), CompletionCause::kNatural);
}

TEST(StreamedMode, ReadsTheUsageOfPlainBodies) {
  Routed bed("STREAMED");
  bed.ResponseHeaders();
  for (const char& c : kJson) bed.ResponseBody(std::string_view(&c, 1), false);
  bed.ResponseBody("", true);
  EXPECT_EQ(bed.Answers().size(), kJson.size() + 2);
  EXPECT_EQ(bed.stream.response().usage.completion_tokens, 10u);
}

TEST(BufferedMode, ReplacesTheBodyOnlyForTheModelName) {
  Routed same("BUFFERED");
  same.ResponseHeaders();
  same.ResponseBody(kJson, true);
  EXPECT_THAT(same.Texts(), ElementsAre(HeadersAnswer(), Text("response_body { response { } }")));
  EXPECT_EQ(same.stream.response().usage.prompt_tokens, 7u);

  Routed bed("BUFFERED", "target");
  bed.ResponseHeaders(Header("content-length", "18"));
  bed.ResponseBody(R"({"model":"target"})", true);
  EXPECT_THAT(
      bed.Texts(),
      ElementsAre(HeadersAnswer(), Text(absl::StrCat("response_body { response { header_mutation { ",
                                                     Set("Content-Length", "13"),
                                                     "} body_mutation { body: '{\"model\":\"m\"}' } } }"))));
}

TEST(NoneMode, TheStreamsEndIsTheResponsesEnd) {
  Routed bed("NONE");
  EXPECT_EQ(bed.ResponseHeaders(), ExtProcEvent::kResponseHeaders);
  EXPECT_THAT(bed.Texts(), ElementsAre(HeadersAnswer()));
  EXPECT_FALSE(bed.stream.finished());
  bed.stream.Close(CloseReason::kCancelled, bed.now);
  EXPECT_EQ(bed.Cause(), CompletionCause::kNatural);

  Routed without_headers("NONE");
  without_headers.stream.Close(CloseReason::kEndOfStream, without_headers.now);
  EXPECT_EQ(without_headers.Cause(), CompletionCause::kNatural);

  Routed cancelled("NONE");
  cancelled.stream.Close(CloseReason::kCancelled, cancelled.now);
  EXPECT_EQ(cancelled.Cause(), CompletionCause::kClientDisconnect);
}

TEST(ServedEndpoint, IsReadFromAnyResponseMessage) {
  const std::string served =
      "metadata_context { filter_metadata { key: 'envoy.lb' value { fields { key: "
      "'x-gateway-destination-endpoint-served' value { string_value: '10.0.0.2:8000' } } } } }";
  Routed bed("FULL_DUPLEX_STREAMED", "m", {.report_served_endpoint = true});
  EXPECT_EQ(bed.stream.response().served_endpoint, "");
  bed.ResponseHeaders("", false, served);
  EXPECT_EQ(bed.stream.response().served_endpoint, "10.0.0.2:8000");
  EXPECT_THAT(bed.Texts(),
              ElementsAre(HeadersAnswer(Set("x-conformance-test-served-endpoint", "10.0.0.2:8000"))));

  Routed late;
  late.ResponseHeaders();
  late.ResponseBody("{}", true, served);
  EXPECT_EQ(late.stream.response().served_endpoint, "10.0.0.2:8000");
  EXPECT_THAT(late.Texts(), ElementsAre(HeadersAnswer(), StreamedAnswer("{}", true)));
}

TEST(ResponseHeaders, StatusUnderEitherName) {
  Routed bed;
  bed.Receive("response_headers { headers { headers { key: 'status' value: '503' } } }");
  EXPECT_EQ(bed.stream.response().status, 503);
  Routed both;
  both.Receive(
      absl::StrCat("response_headers { headers { ", Header("status", "1"), Header(":status", "429"), "} }"));
  EXPECT_EQ(both.stream.response().status, 429);
  Routed neither;
  neither.Receive(absl::StrCat("response_headers { headers { ", Header(":status", "many"), "} }"));
  EXPECT_EQ(neither.stream.response().status, 0);
}

TEST(ResponseHeaders, AreEditedBeforeTheyAreTaken) {
  Routed bed;
  const std::vector<HeaderField> set = {{"x-session-token", "abc"}};
  const std::vector<std::string> remove = {"server"};
  EXPECT_EQ(bed.stream.EditResponseHeaders(set, remove).code(), absl::StatusCode::kFailedPrecondition);
  bed.ResponseHeaders();
  EXPECT_EQ(bed.stream.EditResponseHeaders(std::vector<HeaderField>{{"x", "a\r\nb"}}, {}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(bed.stream.EditResponseHeaders(set, remove).ok());
  EXPECT_THAT(bed.Texts(),
              ElementsAre(HeadersAnswer(Set("x-session-token", "abc") + " remove_headers: 'server'")));
  EXPECT_EQ(bed.stream.EditResponseHeaders(set, remove).code(), absl::StatusCode::kFailedPrecondition);
}

TEST(ResponseHeaders, AreSentBackOnRequest) {
  Routed bed("FULL_DUPLEX_STREAMED", "m", {.resend_headers = true, .mark_responses = false});
  bed.ResponseHeaders(Header("x-a", "b") + Header("content-length", "3") + Header("set-cookie", "a") +
                      Header("set-cookie", "b"));
  EXPECT_THAT(bed.Texts(), ElementsAre(Text(absl::StrCat("response_headers { response { header_mutation { ",
                                                         Set("x-a", "b"), "} } }"))));
}

TEST(ResponseMetadata, RidesOnTheLastAnswer) {
  const std::vector<MetadataEntry> metadata = {{.filter_namespace = "llmd", .key = "cost", .text = "7"}};
  const auto with = [](const std::string& answer) {
    return Text(answer +
                "dynamic_metadata { fields { key: 'llmd' value { struct_value { fields { key: 'cost' value { "
                "string_value: '7' } } } } } }");
  };
  Routed bed;
  bed.ResponseHeaders();
  EXPECT_EQ(bed.stream.AddResponseMetadata(metadata).code(), absl::StatusCode::kFailedPrecondition);
  bed.ResponseBody(std::string(62'001, 'x'), true);
  EXPECT_TRUE(bed.stream.AddResponseMetadata(metadata).ok());
  EXPECT_THAT(bed.Texts(), ElementsAre(HeadersAnswer(), StreamedAnswer(std::string(62'000, 'x'), false),
                                       with(StreamedAnswer("x", true))));

  Routed trailers;
  trailers.ResponseHeaders();
  trailers.Receive("response_trailers { }");
  EXPECT_TRUE(trailers.stream.AddResponseMetadata(metadata).ok());
  EXPECT_THAT(trailers.Texts(), ElementsAre(HeadersAnswer(), with("response_trailers { } ")));
}

TEST(Completion, ClientDisconnectsAtAnyTime) {
  for (int steps = 0; steps < 6; ++steps) {
    ExtProcBed bed;
    if (steps > 0) bed.Headers("/v1/completions");
    if (steps > 1) bed.Body(kBody, true);
    if (steps > 2) bed.Route();
    if (steps > 3) bed.ResponseHeaders(Header("content-type", kSse));
    if (steps > 4) bed.ResponseBody("data: x\n\n", false);
    EXPECT_FALSE(bed.stream.TakeCompletion());
    bed.stream.Close(CloseReason::kEndOfStream, bed.now);
    bed.stream.Close(CloseReason::kCancelled, bed.now);
    EXPECT_FALSE(bed.stream.needs_decision());
    EXPECT_THAT(bed.Texts(), IsEmpty());
    const std::optional<Completion> completion = bed.stream.TakeCompletion();
    ASSERT_TRUE(completion) << steps;
    EXPECT_EQ(completion->cause, CompletionCause::kClientDisconnect);
    EXPECT_EQ(completion->routed, steps > 2);
    EXPECT_FALSE(bed.stream.TakeCompletion());
    EXPECT_LT(bed.stream.held_bytes(), 100u);
    // What comes late changes nothing.
    EXPECT_EQ(bed.ResponseBody("x", true), ExtProcEvent::kNone);
    bed.stream.Evict(sched::DroppedReason::kEvicted, bed.now);
    bed.stream.Fail(absl::InternalError("late"), bed.now);
    EXPECT_THAT(bed.Texts(), IsEmpty());
    EXPECT_FALSE(bed.stream.TakeCompletion());
  }
}

TEST(Completion, AFailureOfTheHost) {
  Routed bed;
  bed.stream.Fail(absl::InternalError("broken"), bed.now);
  EXPECT_TRUE(bed.stream.finished());
  EXPECT_EQ(bed.stream.status().code(), absl::StatusCode::kInternal);
  const std::optional<Completion> completion = bed.stream.TakeCompletion();
  ASSERT_TRUE(completion);
  EXPECT_EQ(completion->cause, CompletionCause::kError);
  EXPECT_EQ(completion->error, "broken");
}

TEST(Completion, AnEvictionAfterTheEndIsSuppressed) {
  Routed bed;
  bed.ResponseHeaders();
  bed.ResponseBody("{}", true);
  bed.stream.Evict(sched::DroppedReason::kEvicted, bed.now);
  EXPECT_THAT(bed.Texts(), ElementsAre(HeadersAnswer(), StreamedAnswer("{}", true)));
  EXPECT_EQ(bed.Cause(), CompletionCause::kNatural);
}

}  // namespace
}  // namespace llmd::gateway
