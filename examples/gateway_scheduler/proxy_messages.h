// The data plane's side of the endpoint-picker protocol, for the standalone proxy: HTTP messages into
// processing requests, and the answers applied to HTTP messages. (spec: gateway.md 1, 2)
#ifndef EXAMPLES_GATEWAY_SCHEDULER_PROXY_MESSAGES_H_
#define EXAMPLES_GATEWAY_SCHEDULER_PROXY_MESSAGES_H_

#include <string>
#include <string_view>
#include <vector>

#include "envoy/service/ext_proc/v3/external_processor.pb.h"
#include "examples/http/message.h"
#include "llmd/gateway/ext_proc_stream.h"

namespace llmd::host {

namespace ext_proc = envoy::service::ext_proc::v3;

// What concerns one connection and not the message (RFC 9110 7.6.1).
void RemoveHopByHop(http::Headers& headers);
bool IsEventStream(const http::Headers& headers);
// Appends to the list of addresses that a request came through.
void AppendForwardedFor(std::string_view peer, http::Headers& headers);

// Body modes: buffered for the request, full duplex for the response.
gateway::ProcessingRequest RequestHeadersMessage(const http::Request& request);
gateway::ProcessingRequest RequestBodyMessage(std::string body);
gateway::ProcessingRequest ResponseHeadersMessage(int status, const http::Headers& headers,
                                                  bool end_of_stream, std::string_view served);
gateway::ProcessingRequest ResponseBodyMessage(std::string body, bool end_of_stream);

// `path`, if given, follows a change of :path; other pseudo headers and host stay as they are
// (spec: gateway.md 1.5).
void ApplyMutation(const ext_proc::HeaderMutation& mutation, http::Headers& headers, std::string* path);

// ip:port, best first; empty: the answer names none.
std::vector<std::string> DestinationsOf(const gateway::ProcessingResponse& answer);

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_PROXY_MESSAGES_H_
