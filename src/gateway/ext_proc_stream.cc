#include "llmd/gateway/ext_proc_stream.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "src/gateway/ext_proc_impl.h"

namespace llmd::gateway {
namespace {

using envoy::extensions::filters::http::ext_proc::v3::ProcessingMode;

absl::StatusOr<BodyMode> ModeOf(int mode, std::string_view field) {
  switch (mode) {
    case ProcessingMode::NONE:
      return BodyMode::kNone;
    case ProcessingMode::STREAMED:
      return BodyMode::kStreamed;
    case ProcessingMode::BUFFERED:
      return BodyMode::kBuffered;
    case ProcessingMode::BUFFERED_PARTIAL:
      return BodyMode::kBufferedPartial;
    case ProcessingMode::FULL_DUPLEX_STREAMED:
      return BodyMode::kFullDuplex;
    case ProcessingMode::GRPC:
      return absl::UnimplementedError(
          absl::StrCat("protocol_config.", ToAbsl(field), "=GRPC is not supported"));
    default:
      return absl::InvalidArgumentError(absl::StrCat("protocol_config.", ToAbsl(field), "=", mode,
                                                     " is unknown, the last is ",
                                                     static_cast<int>(ProcessingMode::GRPC)));
  }
}

}  // namespace

std::string_view ToString(CompletionCause cause) {
  switch (cause) {
    case CompletionCause::kNatural:
      return "natural";
    case CompletionCause::kClientDisconnect:
      return "client-disconnect";
    case CompletionCause::kEvicted:
      return "evicted";
    case CompletionCause::kError:
      return "error";
  }
  return "unknown";
}

std::string_view ValueOf(const envoy::config::core::v3::HeaderValue& header) {
  return header.raw_value().empty() ? std::string_view(header.value()) : std::string_view(header.raw_value());
}

void SetHeader(std::string_view name, std::string_view value, ext_proc::HeaderMutation& mutation) {
  auto& option = *mutation.add_set_headers();
  option.mutable_header()->set_key(name.data(), name.size());
  option.mutable_header()->set_raw_value(value.data(), value.size());
  // What Envoy does by default, said for those who do not.
  option.set_append_action(envoy::config::core::v3::HeaderValueOption::OVERWRITE_IF_EXISTS_OR_ADD);
}

void FillMetadata(std::span<const MetadataEntry> entries, google::protobuf::Struct& metadata) {
  for (const MetadataEntry& entry : entries) {
    auto& fields =
        *(*metadata.mutable_fields())[entry.filter_namespace].mutable_struct_value()->mutable_fields();
    auto& value = fields[entry.key];
    if (entry.numbers.empty()) {
      value.set_string_value(entry.text);
      continue;
    }
    auto& numbers = *value.mutable_struct_value()->mutable_fields();
    for (const auto& [name, number] : entry.numbers) {
      if (std::isfinite(number)) numbers[name].set_number_value(number);
    }
  }
}

ExtProcEvent ExtProcStream::Impl::Start(const ProcessingRequest& first, absl::Time now) {
  started_ = true;
  facts_.received = now;
  if (first.observability_mode()) {
    ended_ = true;  // copies for us to look at: nothing is to be answered
    Complete(CompletionCause::kNatural);
    return ExtProcEvent::kNone;
  }
  request_mode_ = options_.assumed_request_body_mode;
  response_mode_ = options_.assumed_response_body_mode;
  if (!first.has_protocol_config()) return ExtProcEvent::kNone;
  const auto request = ModeOf(first.protocol_config().request_body_mode(), "request_body_mode");
  if (!request.ok()) return Fail(request.status());
  const auto response = ModeOf(first.protocol_config().response_body_mode(), "response_body_mode");
  if (!response.ok()) return Fail(response.status());
  request_mode_ = *request;
  response_mode_ = *response;
  sends_body_early_ = first.protocol_config().send_body_without_waiting_for_header_response();
  return ExtProcEvent::kNone;
}

ExtProcEvent ExtProcStream::Impl::Receive(ProcessingRequest&& message, absl::Time now) {
  if (ended_) {
    ++ignored_;
    return ExtProcEvent::kNone;
  }
  if (!started_) {
    const ExtProcEvent event = Start(message, now);
    if (ended_) return event;
  }
  switch (message.request_case()) {
    case ProcessingRequest::kRequestHeaders:
      ReadRequestMetadata(message);
      return OnRequestHeaders(message.request_headers(), now);
    case ProcessingRequest::kRequestBody:
      ReadRequestMetadata(message);
      return OnRequestBody(*message.mutable_request_body(), now);
    case ProcessingRequest::kRequestTrailers:
      ReadRequestMetadata(message);
      return OnRequestTrailers(now);
    case ProcessingRequest::kResponseHeaders:
      ReadResponseMetadata(message);
      return OnResponseHeaders(message.response_headers(), now);
    case ProcessingRequest::kResponseBody:
      ReadResponseMetadata(message);
      return OnResponseBody(*message.mutable_response_body(), now);
    case ProcessingRequest::kResponseTrailers:
      ReadResponseMetadata(message);
      return OnResponseTrailers(now);
    case ProcessingRequest::REQUEST_NOT_SET:
      break;
  }
  return Fail(absl::InvalidArgumentError("a message without headers, body or trailers"));
}

ExtProcEvent ExtProcStream::Impl::Fail(absl::Status status) {
  if (ended_) return ExtProcEvent::kNone;
  queue_.clear();
  DropRequest();
  ended_ = true;
  Complete(CompletionCause::kError, std::string(status.message()));
  status_ = std::move(status);
  return ExtProcEvent::kFailed;
}

void ExtProcStream::Impl::Close(CloseReason reason) {
  DropRequest();
  queue_.clear();
  response_body_ = {};
  ended_ = true;
  // Without a response body to follow, the end of the response is the end of the stream.
  const bool served = routed_ && response_mode_ == BodyMode::kNone &&
                      (response_headers_ || reason == CloseReason::kEndOfStream);
  Complete(served ? CompletionCause::kNatural : CompletionCause::kClientDisconnect);
}

void ExtProcStream::Impl::Complete(CompletionCause cause, std::string error, int refused_with) {
  if (completed_) return;
  completed_ = true;
  completion_ =
      Completion{.cause = cause, .routed = routed_, .refused_with = refused_with, .error = std::move(error)};
}

bool ExtProcStream::Impl::Next(ProcessingResponse& answer) {
  while (!queue_.empty()) {
    Outgoing& item = queue_.front();
    if (item.kind == Outgoing::Kind::kMessage) {
      answer = std::move(item.message);
      queue_.pop_front();
      return true;
    }
    const std::size_t size = std::min(options_.chunk_bytes, item.body.size() - item.sent);
    const bool last = item.sent + size == item.body.size();
    if (size == 0 && !item.end_of_stream && item.message.ByteSizeLong() == 0) {
      queue_.pop_front();  // nothing to say
      continue;
    }
    if (last) {
      answer = std::move(item.message);
    } else {
      answer.Clear();
    }
    auto& body = item.kind == Outgoing::Kind::kRequestBody ? *answer.mutable_request_body()
                                                           : *answer.mutable_response_body();
    auto& chunk = *body.mutable_response()->mutable_body_mutation()->mutable_streamed_response();
    if (last && item.sent == 0) {
      chunk.set_body(std::move(item.body));
    } else {
      chunk.set_body(item.body.data() + item.sent, size);
    }
    item.sent += size;
    if (last) {
      chunk.set_end_of_stream(item.end_of_stream);
      queue_.pop_front();
    }
    return true;
  }
  return false;
}

std::size_t ExtProcStream::Impl::held_bytes() const {
  std::size_t bytes = body_.capacity() + response_body_.capacity() + restorer_.held_bytes();
  if (usage_) bytes += usage_->held_bytes();
  for (const Outgoing& item : queue_) bytes += item.body.capacity();
  return bytes;
}

ExtProcStream::ExtProcStream(const ExtProcOptions& options, OpenAiParser& parser, Random& random)
    : impl_(std::make_unique<Impl>(options, parser, random)) {}
ExtProcStream::~ExtProcStream() = default;

ExtProcEvent ExtProcStream::Receive(ProcessingRequest&& message, absl::Time now) {
  return impl_->Receive(std::move(message), now);
}

ExtProcEvent ExtProcStream::ReceiveBytes(std::string_view message, absl::Time now) {
  ProcessingRequest request;
  if (message.size() > static_cast<std::size_t>(std::numeric_limits<int>::max()) ||
      !request.ParseFromArray(message.data(), static_cast<int>(message.size()))) {
    return impl_->Fail(
        absl::InvalidArgumentError(absl::StrCat(message.size(), " bytes that are no ProcessingRequest")));
  }
  return impl_->Receive(std::move(request), now);
}

absl::Status ExtProcStream::Decide(const RoutingResult& result, absl::Time now) {
  return impl_->Decide(result, now);
}
absl::Status ExtProcStream::Refuse(const Refusal& refusal, absl::Time now) {
  return impl_->Refuse(refusal, now);
}
void ExtProcStream::Evict(sched::DroppedReason reason, absl::Time) { impl_->Evict(reason); }
void ExtProcStream::Fail(absl::Status status, absl::Time) { impl_->Fail(std::move(status)); }
void ExtProcStream::Close(CloseReason reason, absl::Time) { impl_->Close(reason); }

absl::Status ExtProcStream::EditResponseHeaders(std::span<const HeaderField> set,
                                                std::span<const std::string> remove) {
  return impl_->EditResponseHeaders(set, remove);
}
absl::Status ExtProcStream::AddResponseMetadata(std::span<const MetadataEntry> metadata) {
  return impl_->AddResponseMetadata(metadata);
}

bool ExtProcStream::Next(ProcessingResponse& answer) { return impl_->Next(answer); }
bool ExtProcStream::NextBytes(std::string& answer) {
  ProcessingResponse message;
  return impl_->Next(message) && message.SerializeToString(&answer);
}

bool ExtProcStream::needs_decision() const { return impl_->deciding_; }
bool ExtProcStream::finished() const { return impl_->ended_; }
const absl::Status& ExtProcStream::status() const { return impl_->status_; }
const RequestFacts& ExtProcStream::facts() const { return impl_->facts_; }
const ResponseFacts& ExtProcStream::response() const { return impl_->response_; }
std::optional<Completion> ExtProcStream::TakeCompletion() {
  return std::exchange(impl_->completion_, std::nullopt);
}
BodyMode ExtProcStream::request_body_mode() const { return impl_->request_mode_; }
BodyMode ExtProcStream::response_body_mode() const { return impl_->response_mode_; }
std::uint64_t ExtProcStream::ignored_messages() const { return impl_->ignored_; }
std::size_t ExtProcStream::held_bytes() const { return impl_->held_bytes(); }

}  // namespace llmd::gateway
