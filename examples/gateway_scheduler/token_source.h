// Where the token ids of a prompt come from.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_TOKEN_SOURCE_H_
#define EXAMPLES_GATEWAY_SCHEDULER_TOKEN_SOURCE_H_

#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "llmd/base/types.h"
#include "llmd/gateway/openai_request.h"

namespace llmd::host {

// A request whose prompts are to become tokens. Views are valid until `done` was called.
struct TokenQuery {
  std::string_view path = {};   // /v1/chat/completions
  std::string_view model = {};  // for the model server
  std::string_view body = {};   // the client's
  const gateway::OpenAiRequest* openai = nullptr;
};

// Token ids of each prompt of the request, in its order.
struct PromptTokens {
  std::vector<std::vector<TokenId>> prompts = {};
};

class TokenSource {
 public:
  using Done = std::function<void(absl::StatusOr<std::shared_ptr<const PromptTokens>>)>;

  virtual ~TokenSource() = default;
  // Whether `done` is always called from within.
  virtual bool immediate() const { return false; }
  // Calls `done` once: from within when the answer is at hand, else later from a thread of the source's own.
  // An error means that the decision goes on without tokens. Any thread may call.
  virtual void Tokenize(const TokenQuery& query, Done done) = 0;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_TOKEN_SOURCE_H_
