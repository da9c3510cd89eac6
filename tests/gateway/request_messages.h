// Messages of the request phase, shared by its tests.
#ifndef TESTS_GATEWAY_REQUEST_MESSAGES_H_
#define TESTS_GATEWAY_REQUEST_MESSAGES_H_

#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "tests/gateway/ext_proc_bed.h"

namespace llmd::gateway {

inline constexpr std::string_view kChat = "/v1/chat/completions";
inline constexpr std::string_view kChatBody = R"({"model":"m","messages":[{"role":"user","content":"hi"}]})";

inline std::string ConfigOf(std::string_view request, std::string_view response, std::string_view more = "") {
  return absl::StrCat("protocol_config { request_body_mode: ", ToAbsl(request),
                      " response_body_mode: ", ToAbsl(response), " ", ToAbsl(more), " }");
}

inline std::string Destination(std::string_view list) {
  return absl::StrCat(
      "dynamic_metadata { fields { key: \"envoy.lb\" value { struct_value { fields { key: "
      "\"x-gateway-destination-endpoint\" value { string_value: \"",
      ToAbsl(list), "\" } } } } } }");
}

inline std::string HeadersAnswer(std::string_view destination, std::string_view mutations) {
  return Text(absl::StrCat("request_headers { response { header_mutation { ",
                           Set("x-gateway-destination-endpoint", destination), ToAbsl(mutations),
                           " } clear_route_cache: true } } ", Destination(destination)));
}

inline std::string StreamedAnswer(std::string_view body, bool end) {
  ProcessingResponse answer;
  auto& chunk = *answer.mutable_request_body()
                     ->mutable_response()
                     ->mutable_body_mutation()
                     ->mutable_streamed_response();
  chunk.set_body(std::string(body));
  chunk.set_end_of_stream(end);
  return Text(answer);
}

}  // namespace llmd::gateway

#endif  // TESTS_GATEWAY_REQUEST_MESSAGES_H_
