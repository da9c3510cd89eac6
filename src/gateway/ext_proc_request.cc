// The request phase: collecting, the decision, and its answers. (spec: gateway.md 1.3, 1.4, 2.1 to 2.7)
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "llmd/base/strings.h"
#include "src/gateway/ext_proc_impl.h"
#include "src/gateway/utf8.h"

namespace llmd::gateway {
namespace {

using envoy::extensions::filters::http::ext_proc::v3::ProcessingMode;

constexpr std::size_t kMaxChunks = std::size_t{1} << 20;  // of a body whose chunks are answered one by one

// The interfaces whose requests name a model.
bool NamesModel(Api api) {
  return api != Api::kNone && api != Api::kConversations && api != Api::kSglangGenerate &&
         api != Api::kGrpcGenerate && api != Api::kGrpcEmbed;
}

bool IsGrpc(Api api) { return api == Api::kGrpcGenerate || api == Api::kGrpcEmbed; }

bool IsLocalName(std::string_view name) {
  return name == "host" || name.starts_with(':') || name.starts_with("x-envoy");  // Envoy would not let us
}

ProcessingMode::BodySendMode ToProto(BodyMode mode) {
  return static_cast<ProcessingMode::BodySendMode>(mode);
}

}  // namespace

void ExtProcStream::Impl::ReadRequestMetadata(const ProcessingRequest& message) {
  if (request_ended_) return;
  const auto& namespaces = message.metadata_context().filter_metadata();
  const auto hint = namespaces.find(std::string(kSubsetNamespace));
  if (hint == namespaces.end()) return;
  facts_.subset.reset();
  const auto value = hint->second.fields().find(std::string(kSubsetKey));
  if (value == hint->second.fields().end()) return;
  std::vector<std::string>& subset = facts_.subset.emplace();
  // "a:1, b:2" and ["a:1", "b:2"] alike.
  const auto add = [&](std::string_view list) {
    while (!list.empty() && subset.size() < options_.max_subset_entries) {
      const std::size_t comma = std::min(list.find(','), list.size());
      std::string_view entry = list.substr(0, comma);
      while (!entry.empty() && (entry.front() == ' ' || entry.front() == '\t')) entry.remove_prefix(1);
      while (!entry.empty() && (entry.back() == ' ' || entry.back() == '\t')) entry.remove_suffix(1);
      if (!entry.empty()) subset.emplace_back(entry);
      list.remove_prefix(std::min(comma + 1, list.size()));
    }
  };
  add(value->second.string_value());
  for (const auto& entry : value->second.list_value().values()) add(entry.string_value());
}

ExtProcEvent ExtProcStream::Impl::RefuseRequest(int http_status, std::string message) {
  const Refusal refusal{.http_status = http_status, .message = std::move(message)};
  SendImmediate(refusal, RefusalBody(refusal));
  return ExtProcEvent::kRequestRefused;
}

void ExtProcStream::Impl::SendImmediate(const Refusal& refusal, std::string body) {
  auto& answer = *Push().message.mutable_immediate_response();
  answer.mutable_status()->set_code(static_cast<envoy::type::v3::StatusCode>(refusal.http_status));
  if (refusal.reason != sched::DroppedReason::kNone) {
    SetHeader(kDroppedReasonHeader, sched::ToString(refusal.reason), *answer.mutable_headers());
  }
  for (const HeaderField& header : refusal.headers)
    SetHeader(header.name, header.value, *answer.mutable_headers());
  answer.set_body(std::move(body));
  DropRequest();
  ended_ = true;
  Complete(CompletionCause::kError, refusal.message, refusal.http_status);
}

void ExtProcStream::Impl::DropRequest() {
  deciding_ = false;
  facts_.openai = {};
  facts_.body = {};
  body_ = {};
  chunks_ = {};
}

ExtProcEvent ExtProcStream::Impl::OnRequestHeaders(const ext_proc::HttpHeaders& headers, absl::Time now) {
  if (request_headers_ || request_ended_)
    return Fail(absl::InvalidArgumentError("request_headers came twice"));
  if (response_headers_) return Fail(absl::InvalidArgumentError("request_headers after response_headers"));
  request_headers_ = true;
  if (headers.headers().headers_size() >
      static_cast<int>(std::min<std::size_t>(options_.max_headers, 1 << 30))) {
    return RefuseRequest(431, absl::StrCat("the request has ", headers.headers().headers_size(),
                                           " headers, more than the limit of ", options_.max_headers));
  }
  for (const auto& header : headers.headers().headers()) {
    facts_.headers.Set(header.key(), ValueOf(header));
    if (facts_.headers.size_bytes() > options_.max_header_bytes) {
      return RefuseRequest(431, absl::StrCat("the request's headers have more bytes than the limit of ",
                                             options_.max_header_bytes));
    }
  }
  ReadRequestHeaders();
  headers_end_ = headers.end_of_stream();
  if (headers_end_) {
    facts_.bodyless = true;
    return CompleteRequest(now);
  }
  if (request_mode_ == BodyMode::kNone && MayOverrideRequestMode()) {
    auto& answer = Push().message;
    answer.mutable_request_headers()->mutable_response();
    OverrideModes(/*request=*/true, answer);
    return ExtProcEvent::kNone;
  }
  switch (request_mode_) {
    case BodyMode::kFullDuplex:
      return ExtProcEvent::kNone;
    case BodyMode::kBuffered:
    case BodyMode::kBufferedPartial: {
      // The body comes after this answer; the answer to the body will carry the decision.
      auto& answer = Push().message;
      answer.mutable_request_headers()->mutable_response();
      if (MayOverrideResponseMode()) OverrideModes(/*request=*/false, answer);
      return ExtProcEvent::kNone;
    }
    case BodyMode::kStreamed:
      if (sends_body_early_) return ExtProcEvent::kNone;
      break;  // no chunk comes before the answer
    case BodyMode::kNone:
      break;
  }
  facts_.headers_only = true;
  return CompleteRequest(now);
}

void ExtProcStream::Impl::ReadRequestHeaders() {
  const HeaderList& headers = facts_.headers;
  facts_.method = headers.Get(":method");
  facts_.path =
      RequestPath(headers.Get(":path"), headers.Get("x-original-path"), headers.Get("x-forwarded-path"));
  facts_.api = ApiOfPath(facts_.path);
  facts_.request_id = headers.Get(kRequestIdHeader);
  if (facts_.request_id.empty()) {
    const std::uint64_t high = random_.Next();
    facts_.request_id = FormatUuid4(high, random_.Next());
    generated_id_ = true;
  }
  facts_.objective = FindControl(headers, ControlHeader::kObjective).value_or("");
  if (const auto id = FindControl(headers, ControlHeader::kFairnessId); id && !id->empty())
    facts_.fairness_id = *id;
  facts_.target_model = FindControl(headers, ControlHeader::kModelRewrite).value_or("");
}

ExtProcEvent ExtProcStream::Impl::OnRequestBody(ext_proc::HttpBody& body, absl::Time now) {
  if (!request_headers_) return Fail(absl::InvalidArgumentError("request_body before request_headers"));
  if (response_headers_ || headers_end_ || trailers_end_) {
    ++ignored_;
    return ExtProcEvent::kNone;
  }
  if (request_mode_ == BodyMode::kNone)
    return Fail(absl::InvalidArgumentError("request_body, though request_body_mode is NONE"));
  if (facts_.headers_only) {
    // Nothing to add to what the headers' answer said, but each chunk waits for a word.
    if (deciding_) {
      if (chunks_.size() >= kMaxChunks)
        return Fail(absl::ResourceExhaustedError("too many chunks of a request body"));
      chunks_.push_back(0);
    } else {
      Push().message.mutable_request_body()->mutable_response();
    }
    return ExtProcEvent::kNone;
  }
  if (request_ended_) {
    ++ignored_;  // a second end of stream has been seen in the field
    return ExtProcEvent::kNone;
  }
  std::string& piece = *body.mutable_body();
  if (piece.size() > options_.max_body_bytes - std::min(options_.max_body_bytes, body_.size())) {
    return RefuseRequest(
        413, absl::StrCat("the request body has more bytes than the limit of ", options_.max_body_bytes));
  }
  if (request_mode_ == BodyMode::kStreamed) {
    if (chunks_.size() >= kMaxChunks)
      return Fail(absl::ResourceExhaustedError("too many chunks of a request body"));
    chunks_.push_back(static_cast<std::uint32_t>(piece.size()));
  }
  if (body_.empty()) {
    body_ = std::move(piece);
  } else {
    body_.append(piece);
  }
  const bool buffered = request_mode_ == BodyMode::kBuffered || request_mode_ == BodyMode::kBufferedPartial;
  facts_.truncated = request_mode_ == BodyMode::kBufferedPartial && !body.end_of_stream();
  if (!buffered && !body.end_of_stream()) return ExtProcEvent::kNone;
  return CompleteRequest(now);
}

ExtProcEvent ExtProcStream::Impl::OnRequestTrailers(absl::Time now) {
  if (!request_headers_) return Fail(absl::InvalidArgumentError("request_trailers before request_headers"));
  if (response_headers_ || headers_end_ || trailers_end_) {
    ++ignored_;
    return ExtProcEvent::kNone;
  }
  const bool collecting = request_mode_ == BodyMode::kFullDuplex ||
                          (request_mode_ == BodyMode::kStreamed && !facts_.headers_only);
  if (collecting && request_ended_) {
    ++ignored_;
    return ExtProcEvent::kNone;
  }
  trailers_end_ = true;
  if (collecting) {
    owe_trailers_ = true;
    return CompleteRequest(now);
  }
  if (deciding_) {
    owe_trailers_ = true;
  } else {
    Push().message.mutable_request_trailers();
  }
  return ExtProcEvent::kNone;
}

ExtProcEvent ExtProcStream::Impl::CompleteRequest(absl::Time now) {
  request_ended_ = true;
  facts_.complete = now;
  facts_.body = body_;
  const bool readable = !facts_.bodyless && !facts_.headers_only && !facts_.truncated;
  if (readable && facts_.api == Api::kNone && options_.refuse_unknown_paths) {
    return RefuseRequest(400, absl::StrCat("no parser for the path ", facts_.path.substr(0, 256)));
  }
  if (readable && facts_.api != Api::kNone && (!body_.empty() || facts_.method == "POST")) {
    if (const absl::Status status = parser_.Parse(facts_.api, body_, facts_.openai); !status.ok()) {
      return RefuseRequest(absl::IsResourceExhausted(status) ? 413 : 400, std::string(status.message()));
    }
    parsed_ = true;
    facts_.incoming_model = facts_.openai.model;
    if (facts_.target_model.empty()) facts_.target_model = facts_.incoming_model;
    if (options_.require_model && NamesModel(facts_.api) && facts_.target_model.empty()) {
      return RefuseRequest(400, "model not found in request body");
    }
    facts_.can_rewrite_model = !IsGrpc(facts_.api);
  } else if (readable && body_.empty()) {
    facts_.bodyless = true;
  }
  deciding_ = true;
  return ExtProcEvent::kNeedsDecision;
}

absl::Status ExtProcStream::Impl::CheckResult(const RoutingResult& result,
                                              const std::string& destination) const {
  if (result.destinations.empty()) return absl::InvalidArgumentError("destinations is empty");
  for (const std::string& one : result.destinations) {
    const auto bad = [](unsigned char c) { return c <= ' ' || c >= 0x7F || c == ','; };
    if (one.empty() || std::ranges::any_of(one, bad)) {
      return absl::InvalidArgumentError(
          absl::StrCat("destination \"", one.substr(0, 64), "\" is not ip:port"));
    }
  }
  if (absl::Status status = CheckHeader(kDestinationHeader, destination); !status.ok()) return status;
  for (const HeaderField& header : result.set_headers) {
    if (absl::Status status = CheckHeader(header.name, header.value); !status.ok()) return status;
    if (header.name == kDestinationHeader || header.name == "content-length") {
      return absl::InvalidArgumentError(
          absl::StrCat("set_headers: ", header.name, " is set by the protocol"));
    }
  }
  for (const std::string& name : result.remove_headers) {
    if (absl::Status status = CheckHeader(name, ""); !status.ok()) return status;
  }
  for (const MetadataEntry& entry : result.metadata) {
    if (!IsUtf8(entry.filter_namespace) || !IsUtf8(entry.key) || !IsUtf8(entry.text)) {
      return absl::InvalidArgumentError("metadata: not UTF-8");
    }
  }
  if (result.model) {
    if (result.model->empty()) return absl::InvalidArgumentError("model is empty");
    if (!IsUtf8(*result.model)) return absl::InvalidArgumentError("model is not UTF-8");
    if (!facts_.can_rewrite_model && *result.model != facts_.incoming_model) {
      return absl::FailedPreconditionError("model: there is no body to rewrite it in");
    }
  }
  return absl::OkStatus();
}

// The body's new model, or empty when it stays as it is.
std::string ExtProcStream::Impl::RewriteBody(const RoutingResult& result) {
  std::string model = result.model.value_or(facts_.target_model);
  if (model.empty() || model == facts_.incoming_model || !parsed_ || !facts_.can_rewrite_model ||
      !IsUtf8(model))
    return {};
  if (facts_.openai.model_values.empty()) {
    // No field to replace: a new first one. There are others, or the request would have been refused.
    body_.insert(body_.find('{') + 1, absl::StrCat("\"model\":", QuoteJson(model), ","));
  } else {
    SpliceModel(facts_.openai.model_values, model, body_);
  }
  return model;
}

void ExtProcStream::Impl::FillMutation(const RoutingResult& result, const std::string& destination,
                                       std::size_t content_length, ext_proc::HeaderMutation& mutation) const {
  SetHeader(kDestinationHeader, destination, mutation);
  if (content_length > 0) SetHeader("Content-Length", absl::StrCat(content_length), mutation);
  const auto is_set = [&](std::string_view name) {
    return std::ranges::any_of(result.set_headers, [&](const HeaderField& h) { return h.name == name; });
  };
  const auto is_removed = [&](const std::string& name) {
    return std::ranges::find(result.remove_headers, name) != result.remove_headers.end();
  };
  for (const HeaderField& header : facts_.headers.fields()) {
    const bool stripped = options_.strip_client_headers && IsStripped(header.name);
    if (stripped && header.name != kDestinationHeader && !is_set(header.name) && !is_removed(header.name)) {
      mutation.add_remove_headers(header.name);
    }
    // One value in place of several would lose the others.
    if (options_.resend_headers && !stripped && !header.repeated && !IsSystemOwned(header.name) &&
        !IsLocalName(header.name) && !is_set(header.name) && !is_removed(header.name) &&
        header.value.size() <= 16384) {
      SetHeader(header.name, header.value, mutation);
    }
  }
  if (generated_id_ && !is_set(kRequestIdHeader)) SetHeader(kRequestIdHeader, facts_.request_id, mutation);
  for (const HeaderField& header : result.set_headers) SetHeader(header.name, header.value, mutation);
  for (const std::string& name : result.remove_headers) mutation.add_remove_headers(name);
}

// Only to modes in which the body comes after the answer to the headers.
bool ExtProcStream::Impl::MayOverrideRequestMode() const {
  const auto& mode = options_.override_request_body_mode;
  return (mode == BodyMode::kBuffered || mode == BodyMode::kBufferedPartial) &&
         response_mode_ != BodyMode::kFullDuplex && facts_.api != Api::kNone;
}

bool ExtProcStream::Impl::MayOverrideResponseMode() const {
  const auto& mode = options_.override_response_body_mode;
  return mode && mode != BodyMode::kFullDuplex && request_mode_ != BodyMode::kFullDuplex &&
         response_mode_ != BodyMode::kFullDuplex;
}

void ExtProcStream::Impl::OverrideModes(bool request, ProcessingResponse& answer) {
  if (request) request_mode_ = *options_.override_request_body_mode;
  if (MayOverrideResponseMode()) response_mode_ = *options_.override_response_body_mode;
  auto& mode = *answer.mutable_mode_override();
  mode.set_request_header_mode(ProcessingMode::SEND);
  mode.set_response_header_mode(ProcessingMode::SEND);
  mode.set_request_body_mode(ToProto(request_mode_));
  mode.set_response_body_mode(ToProto(response_mode_));
  mode.set_request_trailer_mode(ProcessingMode::SKIP);
  mode.set_response_trailer_mode(ProcessingMode::SKIP);
}

// Chunks of a streamed body keep their sizes; the last takes what a longer model name adds.
void ExtProcStream::Impl::AnswerStreamedChunks(bool rewritten) {
  std::size_t at = 0;
  for (std::size_t i = 0; i < chunks_.size(); ++i) {
    auto& response = *Push().message.mutable_request_body()->mutable_response();
    if (!rewritten) continue;
    const std::size_t size =
        i + 1 == chunks_.size() ? body_.size() - at : std::min<std::size_t>(chunks_[i], body_.size() - at);
    if (size == 0) {
      response.mutable_body_mutation()->set_clear_body(true);
    } else {
      response.mutable_body_mutation()->set_body(body_.data() + at, size);
    }
    at += size;
  }
}

absl::Status ExtProcStream::Impl::Decide(const RoutingResult& result, absl::Time) {
  if (!deciding_) return absl::FailedPreconditionError("no decision is due");
  const std::string destination = options_.single_destination && !result.destinations.empty()
                                      ? result.destinations.front()
                                      : absl::StrJoin(result.destinations, ",");
  if (absl::Status status = CheckResult(result, destination); !status.ok()) return status;
  const std::string model = RewriteBody(result);
  const bool rewritten = !model.empty();
  if (rewritten) {
    facts_.target_model = model;
    restorer_ = ModelNameRestorer(model, facts_.incoming_model.empty() ? model : facts_.incoming_model);
  }

  const bool buffered = !headers_end_ && !facts_.headers_only &&
                        (request_mode_ == BodyMode::kBuffered || request_mode_ == BodyMode::kBufferedPartial);
  auto& answer = Push().message;
  auto& common = buffered ? *answer.mutable_request_body()->mutable_response()
                          : *answer.mutable_request_headers()->mutable_response();
  // A body that we do not replace keeps the length that it has.
  const bool sets_length = buffered ? rewritten : !facts_.headers_only;
  FillMutation(result, destination, sets_length ? body_.size() : 0, *common.mutable_header_mutation());
  common.set_clear_route_cache(true);
  auto& metadata = *answer.mutable_dynamic_metadata();
  FillMetadata(result.metadata, metadata);
  const MetadataEntry own[] = {{std::string(kLbNamespace), std::string(kDestinationHeader), destination, {}},
                               {std::string(kLbNamespace), std::string(kScoresKey), {}, result.scores}};
  FillMetadata(std::span(own).first(result.scores.empty() ? 1 : 2), metadata);
  if (!buffered && MayOverrideResponseMode()) OverrideModes(/*request=*/false, answer);

  if (buffered) {
    if (rewritten) common.mutable_body_mutation()->set_body(std::move(body_));
  } else if (facts_.headers_only || request_mode_ == BodyMode::kStreamed) {
    AnswerStreamedChunks(rewritten);
  } else if (!headers_end_) {
    Outgoing& body = Push();
    body.kind = Outgoing::Kind::kRequestBody;
    body.body = std::move(body_);
    body.end_of_stream = !trailers_end_;
  }
  if (owe_trailers_) Push().message.mutable_request_trailers();
  DropRequest();
  routed_ = true;
  if (options_.skip_response) {
    ended_ = true;
    Complete(CompletionCause::kNatural);
  }
  return absl::OkStatus();
}

absl::Status ExtProcStream::Impl::Refuse(const Refusal& refusal, absl::Time) {
  if (!deciding_) return absl::FailedPreconditionError("no decision is due");
  if (refusal.http_status < 200 || refusal.http_status > 599) {
    return absl::InvalidArgumentError(
        absl::StrCat("http_status=", refusal.http_status, " is not in [200, 599]"));
  }
  for (const HeaderField& header : refusal.headers) {
    if (absl::Status status = CheckHeader(header.name, header.value); !status.ok()) return status;
  }
  SendImmediate(refusal, RefusalBody(refusal));
  return absl::OkStatus();
}

void ExtProcStream::Impl::Evict(sched::DroppedReason reason) {
  if (!routed_ || completed_ || ended_) return;
  queue_.clear();
  response_body_ = {};
  Complete(CompletionCause::kEvicted, "request evicted by flow control", 429);
  SendImmediate({.http_status = 429, .message = "request evicted by flow control", .reason = reason},
                "request evicted by flow control");
}

}  // namespace llmd::gateway
