#include "tests/gateway/ext_proc_bed.h"

#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"

namespace llmd::gateway {
namespace {

template <typename Message>
Message Parse(std::string_view text) {
  Message message;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(std::string(text), &message)) << text;
  return message;
}

std::string Quote(std::string_view text) { return absl::StrCat("\"", absl::CEscape(ToAbsl(text)), "\""); }

}  // namespace

std::string Header(std::string_view key, std::string_view value) {
  return absl::StrCat("headers { key: ", Quote(key), " raw_value: ", Quote(value), " } ");
}

std::string Set(std::string_view key, std::string_view value) {
  return absl::StrCat("set_headers { header { key: ", Quote(key), " raw_value: ", Quote(value),
                      " } append_action: OVERWRITE_IF_EXISTS_OR_ADD } ");
}

std::string Text(const ProcessingResponse& message) {
  google::protobuf::TextFormat::Printer printer;
  std::string text;
  printer.PrintToString(message, &text);
  return text;
}
std::string Text(std::string_view text) { return Text(Parse<ProcessingResponse>(text)); }

ExtProcEvent ExtProcBed::Receive(ProcessingRequest message) {
  now += absl::Milliseconds(1);
  return stream.Receive(std::move(message), now);
}
ExtProcEvent ExtProcBed::Receive(std::string_view text) { return Receive(Parse<ProcessingRequest>(text)); }

ExtProcEvent ExtProcBed::Headers(std::string_view path, std::string_view headers, std::string_view more,
                                 std::string_view method, bool end) {
  return Receive(absl::StrCat("request_headers { headers { ", Header(":method", method),
                              Header(":path", path), Header("x-request-id", "test-request-id"),
                              ToAbsl(headers), " } end_of_stream: ", end ? "true" : "false", " } ",
                              ToAbsl(more)));
}
ExtProcEvent ExtProcBed::Body(std::string_view body, bool end, std::string_view more) {
  return Receive(absl::StrCat("request_body { body: ", Quote(body),
                              " end_of_stream: ", end ? "true" : "false", " } ", ToAbsl(more)));
}
ExtProcEvent ExtProcBed::ResponseHeaders(std::string_view headers, bool end, std::string_view more) {
  return Receive(absl::StrCat("response_headers { headers { ", Header(":status", "200"), ToAbsl(headers),
                              " } end_of_stream: ", end ? "true" : "false", " } ", ToAbsl(more)));
}
ExtProcEvent ExtProcBed::ResponseBody(std::string_view body, bool end, std::string_view more) {
  return Receive(absl::StrCat("response_body { body: ", Quote(body),
                              " end_of_stream: ", end ? "true" : "false", " } ", ToAbsl(more)));
}

void ExtProcBed::Route(RoutingResult result) {
  if (result.destinations.empty()) result.destinations = {"10.0.0.1:8000"};
  const absl::Status status = stream.Decide(result, now);
  EXPECT_TRUE(status.ok()) << status;
  Answers();
}

std::vector<ProcessingResponse> ExtProcBed::Answers() {
  std::vector<ProcessingResponse> answers;
  ProcessingResponse answer;
  while (stream.Next(answer)) answers.push_back(answer);
  return answers;
}

std::vector<std::string> ExtProcBed::Texts() {
  std::vector<std::string> texts;
  for (const ProcessingResponse& answer : Answers()) texts.push_back(Text(answer));
  return texts;
}

std::string JoinBodies(const std::vector<ProcessingResponse>& answers, bool request, bool trailers) {
  std::string joined;
  int ends = 0;
  bool last_is_end = false;
  for (const ProcessingResponse& answer : answers) {
    if (request ? !answer.has_request_body() : !answer.has_response_body()) continue;
    const auto& common = request ? answer.request_body().response() : answer.response_body().response();
    EXPECT_TRUE(common.body_mutation().has_streamed_response());
    const auto& chunk = common.body_mutation().streamed_response();
    EXPECT_LE(chunk.body().size(), 62000u);
    joined += chunk.body();
    last_is_end = chunk.end_of_stream();
    ends += last_is_end;
  }
  EXPECT_EQ(ends, trailers ? 0 : 1);
  EXPECT_EQ(last_is_end, !trailers);
  return joined;
}

}  // namespace llmd::gateway
