#include "src/gateway/openai_parser.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "src/gateway/utf8.h"

namespace llmd::gateway {
namespace {

constexpr std::uint64_t kMaxToken = std::numeric_limits<TokenId>::max();

// The field without which a request of that interface is refused.
std::string_view RequiredField(Api api) {
  switch (api) {
    case Api::kChatCompletions:
    case Api::kMessages:
      return "messages";
    case Api::kCompletions:
    case Api::kImages:
      return "prompt";
    case Api::kResponses:
    case Api::kEmbeddings:
      return "input";
    case Api::kConversations:
      return "items";
    case Api::kGenerate:
      return "token_ids";
    case Api::kSglangGenerate:
      return "input_ids";
    default:
      return "";
  }
}

// 128 bits of XXH3 in hexadecimal: an identity for routing, not a proof of anything.
void HashMedia(std::string_view data, char* out) {
  constexpr char kHex[] = "0123456789abcdef";
  const XXH128_hash_t hash = XXH3_128bits(data.data(), data.size());
  for (const std::uint64_t half : {hash.high64, hash.low64}) {
    for (int shift = 60; shift >= 0; shift -= 4) *out++ = kHex[half >> shift & 15];
  }
}

}  // namespace

absl::Status OpenAiParser::Impl::Parse(Api api, std::string_view body, OpenAiRequest& request) {
  request.Clear();
  request.api = api_ = api;
  out_ = &request;
  if (body.size() > limits_.max_body_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the request body has ", body.size(), " bytes, more than the limit of ", limits_.max_body_bytes));
  }
  if (arena_.capacity() > 2 * limits_.keep_bytes && body.size() <= limits_.keep_bytes) arena_.Free();
  if (api == Api::kNone) return absl::OkStatus();
  if (api == Api::kGrpcGenerate || api == Api::kGrpcEmbed) return ParseGrpc(body);

  lead_.clear();
  pieces_ = &request.text;
  has_prompt_ = false;
  max_tokens_ = max_completion_tokens_ = std::nullopt;
  placeholders_.clear();
  hashes_.clear();
  refusal_.clear();

  if (reader_.Open(body, &arena_) && reader_.Peek() != '{') {
    if (reader_.Skip() && reader_.Close()) {
      return absl::InvalidArgumentError("error unmarshaling request bodyMap: byte 0: expected an object");
    }
  } else if (reader_.ok() && reader_.BeginObject()) {
    std::string_view key;
    for (bool first = true; refusal_.empty() && reader_.NextField(first, key);) {
      if (!ReadField(key)) break;
    }
    if (refusal_.empty()) reader_.Close();
  }
  if (!reader_.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("error unmarshaling request bodyMap: ", reader_.error().message()));
  }
  if (!refusal_.empty()) return Invalid(absl::StrCat(refusal_, " (byte ", refusal_offset_, ")"));
  return Finish();
}

absl::Status OpenAiParser::Impl::Finish() {
  if (!has_prompt_) return Invalid(absl::StrCat("must have ", ToAbsl(RequiredField(api_)), " field"));
  OpenAiRequest& out = *out_;
  if (!lead_.empty()) {
    out.text.insert(out.text.begin(), lead_.begin(), lead_.end());
    for (ChatMessage& message : out.messages) message.first_piece += lead_.size();
    for (MediaItem& item : out.media) item.piece += lead_.size();
    for (auto& prompt : out.prompts) prompt.first_piece += lead_.size();
  }
  if (out.prompts.empty())
    out.prompts.push_back({.piece_count = out.text.size(), .token_count = out.tokens.size()});
  out.max_output_tokens = max_completion_tokens_ ? max_completion_tokens_ : max_tokens_;
  if (!hashes_.empty() || !placeholders_.empty()) PairFeatures();
  return absl::OkStatus();
}

absl::Status OpenAiParser::Impl::Invalid(std::string_view what) const {
  return absl::InvalidArgumentError(
      absl::StrCat("invalid ", ToAbsl(ToString(api_)), " request: ", ToAbsl(what)));
}

