// The response phase: passes the body on, reads the usage, gives the model its public name back.
// (spec: gateway.md 2.3, 2.8)
#include <algorithm>
#include <charconv>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "src/gateway/ext_proc_impl.h"
#include "src/gateway/utf8.h"

namespace llmd::gateway {

void ExtProcStream::Impl::ReadResponseMetadata(const ProcessingRequest& message) {
  const auto& namespaces = message.metadata_context().filter_metadata();
  const auto lb = namespaces.find(std::string(kLbNamespace));
  if (lb == namespaces.end()) return;
  const auto served = lb->second.fields().find(std::string(kServedHeader));
  if (served == lb->second.fields().end() || served->second.string_value().size() > 256) return;
  response_.served_endpoint = served->second.string_value();
}

ExtProcEvent ExtProcStream::Impl::OnResponseHeaders(const ext_proc::HttpHeaders& headers, absl::Time now) {
  if (response_headers_) return Fail(absl::InvalidArgumentError("response_headers came twice"));
  if (usage_) return Fail(absl::InvalidArgumentError("response_headers after response_body"));
  response_headers_ = true;
  DropRequest();  // answered already, or by someone else than the endpoint that we would have chosen
  response_.started = now;
  for (const auto& header : headers.headers().headers()) {
    if (response_.headers.fields().size() >= options_.max_headers ||
        response_.headers.size_bytes() + header.ByteSizeLong() > options_.max_header_bytes) {
      break;
    }
    response_.headers.Set(header.key(), ValueOf(header));
  }
  const std::string* status = response_.headers.Find(":status");
  if (status == nullptr) status = response_.headers.Find("status");
  if (status != nullptr) std::from_chars(status->data(), status->data() + status->size(), response_.status);
  response_.streaming = absl::StrContains(
      absl::AsciiStrToLower(ToAbsl(response_.headers.Get("content-type"))), "text/event-stream");
  usage_.emplace(response_.streaming, options_.max_response_body_bytes);

  Outgoing& item = Push();
  auto& mutation = *item.message.mutable_response_headers()->mutable_response()->mutable_header_mutation();
  if (options_.mark_responses) SetHeader(kProcessedHeader, "true", mutation);
  if (options_.report_served_endpoint && CheckHeader(kServedTestHeader, response_.served_endpoint).ok() &&
      !response_.served_endpoint.empty()) {
    SetHeader(kServedTestHeader, response_.served_endpoint, mutation);
  }
  if (options_.resend_headers) {
    for (const HeaderField& header : response_.headers.fields()) {
      if (header.repeated || IsSystemOwned(header.name) || header.name.starts_with(':') ||
          header.value.size() > 16384)
        continue;
      SetHeader(header.name, header.value, mutation);
    }
  }
  const bool streamed = response_mode_ == BodyMode::kFullDuplex || response_mode_ == BodyMode::kStreamed;
  if (restorer_.active() && streamed && !headers.end_of_stream() &&
      response_.headers.Find("content-length")) {
    mutation.add_remove_headers("content-length");  // the other name has another length
  }
  if (headers.end_of_stream()) {
    item.last = true;
    return EndResponse();
  }
  return ExtProcEvent::kResponseHeaders;
}

ExtProcEvent ExtProcStream::Impl::OnResponseBody(ext_proc::HttpBody& body, absl::Time now) {
  if (!started_ || (!request_headers_ && !response_headers_)) {
    return Fail(absl::InvalidArgumentError("response_body before any headers"));
  }
  if (deciding_ || (request_headers_ && !routed_ && !response_headers_)) {
    return Fail(absl::InvalidArgumentError("response_body before the request was answered"));
  }
  if (response_mode_ == BodyMode::kNone)
    return Fail(absl::InvalidArgumentError("response_body, though response_body_mode is NONE"));
  if (!usage_) usage_.emplace(false, options_.max_response_body_bytes);  // headers were not sent to us
  std::string& piece = *body.mutable_body();
  if (!piece.empty()) {
    response_.body_bytes += piece.size();
    ++response_.chunks;
    response_.first_byte = std::min(response_.first_byte, now);
    response_.last_byte = now;
  }
  const bool end = body.end_of_stream();
  switch (response_mode_) {
    case BodyMode::kFullDuplex:
      AnswerDuplexResponse(piece, end, end);
      break;
    case BodyMode::kBuffered:
    case BodyMode::kBufferedPartial:
      AnswerWholeResponse(piece, end);
      break;
    default: {
      usage_->Append(piece);
      auto& item = Push();
      auto& response = *item.message.mutable_response_body()->mutable_response();
      item.last = end;
      if (restorer_.active()) {
        // Nothing is held back: there may be no later answer to send it with.
        std::string restored;
        restorer_.Append(piece, restored);
        restorer_.Finish(restored);
        if (restored != piece) response.mutable_body_mutation()->set_body(std::move(restored));
      }
    }
  }
  return end ? EndResponse() : ExtProcEvent::kResponseBody;
}

// Streams pass at once; other bodies wait for their end, so that usage and model name are seen whole.
void ExtProcStream::Impl::AnswerDuplexResponse(std::string& piece, bool end, bool end_of_stream) {
  if (response_.streaming) {
    usage_->Append(piece);
  } else if (!pass_on_) {
    if (response_body_.empty()) {
      response_body_ = std::move(piece);
    } else {
      response_body_.append(piece);
    }
    pass_on_ = response_body_.size() > options_.max_response_body_bytes;
    if (!end && !pass_on_) return;
    if (!pass_on_) usage_->ReadDocument(response_body_);
    piece = std::move(response_body_);
    response_body_ = {};
  }
  Outgoing item;
  item.kind = Outgoing::Kind::kResponseBody;
  item.end_of_stream = end_of_stream;
  item.last = end_of_stream;
  if (restorer_.active()) {
    restorer_.Append(piece, item.body);
    if (end) restorer_.Finish(item.body);
  } else {
    item.body = std::move(piece);
  }
  if (!item.body.empty() || end_of_stream) queue_.push_back(std::move(item));
}

void ExtProcStream::Impl::AnswerWholeResponse(const std::string& body, bool end) {
  if (response_.streaming) {
    usage_->Append(body);
  } else {
    usage_->ReadDocument(body);
  }
  Outgoing& item = Push();
  item.last = end;
  auto& response = *item.message.mutable_response_body()->mutable_response();
  if (!restorer_.active()) return;
  std::string restored;
  restorer_.Append(body, restored);
  restorer_.Finish(restored);
  if (restored == body) return;
  if (response_mode_ == BodyMode::kBuffered) {
    SetHeader("Content-Length", absl::StrCat(restored.size()), *response.mutable_header_mutation());
  }
  response.mutable_body_mutation()->set_body(std::move(restored));
}

ExtProcEvent ExtProcStream::Impl::OnResponseTrailers(absl::Time) {
  if (!started_ || (!request_headers_ && !response_headers_)) {
    return Fail(absl::InvalidArgumentError("response_trailers before any headers"));
  }
  if (deciding_ || (request_headers_ && !routed_ && !response_headers_)) {
    return Fail(absl::InvalidArgumentError("response_trailers before the request was answered"));
  }
  if (response_mode_ == BodyMode::kFullDuplex && usage_) {
    std::string nothing;
    AnswerDuplexResponse(nothing, /*end=*/true, /*end_of_stream=*/false);
  }
  Outgoing& item = Push();
  item.message.mutable_response_trailers();
  item.last = true;
  return EndResponse();
}

ExtProcEvent ExtProcStream::Impl::EndResponse() {
  response_.ended = true;
  if (usage_) {
    usage_->Finish();
    response_.usage = usage_->usage();
  }
  ended_ = true;
  Complete(CompletionCause::kNatural);
  return ExtProcEvent::kResponseEnd;
}

absl::Status ExtProcStream::Impl::EditResponseHeaders(std::span<const HeaderField> set,
                                                      std::span<const std::string> remove) {
  for (const HeaderField& header : set) {
    if (absl::Status status = CheckHeader(header.name, header.value); !status.ok()) return status;
  }
  for (const std::string& name : remove) {
    if (absl::Status status = CheckHeader(name, ""); !status.ok()) return status;
  }
  for (Outgoing& item : queue_) {
    if (!item.message.has_response_headers()) continue;
    auto& mutation = *item.message.mutable_response_headers()->mutable_response()->mutable_header_mutation();
    for (const HeaderField& header : set) SetHeader(header.name, header.value, mutation);
    for (const std::string& name : remove) mutation.add_remove_headers(name);
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError("no answer to response headers is waiting");
}

absl::Status ExtProcStream::Impl::AddResponseMetadata(std::span<const MetadataEntry> metadata) {
  for (const MetadataEntry& entry : metadata) {
    if (!IsUtf8(entry.filter_namespace) || !IsUtf8(entry.key) || !IsUtf8(entry.text)) {
      return absl::InvalidArgumentError("metadata: not UTF-8");
    }
  }
  if (queue_.empty() || !queue_.back().last) {
    return absl::FailedPreconditionError("the last answer of the response is not waiting");
  }
  FillMetadata(metadata, *queue_.back().message.mutable_dynamic_metadata());
  return absl::OkStatus();
}

}  // namespace llmd::gateway
