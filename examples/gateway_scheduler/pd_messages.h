// What a P/D sidecar does to the bodies of a disaggregated request (NIXL v2): text in, text out.
// (spec: gateway.md 5.1, 5.3)
//
//   PdRequest request = *PdRequest::Read(api, body);
//   ask the prefiller with request.PrefillBody();
//   PrefillResult result = ReadPrefillAnswer(answer);
//   ask the decoder with request.DecodeBody(result);
//   its answer goes through CachedTokensRewriter.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_PD_MESSAGES_H_
#define EXAMPLES_GATEWAY_SCHEDULER_PD_MESSAGES_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace llmd::host {

// By where the limits of the output are.
enum class PdApi : std::uint8_t { kNone, kCompletions, kResponses, kGenerate };
PdApi PdApiOf(std::string_view method, std::string_view path);

// Of x-prefiller-host-port: the first of the list, without blanks and http://. Empty: no prefill stage.
std::string PrefillTarget(std::string_view header);

struct PrefillResult {
  std::string kv_transfer_params = "null";  // JSON, as it came
  std::int64_t cached_tokens = 0;
};
// A body that is no JSON gives what is assumed when nothing is said.
PrefillResult ReadPrefillAnswer(std::string_view body);

class PdRequest {
 public:
  // InvalidArgument: no JSON object.
  static absl::StatusOr<PdRequest> Read(PdApi api, std::string_view body);
  ~PdRequest();
  PdRequest(PdRequest&&) noexcept;
  PdRequest& operator=(PdRequest&&) noexcept;

  // One token, no stream, and the keys and values stay at the prefiller.
  std::string PrefillBody() const;
  // The client's request, with where the keys and values are.
  std::string DecodeBody(const PrefillResult& result) const;

 private:
  struct Impl;
  explicit PdRequest(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Puts the prefiller's count into usage.prompt_tokens_details.cached_tokens of an answer, in each event of an
// event stream or in the one document. Holds back a line, or the document; what is longer than a limit passes
// unchanged.
class CachedTokensRewriter {
 public:
  CachedTokensRewriter(bool event_stream, std::int64_t cached_tokens)
      : event_stream_(event_stream), cached_tokens_(cached_tokens) {}

  std::string Append(std::string_view piece);
  std::string Finish();

 private:
  void AppendLine(std::string_view line, std::string& out) const;
  // Null-like empty: as it was.
  std::string Rewrite(std::string_view json) const;

  bool event_stream_;
  std::int64_t cached_tokens_;
  bool pass_on_ = false;
  std::string held_;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_PD_MESSAGES_H_