bool OpenAiParser::Impl::Refuse(std::string_view what) {
  if (reader_.ok() && refusal_.empty()) {
    refusal_ = what;
    refusal_offset_ = reader_.offset();
  }
  return false;
}

bool OpenAiParser::Impl::ReadCommonField(std::string_view key, bool& known) {
  OpenAiRequest& out = *out_;
  known = true;
  if (key == "model") return ReadModel();
  if (key == "stream") return ReadFlagOrSkip(out.stream = false);
  if (key == "stream_options") return ReadStreamOptions();
  if (key == "cache_salt") return ReadStringOrSkip(out.cache_salt = {});
  if (key == "user") return ReadStringOrSkip(out.user = {});
  if (key == "session_id") return ReadStringOrSkip(out.session_id = {});
  if (key == "prompt_cache_key") return ReadStringOrSkip(out.prompt_cache_key = {});
  if (key == "previous_response_id") return ReadStringOrSkip(out.previous_response_id = {});
  if (key == "conversation") return ReadConversation();
  if (key == "metadata") return ReadRaw(out.raw_metadata);
  if (key == "tools") return ReadRaw(out.raw_tools);
  known = false;
  return true;
}

bool OpenAiParser::Impl::ReadField(std::string_view key) {
  OpenAiRequest& out = *out_;
  bool known = false;
  if (!ReadCommonField(key, known)) return false;
  if (known) return true;
  if (key == RequiredField(api_)) {
    ForgetPrompt();
    has_prompt_ = true;
    switch (api_) {
      case Api::kChatCompletions:
      case Api::kMessages: {
        const std::size_t begin = reader_.offset();
        if (!ReadMessages("messages")) return false;
        out.raw_messages = reader_.RawSince(begin);
        return !out.messages.empty() || Refuse("messages must not be empty");
      }
      case Api::kResponses:
        return reader_.Peek() == '"' ? ReadContent() : ReadMessages("input");
      case Api::kConversations:
        return ReadMessages("items");
      case Api::kImages:
        return reader_.Peek() == '"' ? ReadContent() : Refuse("prompt must be a string");
      default:
        return ReadPrompt();
    }
  }
  switch (api_) {
    case Api::kChatCompletions:
      if (key == "max_completion_tokens") return ReadLimit(max_completion_tokens_);
      if (key == "max_tokens") return ReadLimit(max_tokens_);
      if (key == "documents") return ReadRaw(out.raw_documents);
      if (key == "chat_template") return ReadRaw(out.raw_chat_template);
      if (key == "chat_template_kwargs") return ReadRaw(out.raw_chat_template_kwargs);
      if (key == "add_generation_prompt") return ReadFlagOrSkip(out.add_generation_prompt = true);
      if (key == "continue_final_message") return ReadFlagOrSkip(out.continue_final_message = false);
      if (key == "return_assistant_tokens_mask")
        return ReadFlagOrSkip(out.return_assistant_tokens_mask = false);
      break;
    case Api::kCompletions:
      if (key == "max_tokens") return ReadLimit(max_tokens_);
      break;
    case Api::kMessages:
      if (key == "max_tokens") return ReadLimit(max_tokens_);
      if (key == "system") return ReadLead();
      break;
    case Api::kResponses:
      if (key == "max_output_tokens") return ReadLimit(max_tokens_);
      if (key == "instructions") return ReadLead();
      break;
    case Api::kGenerate:
      if (key == "features") return ReadFeatures();
      if (key == "sampling_params") return ReadSamplingParams();
      break;
    case Api::kSglangGenerate:
      if (key == "sampling_params") return ReadSamplingParams();
      if (key == "text" && (reader_.Peek() == '"' || reader_.Peek() == '[')) {
        ForgetPrompt();
        has_prompt_ = true;
        return ReadPrompt();
      }
      break;
    default:
      break;
  }
  return reader_.Skip();
}

