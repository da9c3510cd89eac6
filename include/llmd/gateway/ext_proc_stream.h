// The endpoint-picker protocol of one HTTP request: Envoy's external processing as a state machine.
//
// One object per gRPC stream. Messages go in, messages come out; the host owns the stream, the threads and
// the clock.
//
//   ExtProcStream stream(options, parser, random);
//   while (Read(message)) {
//     const ExtProcEvent event = stream.Receive(std::move(message), now);
//     if (event == ExtProcEvent::kNeedsDecision) stream.Decide(Route(stream.facts()), now);  // or Refuse()
//     while (stream.Next(answer)) Write(answer);
//     if (stream.finished()) break;  // end the gRPC stream with stream.status()
//   }
//   stream.Close(CloseReason::kEndOfStream, now);
//   Account(stream.TakeCompletion());
//
// Decide() and Refuse() may come later, between other messages, as a queue of requests needs it; until then
// nothing is answered. Answers are made when they are taken, so what is known late (headers and metadata of
// the response) may be added after Receive() and before Next().
//
// Memory per stream: the headers, and at most max_body_bytes of one body at a time. A request body is kept
// until it is forwarded. Copies of it: one from the messages into a buffer (none when it came in one message)
// and one into each answer. Not thread safe: one thread at a time. The parser may serve many streams of one
// thread.
//
// Behaviour: spec gateway.md 1 and 2. Not supported: body mode GRPC (the stream fails with kUnimplemented).
#ifndef LLMD_GATEWAY_EXT_PROC_STREAM_H_
#define LLMD_GATEWAY_EXT_PROC_STREAM_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "llmd/base/random.h"
#include "llmd/gateway/headers.h"
#include "llmd/gateway/openai_request.h"
#include "llmd/gateway/response_body.h"

namespace envoy::service::ext_proc::v3 {
class ProcessingRequest;  // envoy/service/ext_proc/v3/external_processor.pb.h
class ProcessingResponse;
}  // namespace envoy::service::ext_proc::v3

namespace llmd::gateway {

using envoy::service::ext_proc::v3::ProcessingRequest;
using envoy::service::ext_proc::v3::ProcessingResponse;

// Envoy's BodySendMode.
enum class BodyMode : std::uint8_t { kNone, kStreamed, kBuffered, kBufferedPartial, kFullDuplex };

struct ExtProcOptions {
  std::size_t max_body_bytes = std::size_t{64} << 20;  // of a request: 413
  std::size_t max_response_body_bytes = std::size_t{64}
                                        << 20;  // held back; a longer response is passed on as it comes
  std::size_t max_headers = 512;                // 431
  std::size_t max_header_bytes = std::size_t{256} << 10;  // 431
  std::size_t max_subset_entries = 8192;                  // further ones are ignored
  std::size_t chunk_bytes = 62000;                        // of a streamed body answer

  // Only the first destination, for data planes that cannot read a list.
  bool single_destination = false;
  // A request whose path no parser claims is refused (400) instead of being forwarded without a prompt.
  bool refuse_unknown_paths = false;
  // 400 when neither the body nor a header names a model. Off for hosts whose rewrite rules may add one.
  bool require_model = true;
  // Control headers from the client are removed before the model server sees them.
  bool strip_client_headers = true;
  // Sends every received header back, as the reference does, though the data plane has them already.
  bool resend_headers = false;
  // Marks processed responses with x-went-into-resp-headers.
  bool mark_responses = true;
  // Copies the served endpoint to x-conformance-test-served-endpoint.
  bool report_served_endpoint = false;
  // Ends the stream after the request has been answered.
  bool skip_response = false;

  // For a data plane that does not say how it sends bodies.
  BodyMode assumed_request_body_mode = BodyMode::kFullDuplex;
  BodyMode assumed_response_body_mode = BodyMode::kFullDuplex;
  // Asks for other body modes with the answer to the request headers (mode_override; the data plane must
  // allow it). Never to or from full duplex, where it is not supported. For requests: from NONE to a buffered
  // mode, where the path is one that we read.
  std::optional<BodyMode> override_request_body_mode = {};
  std::optional<BodyMode> override_response_body_mode = {};
};

enum class ExtProcEvent : std::uint8_t {
  kNone,            // taken note of; there may be answers
  kNeedsDecision,   // facts() is complete: Decide() or Refuse()
  kRequestRefused,  // by this object: malformed or too large; see completion
  kResponseHeaders,
  kResponseBody,
  kResponseEnd,  // the completion is there
  kFailed,       // a violation of the protocol, in status()
};

// What is known when a decision is due. Views are valid until the decision.
struct RequestFacts {
  HeaderList headers;
  std::string request_id;  // made here when the client sent none
  std::string method;
  std::string path;  // see RequestPath()

