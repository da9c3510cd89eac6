// What the request phase refuses, and what its answers contain, message by message. (spec:
// gateway.md 1.5, 2.1 to 2.7, case table 8.1)
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "tests/gateway/ext_proc_bed.h"
#include "tests/gateway/request_messages.h"

namespace llmd::gateway {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Optional;

struct RefusedBody {
  std::string_view path, body, message;
};

TEST(Refused, BodiesThatCannotBeServed) {
  const RefusedBody cases[] = {
      {kChat, R"({"model":"m",)", "error unmarshaling request bodyMap: byte 13: expected a key"},
      {kChat, "no json", "error unmarshaling request bodyMap"},
      {kChat, "", "error unmarshaling request bodyMap: byte 0: the document is empty"},
      {"/v1/completions", R"({"model":"m"})", "invalid completions request: must have prompt field"},
      {kChat, R"({"model":"m","messages":[]})",
       "invalid chat completions request: messages must not be empty (byte 26)"},
      {kChat, R"({"messages":[{"role":"user","content":"hi"}]})", "model not found in request body"},
      {kChat, R"({"model":7,"messages":[{"content":"hi"}]})", "model not found in request body"},
      {kChat, R"({"model":"","messages":[{"content":"hi"}]})", "model not found in request body"},
  };
  for (const RefusedBody& one : cases) {
    ExtProcBed bed;
    bed.Headers(one.path);
    EXPECT_EQ(bed.Body(one.body, true), ExtProcEvent::kRequestRefused) << one.body;
    const std::vector<ProcessingResponse> answers = bed.Answers();
    ASSERT_EQ(answers.size(), 1u);
    EXPECT_EQ(answers[0].immediate_response().status().code(), 400);
    EXPECT_THAT(answers[0].immediate_response().body(),
                HasSubstr(absl::StrCat("inference error: BadRequest - ", ToAbsl(one.message))));
    EXPECT_TRUE(bed.stream.finished());
    EXPECT_TRUE(bed.stream.status().ok());
    const std::optional<Completion> completion = bed.stream.TakeCompletion();
    ASSERT_TRUE(completion);
    EXPECT_EQ(completion->cause, CompletionCause::kError);
    EXPECT_EQ(completion->refused_with, 400);
    EXPECT_FALSE(completion->routed);
    EXPECT_FALSE(bed.stream.TakeCompletion());
  }
}

TEST(Refused, PathsThatNobodyParsesWhenAsked) {
  ExtProcBed bed({.refuse_unknown_paths = true});
  bed.Headers("/tokenize");
  EXPECT_EQ(bed.Body("{}", true), ExtProcEvent::kRequestRefused);
  EXPECT_EQ(bed.Answers()[0].immediate_response().status().code(), 400);
  ExtProcBed get({.refuse_unknown_paths = true});
  EXPECT_EQ(get.Headers("/v1/models", "", kFullDuplexConfig, "GET", true), ExtProcEvent::kNeedsDecision);
}

TEST(Refused, TooLargeABody) {
  ExtProcBed bed({.max_body_bytes = 100});
  bed.Headers("/other");
  EXPECT_EQ(bed.Body(std::string(60, 'x'), false), ExtProcEvent::kNone);
  EXPECT_EQ(bed.Body(std::string(41, 'x'), false), ExtProcEvent::kRequestRefused);
  const std::vector<ProcessingResponse> answers = bed.Answers();
  ASSERT_EQ(answers.size(), 1u);
  EXPECT_EQ(answers[0].immediate_response().status().code(), 413);
  EXPECT_EQ(answers[0].immediate_response().body(),
            "inference error: PayloadTooLarge - the request body has more bytes than the limit of 100");
  EXPECT_LT(bed.stream.held_bytes(), 100u);
  ExtProcBed fits({.max_body_bytes = 100});
  fits.Headers("/other");
  fits.Body(std::string(60, 'x'), false);
  EXPECT_EQ(fits.Body(std::string(40, 'x'), true), ExtProcEvent::kNeedsDecision);
}

TEST(Refused, TooManyOrTooLongHeaders) {
  ExtProcBed many({.max_headers = 3});
  EXPECT_EQ(many.Headers(kChat), ExtProcEvent::kNone);
  ExtProcBed more({.max_headers = 3});
  EXPECT_EQ(more.Headers(kChat, Header("a", "b")), ExtProcEvent::kRequestRefused);
  EXPECT_EQ(more.Answers()[0].immediate_response().status().code(), 431);
  ExtProcBed bytes({.max_header_bytes = 1000});
  EXPECT_EQ(bytes.Headers(kChat, Header("a", std::string(1000, 'b'))), ExtProcEvent::kRequestRefused);
  EXPECT_EQ(bytes.Answers()[0].immediate_response().status().code(), 431);
}

TEST(Refused, ByTheHostWithReasonAndHeaders) {
  ExtProcBed bed;
  bed.Headers(kChat);
  bed.Body(kChatBody, true);
  Refusal refusal = RefusalOf(sched::WithDroppedReason(
      absl::UnavailableError("failed to find endpoint candidates for serving the request"),
      sched::DroppedReason::kNoEndpoints));
  refusal.headers.push_back({"retry-after", "1"});
  EXPECT_TRUE(bed.stream.Refuse(refusal, bed.now).ok());
  EXPECT_THAT(bed.Texts(),
              ElementsAre(Text(absl::StrCat(
                  "immediate_response { status { code: ServiceUnavailable } headers { ",
                  Set("x-llm-d-request-dropped-reason", "rejected-no-endpoints"), Set("retry-after", "1"),
                  "} body: \"inference error: ServiceUnavailable - failed to find endpoint candidates for "
                  "serving the "
                  "request\" }"))));
  EXPECT_EQ(bed.stream.Refuse(refusal, bed.now).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(bed.stream.Decide({.destinations = {"10.0.0.1:8000"}}, bed.now).code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(Refused, AfterTheAnswerToBufferedHeaders) {
  ExtProcBed bed;
  bed.Headers(kChat, "", ConfigOf("BUFFERED", "NONE"));
  bed.Body("{", true);  // both before anything is written
  const std::vector<ProcessingResponse> answers = bed.Answers();
  ASSERT_EQ(answers.size(), 2u);
  EXPECT_TRUE(answers[0].has_request_headers());
  EXPECT_TRUE(answers[1].has_immediate_response());
}

TEST(Subset, FromTheLatestMessageThatHasTheNamespace) {
  const auto hint = [](std::string_view fields) {
    return absl::StrCat("metadata_context { filter_metadata { key: 'envoy.lb.subset_hint' value { ",
                        ToAbsl(fields), " } } } ");
  };
  const auto list = [&](std::string_view values) {
    return hint(absl::StrCat("fields { key: 'x-gateway-destination-endpoint-subset' value { ", ToAbsl(values),
                             " } }"));
  };
  const std::string two =
      list("list_value { values { string_value: '1.1.1.1:80' } values { string_value: ' 2.2.2.2:80 ' } }");
  const std::string other = "metadata_context { filter_metadata { key: 'other' value { } } }";
  struct Case {
    std::string on_headers, on_body;
    std::optional<std::vector<std::string>> expected;
  };
  const Case cases[] = {
      {"", "", std::nullopt},
      {two, "", {{"1.1.1.1:80", "2.2.2.2:80"}}},
      {"", two, {{"1.1.1.1:80", "2.2.2.2:80"}}},
      {two, other, {{"1.1.1.1:80", "2.2.2.2:80"}}},
      {two, list("string_value: '3.3.3.3:80, 4.4.4.4,'"), {{"3.3.3.3:80", "4.4.4.4"}}},
      {two, list("list_value { }"), std::vector<std::string>()},
      {two, list("string_value: ''"), std::vector<std::string>()},
      {two, list("number_value: 7"), std::vector<std::string>()},
      {two, hint("fields { key: 'else' value { string_value: 'x' } }"), std::nullopt},
  };
  for (const Case& one : cases) {
    ExtProcBed bed;
    bed.Headers(kChat, "", absl::StrCat(ToAbsl(kFullDuplexConfig), " ", one.on_headers));
    ASSERT_EQ(bed.Body(kChatBody, true, one.on_body), ExtProcEvent::kNeedsDecision);
    EXPECT_EQ(bed.stream.facts().subset, one.expected) << one.on_headers << one.on_body;
  }
  ExtProcBed limited({.max_subset_entries = 1});
  limited.Headers(kChat, "", absl::StrCat(ToAbsl(kFullDuplexConfig), " ", two));
  limited.Body(kChatBody, true);
  EXPECT_THAT(limited.stream.facts().subset, Optional(ElementsAre("1.1.1.1:80")));
}

TEST(Model, IsRewrittenInPlaceForTheHeader) {
  for (const std::string_view header : {"x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite"}) {
    ExtProcBed bed;
    bed.Headers(kChat, Header(header, "target \"1\""));
    const std::string_view body = R"({ "n" : 1.0e+1, "model" : "m" , "messages":[{"content":"hi"}]} )";
    bed.Body(body, true);
    EXPECT_EQ(bed.stream.facts().target_model, "target \"1\"");
    EXPECT_TRUE(bed.stream.Decide({.destinations = {"10.0.0.1:8000"}}, bed.now).ok());
    const std::string_view rewritten =
        R"({ "n" : 1.0e+1, "model" : "target \"1\"" , "messages":[{"content":"hi"}]} )";
    EXPECT_THAT(bed.Texts(),
                ElementsAre(HeadersAnswer("10.0.0.1:8000",
                                          absl::StrCat(Set("Content-Length", absl::StrCat(rewritten.size())),
                                                       "remove_headers: \"", ToAbsl(header), "\"")),
                            StreamedAnswer(rewritten, true)));
  }
}

TEST(Model, TheHostsChoiceWinsAndTheCurrentHeaderBeforeTheOldOne) {
  ExtProcBed bed;
  bed.Headers(kChat,
              Header("x-gateway-model-name-rewrite", "old") + Header("x-llm-d-model-name-rewrite", "new"));
  bed.Body(kChatBody, true);
  EXPECT_EQ(bed.stream.facts().target_model, "new");
  EXPECT_EQ(bed.stream.facts().incoming_model, "m");
  EXPECT_TRUE(bed.stream.Decide({.destinations = {"10.0.0.1:8000"}, .model = "host"}, bed.now).ok());
  EXPECT_EQ(JoinBodies(bed.Answers(), true),
            R"({"model":"host","messages":[{"role":"user","content":"hi"}]})");
  EXPECT_EQ(bed.stream.facts().target_model, "host");
}

TEST(Model, TheSameNameLeavesTheBodyAlone) {
  ExtProcBed bed;
  bed.Headers(kChat, Header("x-llm-d-model-name-rewrite", "m"));
  const std::string_view body = R"({"model":"\u006d","messages":[{"content":"hi"}]})";
  bed.Body(body, true);
  EXPECT_TRUE(bed.stream.Decide({.destinations = {"10.0.0.1:8000"}}, bed.now).ok());
  EXPECT_EQ(JoinBodies(bed.Answers(), true), body);
}

TEST(Model, EveryRepetitionIsRewrittenAndAMissingOneAdded) {
  const std::pair<std::string_view, std::string_view> cases[] = {
      {R"({"model":"a","prompt":"p","model":null,"model":"b"})",
       R"({"model":"t","prompt":"p","model":"t","model":"t"})"},
      {R"( {"prompt":"p"})", R"( {"model":"t","prompt":"p"})"},
      {R"({"prompt":"p","model":{"x":[1]}})", R"({"prompt":"p","model":"t"})"},
      {R"({"prompt":"p","x":{"model":"inner"},"model":"b"})",
       R"({"prompt":"p","x":{"model":"inner"},"model":"t"})"},
  };
  for (const auto& [body, expected] : cases) {
    ExtProcBed bed;
    bed.Headers("/v1/completions", Header("x-llm-d-model-name-rewrite", "t"));
    ASSERT_EQ(bed.Body(body, true), ExtProcEvent::kNeedsDecision);
    ASSERT_TRUE(bed.stream.Decide({.destinations = {"10.0.0.1:8000"}}, bed.now).ok());
    EXPECT_EQ(JoinBodies(bed.Answers(), true), expected);
  }
}

TEST(Destination, ListsFallbacksInHeaderAndMetadataAlike) {
  ExtProcBed bed;
  bed.Headers(kChat);
  bed.Body(kChatBody, true);
  const std::vector<std::string> three = {"10.0.0.1:8000", "[fd00::1]:8000", "10.0.0.3:8000"};
  EXPECT_TRUE(bed.stream.Decide({.destinations = three}, bed.now).ok());
  EXPECT_EQ(bed.Texts()[0],
            HeadersAnswer("10.0.0.1:8000,[fd00::1]:8000,10.0.0.3:8000", Set("Content-Length", "57")));

  ExtProcBed single({.single_destination = true});
  single.Headers(kChat);
  single.Body(kChatBody, true);
  EXPECT_TRUE(single.stream.Decide({.destinations = three}, single.now).ok());
  EXPECT_EQ(single.Texts()[0], HeadersAnswer("10.0.0.1:8000", Set("Content-Length", "57")));
}

TEST(Destination, ScoresAndOtherMetadata) {
  ExtProcBed bed;
  bed.Headers(kChat);
  bed.Body(kChatBody, true);
  RoutingResult result{.destinations = {"10.0.0.1:8000"}};
  result.scores = {{"10.0.0.1:8000", 0.5}, {"10.0.0.2:8000", std::numeric_limits<double>::quiet_NaN()}};
  result.metadata = {{.filter_namespace = "llmd", .key = "profile", .text = "decode"}};
  EXPECT_TRUE(bed.stream.Decide(result, bed.now).ok());
  const auto metadata = bed.Answers()[0].dynamic_metadata();
  const auto& lb = metadata.fields().at("envoy.lb").struct_value().fields();
  EXPECT_EQ(lb.at("x-gateway-destination-endpoint").string_value(), "10.0.0.1:8000");
  const auto& scores = lb.at("x-gateway-destination-endpoint-scores").struct_value().fields();
  EXPECT_EQ(scores.size(), 1u);
  EXPECT_EQ(scores.at("10.0.0.1:8000").number_value(), 0.5);
  EXPECT_EQ(metadata.fields().at("llmd").struct_value().fields().at("profile").string_value(), "decode");
}

TEST(Destination, WhatCannotBeSentIsNotDecided) {
  const auto refused = [](RoutingResult result) {
    ExtProcBed bed;
    bed.Headers(kChat);
    bed.Body(kChatBody, true);
    const absl::Status status = bed.stream.Decide(result, bed.now);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE(bed.stream.needs_decision());
    EXPECT_THAT(bed.Texts(), IsEmpty());
    EXPECT_TRUE(bed.stream.Decide({.destinations = {"10.0.0.1:8000"}}, bed.now).ok());
    EXPECT_EQ(JoinBodies(bed.Answers(), true), kChatBody);
  };
  refused({});
  refused({.destinations = {""}});
  refused({.destinations = {"a,b"}});
  refused({.destinations = {"a\r\nb: c"}});
  refused({.destinations = std::vector<std::string>(1200, "10.0.0.1:8000")});  // 1200 * 14 > 16384
  refused({.destinations = {"a:1"}, .set_headers = {{"x-a", "b\nc"}}});
  refused({.destinations = {"a:1"}, .set_headers = {{"x a", "b"}}});
  refused({.destinations = {"a:1"}, .set_headers = {{"x-a", std::string(16385, 'b')}}});
  refused({.destinations = {"a:1"}, .set_headers = {{"content-length", "5"}}});
  refused({.destinations = {"a:1"}, .remove_headers = {""}});
  refused({.destinations = {"a:1"}, .metadata = {{.filter_namespace = "n", .key = "k", .text = "\xff"}}});
  refused({.destinations = {"a:1"}, .model = ""});
  refused({.destinations = {"a:1"}, .model = "\xff"});
}

TEST(RequestHeaders, AreLowerCasedAndTheLastValueCounts) {
  ExtProcBed bed;
  bed.Headers(
      kChat,
      "headers { key: 'X-Session-ID' value: 'one' } headers { key: 'x-session-id' raw_value: 'two' } " +
          Header("x-gateway-inference-objective", "old") + Header("X-LLM-D-Inference-Objective", "new") +
          Header("x-gateway-inference-fairness-id", "tenant"));
  bed.Body(kChatBody, true);
  EXPECT_EQ(bed.stream.facts().headers.Get("x-session-id"), "two");
  EXPECT_EQ(bed.stream.facts().objective, "new");
  EXPECT_EQ(bed.stream.facts().fairness_id, "tenant");
}

TEST(RequestHeaders, ControlHeadersAreRemovedUnlessTheHostSetsThem) {
  ExtProcBed bed;
  bed.Headers(kChat, Header("x-llm-d-inference-objective", "o") + Header("x-slo-ttft-ms", "5") +
                         Header("x-prefiller-host-port", "evil:1") +
                         Header("x-encoder-hosts-ports", "evil:2") +
                         Header("x-gateway-destination-endpoint", "evil:3") + Header("content-length", "57") +
                         Header("x-custom", "stays"));
  bed.Body(kChatBody, true);
  EXPECT_TRUE(bed.stream
                  .Decide({.destinations = {"10.0.0.1:8000"},
                           .set_headers = {{"x-prefiller-host-port", "10.0.0.9:8000"}},
                           .remove_headers = {"x-custom"}},
                          bed.now)
                  .ok());
  EXPECT_EQ(bed.Texts()[0],
            HeadersAnswer(
                "10.0.0.1:8000",
                absl::StrCat(Set("Content-Length", "57"), Set("x-prefiller-host-port", "10.0.0.9:8000"),
                             "remove_headers: 'x-llm-d-inference-objective' remove_headers: 'x-slo-ttft-ms' "
                             "remove_headers: 'x-encoder-hosts-ports' remove_headers: 'x-custom'")));
}

TEST(RequestHeaders, AreSentBackOnRequestAsTheReferenceDoes) {
  ExtProcBed bed({.strip_client_headers = false, .resend_headers = true});
  bed.Headers(kChat, Header("hi", "mom") + Header("cookie", "a=1") + Header("cookie", "b=2") +
                         Header("x-set", "old") + Header("x-llm-d-inference-objective", "o") +
                         Header("host", "h") + Header("x-envoy-a", "b") + Header("content-length", "57"));
  bed.Body(kChatBody, true);
  EXPECT_TRUE(
      bed.stream.Decide({.destinations = {"10.0.0.1:8000"}, .set_headers = {{"x-set", "new"}}}, bed.now)
          .ok());
  EXPECT_EQ(bed.Texts()[0],
            HeadersAnswer("10.0.0.1:8000",
                          absl::StrCat(Set("Content-Length", "57"), Set("x-request-id", "test-request-id"),
                                       Set("hi", "mom"), Set("x-set", "new"))));
}

TEST(RequestHeaders, AMissingRequestIdIsMade) {
  ExtProcBed bed;
  bed.Receive(absl::StrCat("request_headers { headers { ", Header(":method", "GET"),
                           Header(":path", "/v1/models"), "} end_of_stream: true }"));
  const std::string id = bed.stream.facts().request_id;
  EXPECT_THAT(id,
              ::testing::MatchesRegex("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"));
  EXPECT_TRUE(bed.stream.Decide({.destinations = {"10.0.0.1:8000"}}, bed.now).ok());
  EXPECT_THAT(bed.Texts(), ElementsAre(HeadersAnswer("10.0.0.1:8000", Set("x-request-id", id))));
}

TEST(RequestHeaders, ThePathMayComeFromOtherHeaders) {
  const auto api_of = [](std::string_view headers) {
    ExtProcBed bed;
    bed.Receive(absl::StrCat("request_headers { headers { ", ToAbsl(headers), " } end_of_stream: true }"));
    return bed.stream.facts().api;
  };
  EXPECT_EQ(api_of(Header(":path", "/v1/embeddings/?x=/v1/completions")), Api::kEmbeddings);
  EXPECT_EQ(api_of(Header("x-original-path", "/v1/embeddings") + Header("x-forwarded-path", "/v1/responses")),
            Api::kEmbeddings);
  EXPECT_EQ(api_of(Header("x-forwarded-path", "/v1/responses")), Api::kResponses);
  EXPECT_EQ(api_of(""), Api::kCompletions);
}

TEST(Evicted, InFlightWithTheReason) {
  ExtProcBed bed;
  bed.Headers(kChat);
  bed.stream.Evict(sched::DroppedReason::kEvicted, bed.now);  // nothing to evict yet
  EXPECT_FALSE(bed.stream.finished());
  bed.Body(kChatBody, true);
  bed.Route();
  bed.stream.Evict(sched::DroppedReason::kEvictedPriority, bed.now);
  EXPECT_THAT(
      bed.Texts(),
      ElementsAre(Text(absl::StrCat("immediate_response { status { code: TooManyRequests } headers { ",
                                    Set("x-llm-d-request-dropped-reason", "evicted-priority"),
                                    "} body: \"request evicted by flow control\" }"))));
  EXPECT_TRUE(bed.stream.finished());
  bed.stream.Close(CloseReason::kCancelled, bed.now);
  const std::optional<Completion> completion = bed.stream.TakeCompletion();
  ASSERT_TRUE(completion);
  EXPECT_EQ(completion->cause, CompletionCause::kEvicted);
  EXPECT_TRUE(completion->routed);
  EXPECT_FALSE(bed.stream.TakeCompletion());
}

TEST(SkipResponse, EndsTheStreamAfterTheRequest) {
  ExtProcBed bed({.skip_response = true});
  bed.Headers(kChat);
  bed.Body(kChatBody, true);
  EXPECT_TRUE(bed.stream.Decide({.destinations = {"10.0.0.1:8000"}}, bed.now).ok());
  EXPECT_EQ(bed.Texts().size(), 2u);
  EXPECT_TRUE(bed.stream.finished());
  EXPECT_TRUE(bed.stream.status().ok());
  EXPECT_EQ(bed.stream.TakeCompletion()->cause, CompletionCause::kNatural);
}

}  // namespace
}  // namespace llmd::gateway
