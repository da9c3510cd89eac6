#include "src/gateway/openai_parser.h"

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