void OpenAiParser::Impl::ForgetPrompt() {
  out_->text.clear();
  out_->messages.clear();
  out_->prompts.clear();
  out_->tokens.clear();
  out_->media.clear();
  out_->raw_messages = {};
}

bool OpenAiParser::Impl::ReadModel() {
  const std::size_t begin = reader_.offset();
  out_->model = {};
  if (!ReadStringOrSkip(out_->model)) return false;  // what is no string counts as none
  out_->model_values.push_back({begin, reader_.RawSince(begin).size()});
  return true;
}

// A string, strings, token ids, or lists of token ids.
bool OpenAiParser::Impl::ReadPrompt() {
  OpenAiRequest& out = *out_;
  const bool text_allowed = api_ != Api::kGenerate;
  if (reader_.Peek() == '"' && text_allowed) {
    out.text.emplace_back();
    out.prompts.push_back({.piece_count = 1});
    return reader_.ReadString(out.text.back());
  }
  if (reader_.Peek() != '[') {
    return Refuse(absl::StrCat(ToAbsl(RequiredField(api_)),
                               text_allowed ? " must be a string, a list of strings or a list of token ids"
                                            : " must be a list of token ids"));
  }
  if (!reader_.BeginArray()) return false;
  const char kind = reader_.Peek();  // of the first element, and so of all
  if (kind == ']') return Refuse(absl::StrCat(ToAbsl(RequiredField(api_)), " must not be empty"));
  if (kind == '"' && text_allowed) {
    for (bool first = true; reader_.NextElement(first);) {
      if (reader_.Peek() != '"') return Refuse("strings and other values in one prompt list");
      if (!out.text.empty()) out.text.emplace_back(" ");
      out.prompts.push_back({.first_piece = out.text.size(), .piece_count = 1});
      out.text.emplace_back();
      if (!reader_.ReadString(out.text.back())) return false;
    }
    return reader_.ok();
  }
  if (kind == '[' && api_ != Api::kGenerate) {
    for (bool first = true; reader_.NextElement(first);) {
      if (reader_.Peek() != '[') return Refuse("lists and other values in one prompt list");
      if (!reader_.BeginArray() || !ReadTokenRun()) return false;
    }
    return reader_.ok();
  }
  return ReadTokenRun();
}

bool OpenAiParser::Impl::ReadTokenRun() {
  OpenAiRequest& out = *out_;
  const std::size_t begin = out.tokens.size();
  for (bool first = true; reader_.NextElement(first);) {
    reader_.ReadShortUints(out.tokens);
    const char c = reader_.Peek();
    if (c != '-' && !(c >= '0' && c <= '9')) return Refuse("a token id must be a number");
    std::uint64_t token = 0;
    if (!reader_.ReadUint(kMaxToken, token))
      return Refuse("a token id must be a whole number from 0 to 4294967295");
    out.tokens.push_back(static_cast<TokenId>(token));
  }
  if (!reader_.ok()) return false;
  if (out.tokens.size() == begin) return Refuse("a list of token ids must not be empty");
  out.prompts.push_back({.first_token = begin, .token_count = out.tokens.size() - begin});
  return true;
}

bool OpenAiParser::Impl::ReadMessages(std::string_view what) {
  if (reader_.Peek() != '[') return Refuse(absl::StrCat(ToAbsl(what), " must be a list"));
  if (!reader_.BeginArray()) return false;
  for (bool first = true; reader_.NextElement(first);) {
    if (!ReadMessage(what)) return false;
  }
  return reader_.ok();
}

bool OpenAiParser::Impl::ReadMessage(std::string_view what) {
  if (reader_.Peek() != '{') return Refuse(absl::StrCat(ToAbsl(what), " must be a list of objects"));
  OpenAiRequest& out = *out_;
  ChatMessage message{.first_piece = out.text.size()};
  const std::size_t media = out.media.size();
  if (!reader_.BeginObject()) return false;
  std::string_view key;
  for (bool first = true; reader_.NextField(first, key);) {
    bool read = true;
    if (key == "role") {
      read = ReadStringOrSkip(message.role = {});
    } else if (key == "content") {
      out.text.resize(message.first_piece);
      out.media.resize(media);
      read = ReadContent();
    } else {
      read = reader_.Skip();
    }
    if (!read) return false;
  }
  message.piece_count = out.text.size() - message.first_piece;
  out.messages.push_back(message);
  return reader_.ok();
}

