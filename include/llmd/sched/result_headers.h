// What a decision looks like to Envoy and to the sidecars behind it: header and metadata names, and the
// functions that fill them. (spec: scheduling.md 1.1, 1.5, 1.6)
//
//   if (!status.ok()) reply(HttpStatus(status.code()), {kDroppedReasonHeader,
//   ToString(GetDroppedReason(status))}); else set(kDestinationHeader, DestinationEndpoint(decision, pool));
//
// Functions of their arguments, any thread. Positions of a decision refer to the pool it was taken on.
#ifndef LLMD_SCHED_RESULT_HEADERS_H_
#define LLMD_SCHED_RESULT_HEADERS_H_

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "llmd/sched/decision.h"
#include "llmd/sched/endpoint_pool.h"
#include "llmd/sched/flight.h"
#include "llmd/sched/request.h"

namespace llmd::sched {

// Metadata namespaces of Envoy: of the request, of the answer.
inline constexpr std::string_view kSubsetNamespace = "envoy.lb.subset_hint";
inline constexpr std::string_view kDestinationNamespace = "envoy.lb";
// In kSubsetNamespace: a list of "address:port".
inline constexpr std::string_view kSubsetKey = "x-gateway-destination-endpoint-subset";
// Header, and key in kDestinationNamespace: "ip:port,ip:port", best first.
inline constexpr std::string_view kDestinationHeader = "x-gateway-destination-endpoint";
// In kDestinationNamespace, on request: a struct of "ip:port" -> number.
inline constexpr std::string_view kDestinationScoresKey = "x-gateway-destination-endpoint-scores";
// Comes back from Envoy: who served.
inline constexpr std::string_view kDestinationServedKey = "x-gateway-destination-endpoint-served";

// Of a rejection: ToString(DroppedReason).
inline constexpr std::string_view kDroppedReasonHeader = "x-llm-d-request-dropped-reason";

// Towards the sidecar of the decode endpoint.
inline constexpr std::string_view kPrefillerHeader = "x-prefiller-host-port";
inline constexpr std::string_view kEncodersHeader = "x-encoder-hosts-ports";
inline constexpr std::string_view kDataParallelHeader = "x-data-parallel-host-port";
inline constexpr std::string_view kCacheSourceHeader = "x-kv-cache-source-host-port";

// From clients; the second name is the old one.
inline constexpr std::string_view kRequestIdHeader = "x-request-id";
inline constexpr std::string_view kObjectiveHeaders[] = {"x-llm-d-inference-objective",
                                                         "x-gateway-inference-objective"};
inline constexpr std::string_view kFairnessIdHeaders[] = {"x-llm-d-inference-fairness-id",
                                                          "x-gateway-inference-fairness-id"};
inline constexpr std::string_view kTtftSloHeaders[] = {"x-llm-d-slo-ttft-ms", "x-slo-ttft-ms"};
inline constexpr std::string_view kTpotSloHeaders[] = {"x-llm-d-slo-tpot-ms", "x-slo-tpot-ms"};
inline constexpr std::string_view kModelRewriteHeader = "x-llm-d-model-name-rewrite";

// The value of the first of `names` that the request has.
std::optional<std::string_view> FindHeader(const Request& request, std::span<const std::string_view> names);
// Milliseconds of an SLO header; 0 when it is missing, not a number, or not more than 0.
double SloMilliseconds(const Request& request, std::span<const std::string_view> names);

// 200 for OK; 400, 401, 403, 404, 412, 429 and 503 for InvalidArgument, Unauthenticated, PermissionDenied,
// NotFound, FailedPrecondition, ResourceExhausted and Unavailable; 500 for everything else.
int HttpStatus(absl::StatusCode code);

// "ip:port" of a target of `result`, at the port that the result says.
std::string TargetHostPort(const ProfileResult& result, Position target, const EndpointPool& pool);
// All targets of `result`, comma-joined, best first; empty when it has none.
std::string TargetHostPorts(const ProfileResult& result, const EndpointPool& pool);
// The value of kDestinationHeader.
std::string DestinationEndpoint(const Decision& decision, const EndpointPool& pool);

struct EndpointScore {
  std::string host_port;
  double score = 0;
};
// The fields of kDestinationScoresKey: every endpoint that the primary profile scored, picked or not, sorted
// by address. Endpoints that share one (ranks behind one port) count once, with the best score.
std::vector<EndpointScore> EndpointScores(const Decision& decision, const EndpointPool& pool);

// Sets the header, or removes it (nullopt), in place of an earlier edit of the same name.
void SetHeader(HeaderEdits& edits, std::string_view name, std::optional<std::string> value);
// kPrefillerHeader and kEncodersHeader for what these stages chose; null or without targets: what the client
// sent under that name is removed.
void SetStageHeaders(const ProfileResult* prefill, const ProfileResult* encode, const EndpointPool& pool,
                     HeaderEdits& edits);

// Endpoints named by the request's subset hint, ascending. Without a hint all; an empty one names none. Only
// the address counts, that is the text before the last colon; IPv6 may stand in brackets, and without a port.
// An entry that is longer than any address, or stands after the first kMaxSubsetEntries, names nothing.
std::vector<Position> SelectSubset(const EndpointPool& pool,
                                   std::optional<std::span<const std::string_view>> hint);
inline constexpr std::size_t kMaxSubsetEntries = 65536;

}  // namespace llmd::sched

#endif  // LLMD_SCHED_RESULT_HEADERS_H_
