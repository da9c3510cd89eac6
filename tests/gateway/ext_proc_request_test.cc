// The request phase, message by message. Expected answers are written from the protocol's text. (spec:
// gateway.md 1.3 to 1.5, 2.1 to 2.7, case table 8.1)
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "tests/gateway/ext_proc_bed.h"

namespace llmd::gateway {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Optional;

constexpr std::string_view kChat = "/v1/chat/completions";
constexpr std::string_view kChatBody = R"({"model":"m","messages":[{"role":"user","content":"hi"}]})";

[[maybe_unused]] std::string ConfigOf(std::string_view request, std::string_view response,
                                      std::string_view more = "") {
  return absl::StrCat("protocol_config { request_body_mode: ", ToAbsl(request),
                      " response_body_mode: ", ToAbsl(response), " ", ToAbsl(more), " }");
}

std::string Destination(std::string_view list) {
  return absl::StrCat(
      "dynamic_metadata { fields { key: \"envoy.lb\" value { struct_value { fields { key: "
      "\"x-gateway-destination-endpoint\" value { string_value: \"",
      ToAbsl(list), "\" } } } } } }");
}

std::string HeadersAnswer(std::string_view destination, std::string_view mutations) {
  return Text(absl::StrCat("request_headers { response { header_mutation { ",
                           Set("x-gateway-destination-endpoint", destination), ToAbsl(mutations),
                           " } clear_route_cache: true } } ", Destination(destination)));
}

std::string StreamedAnswer(std::string_view body, bool end) {
  ProcessingResponse answer;
  auto& chunk = *answer.mutable_request_body()
                     ->mutable_response()
                     ->mutable_body_mutation()
                     ->mutable_streamed_response();
  chunk.set_body(std::string(body));
  chunk.set_end_of_stream(end);
  return Text(answer);
}

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

}  // namespace
}  // namespace llmd::gateway
