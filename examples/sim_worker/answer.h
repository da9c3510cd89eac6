// From the engine's outputs to what the client reads (spec: decode-worker.md 4.3, 4.4, 4.8).
//
// One Answer per HTTP request, with all its choices. Chunks of a stream are put together from parts that are
// made once, since a worker under load writes thousands a second.
#ifndef EXAMPLES_SIM_WORKER_ANSWER_H_
#define EXAMPLES_SIM_WORKER_ANSWER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "examples/sim_worker/api_request.h"
#include "examples/sim_worker/engine.h"

namespace llmd::sim {

// How another worker finds this one's KV.
struct TransferIdentity {
  std::string engine_id = {};
  std::string host = {};
  std::uint16_t port = 0;
};

class Answer {
 public:
  // `id` without the prefix of the API. What is given lives as long as the answer.
  Answer(const ApiRequest& request, const std::string& id, std::int64_t created,
         const TransferIdentity& transfer, std::uint32_t block_size);

  // What precedes the first output of a stream: the roles of a chat, the echo of prompts.
  void Begin(std::string& sse);
  // Takes an output of the engine; events of a stream are appended to `sse` (null: no stream). True when the
  // engine is to stop this choice, because a stop string has come.
  bool Add(const Output& output, std::string* sse);
  bool done() const { return open_ == 0; }
  // Usage, if asked for, and the end mark.
  void End(std::string& sse) const;

  // All of it, when there is no stream.
  std::string ToJson() const;

 private:
  struct Choice {
    std::string text = {};
    std::size_t sent = 0;  // bytes of `text` that are out or held back for good
    std::vector<TokenId> tokens = {};
    std::uint32_t cached = 0;
    FinishReason finish = FinishReason::kNone;
    std::string stop_reason = "null";  // JSON
    std::vector<worker::BlockId> held_blocks = {};
  };

  bool FindStop(Choice& choice, std::size_t from);
  void AppendChunk(std::uint32_t index, const Choice& choice, std::string_view text, TokenId token,
                   bool has_token, std::string& sse) const;
  void AppendUsage(std::string& out) const;
  void AppendTransfer(std::string& out) const;

  const ApiRequest& request_;
  const TransferIdentity& transfer_;
  std::string id_;
  std::string head_;  // of a JSON answer or chunk, up to the choices
  std::uint32_t block_size_;
  std::size_t longest_stop_ = 0;
  std::vector<Choice> choices_;
  std::size_t open_;
};

void AppendTokens(const std::vector<TokenId>& tokens, std::string& out);  // [1,2,3]

}  // namespace llmd::sim

#endif  // EXAMPLES_SIM_WORKER_ANSWER_H_