  Api api = Api::kNone;
  OpenAiRequest openai;   // empty unless has_body and api is known
  std::string_view body;  // what there is of it
  // No body will come: any endpoint will do, nothing is to be scheduled (spec: gateway.md 2.4).
  bool bodyless = false;
  // The body is not sent to us: decide from the headers.
  bool headers_only = false;
  // Only the beginning of the body was sent to us; it is not interpreted.
  bool truncated = false;

  std::string incoming_model;  // as the client wrote it
  std::string target_model;    // after the rewrite header
  bool can_rewrite_model = false;
  std::string objective;
  std::string fairness_id = "default-flow";
  // Endpoints to choose from; empty: none. Without a value: all. See MatchesSubset().
  std::optional<std::vector<std::string>> subset;

  absl::Time received = absl::InfinitePast();  // first message
  absl::Time complete = absl::InfinitePast();  // last byte
};

// A value for the data plane's filters: a string, or numbers by name.
struct MetadataEntry {
  std::string filter_namespace = {};
  std::string key = {};
  std::string text = {};
  std::vector<std::pair<std::string, double>> numbers = {};  // instead of text, unless empty
};

struct RoutingResult {
  std::vector<std::string> destinations = {};  // ip:port, best first
  std::vector<HeaderField> set_headers = {};
  std::vector<std::string> remove_headers = {};
  std::vector<MetadataEntry> metadata = {};
  std::vector<std::pair<std::string, double>> scores =
      {};                                 // emitted under x-gateway-destination-endpoint-scores
  std::optional<std::string> model = {};  // for the model server; without a value, facts().target_model
};

enum class CloseReason : std::uint8_t { kEndOfStream, kCancelled };
enum class CompletionCause : std::uint8_t { kNatural, kClientDisconnect, kEvicted, kError };
std::string_view ToString(CompletionCause cause);

// How it went. One per stream.
struct Completion {
  CompletionCause cause = CompletionCause::kNatural;
  bool routed = false;     // Decide() was called
  int refused_with = 0;    // HTTP status of our own answer, 0: none
  std::string error = {};  // why, for kError
};

struct ResponseFacts {
  HeaderList headers;
  int status = 0;  // HTTP, 0: not known
  bool streaming = false;
  bool ended = false;
  std::string served_endpoint;  // ip:port; empty: the data plane did not say, so the first destination
  std::uint64_t body_bytes = 0;
  std::uint64_t chunks = 0;  // that were not empty
  Usage usage;
  absl::Time started = absl::InfinitePast();  // headers
  absl::Time first_byte = absl::InfiniteFuture();
  absl::Time last_byte = absl::InfinitePast();
};

class ExtProcStream {
 public:
  // All three must outlive the stream.
  ExtProcStream(const ExtProcOptions& options, OpenAiParser& parser, Random& random);
  ~ExtProcStream();
  ExtProcStream(const ExtProcStream&) = delete;
  ExtProcStream& operator=(const ExtProcStream&) = delete;

  ExtProcEvent Receive(ProcessingRequest&& message, absl::Time now);
  // The same from the wire.
  ExtProcEvent ReceiveBytes(std::string_view message, absl::Time now);

  // While a decision is due. kInvalidArgument: the result cannot be sent, nothing has changed.
  // kFailedPrecondition: no decision is due (any more), or a model is to be rewritten in a body that we do
  // not have.
  absl::Status Decide(const RoutingResult& result, absl::Time now);
  absl::Status Refuse(const Refusal& refusal, absl::Time now);
  // Ends a decided request that is still being served; nothing happens when the response is complete.
  void Evict(sched::DroppedReason reason, absl::Time now);
  // Ends the stream with a status, so that the data plane's failure mode decides.
  void Fail(absl::Status status, absl::Time now);
  // The data plane ended the stream. Safe to call at any time, also twice.
  void Close(CloseReason reason, absl::Time now);

  // For the answer to the response headers, before it is taken; else kFailedPrecondition.
  absl::Status EditResponseHeaders(std::span<const HeaderField> set, std::span<const std::string> remove);
  // Rides on the last answer of the response, before it is taken; else kFailedPrecondition.
  absl::Status AddResponseMetadata(std::span<const MetadataEntry> metadata);

  // The next answer to send, into a message that may be reused.
  bool Next(ProcessingResponse& answer);
  bool NextBytes(std::string& answer);

  bool needs_decision() const;
  // Nothing more is to be read or, once Next() is false, written: end the gRPC stream with status().
  bool finished() const;
  const absl::Status& status() const;

  const RequestFacts& facts() const;
  const ResponseFacts& response() const;
  // True once for each stream, after its end.
  std::optional<Completion> TakeCompletion();

  BodyMode request_body_mode() const;
  BodyMode response_body_mode() const;
  // Messages that needed no attention: those after an end of stream.
  std::uint64_t ignored_messages() const;
  // Bytes of bodies held.
  std::size_t held_bytes() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace llmd::gateway

#endif  // LLMD_GATEWAY_EXT_PROC_STREAM_H_
