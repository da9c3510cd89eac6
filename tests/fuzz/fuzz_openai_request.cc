// Any body for any interface: no crash, views inside the body or the parser, an error that says a byte of the
// body, and a spliced model that is read back, with everything else as it was.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "llmd/gateway/openai_request.h"
#include "llmd/gateway/response_body.h"

namespace {

using namespace llmd::gateway;

void Require(bool condition) {
  if (!condition) std::abort();
}

// Reads every byte that the request points to, for the address sanitizer.
std::uint64_t Touch(const OpenAiRequest& request) {
  std::uint64_t sum = 0;
  const auto text = [&](std::string_view s) {
    for (const char c : s) sum = sum * 31 + static_cast<unsigned char>(c);
  };
  for (const std::string_view piece : request.text) text(piece);
  for (const MediaItem& item : request.media) {
    for (const auto s : {item.modality, item.data, item.format, item.hash}) text(s);
    Require(item.piece <= request.text.size());
  }
  for (const ChatMessage& message : request.messages) {
    text(message.role);
    Require(message.first_piece + message.piece_count <= request.text.size());
  }
  for (const auto& prompt : request.prompts) {
    Require(prompt.first_piece + prompt.piece_count <= request.text.size());
    for (const auto token : request.TokensOf(prompt)) sum += token;
  }
  for (const auto s : {request.cache_salt, request.user, request.prompt_cache_key,
                       request.previous_response_id, request.conversation, request.session_id,
                       request.raw_messages, request.raw_tools, request.raw_documents,
                       request.raw_chat_template, request.raw_chat_template_kwargs, request.raw_metadata}) {
    text(s);
  }
  return sum;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static OpenAiParser parser({.max_depth = 64, .max_media_items = 64, .keep_bytes = 4096});
  static OpenAiRequest request, again;
  if (size == 0) return 0;
  const Api api = static_cast<Api>(data[0] % 12);
  const std::string body(reinterpret_cast<const char*>(data) + 1, size - 1);

  if (parser.Parse(api, body, request).ok()) {
    const std::uint64_t sum = Touch(request);
    const bool json = api != Api::kNone && api != Api::kGrpcGenerate && api != Api::kGrpcEmbed;
    if (json && !request.model_values.empty()) {
      const std::size_t prompts = request.prompts.size();
      std::string spliced = body;
      SpliceModel(request.model_values, "a \"b\"\n", spliced);
      Require(parser.Parse(api, spliced, again).ok());
      Require(again.model == "a \"b\"\n");
      Require(again.prompts.size() == prompts && Touch(again) == sum);
    }
  }

  // The same bytes as a response, whole and cut.
  for (const bool stream : {false, true}) {
    UsageReader whole(stream), cut(stream);
    whole.Append(body);
    whole.Finish();
    ModelNameRestorer one("m", "name"), other("m", "name");
    std::string whole_text, cut_text;
    one.Append(body, whole_text);
    one.Finish(whole_text);
    const std::size_t piece = data[0] / 12 + 1;
    for (std::size_t at = 0; at < body.size(); at += piece) {
      cut.Append(std::string_view(body).substr(at, piece));
      other.Append(std::string_view(body).substr(at, piece), cut_text);
    }
    cut.Finish();
    other.Finish(cut_text);
    Require(whole.usage() == cut.usage());
    Require(whole_text == cut_text);
  }
  return 0;
}