// A string, a list of blocks, or null (an assistant that only calls tools).
bool OpenAiParser::Impl::ReadContent() {
  switch (reader_.Peek()) {
    case '"':
      pieces_->emplace_back();
      return reader_.ReadString(pieces_->back());
    case 'n':
      return reader_.ReadNull();
    case '[':
      if (!reader_.BeginArray()) return false;
      for (bool first = true; reader_.NextElement(first);) {
        if (!ReadBlock()) return false;
      }
      return reader_.ok();
    default:
      return Refuse("content must be a string or a list of blocks");
  }
}

bool OpenAiParser::Impl::ReadBlock() {
  if (reader_.Peek() != '{') return Refuse("a content block must be an object");
  std::string_view key, type, text, image, audio, video, format, ignored;
  bool has_text = false;
  if (!reader_.BeginObject()) return false;
  for (bool first = true; reader_.NextField(first, key);) {
    bool read = true;
    if (key == "type") {
      read = ReadStringOrSkip(type = {});
    } else if (key == "text") {
      has_text = reader_.Peek() == '"';
      read = ReadStringOrSkip(text = {});
    } else if (key == "image_url" || key == "source") {
      read = ReadMedia(image, ignored);
    } else if (key == "input_audio" || key == "audio_url") {
      read = ReadMedia(audio, format);
    } else if (key == "video_url") {
      read = ReadMedia(video, ignored);
    } else {
      read = reader_.Skip();
    }
    if (!read) return false;
  }
  if (!reader_.ok()) return false;
  if (type == "text" || type == "input_text" || type == "output_text") {
    if (!has_text) return Refuse("a text block must have a text");
    pieces_->push_back(text);
    pieces_->push_back(" ");
    return true;
  }
  if (type == "image_url" || type == "input_image" || type == "image") return AddMedia("image", image, {});
  if (type == "input_audio" || type == "audio_url") return AddMedia("audio", audio, format);
  if (type == "video_url") return AddMedia("video", video, {});
  return true;
}

bool OpenAiParser::Impl::ReadMedia(std::string_view& data, std::string_view& format) {
  data = format = {};
  if (reader_.Peek() != '{') return ReadStringOrSkip(data);
  if (!reader_.BeginObject()) return false;
  std::string_view key;
  for (bool first = true; reader_.NextField(first, key);) {
    const bool read = key == "url" || key == "data" ? ReadStringOrSkip(data)
                      : key == "format"             ? ReadStringOrSkip(format)
                                                    : reader_.Skip();
    if (!read) return false;
  }
  return reader_.ok();
}

bool OpenAiParser::Impl::AddMedia(std::string_view modality, std::string_view data, std::string_view format) {
  if (out_->media.size() >= limits_.max_media_items) {
    return Refuse(absl::StrCat("more than ", limits_.max_media_items, " images, sounds and videos"));
  }
  char* const hash = arena_.Take(32);
  HashMedia(data, hash);
  out_->media.push_back({.modality = modality,
                         .data = data,
                         .format = format,
                         .hash = std::string_view(hash, 32),
                         .piece = pieces_ == &lead_ ? 0 : out_->text.size()});
  return true;
}

bool OpenAiParser::Impl::ReadLead() {
  lead_.clear();
  pieces_ = &lead_;
  const bool read = ReadContent();
  pieces_ = &out_->text;
  return read;
}

