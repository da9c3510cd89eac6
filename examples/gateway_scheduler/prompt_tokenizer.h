// Tokens of one prompt, as the engine makes them of text or of messages (spec: decode-worker.md 4.7).
#ifndef EXAMPLES_GATEWAY_SCHEDULER_PROMPT_TOKENIZER_H_
#define EXAMPLES_GATEWAY_SCHEDULER_PROMPT_TOKENIZER_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "examples/gateway_scheduler/token_source.h"
#include "llmd/base/types.h"

namespace llmd::host {

struct TextPrompt {
  std::string model = {};
  std::string text = {};
  bool add_special_tokens = true;
};

// Raw JSON; empty: absent.
struct ChatPrompt {
  std::string model = {};
  std::string messages = {};
  std::string tools = {}, chat_template = {}, chat_template_kwargs = {};
  bool add_generation_prompt = true;
  bool continue_final_message = false;
};

class PromptTokenizer {
 public:
  using PromptDone = std::function<void(absl::StatusOr<std::vector<TokenId>>)>;

  virtual ~PromptTokenizer() = default;
  // As TokenSource::Tokenize().
  virtual void TokenizeText(TextPrompt prompt, PromptDone done) = 0;
  virtual void TokenizeChat(ChatPrompt prompt, PromptDone done) = 0;
};

// A source that also takes parts of requests.
class PartTokenSource : public TokenSource, public PromptTokenizer {};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_PROMPT_TOKENIZER_H_
