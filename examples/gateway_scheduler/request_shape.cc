#include "examples/gateway_scheduler/request_shape.h"

#include <algorithm>
#include <cstddef>

namespace llmd::host {
namespace {

// Sampling, streaming, accounting; and what OpenAiRequest tells of. Sorted.
constexpr std::string_view kKnown[] = {
    "add_generation_prompt",
    "best_of",
    "cache_salt",
    "chat_template",
    "chat_template_kwargs",
    "continue_final_message",
    "dimensions",
    "echo",
    "encoding_format",
    "frequency_penalty",
    "ignore_eos",
    "input",
    "kv_transfer_params",
    "length_penalty",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "metadata",
    "min_p",
    "min_tokens",
    "model",
    "n",
    "presence_penalty",
    "priority",
    "prompt",
    "prompt_cache_key",
    "repetition_penalty",
    "request_id",
    "return_token_ids",
    "seed",
    "service_tier",
    "session_id",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "stop",
    "stop_token_ids",
    "store",
    "stream",
    "stream_options",
    "temperature",
    "tools",
    "top_k",
    "top_logprobs",
    "top_p",
    "user",
};

class Scanner {
 public:
  explicit Scanner(std::string_view json) : rest_(json) { SkipBlanks(); }

  char Peek() const { return rest_.empty() ? '\0' : rest_.front(); }
  bool Take(char c) {
    if (Peek() != c) return false;
    rest_.remove_prefix(1);
    SkipBlanks();
    return true;
  }
  // The value at the front; empty at the end.
  std::string_view Value() {
    const char* const begin = rest_.data();
    Skip();
    const std::string_view value(begin, rest_.data() - begin);
    SkipBlanks();
    return value;
  }

 private:
  void SkipBlanks() { rest_.remove_prefix(std::min(rest_.find_first_not_of(" \t\r\n"), rest_.size())); }
  void SkipString() {
    rest_.remove_prefix(1);
    for (std::size_t from = 0;;) {
      const std::size_t quote = rest_.find('"', from);
      if (quote == std::string_view::npos) {
        rest_ = {};
        return;
      }
      std::size_t escapes = 0;
      while (escapes < quote && rest_[quote - 1 - escapes] == '\\') ++escapes;
      if (escapes % 2 == 0) {
        rest_.remove_prefix(quote + 1);
        return;
      }
      from = quote + 1;
    }
  }
  void Skip() {
    std::size_t depth = 0;
    do {
      switch (Peek()) {
        case '\0':
          return;
        case '"':
          SkipString();
          break;
        case '{':
        case '[':
          ++depth;
          rest_.remove_prefix(1);
          break;
        case '}':
        case ']':
          if (depth == 0) return;
          --depth;
          rest_.remove_prefix(1);
          break;
        default:
          if (depth == 0) {
            rest_.remove_prefix(std::min(rest_.find_first_of(",}] \t\r\n"), rest_.size()));
          } else {
            rest_.remove_prefix(std::min(rest_.find_first_of("\"{}[]"), rest_.size()));
          }
      }
    } while (depth > 0);
  }

  std::string_view rest_;
};

// Calls visit(name, value) for each member, the name without quotes and as it stands.
template <typename Visit>
void EachMember(std::string_view object, const Visit& visit) {
  Scanner scan(object);
  if (!scan.Take('{')) return;
  while (scan.Peek() == '"') {
    std::string_view name = scan.Value();
    name.remove_prefix(1);
    name.remove_suffix(1);
    if (!scan.Take(':')) return;
    visit(name, scan.Value());
    scan.Take(',');
  }
}

}  // namespace

std::string OtherTokenOptions(std::string_view body) {
  std::string others;
  EachMember(body, [&](std::string_view name, std::string_view value) {
    // A name with an escape is found nowhere.
    if (std::binary_search(std::begin(kKnown), std::end(kKnown), name) || value == "null") return;
    others.append(name).append(":").append(value).append(",");
  });
  return others;
}

std::vector<RawMessage> SplitMessages(std::string_view raw_messages) {
  std::vector<RawMessage> messages;
  Scanner scan(raw_messages);
  if (!scan.Take('[')) return messages;
  while (scan.Peek() == '{') {
    RawMessage message{.json = scan.Value()};
    int roles = 0, contents = 0, others = 0;
    EachMember(message.json, [&](std::string_view name, std::string_view value) {
      if (name == "role") {
        ++roles;
      } else if (name == "content" && value.starts_with('"') &&
                 value.find("think") == std::string_view::npos) {
        ++contents;
      } else {
        ++others;
      }
    });
    message.simple = roles == 1 && contents == 1 && others == 0;
    messages.push_back(message);
    scan.Take(',');
  }
  return messages;
}

}  // namespace llmd::host
