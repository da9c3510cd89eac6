// Drives an ExtProcStream with messages written as Protobuf text, and compares its answers with such.
#ifndef TESTS_GATEWAY_EXT_PROC_BED_H_
#define TESTS_GATEWAY_EXT_PROC_BED_H_

#include <string>
#include <string_view>
#include <vector>

#include "envoy/service/ext_proc/v3/external_processor.pb.h"
#include "llmd/gateway/ext_proc_stream.h"

namespace llmd::gateway {

inline constexpr std::string_view kFullDuplexConfig =
    "protocol_config { request_body_mode: FULL_DUPLEX_STREAMED response_body_mode: FULL_DUPLEX_STREAMED }";

struct ExtProcBed {
  explicit ExtProcBed(ExtProcOptions o = {}) : options(o), stream(options, parser, random) {}

  ExtProcOptions options;
  OpenAiParser parser;
  Random random{1};
  ExtProcStream stream;
  absl::Time now = absl::FromUnixSeconds(1000);

  // From text; one millisecond passes.
  ExtProcEvent Receive(std::string_view text);
  ExtProcEvent Receive(ProcessingRequest message);
  // Request headers :method POST and :path, then `more` (fields of the ProcessingRequest besides).
  ExtProcEvent Headers(std::string_view path, std::string_view headers = "",
                       std::string_view more = kFullDuplexConfig, std::string_view method = "POST",
                       bool end = false);
  ExtProcEvent Body(std::string_view body, bool end, std::string_view more = "");
  ExtProcEvent ResponseHeaders(std::string_view headers = "", bool end = false, std::string_view more = "");
  ExtProcEvent ResponseBody(std::string_view body, bool end, std::string_view more = "");
  // Sends the request to 10.0.0.1:8000 with no further ado, and drops the answers.
  void Route(RoutingResult result = {});

  std::vector<ProcessingResponse> Answers();
  // All answers as texts.
  std::vector<std::string> Texts();
};

// One `headers { key raw_value }` entry.
std::string Header(std::string_view key, std::string_view value);
// One `set_headers` entry as our answers have it.
std::string Set(std::string_view key, std::string_view value);
// The canonical text of the ProcessingResponse written as `text`.
std::string Text(std::string_view text);
std::string Text(const ProcessingResponse& message);
// The bodies of streamed request or response answers, joined; fails the test unless the end of stream is said
// once, by the last of them, or with `trailers` never.
std::string JoinBodies(const std::vector<ProcessingResponse>& answers, bool request, bool trailers = false);

}  // namespace llmd::gateway

#endif  // TESTS_GATEWAY_EXT_PROC_BED_H_
