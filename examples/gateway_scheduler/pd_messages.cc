#include "examples/gateway_scheduler/pd_messages.h"

#include <algorithm>
#include <optional>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "absl/strings/strip.h"
#include "llmd/base/strings.h"

namespace llmd::host {
namespace {

using Json = nlohmann::ordered_json;  // engines hash what they read, never the order; people read it

constexpr int kMostDepth = 256;  // writing recurs
constexpr std::size_t kMostLine = 1 << 20;
constexpr std::size_t kMostDocument = 64 << 20;

std::optional<Json> ParseJson(std::string_view text) {
  bool too_deep = false;
  Json json = Json::parse(
      text.begin(), text.end(),
      [&](int depth, Json::parse_event_t, Json&) {
        too_deep = too_deep || depth > kMostDepth;
        return !too_deep;
      },
      /*allow_exceptions=*/false);
  if (too_deep || json.is_discarded()) return std::nullopt;
  return json;
}

std::string Dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

std::string_view Trim(std::string_view text) {
  const std::size_t first = text.find_first_not_of(" \t");
  if (first == text.npos) return {};
  return text.substr(first, text.find_last_not_of(" \t") + 1 - first);
}

// A member of an object, or null.
const Json* Find(const Json& json, const char* name) {
  const auto found = json.find(name);
  return found == json.end() ? nullptr : &*found;
}

}  // namespace

PdApi PdApiOf(std::string_view method, std::string_view path) {
  if (method != "POST") return PdApi::kNone;
  if (path == "/v1/chat/completions" || path == "/v1/completions" || path == "/v1/messages") {
    return PdApi::kCompletions;
  }
  if (path == "/v1/responses") return PdApi::kResponses;
  if (path == "/inference/v1/generate") return PdApi::kGenerate;
  return PdApi::kNone;
}

std::string PrefillTarget(std::string_view header) {
  std::string_view first = Trim(header.substr(0, header.find(',')));
  if (first.starts_with("http://")) first.remove_prefix(7);
  return std::string(first);
}

PrefillResult ReadPrefillAnswer(std::string_view body) {
  PrefillResult result;
  const std::optional<Json> json = ParseJson(body);
  if (!json || !json->is_object()) return result;
  if (const Json* params = Find(*json, "kv_transfer_params")) result.kv_transfer_params = Dump(*params);
  const Json* usage = Find(*json, "usage");
  if (usage == nullptr || !usage->is_object()) return result;
  const Json* details = Find(*usage, "prompt_tokens_details");
  if (details == nullptr || !details->is_object()) return result;
  const Json* cached = Find(*details, "cached_tokens");
  if (cached != nullptr && cached->is_number_integer()) result.cached_tokens = cached->get<std::int64_t>();
  return result;
}

struct PdRequest::Impl {
  PdApi api;
  Json body;
};

PdRequest::PdRequest(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
PdRequest::~PdRequest() = default;
PdRequest::PdRequest(PdRequest&&) noexcept = default;
PdRequest& PdRequest::operator=(PdRequest&&) noexcept = default;

absl::StatusOr<PdRequest> PdRequest::Read(PdApi api, std::string_view body) {
  std::optional<Json> json = ParseJson(body);
  if (!json || !json->is_object()) return absl::InvalidArgumentError("the body is no JSON object");
  return PdRequest(std::make_unique<Impl>(Impl{api, *std::move(json)}));
}

std::string PdRequest::PrefillBody() const {
  Json body = impl_->body;
  body["kv_transfer_params"] = {{"do_remote_decode", true},    {"do_remote_prefill", false},
                                {"remote_engine_id", nullptr}, {"remote_block_ids", nullptr},
                                {"remote_host", nullptr},      {"remote_port", nullptr}};
  body["stream"] = false;
  body.erase("stream_options");
  switch (impl_->api) {
    case PdApi::kNone:
      break;
    case PdApi::kCompletions:
      for (const char* limit : {"max_tokens", "max_completion_tokens", "min_tokens"}) body[limit] = 1;
      break;
    case PdApi::kResponses:
      body["max_output_tokens"] = 1;
      break;
    case PdApi::kGenerate: {
      Json& sampling = body["sampling_params"];
      if (!sampling.is_object()) sampling = Json::object();
      for (const char* limit : {"max_tokens", "min_tokens"}) sampling[limit] = 1;
      break;
    }
  }
  return Dump(body);
}

std::string PdRequest::DecodeBody(const PrefillResult& result) const {
  Json body = impl_->body;
  body["kv_transfer_params"] = ParseJson(result.kv_transfer_params).value_or(Json());
  return Dump(body);
}

std::string CachedTokensRewriter::Rewrite(std::string_view text) const {
  if (text.find("\"usage\"") == text.npos) return {};
  std::optional<Json> json = ParseJson(text);
  if (!json || !json->is_object()) return {};
  const auto usage = json->find("usage");
  if (usage == json->end() || !usage->is_object()) return {};
  const auto details = usage->find("prompt_tokens_details");
  // An engine that does not report details is not made to, unless there is something to say.
  if ((details == usage->end() || !details->is_object()) && cached_tokens_ == 0) return {};
  if (details != usage->end() && !details->is_object()) *details = Json::object();
  (*usage)["prompt_tokens_details"]["cached_tokens"] = cached_tokens_;
  return Dump(*json);
}

void CachedTokensRewriter::AppendLine(std::string_view line, std::string& out) const {
  constexpr std::string_view kData = "data:";
  std::string_view end = line.substr(std::min(line.size(), line.find_last_not_of("\r\n") + 1));
  if (line.starts_with(kData)) {
    const std::string_view json = Trim(line.substr(kData.size(), line.size() - kData.size() - end.size()));
    if (const std::string rewritten = Rewrite(json); !rewritten.empty()) {
      out.append("data: ").append(rewritten).append(end);
      return;
    }
  }
  out.append(line);
}

std::string CachedTokensRewriter::Append(std::string_view piece) {
  std::string out;
  if (!event_stream_) {
    if (pass_on_) return std::string(piece);
    held_.append(piece);
    if (held_.size() <= kMostDocument) return out;
    pass_on_ = true;
    return std::exchange(held_, std::string());
  }
  while (!piece.empty()) {
    const std::size_t newline = piece.find('\n');
    const std::size_t size = newline == piece.npos ? piece.size() : newline + 1;
    const std::string_view part = piece.substr(0, size);
    piece.remove_prefix(size);
    if (pass_on_) {  // the rest of a line that is too long
      out.append(part);
      pass_on_ = newline == part.npos;
    } else if (newline == part.npos) {
      held_.append(part);
      if (held_.size() > kMostLine) {
        pass_on_ = true;
        out.append(std::exchange(held_, std::string()));
      }
    } else if (held_.empty()) {
      AppendLine(part, out);
    } else {
      held_.append(part);
      AppendLine(std::exchange(held_, std::string()), out);
    }
  }
  return out;
}

std::string CachedTokensRewriter::Finish() {
  std::string rest = std::exchange(held_, std::string());
  if (event_stream_) {
    std::string out;
    AppendLine(rest, out);
    return out;
  }
  std::string rewritten = Rewrite(rest);
  return rewritten.empty() ? rest : rewritten;
}

}  // namespace llmd::host
