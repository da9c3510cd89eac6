#include <string>

#include "absl/strings/str_cat.h"
#include "examples/sim_worker/api_request.h"
#include "llmd/base/strings.h"
#include "llmd/hash/digest.h"

namespace llmd::sim {
namespace {

// A part of the content that is no text, by its hash.
void AppendMedia(const Json& part, const Tokenizer& tokenizer, std::vector<TokenId>& out) {
  const std::string text = part.dump(-1, ' ', false, Json::error_handler_t::replace);
  out.push_back(Tokenizer::kMedia);
  tokenizer.Encode(hash::Sha256(text).hex(), out);
}

absl::Status AppendContent(const Json& message, std::size_t index, const Tokenizer& tokenizer,
                           std::vector<TokenId>& out) {
  const auto it = message.find("content");
  if (it == message.end() || it->is_null()) {
    if (const auto calls = message.find("tool_calls"); calls != message.end()) {
      tokenizer.Encode(calls->dump(-1, ' ', false, Json::error_handler_t::replace), out);
    }
    return absl::OkStatus();
  }
  if (it->is_string()) {
    tokenizer.Encode(it->get_ref<const std::string&>(), out);
    return absl::OkStatus();
  }
  if (!it->is_array()) {
    return absl::InvalidArgumentError(
        absl::StrCat("messages[", index, "].content must be a string, a list of parts or null"));
  }
  for (std::size_t i = 0; i < it->size(); ++i) {
    const Json& part = (*it)[i];
    const auto type = part.is_object() ? part.find("type") : part.end();
    if (!part.is_object() || type == part.end() || !type->is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat("messages[", index, "].content[", i, "] must be an object with a type"));
    }
    if (*type == "text") {
      const auto text = part.find("text");
      if (text == part.end() || !text->is_string()) {
        return absl::InvalidArgumentError(
            absl::StrCat("messages[", index, "].content[", i, "].text must be a string"));
      }
      tokenizer.Encode(text->get_ref<const std::string&>(), out);
    } else {
      AppendMedia(part, tokenizer, out);
    }
  }
  return absl::OkStatus();
}

void AppendHeader(const std::string& role, const Tokenizer& tokenizer, std::vector<TokenId>& out) {
  out.push_back(Tokenizer::kStartHeader);
  tokenizer.Encode(role, out);
  out.push_back(Tokenizer::kEndHeader);
  tokenizer.Encode("\n\n", out);
}

}  // namespace

absl::Status RenderChat(const Json& body, const Tokenizer& tokenizer, std::vector<TokenId>& out) {
  FieldReader fields(body);
  const bool generate = fields.Bool("add_generation_prompt", true);
  const bool go_on = fields.Bool("continue_final_message", false);
  const Json* messages = fields.Find("messages");
  const Json* tools = fields.Find("tools");
  if (messages == nullptr || !messages->is_array() || messages->empty()) {
    fields.Fail("messages must be a list of at least one message");
  }
  if (tools != nullptr && (!tools->is_array() || tools->empty())) {
    fields.Fail("tools must be a list of at least one tool, or absent");
  }
  if (go_on && body.contains("add_generation_prompt") && generate) {
    fields.Fail("add_generation_prompt and continue_final_message must not both be true");
  }
  if (!fields.status().ok()) return fields.status();

  out.push_back(Tokenizer::kBos);
  if (tools != nullptr) {
    AppendHeader("tools", tokenizer, out);
    tokenizer.Encode(tools->dump(-1, ' ', false, Json::error_handler_t::replace), out);
    out.push_back(Tokenizer::kEot);
  }
  for (std::size_t i = 0; i < messages->size(); ++i) {
    const Json& message = (*messages)[i];
    const auto role = message.is_object() ? message.find("role") : message.end();
    if (!message.is_object() || role == message.end() || !role->is_string()) {
      return absl::InvalidArgumentError(absl::StrCat("messages[", i, "].role must be a string"));
    }
    AppendHeader(role->get_ref<const std::string&>(), tokenizer, out);
    if (absl::Status status = AppendContent(message, i, tokenizer, out); !status.ok()) return status;
    if (!go_on || i + 1 < messages->size()) out.push_back(Tokenizer::kEot);
  }
  if (generate && !go_on) AppendHeader("assistant", tokenizer, out);
  return absl::OkStatus();
}

}  // namespace llmd::sim
