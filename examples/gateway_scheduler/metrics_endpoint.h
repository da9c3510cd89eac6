// GET /metrics over HTTP, open or behind a bearer token.
//
// llm-d asks its cluster's API server whether the bearer of a token may scrape; this host compares with a
// token from a file instead, which is read at each scrape, so a rotated secret needs no restart.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_METRICS_ENDPOINT_H_
#define EXAMPLES_GATEWAY_SCHEDULER_METRICS_ENDPOINT_H_

#include <string>

#include "examples/gateway_scheduler/telemetry.h"
#include "examples/http/server.h"

namespace llmd::host {

struct MetricsEndpointOptions {
  std::string token_file = {};  // blanks around the token do not count; empty: no token is asked for
};

// `telemetry` must outlive the server. Without a readable token in the file every scrape is refused.
http::Handler MetricsHandler(const Telemetry& telemetry, const MetricsEndpointOptions& options);

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_METRICS_ENDPOINT_H_