bool OpenAiParser::Impl::ReadFeatures() {
  placeholders_.clear();
  hashes_.clear();
  if (reader_.Peek() != '{') return reader_.Skip();
  if (!reader_.BeginObject()) return false;
  std::string_view key;
  for (bool first = true; reader_.NextField(first, key);) {
    const bool object = reader_.Peek() == '{';
    const bool read = object && key == "mm_hashes"         ? ReadHashes()
                      : object && key == "mm_placeholders" ? ReadPlaceholders()
                                                           : reader_.Skip();
    if (!read) return false;
  }
  return reader_.ok();
}

bool OpenAiParser::Impl::ReadHashes() {
  hashes_.clear();
  if (!reader_.BeginObject()) return false;
  std::string_view modality;
  for (bool first = true; reader_.NextField(first, modality);) {
    if (reader_.Peek() != '[') return Refuse("mm_hashes must hold lists");
    if (!reader_.BeginArray()) return false;
    for (bool head = true; reader_.NextElement(head);) {
      if (hashes_.size() >= limits_.max_media_items) return Refuse("too many mm_hashes");
      hashes_.push_back({modality, {}});
      if (!ReadStringOrSkip(hashes_.back().hash)) return false;
    }
    if (!reader_.ok()) return false;
  }
  return reader_.ok();
}

bool OpenAiParser::Impl::ReadPlaceholders() {
  placeholders_.clear();
  if (!reader_.BeginObject()) return false;
  std::string_view modality, key;
  for (bool first = true; reader_.NextField(first, modality);) {
    if (reader_.Peek() != '[') return Refuse("mm_placeholders must hold lists");
    if (!reader_.BeginArray()) return false;
    for (bool head = true; reader_.NextElement(head);) {
      if (placeholders_.size() >= limits_.max_media_items) return Refuse("too many mm_placeholders");
      Placeholder range{.modality = modality};
      if (reader_.Peek() != '{') return Refuse("a placeholder must be an object");
      if (!reader_.BeginObject()) return false;
      for (bool one = true; reader_.NextField(one, key);) {
        if (key == "offset" || key == "length") {
          std::uint64_t& value = key == "offset" ? range.offset : range.length;
          const char c = reader_.Peek();
          if ((c != '-' && !(c >= '0' && c <= '9')) || !reader_.ReadUint(kMaxToken, value)) {
            return Refuse("a placeholder's offset and length must be whole numbers from 0 to 4294967295");
          }
        } else if (!reader_.Skip()) {
          return false;
        }
      }
      if (!reader_.ok()) return false;
      placeholders_.push_back(range);
    }
    if (!reader_.ok()) return false;
  }
  return reader_.ok();
}

// The k-th hash of a modality belongs to its k-th placeholder. Both lists are grouped by modality.
void OpenAiParser::Impl::PairFeatures() {
  std::vector<MediaItem>& media = out_->media;
  for (const MediaHash& hash : hashes_) media.push_back({.modality = hash.modality, .hash = hash.hash});
  std::size_t item = 0;
  for (const Placeholder& range : placeholders_) {
    // The next item of that modality without a range; the search goes on from the last one found.
    std::size_t found = media.size();
    for (std::size_t step = 0; step < hashes_.size(); ++step) {
      const std::size_t at = (item + step) % hashes_.size();
      if (media[at].modality == range.modality && media[at].length == 0 && media[at].offset == 0) {
        found = at;
        break;
      }
    }
    if (found == media.size()) {
      media.push_back({.modality = range.modality});
    } else {
      item = found + 1;
    }
    media[found].offset = range.offset;
    media[found].length = range.length;
  }
}

bool OpenAiParser::Impl::ReadSamplingParams() {
  max_tokens_ = std::nullopt;
  if (reader_.Peek() != '{') return reader_.Skip();
  const std::string_view wanted = api_ == Api::kSglangGenerate ? "max_new_tokens" : "max_tokens";
  if (!reader_.BeginObject()) return false;
  std::string_view key;
  for (bool first = true; reader_.NextField(first, key);) {
    if (!(key == wanted ? ReadLimit(max_tokens_) : reader_.Skip())) return false;
  }
  return reader_.ok();
}

