// Reading of OpenAI-style requests: what a router needs of a body, and nothing else of it.
//
//   OpenAiParser parser;  // one per thread, reused
//   absl::Status status = parser.Parse(ApiOfPath(path), body, request);
//
// Copies: the body is read in place. Strings without escapes are views of it; strings with escapes are
// unescaped into the parser (one copy of that text); token ids are written once, as integers. A warm parser
// does not allocate. Everything is validated, also fields that nobody reads, so that what passes here is JSON
// for every worker.
//
// Defined behaviour where JSON is vague: of a repeated key the last one counts, as in Python and Go; half of
// a surrogate pair reads as U+FFFD; bytes that are not UTF-8 are an error; numbers may have any size where
// they are skipped. Errors are kInvalidArgument and say the byte and the reason.
//
// Views in a request point into the body and into the parser: valid until either changes. Not thread safe.
#ifndef LLMD_GATEWAY_OPENAI_REQUEST_H_
#define LLMD_GATEWAY_OPENAI_REQUEST_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "llmd/base/types.h"

namespace llmd::gateway {

enum class Api : std::uint8_t {
  kNone,  // not interpreted: forwarded as it is
  kChatCompletions,
  kCompletions,
  kResponses,
  kConversations,
  kEmbeddings,
  kImages,
  kMessages,        // Anthropic
  kGenerate,        // vLLM: token ids
  kSglangGenerate,  // SGLang
  kGrpcGenerate,    // vLLM's engine service, a gRPC frame
  kGrpcEmbed,
};

std::string_view ToString(Api api);

// The interface that claims `path` (a query and a trailing '/' do not count): the longest matching suffix
// wins.
Api ApiOfPath(std::string_view path);

// What a path was asked for: `:path`, else x-original-path, else x-forwarded-path, else /v1/completions;
// empty arguments are absent ones. Without query and trailing '/'.
std::string_view RequestPath(std::string_view path, std::string_view original, std::string_view forwarded);

// Bytes of the body.
struct ByteRange {
  std::size_t begin = 0;
  std::size_t size = 0;
};

// A message of a conversation.
struct ChatMessage {
  std::string_view role = {};
  std::size_t first_piece = 0;  // of OpenAiRequest::text
  std::size_t piece_count = 0;
};

// A picture, a sound or a video.
struct MediaItem {
  std::string_view modality = {};  // "image", "audio", "video"
  std::string_view data = {};      // URL, data URL or encoded bytes
  std::string_view format = {};    // of audio
  std::string_view hash = {};      // identity of the content, hexadecimal unless the client gave it
  std::size_t piece = 0;           // text pieces before it
  std::size_t offset = 0;          // first placeholder token, when the client gave it
  std::size_t length = 0;          // placeholder tokens
};

struct OpenAiRequest {
  Api api = Api::kNone;

  std::string_view model = {};          // empty: none
  std::vector<ByteRange> model_values;  // every top-level value of "model" in the body, quotes included

  // The prompt as text, in the order in which it reaches the model: pieces to be joined without a separator.
  std::vector<std::string_view> text;
  std::vector<ChatMessage> messages;
  // Prompts of a completions or embeddings request; one for other interfaces. Each has text (pieces) or
  // tokens.
  struct Prompt {
    std::size_t first_piece = 0, piece_count = 0;
    std::size_t first_token = 0, token_count = 0;
  };
  std::vector<Prompt> prompts;
  std::vector<TokenId> tokens;
  std::vector<MediaItem> media;

  bool stream = false;
  bool include_usage = false;  // stream_options.include_usage
  std::optional<std::uint32_t> max_output_tokens;
  std::string_view cache_salt = {};

  // What a session may be told by.
  std::string_view user = {}, prompt_cache_key = {}, previous_response_id = {}, conversation = {},
                   session_id = {};

  // Needed to render a chat as the worker will: raw JSON, empty when absent.
  std::string_view raw_messages = {}, raw_tools = {}, raw_documents = {}, raw_chat_template = {},
                   raw_chat_template_kwargs = {}, raw_metadata = {};
  bool add_generation_prompt = true;
  bool continue_final_message = false;
  bool return_assistant_tokens_mask = false;

  TokenSpan TokensOf(const Prompt& prompt) const {
    return TokenSpan(tokens).subspan(prompt.first_token, prompt.token_count);
  }
  // The text of all pieces, for approximate prefix hashing (spec: gateway.md 6.2): a view of the body when
  // there is one piece, else joined in `scratch`.
  std::string_view PromptText(std::string& scratch) const;
  std::size_t TextSize() const;
  void Clear();
};

struct OpenAiLimits {
  std::size_t max_depth = 256;  // of nested objects and arrays
  std::size_t max_body_bytes = std::size_t{64} << 20;
  std::size_t max_media_items = 4096;
  std::size_t keep_bytes = std::size_t{4}
                           << 20;  // larger buffers are given back after the next small request
};

class OpenAiParser {
 public:
  explicit OpenAiParser(const OpenAiLimits& limits = {});
  ~OpenAiParser();
  OpenAiParser(const OpenAiParser&) = delete;
  OpenAiParser& operator=(const OpenAiParser&) = delete;

  // Replaces `request`. kInvalidArgument for a body that the interface does not allow, kResourceExhausted for
  // one over a limit. The model is not required here.
  absl::Status Parse(Api api, std::string_view body, OpenAiRequest& request);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// Replaces every top-level model of `body`, as found by Parse(), by `model`; all other bytes stay.
void SpliceModel(std::span<const ByteRange> model_values, std::string_view model, std::string& body);

// `text` as a JSON string with its quotes.
std::string QuoteJson(std::string_view text);

}  // namespace llmd::gateway

#endif  // LLMD_GATEWAY_OPENAI_REQUEST_H_
