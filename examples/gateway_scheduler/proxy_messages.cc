#include "examples/gateway_scheduler/proxy_messages.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "llmd/base/strings.h"

namespace llmd::host {
namespace {

using envoy::config::core::v3::HeaderMap;
using envoy::config::core::v3::HeaderValue;
using envoy::config::core::v3::HeaderValueOption;
using envoy::extensions::filters::http::ext_proc::v3::ProcessingMode;

void Add(std::string_view name, std::string_view value, HeaderMap& map) {
  HeaderValue& header = *map.add_headers();
  header.set_key(name.data(), name.size());
  header.set_raw_value(value.data(), value.size());
}

void Erase(std::string_view name, http::Headers& headers) {
  std::erase_if(headers, [&](const auto& header) { return header.first == name; });
}

}  // namespace

void RemoveHopByHop(http::Headers& headers) {
  std::vector<std::string> names = {"connection",         "keep-alive", "proxy-connection",
                                    "proxy-authenticate", "te",         "trailer",
                                    "transfer-encoding",  "upgrade",    "expect"};
  for (const auto& [name, value] : headers) {
    if (name != "connection") continue;
    for (const absl::string_view one : absl::StrSplit(value, ',')) {
      names.push_back(absl::AsciiStrToLower(absl::StripAsciiWhitespace(one)));
    }
  }
  std::erase_if(headers, [&](const auto& header) {
    return std::find(names.begin(), names.end(), header.first) != names.end();
  });
}

bool IsEventStream(const http::Headers& headers) {
  const std::string* type = http::FindHeader(headers, "content-type");
  return type != nullptr && absl::StrContains(absl::AsciiStrToLower(*type), "text/event-stream");
}

void AppendForwardedFor(std::string_view peer, http::Headers& headers) {
  for (auto& [name, value] : headers) {
    if (name != "x-forwarded-for") continue;
    value.append(", ").append(peer);
    return;
  }
  headers.emplace_back("x-forwarded-for", peer);
}

gateway::ProcessingRequest RequestHeadersMessage(const http::Request& request) {
  gateway::ProcessingRequest message;
  message.mutable_protocol_config()->set_request_body_mode(ProcessingMode::BUFFERED);
  message.mutable_protocol_config()->set_response_body_mode(ProcessingMode::FULL_DUPLEX_STREAMED);
  ext_proc::HttpHeaders& out = *message.mutable_request_headers();
  out.set_end_of_stream(request.body.empty());
  HeaderMap& map = *out.mutable_headers();
  Add(":method", request.method, map);
  Add(":path", request.target, map);
  Add(":scheme", "http", map);
  for (const auto& [name, value] : request.headers) Add(name == "host" ? ":authority" : name, value, map);
  return message;
}

gateway::ProcessingRequest RequestBodyMessage(std::string body) {
  gateway::ProcessingRequest message;
  message.mutable_request_body()->set_body(std::move(body));
  message.mutable_request_body()->set_end_of_stream(true);
  return message;
}

gateway::ProcessingRequest ResponseHeadersMessage(int status, const http::Headers& headers,
                                                  bool end_of_stream, std::string_view served) {
  gateway::ProcessingRequest message;
  ext_proc::HttpHeaders& out = *message.mutable_response_headers();
  out.set_end_of_stream(end_of_stream);
  Add(":status", absl::StrCat(status), *out.mutable_headers());
  for (const auto& [name, value] : headers) Add(name, value, *out.mutable_headers());
  if (!served.empty()) {
    auto& lb = (*message.mutable_metadata_context()->mutable_filter_metadata())["envoy.lb"];
    (*lb.mutable_fields())[std::string(gateway::kServedHeader)].set_string_value(std::string(served));
  }
  return message;
}

gateway::ProcessingRequest ResponseBodyMessage(std::string body, bool end_of_stream) {
  gateway::ProcessingRequest message;
  message.mutable_response_body()->set_body(std::move(body));
  message.mutable_response_body()->set_end_of_stream(end_of_stream);
  return message;
}

void ApplyMutation(const ext_proc::HeaderMutation& mutation, http::Headers& headers, std::string* path) {
  for (const std::string& each : mutation.remove_headers()) {
    const std::string name = absl::AsciiStrToLower(each);
    if (!name.starts_with(':') && name != "host") Erase(name, headers);
  }
  for (const HeaderValueOption& option : mutation.set_headers()) {
    const std::string name = absl::AsciiStrToLower(option.header().key());
    const std::string& value =
        option.header().raw_value().empty() ? option.header().value() : option.header().raw_value();
    if (name == ":path") {
      if (path != nullptr) *path = value;
      continue;
    }
    // The length is that of the body that is sent.
    if (name.starts_with(':') || name == "host" || name == "content-length") continue;
    const bool present = http::FindHeader(headers, name) != nullptr;
    // For ext_proc, neither field set means to replace (spec: gateway.md 1.2).
    switch (option.append_action()) {
      case HeaderValueOption::ADD_IF_ABSENT:
        if (present) continue;
        break;
      case HeaderValueOption::OVERWRITE_IF_EXISTS:
        if (!present) continue;
        Erase(name, headers);
        break;
      default:
        if (!option.append().value()) Erase(name, headers);
    }
    headers.emplace_back(name, value);
  }
}

std::vector<std::string> DestinationsOf(const gateway::ProcessingResponse& answer) {
  std::string list;
  const auto& namespaces = answer.dynamic_metadata().fields();
  if (const auto lb = namespaces.find("envoy.lb"); lb != namespaces.end()) {
    const auto& fields = lb->second.struct_value().fields();
    const auto destination = fields.find(std::string(gateway::kDestinationHeader));
    if (destination != fields.end()) list = destination->second.string_value();
  }
  std::vector<std::string> all;
  for (const absl::string_view one : absl::StrSplit(list, ',', absl::SkipWhitespace())) {
    all.emplace_back(absl::StripAsciiWhitespace(one));
  }
  return all;
}

}  // namespace llmd::host