bool OpenAiParser::Impl::ReadStreamOptions() {
  out_->include_usage = false;
  if (reader_.Peek() != '{') return reader_.Skip();
  if (!reader_.BeginObject()) return false;
  std::string_view key;
  for (bool first = true; reader_.NextField(first, key);) {
    if (!(key == "include_usage" ? ReadFlagOrSkip(out_->include_usage = false) : reader_.Skip()))
      return false;
  }
  return reader_.ok();
}

bool OpenAiParser::Impl::ReadConversation() {
  out_->conversation = {};
  if (reader_.Peek() != '{') return ReadStringOrSkip(out_->conversation);
  if (!reader_.BeginObject()) return false;
  std::string_view key;
  for (bool first = true; reader_.NextField(first, key);) {
    if (!(key == "id" ? ReadStringOrSkip(out_->conversation = {}) : reader_.Skip())) return false;
  }
  return reader_.ok();
}

// What is no sensible limit is none: the worker will judge it.
bool OpenAiParser::Impl::ReadLimit(std::optional<std::uint32_t>& limit) {
  limit = std::nullopt;
  const char c = reader_.Peek();
  if (c != '-' && !(c >= '0' && c <= '9')) return reader_.Skip();
  std::uint64_t value = 0;
  if (reader_.ReadUint(std::numeric_limits<std::uint64_t>::max(), value)) {
    limit = static_cast<std::uint32_t>(std::min(value, kMaxToken));
  }
  return reader_.ok();
}

bool OpenAiParser::Impl::ReadStringOrSkip(std::string_view& value) {
  return reader_.Peek() == '"' ? reader_.ReadString(value) : reader_.Skip();
}

bool OpenAiParser::Impl::ReadFlagOrSkip(bool& value) {
  const char c = reader_.Peek();
  return c == 't' || c == 'f' ? reader_.ReadBool(value) : reader_.Skip();
}

bool OpenAiParser::Impl::ReadRaw(std::string_view& raw) {
  const std::size_t begin = reader_.offset();
  if (!reader_.Skip()) return false;
  raw = reader_.RawSince(begin);
  return true;
}

// One gRPC message: compression flag, big-endian length, bytes (spec: gateway.md 6.4).
absl::Status OpenAiParser::Impl::ParseGrpc(std::string_view body) {
  if (body.size() < 5) return Invalid(absl::StrCat("a gRPC frame has at least 5 bytes, not ", body.size()));
  if (body[0] != 0) return Invalid("compressed gRPC messages are not supported");
  std::uint64_t length = 0;
  for (std::size_t i = 1; i < 5; ++i) length = length << 8 | static_cast<unsigned char>(body[i]);
  if (length != body.size() - 5) {
    return Invalid(absl::StrCat("the gRPC frame announces ", length, " bytes, there are ", body.size() - 5));
  }
  if (grpc_.SpaceUsedLong() > limits_.keep_bytes) grpc_ = {};
  if (!grpc_.ParseFromArray(body.data() + 5, static_cast<int>(length)))
    return Invalid("the gRPC message is malformed");
  OpenAiRequest& out = *out_;
  if (grpc_.has_tokenized()) {
    out.tokens.assign(grpc_.tokenized().input_ids().begin(), grpc_.tokenized().input_ids().end());
    if (out.tokens.empty()) return Invalid("input_ids must not be empty");
  } else if (grpc_.input_case() == vllm::grpc::engine::GenerateRequest::kText) {
    if (!IsUtf8(grpc_.text())) return Invalid("text is not UTF-8");
    out.text.emplace_back(grpc_.text());
  } else {
    return Invalid("must have tokenized or text field");
  }
  out.prompts.push_back({.piece_count = out.text.size(), .token_count = out.tokens.size()});
  out.stream = grpc_.stream();
  if (grpc_.sampling_params().has_max_tokens()) out.max_output_tokens = grpc_.sampling_params().max_tokens();
  return absl::OkStatus();
}

}  // namespace llmd::gateway
