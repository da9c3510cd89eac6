#include "llmd/gateway/openai_request.h"

#include <algorithm>
#include <array>
#include <limits>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "src/gateway/openai_parser.h"

namespace llmd::gateway {
namespace {

struct Suffix {
  std::string_view text;
  Api api;
};
// Longest first (spec: gateway.md 6.1).
constexpr Suffix kSuffixes[] = {
    {"vllm.grpc.engine.VllmEngine/Generate", Api::kGrpcGenerate},
    {"vllm.grpc.engine.VllmEngine/Embed", Api::kGrpcEmbed},
    {"chat/completions/render", Api::kChatCompletions},
    {"inference/v1/generate", Api::kGenerate},
    {"images/generations", Api::kImages},
    {"completions/render", Api::kCompletions},
    {"chat/completions", Api::kChatCompletions},
    {"conversations", Api::kConversations},
    {"v1/messages", Api::kMessages},
    {"completions", Api::kCompletions},
    {"embeddings", Api::kEmbeddings},
    {"responses", Api::kResponses},
    {"generate", Api::kSglangGenerate},
};

}  // namespace

std::string_view ToString(Api api) {
  switch (api) {
    case Api::kNone:
      return "none";
    case Api::kChatCompletions:
      return "chat completions";
    case Api::kCompletions:
      return "completions";
    case Api::kResponses:
      return "responses";
    case Api::kConversations:
      return "conversations";
    case Api::kEmbeddings:
      return "embeddings";
    case Api::kImages:
      return "images";
    case Api::kMessages:
      return "messages";
    case Api::kGenerate:
      return "vLLM generate";
    case Api::kSglangGenerate:
      return "SGLang generate";
    case Api::kGrpcGenerate:
      return "vLLM gRPC generate";
    case Api::kGrpcEmbed:
      return "vLLM gRPC embed";
  }
  return "unknown";
}

std::string_view RequestPath(std::string_view path, std::string_view original, std::string_view forwarded) {
  std::string_view result = !path.empty()        ? path
                            : !original.empty()  ? original
                            : !forwarded.empty() ? forwarded
                                                 : std::string_view("/v1/completions");
  result = result.substr(0, result.find('?'));
  while (result.size() > 1 && result.ends_with('/')) result.remove_suffix(1);
  return result;
}

Api ApiOfPath(std::string_view path) {
  path = RequestPath(path, {}, {});
  for (const Suffix& suffix : kSuffixes) {
    if (!path.ends_with(suffix.text)) continue;
    const std::size_t before = path.size() - suffix.text.size();
    if (before == 0 || path[before - 1] == '/') return suffix.api;
  }
  return Api::kNone;
}

void OpenAiRequest::Clear() {
  // Member by member, so that the vectors keep their memory.
  std::vector<ByteRange> models = std::move(model_values);
  std::vector<std::string_view> pieces = std::move(text);
  std::vector<ChatMessage> chat = std::move(messages);
  std::vector<Prompt> all = std::move(prompts);
  std::vector<TokenId> ids = std::move(tokens);
  std::vector<MediaItem> items = std::move(media);
  *this = OpenAiRequest();
  const auto reuse = [](auto& to, auto& from) {
    from.clear();
    to = std::move(from);
  };
  reuse(model_values, models);
  reuse(text, pieces);
  reuse(messages, chat);
  reuse(prompts, all);
  reuse(tokens, ids);
  reuse(media, items);
}

std::size_t OpenAiRequest::TextSize() const {
  std::size_t size = 0;
  for (const std::string_view piece : text) size += piece.size();
  return size;
}

std::string_view OpenAiRequest::PromptText(std::string& scratch) const {
  if (text.size() == 1) return text.front();
  scratch.clear();
  scratch.reserve(TextSize());
  for (const std::string_view piece : text) scratch.append(piece);
  return scratch;
}

std::string QuoteJson(std::string_view text) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      quoted += "\\u00";
      quoted += kHex[c >> 4];
      quoted += kHex[c & 15];
    } else {
      quoted += c;
    }
  }
  quoted += '"';
  return quoted;
}

void SpliceModel(std::span<const ByteRange> model_values, std::string_view model, std::string& body) {
  const std::string quoted = QuoteJson(model);
  if (model_values.size() == 1) {
    body.replace(model_values[0].begin, model_values[0].size, quoted);
    return;
  }
  std::string result;
  std::size_t done = 0;
  for (const ByteRange& range : model_values) {
    result.append(body, done, range.begin - done);
    result.append(quoted);
    done = range.begin + range.size;
  }
  result.append(body, done);
  body = std::move(result);
}

OpenAiParser::OpenAiParser(const OpenAiLimits& limits) : impl_(std::make_unique<Impl>(limits)) {}
OpenAiParser::~OpenAiParser() = default;

absl::Status OpenAiParser::Parse(Api api, std::string_view body, OpenAiRequest& request) {
  return impl_->Parse(api, body, request);
}

}  // namespace llmd::gateway
