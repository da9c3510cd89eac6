// The request phase in each body mode, message by message. Expected answers are written from the protocol's
// text. (spec: gateway.md 1.3, 1.4, 2.4)
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "tests/gateway/ext_proc_bed.h"
#include "tests/gateway/request_messages.h"

namespace llmd::gateway {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(FullDuplex, AnswersHeadersThenBodyAfterTheDecision) {
  ExtProcBed bed;
  EXPECT_EQ(bed.Headers(kChat), ExtProcEvent::kNone);
  EXPECT_THAT(bed.Texts(), IsEmpty());
  EXPECT_EQ(bed.Body(kChatBody, true), ExtProcEvent::kNeedsDecision);
  EXPECT_THAT(bed.Texts(), IsEmpty());
  EXPECT_TRUE(bed.stream.needs_decision());
  EXPECT_EQ(bed.stream.facts().incoming_model, "m");
  EXPECT_EQ(bed.stream.facts().request_id, "test-request-id");
  ASSERT_EQ(bed.stream.facts().openai.messages.size(), 1u);
  EXPECT_TRUE(bed.stream.Decide({.destinations = {"10.0.0.1:8000"}}, bed.now).ok());
  EXPECT_THAT(bed.Texts(), ElementsAre(HeadersAnswer("10.0.0.1:8000", Set("Content-Length", "57")),
                                       StreamedAnswer(kChatBody, true)));
  EXPECT_FALSE(bed.stream.finished());
  EXPECT_FALSE(bed.stream.needs_decision());
}

TEST(FullDuplex, SplitBodyIsOneBody) {
  ExtProcBed bed;
  bed.Headers(kChat);
  EXPECT_EQ(bed.Body(kChatBody.substr(0, 20), false), ExtProcEvent::kNone);
  EXPECT_EQ(bed.Body("", false), ExtProcEvent::kNone);
  EXPECT_EQ(bed.Body(kChatBody.substr(20), false), ExtProcEvent::kNone);
  EXPECT_EQ(bed.Body("", true), ExtProcEvent::kNeedsDecision);
  EXPECT_TRUE(bed.stream.Decide({.destinations = {"10.0.0.1:8000"}}, bed.now).ok());
  EXPECT_THAT(bed.Texts(), ElementsAre(HeadersAnswer("10.0.0.1:8000", Set("Content-Length", "57")),
                                       StreamedAnswer(kChatBody, true)));
}

TEST(FullDuplex, AnyChunkingGivesTheSameAnswers) {
  Random random(7);
  std::string prompt;
  while (prompt.size() < 200'000) prompt += absl::StrCat("word", random.Below(1000), " \\n");
  const std::string body = absl::StrCat(R"({"model":"m","prompt":")", prompt, R"(","x":1.50})");
  std::vector<std::string> expected;
  for (int round = 0; round < 40; ++round) {
    ExtProcBed bed;
    bed.Headers("/v1/completions");
    std::string_view rest = body;
    // The first round in one piece.
    const std::size_t most = round == 0 ? body.size() : std::size_t{1} << random.Between(6, 17);
    while (rest.size() > most) {
      const std::size_t size = random.Below(most + 1);
      ASSERT_EQ(bed.Body(rest.substr(0, size), false), ExtProcEvent::kNone);
      rest.remove_prefix(size);
    }
    ASSERT_EQ(bed.Body(rest, true), ExtProcEvent::kNeedsDecision);
    ASSERT_TRUE(bed.stream.Decide({.destinations = {"10.0.0.1:8000"}, .model = "other"}, bed.now).ok());
    const std::vector<std::string> texts = bed.Texts();
    if (round == 0) expected = texts;
    ASSERT_EQ(texts, expected);
  }
  ASSERT_EQ(expected.size(), 1 + (body.size() + 4 + 61999) / 62000);
}

TEST(FullDuplex, CutsTheBodyAtTheReferencesSize) {
  for (const std::size_t size : {1u, 61'999u, 62'000u, 62'001u, 124'000u, 5'000'000u}) {
    ExtProcBed bed;
    bed.Headers("/not/interpreted");
    std::string body(size, 'x');
    for (std::size_t i = 0; i < size; ++i) body[i] = static_cast<char>(i * 31 >> 3);
    ASSERT_EQ(bed.Body(body, true), ExtProcEvent::kNeedsDecision);
    ASSERT_TRUE(bed.stream.Decide({.destinations = {"10.0.0.1:8000"}}, bed.now).ok());
    const std::vector<ProcessingResponse> answers = bed.Answers();
    ASSERT_EQ(answers.size(), 1 + (size + 61'999) / 62'000) << size;
    EXPECT_TRUE(answers[0].has_request_headers());
    for (std::size_t i = 1; i + 1 < answers.size(); ++i) {
      EXPECT_EQ(answers[i].request_body().response().body_mutation().streamed_response().body().size(),
                62'000u);
    }
    EXPECT_TRUE(JoinBodies(answers, true) == body);
    EXPECT_EQ(bed.stream.held_bytes(), std::string().capacity() * 2);
  }
}

TEST(FullDuplex, TrailersEndTheBodyWithoutEndOfStream) {
  ExtProcBed bed;
  bed.Headers(kChat);
  bed.Body(kChatBody, false);
  EXPECT_EQ(bed.Receive("request_trailers { trailers { } }"), ExtProcEvent::kNeedsDecision);
  EXPECT_TRUE(bed.stream.Decide({.destinations = {"10.0.0.1:8000"}}, bed.now).ok());
  EXPECT_THAT(bed.Texts(), ElementsAre(HeadersAnswer("10.0.0.1:8000", Set("Content-Length", "57")),
                                       StreamedAnswer(kChatBody, false), Text("request_trailers { }")));
}

TEST(FullDuplex, TrailersWithoutABody) {
  ExtProcBed bed;
  bed.Headers("/other", "", kFullDuplexConfig, "GET");
  EXPECT_EQ(bed.Receive("request_trailers { trailers { } }"), ExtProcEvent::kNeedsDecision);
  EXPECT_TRUE(bed.stream.facts().bodyless);
  EXPECT_TRUE(bed.stream.Decide({.destinations = {"10.0.0.1:8000"}}, bed.now).ok());
  EXPECT_THAT(bed.Texts(), ElementsAre(HeadersAnswer("10.0.0.1:8000", ""), Text("request_trailers { }")));
}

TEST(FullDuplex, AnEmptyBodyEndsWithOneEmptyChunk) {
  ExtProcBed bed;
  bed.Headers("/other");
  EXPECT_EQ(bed.Body("", true), ExtProcEvent::kNeedsDecision);
  EXPECT_TRUE(bed.stream.facts().bodyless);
  EXPECT_TRUE(bed.stream.Decide({.destinations = {"10.0.0.1:8000"}}, bed.now).ok());
  EXPECT_THAT(bed.Texts(), ElementsAre(HeadersAnswer("10.0.0.1:8000", ""), StreamedAnswer("", true)));
}

TEST(FullDuplex, ASecondEndOfStreamIsIgnored) {
  ExtProcBed bed;
  bed.Headers(kChat);
  bed.Body(kChatBody, true);
  EXPECT_EQ(bed.Body("again", true), ExtProcEvent::kNone);  // before the decision
  EXPECT_EQ(bed.stream.facts().body, kChatBody);
  EXPECT_TRUE(bed.stream.Decide({.destinations = {"10.0.0.1:8000"}}, bed.now).ok());
  EXPECT_EQ(bed.Body("", true), ExtProcEvent::kNone);  // after it
  EXPECT_EQ(bed.Receive("request_trailers { }"), ExtProcEvent::kNone);
  EXPECT_THAT(bed.Texts(), ElementsAre(HeadersAnswer("10.0.0.1:8000", Set("Content-Length", "57")),
                                       StreamedAnswer(kChatBody, true)));
  EXPECT_EQ(bed.stream.ignored_messages(), 3u);
  EXPECT_FALSE(bed.stream.finished());
}

TEST(FullDuplex, IsAssumedOfADataPlaneThatDoesNotSay) {
  ExtProcBed bed;
  EXPECT_EQ(bed.Headers(kChat, "", ""), ExtProcEvent::kNone);
  EXPECT_EQ(bed.stream.request_body_mode(), BodyMode::kFullDuplex);
  EXPECT_EQ(bed.Body(kChatBody, true), ExtProcEvent::kNeedsDecision);
  EXPECT_TRUE(bed.stream.Decide({.destinations = {"10.0.0.1:8000"}}, bed.now).ok());
  EXPECT_EQ(bed.Texts().size(), 2u);

  ExtProcBed old(
      {.assumed_request_body_mode = BodyMode::kNone, .assumed_response_body_mode = BodyMode::kNone});
  EXPECT_EQ(old.Headers(kChat, "", ""), ExtProcEvent::kNeedsDecision);
}

TEST(HeaderOnly, IsDecidedAtOnce) {
  ExtProcBed bed;
  EXPECT_EQ(bed.Headers(kChat, Header("content-length", "57"), ConfigOf("NONE", "NONE")),
            ExtProcEvent::kNeedsDecision);
  EXPECT_TRUE(bed.stream.facts().headers_only);
  EXPECT_FALSE(bed.stream.facts().bodyless);
  EXPECT_FALSE(bed.stream.facts().can_rewrite_model);
  EXPECT_TRUE(bed.stream.Decide({.destinations = {"10.0.0.1:8000"}}, bed.now).ok());
  // The length of the body that we do not see stays as it is: neither set nor removed.
  EXPECT_THAT(bed.Texts(), ElementsAre(HeadersAnswer("10.0.0.1:8000", "")));
}

TEST(HeaderOnly, CannotRewriteTheModel) {
  ExtProcBed bed;
  bed.Headers(kChat, Header("x-llm-d-model-name-rewrite", "other"), ConfigOf("NONE", "NONE"));
  EXPECT_EQ(bed.stream.facts().target_model, "other");
  const absl::Status status =
      bed.stream.Decide({.destinations = {"10.0.0.1:8000"}, .model = "other"}, bed.now);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(bed.stream.needs_decision());
  EXPECT_THAT(bed.Texts(), IsEmpty());
  EXPECT_TRUE(bed.stream.Decide({.destinations = {"10.0.0.1:8000"}}, bed.now).ok());
}

TEST(Bodyless, HasOneHeadersAnswer) {
  ExtProcBed bed;
  EXPECT_EQ(bed.Headers("/v1/models", "", kFullDuplexConfig, "GET", true), ExtProcEvent::kNeedsDecision);
  EXPECT_TRUE(bed.stream.facts().bodyless);
  EXPECT_TRUE(bed.stream.Decide({.destinations = {"10.0.0.1:8000"}}, bed.now).ok());
  EXPECT_THAT(bed.Texts(), ElementsAre(HeadersAnswer("10.0.0.1:8000", "")));
}

TEST(Bodyless, WithoutEndpointsIsAnInternalError) {
  ExtProcBed bed;
  bed.Headers("/v1/models", "", kFullDuplexConfig, "GET", true);
  EXPECT_TRUE(
      bed.stream.Refuse({.http_status = 500, .message = "no pods available in datastore"}, bed.now).ok());
  EXPECT_THAT(bed.Texts(),
              ElementsAre(Text("immediate_response { status { code: InternalServerError } body: "
                               "\"inference error: Internal - no pods available in datastore\" }")));
  EXPECT_TRUE(bed.stream.finished());
  EXPECT_TRUE(bed.stream.status().ok());
}

TEST(Buffered, HeadersAreAnsweredFirstAndTheDecisionComesWithTheBody) {
  ExtProcBed bed;
  EXPECT_EQ(bed.Headers(kChat, "", ConfigOf("BUFFERED", "NONE")), ExtProcEvent::kNone);
  EXPECT_THAT(bed.Texts(), ElementsAre(Text("request_headers { response { } }")));
  EXPECT_EQ(bed.Body(kChatBody, true), ExtProcEvent::kNeedsDecision);
  EXPECT_TRUE(bed.stream.Decide({.destinations = {"10.0.0.1:8000"}}, bed.now).ok());
  // The body is not sent back: it is forwarded as it is.
  EXPECT_THAT(
      bed.Texts(),
      ElementsAre(Text(absl::StrCat("request_body { response { header_mutation { ",
                                    Set("x-gateway-destination-endpoint", "10.0.0.1:8000"),
                                    "} clear_route_cache: true } } ", Destination("10.0.0.1:8000")))));
}

TEST(Buffered, ARewrittenBodyComesWithItsLength) {
  ExtProcBed bed;
  bed.Headers(kChat, "", ConfigOf("BUFFERED", "NONE"));
  bed.Answers();
  bed.Body(kChatBody, false);  // with trailers to follow, it is the whole body all the same
  EXPECT_TRUE(bed.stream.Decide({.destinations = {"10.0.0.1:8000"}, .model = "longer"}, bed.now).ok());
  EXPECT_THAT(bed.Texts(),
              ElementsAre(Text(absl::StrCat(
                  "request_body { response { header_mutation { ",
                  Set("x-gateway-destination-endpoint", "10.0.0.1:8000"), Set("Content-Length", "62"),
                  "} body_mutation { body: "
                  "'{\"model\":\"longer\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}' } "
                  "clear_route_cache: true } } ",
                  Destination("10.0.0.1:8000")))));
  EXPECT_EQ(bed.Receive("request_trailers { }"), ExtProcEvent::kNone);
  EXPECT_THAT(bed.Texts(), ElementsAre(Text("request_trailers { }")));
}

TEST(BufferedPartial, ATruncatedBodyIsNotInterpreted) {
  ExtProcBed bed;
  bed.Headers(kChat, "", ConfigOf("BUFFERED_PARTIAL", "NONE"));
  bed.Answers();
  EXPECT_EQ(bed.Body(kChatBody.substr(0, 30), false), ExtProcEvent::kNeedsDecision);
  EXPECT_TRUE(bed.stream.facts().truncated);
  EXPECT_EQ(bed.stream.facts().body, kChatBody.substr(0, 30));
  EXPECT_EQ(bed.stream.Decide({.destinations = {"10.0.0.1:8000"}, .model = "x"}, bed.now).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(bed.stream.Decide({.destinations = {"10.0.0.1:8000"}}, bed.now).ok());
  const std::vector<ProcessingResponse> answers = bed.Answers();
  ASSERT_EQ(answers.size(), 1u);
  EXPECT_FALSE(answers[0].request_body().response().has_body_mutation());
}

TEST(BufferedPartial, AWholeBodyIsInterpreted) {
  ExtProcBed bed;
  bed.Headers(kChat, "", ConfigOf("BUFFERED_PARTIAL", "NONE"));
  EXPECT_EQ(bed.Body(kChatBody, true), ExtProcEvent::kNeedsDecision);
  EXPECT_FALSE(bed.stream.facts().truncated);
  EXPECT_EQ(bed.stream.facts().incoming_model, "m");
}

TEST(Streamed, IsDecidedFromTheHeadersAndEachChunkIsAnswered) {
  ExtProcBed bed;
  EXPECT_EQ(bed.Headers(kChat, "", ConfigOf("STREAMED", "STREAMED")), ExtProcEvent::kNeedsDecision);
  EXPECT_TRUE(bed.stream.facts().headers_only);
  bed.Body("early", false);  // the decision takes its time
  EXPECT_THAT(bed.Texts(), IsEmpty());
  EXPECT_TRUE(bed.stream.Decide({.destinations = {"10.0.0.1:8000"}}, bed.now).ok());
  const std::string chunk = Text("request_body { response { } }");
  EXPECT_THAT(bed.Texts(), ElementsAre(HeadersAnswer("10.0.0.1:8000", ""), chunk));
  bed.Body("{", false);
  bed.Body("}", true);
  EXPECT_THAT(bed.Texts(), ElementsAre(chunk, chunk));
}

TEST(Streamed, ABodyThatComesEarlyIsRead) {
  ExtProcBed bed;
  const std::string config =
      ConfigOf("STREAMED", "STREAMED", "send_body_without_waiting_for_header_response: true");
  EXPECT_EQ(bed.Headers(kChat, "", config), ExtProcEvent::kNone);
  bed.Body(kChatBody.substr(0, 10), false);
  bed.Body(kChatBody.substr(10, 30), false);
  EXPECT_EQ(bed.Body(kChatBody.substr(40), true), ExtProcEvent::kNeedsDecision);
  EXPECT_EQ(bed.stream.facts().incoming_model, "m");
  EXPECT_TRUE(bed.stream.Decide({.destinations = {"10.0.0.1:8000"}}, bed.now).ok());
  const std::string chunk = Text("request_body { response { } }");
  EXPECT_THAT(bed.Texts(),
              ElementsAre(HeadersAnswer("10.0.0.1:8000", Set("Content-Length", "57")), chunk, chunk, chunk));
}

TEST(Streamed, ARewrittenBodyKeepsItsChunks) {
  for (const std::string_view model : {"longer-name", "x"}) {
    ExtProcBed bed;
    const std::string config =
        ConfigOf("STREAMED", "STREAMED", "send_body_without_waiting_for_header_response: true");
    const std::string body = R"({"model":"middle","prompt":"p"})";
    bed.Headers("/v1/completions", "", config);
    bed.Body(body.substr(0, 12), false);
    bed.Body(body.substr(12, body.size() - 13), false);
    bed.Body(body.substr(body.size() - 1), true);
    ASSERT_TRUE(
        bed.stream.Decide({.destinations = {"10.0.0.1:8000"}, .model = std::string(model)}, bed.now).ok());
    const std::vector<ProcessingResponse> answers = bed.Answers();
    ASSERT_EQ(answers.size(), 4u);
    std::string joined;
    for (std::size_t i = 1; i < 4; ++i) {
      const auto& mutation = answers[i].request_body().response().body_mutation();
      EXPECT_NE(mutation.has_body(), mutation.has_clear_body());
      joined += mutation.body();
    }
    EXPECT_EQ(joined, absl::StrCat(R"({"model":")", ToAbsl(model), R"(","prompt":"p"})"));
  }
}

TEST(Observability, IsNotAnswered) {
  ExtProcBed bed;
  EXPECT_EQ(bed.Headers(kChat, "", absl::StrCat(ToAbsl(kFullDuplexConfig), " observability_mode: true")),
            ExtProcEvent::kNone);
  EXPECT_TRUE(bed.stream.finished());
  EXPECT_TRUE(bed.stream.status().ok());
  bed.Body(kChatBody, true);
  EXPECT_THAT(bed.Texts(), IsEmpty());
}

constexpr std::string_view kOverride =
    "mode_override { request_header_mode: SEND response_header_mode: SEND request_body_mode: BUFFERED "
    "response_body_mode: STREAMED request_trailer_mode: SKIP response_trailer_mode: SKIP }";

TEST(ModeOverride, AsksAHeaderOnlyDataPlaneForTheBody) {
  ExtProcBed bed({.override_request_body_mode = BodyMode::kBuffered,
                  .override_response_body_mode = BodyMode::kStreamed});
  EXPECT_EQ(bed.Headers(kChat, "", ConfigOf("NONE", "NONE")), ExtProcEvent::kNone);
  EXPECT_THAT(bed.Texts(),
              ElementsAre(Text(absl::StrCat("request_headers { response { } } ", ToAbsl(kOverride)))));
  EXPECT_EQ(bed.Body(kChatBody, true), ExtProcEvent::kNeedsDecision);
  bed.Route();
  EXPECT_EQ(bed.stream.response_body_mode(), BodyMode::kStreamed);
}

TEST(ModeOverride, NotInFullDuplexNorForOtherPaths) {
  const ExtProcOptions options{.override_request_body_mode = BodyMode::kBuffered,
                               .override_response_body_mode = BodyMode::kStreamed};
  ExtProcBed duplex(options);
  duplex.Headers(kChat);
  duplex.Body(kChatBody, true);
  EXPECT_TRUE(duplex.stream.Decide({.destinations = {"10.0.0.1:8000"}}, duplex.now).ok());
  EXPECT_FALSE(duplex.Answers()[0].has_mode_override());

  ExtProcBed other(options);
  EXPECT_EQ(other.Headers("/metrics", "", ConfigOf("NONE", "NONE")), ExtProcEvent::kNeedsDecision);
}

TEST(ModeOverride, OnlyToModesThatCanFollow) {
  for (const BodyMode mode : {BodyMode::kNone, BodyMode::kStreamed, BodyMode::kFullDuplex}) {
    ExtProcBed bed({.override_request_body_mode = mode});
    EXPECT_EQ(bed.Headers(kChat, "", ConfigOf("NONE", "NONE")), ExtProcEvent::kNeedsDecision);
  }
  ExtProcBed response({.override_response_body_mode = BodyMode::kFullDuplex});
  response.Headers(kChat, "", ConfigOf("NONE", "NONE"));
  EXPECT_TRUE(response.stream.Decide({.destinations = {"10.0.0.1:8000"}}, response.now).ok());
  EXPECT_FALSE(response.Answers()[0].has_mode_override());

  ExtProcBed only_response({.override_response_body_mode = BodyMode::kStreamed});
  only_response.Headers(kChat, "", ConfigOf("NONE", "NONE"));
  EXPECT_TRUE(only_response.stream.Decide({.destinations = {"10.0.0.1:8000"}}, only_response.now).ok());
  const std::vector<ProcessingResponse> answers = only_response.Answers();
  EXPECT_EQ(answers[0].mode_override().response_body_mode(), 1);  // STREAMED
  EXPECT_EQ(answers[0].mode_override().request_body_mode(), 0);
}

}  // namespace
}  // namespace llmd::gateway
