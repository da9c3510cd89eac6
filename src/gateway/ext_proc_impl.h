// The state behind ExtProcStream. The request phase is in ext_proc_request.cc, the response phase in
// ext_proc_response.cc, what both need in ext_proc_stream.cc.
#ifndef SRC_GATEWAY_EXT_PROC_IMPL_H_
#define SRC_GATEWAY_EXT_PROC_IMPL_H_

#include <deque>
#include <string>
#include <vector>

#include "envoy/service/ext_proc/v3/external_processor.pb.h"
#include "llmd/gateway/ext_proc_stream.h"

namespace llmd::gateway {

namespace ext_proc = envoy::service::ext_proc::v3;

class ExtProcStream::Impl {
 public:
  Impl(const ExtProcOptions& options, OpenAiParser& parser, Random& random)
      : options_(options), parser_(parser), random_(random) {}

  ExtProcEvent Receive(ProcessingRequest&& message, absl::Time now);
  absl::Status Decide(const RoutingResult& result, absl::Time now);
  absl::Status Refuse(const Refusal& refusal, absl::Time now);
  void Evict(sched::DroppedReason reason);
  ExtProcEvent Fail(absl::Status status);
  void Close(CloseReason reason);
  absl::Status EditResponseHeaders(std::span<const HeaderField> set, std::span<const std::string> remove);
  absl::Status AddResponseMetadata(std::span<const MetadataEntry> metadata);
  bool Next(ProcessingResponse& answer);
  std::size_t held_bytes() const;

  const ExtProcOptions& options_;
  OpenAiParser& parser_;
  Random& random_;

  BodyMode request_mode_ = BodyMode::kFullDuplex;
  BodyMode response_mode_ = BodyMode::kFullDuplex;
  bool deciding_ = false;
  bool ended_ = false;
  absl::Status status_;
  RequestFacts facts_;
  ResponseFacts response_;
  std::optional<Completion> completion_;
  std::uint64_t ignored_ = 0;

 private:
  // An answer, or a body still to be cut into answers.
  struct Outgoing {
    enum class Kind : std::uint8_t { kMessage, kRequestBody, kResponseBody };
    Kind kind = Kind::kMessage;
    bool end_of_stream = false;  // the last chunk says so
    bool last = false;           // the last answer of the response
    ProcessingResponse message;  // of a body: what its last chunk carries besides
    std::string body;
    std::size_t sent = 0;
  };

  ExtProcEvent Start(const ProcessingRequest& first, absl::Time now);
  void ReadRequestMetadata(const ProcessingRequest& message);
  void ReadResponseMetadata(const ProcessingRequest& message);

  ExtProcEvent OnRequestHeaders(const ext_proc::HttpHeaders& headers, absl::Time now);
  ExtProcEvent OnRequestBody(ext_proc::HttpBody& body, absl::Time now);
  ExtProcEvent OnRequestTrailers(absl::Time now);
  ExtProcEvent CompleteRequest(absl::Time now);
  void ReadRequestHeaders();
  ExtProcEvent RefuseRequest(int http_status, std::string message);
  void SendImmediate(const Refusal& refusal, std::string body);
  absl::Status CheckResult(const RoutingResult& result, const std::string& destination) const;
  std::string RewriteBody(const RoutingResult& result);
  void FillMutation(const RoutingResult& result, const std::string& destination, std::size_t content_length,
                    ext_proc::HeaderMutation& mutation) const;
  void AnswerStreamedChunks(bool rewritten);
  bool MayOverrideRequestMode() const;
  bool MayOverrideResponseMode() const;
  void OverrideModes(bool request, ProcessingResponse& answer);
  void DropRequest();

  ExtProcEvent OnResponseHeaders(const ext_proc::HttpHeaders& headers, absl::Time now);
  ExtProcEvent OnResponseBody(ext_proc::HttpBody& body, absl::Time now);
  ExtProcEvent OnResponseTrailers(absl::Time now);
  void AnswerDuplexResponse(std::string& body, bool end, bool end_of_stream);
  void AnswerWholeResponse(const std::string& body, bool end);
  ExtProcEvent EndResponse();

  Outgoing& Push() { return queue_.emplace_back(); }
  void Complete(CompletionCause cause, std::string error = {}, int refused_with = 0);

  std::deque<Outgoing> queue_;

  bool started_ = false;
  bool sends_body_early_ = false;  // send_body_without_waiting_for_header_response
  bool request_headers_ = false, request_ended_ = false, headers_end_ = false, trailers_end_ = false;
  bool routed_ = false, completed_ = false, generated_id_ = false;
  bool parsed_ = false;  // facts_.openai is of body_
  bool owe_trailers_ = false;
  std::string body_;
  std::vector<std::uint32_t> chunks_;  // sizes, where each needs an answer of its own

  bool response_headers_ = false;
  bool pass_on_ = false;  // no longer held back
  std::string response_body_;
  std::optional<UsageReader> usage_;
  ModelNameRestorer restorer_;
};

// For message building.
void SetHeader(std::string_view name, std::string_view value, ext_proc::HeaderMutation& mutation);
void FillMetadata(std::span<const MetadataEntry> entries, google::protobuf::Struct& metadata);
std::string_view ValueOf(const envoy::config::core::v3::HeaderValue& header);

}  // namespace llmd::gateway

#endif  // SRC_GATEWAY_EXT_PROC_IMPL_H_
