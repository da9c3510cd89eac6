// The requests of the API (spec: decode-worker.md 4, gateway.md 6.1), read and checked.
#ifndef EXAMPLES_SIM_WORKER_API_REQUEST_H_
#define EXAMPLES_SIM_WORKER_API_REQUEST_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "examples/sim_worker/engine.h"
#include "examples/sim_worker/json_reader.h"
#include "examples/sim_worker/tokenizer.h"
#include "llmd/base/types.h"

namespace llmd::sim {

enum class Api : std::uint8_t { kCompletions, kChat, kGenerate };

// What requests are checked against.
struct ApiModel {
  std::vector<std::string> names = {};  // served names; the first is the one in metrics
  std::vector<std::string> loras = {};
  std::uint32_t max_model_len = 0;
};

struct ApiRequest {
  Api api = Api::kCompletions;
  std::string model = {};  // as asked, or the first served name
  bool stream = false;
  bool include_usage = false;
  bool continuous_usage = false;
  bool echo = false;
  bool return_token_ids = false;
  bool include_stop = false;
  std::uint32_t n = 1;
  std::vector<std::string> stop = {};
  std::vector<std::vector<TokenId>> prompts = {};
  std::vector<std::string> prompt_texts = {};  // for echo
  std::string request_id = {};
  EngineRequest params = {};                   // of every choice; without prompt and limit
  std::vector<std::uint32_t> max_tokens = {};  // by prompt
};

// Statuses become answers: InvalidArgument 400, NotFound 404, Unimplemented 501.
absl::StatusOr<ApiRequest> ParseApiRequest(Api api, std::string_view body, const ApiModel& model,
                                           const Tokenizer& tokenizer);
// The prompts alone: for .../render and /tokenize (which takes a prompt or messages).
absl::StatusOr<std::vector<std::vector<TokenId>>> ParseRender(Api api, std::string_view body,
                                                              const ApiModel& model,
                                                              const Tokenizer& tokenizer);

// Chat messages as tokens, laid out like Llama 3 (spec: decode-worker.md 6.5) without its date and default
// system block. Content other than text counts as its hash, so different images are different tokens.
absl::Status RenderChat(const Json& body, const Tokenizer& tokenizer, std::vector<TokenId>& out);

// A prompt in any of the forms of completions.
absl::Status ReadPrompts(const Json& prompt, bool add_bos, const Tokenizer& tokenizer,
                         std::vector<std::vector<TokenId>>& prompts, std::vector<std::string>* texts);

// NotFound for a model that is not served here. "" and absent stand for the first.
absl::Status CheckModel(const std::string& name, const ApiModel& model);

}  // namespace llmd::sim

#endif  // EXAMPLES_SIM_WORKER_API_REQUEST_H_
